"""What a benchmark of generation does before and after measuring: options, sides, table, files."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from uniattn.bench.generation_arms import ARMS, SHAPES, Ours, Transformers, write_arm, write_base
from uniattn.bench.report import markdown, write_csv


def make_parser(name: str, description: str, arms: list[str], batch: list[int]) -> argparse.ArgumentParser:
    """The options that all of them have; `arms` and `batch` are defaults."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"uniattn bench {name}", description=description, formatter_class=form)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the random Llama")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    parser.add_argument("--batch", type=int, nargs="+", default=batch)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="transformers' forward through torch.compile as well")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser


def make_sides(args: argparse.Namespace, positions: int, work: Path, attentions: list[str]) -> dict:
    """The models under `work`, loaded: what takes turns, the base first; `attentions` of transformers."""
    arms = list(dict.fromkeys(["base", *args.arms]))
    folders = {arm: work / arm for arm in arms}
    write_base(folders["base"], args.shape, getattr(torch, args.dtype), positions)
    for arm in arms[1:]:
        write_arm(folders[arm], folders["base"], arm)
    sides = {arm: Ours(folder, args.dtype) for arm, folder in folders.items()}
    for attention in [] if args.no_transformers else attentions:
        model = AutoModelForCausalLM.from_pretrained(
            folders["base"], dtype=getattr(torch, args.dtype), attn_implementation=attention
        )
        sides[f"transformers, {attention}"] = Transformers(model, compiled=False)
        if args.compile:
            sides[f"transformers, {attention}, compiled"] = Transformers(model, compiled=True)
    return sides


def peer_seconds(times: dict[str, float], sides: dict) -> float | None:
    """Of the fastest side of transformers; None where it takes no part."""
    return min((seconds for name, seconds in times.items() if isinstance(sides[name], Transformers)), default=None)


def table(rows: list[dict], columns: dict[str, tuple[str, str]]) -> str:
    """Markdown; `columns` gives each title the key of a row and its form. What a row lacks stays empty."""
    body = [[form.format(row[key]) if key in row else "" for key, form in columns.values()] for row in rows]
    return markdown(list(columns), body)


def write_files(args: argparse.Namespace, rows: list[dict], columns: list[str], plot) -> None:
    if args.csv:
        write_csv(args.csv, columns, rows)
    if args.plot:
        plot(rows, args.plot)
