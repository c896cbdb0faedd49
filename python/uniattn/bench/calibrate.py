"""Calibration, ours against the published procedure: held-out loss, wall time and peak memory by number of tokens.

    uniattn bench calibrate --model DIR --calibration cal.ids --held-out test.ids --plan 2 1 5 --out DIR
    uniattn bench calibrate --speed-only --layers 32 --plan 4 16 33 --tokens 4096 --out DIR

Arms take turns, and medians are reported. Time and memory are those of the whole process `uniattn calibrate`; of the
published procedure's time Python's start and imports are left out. --speed-only makes a Llama of random weights, and
random documents that need no padding. Writes OUT/calibrate.csv, .md and .png; everything runs under OUT/work.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from uniattn.bench import calibration_arms as arms
from uniattn.bench.calibration_arms import Arm, Data
from uniattn.bench.report import conditions, markdown, write_csv

COLUMNS = ["arm", "tokens", "loss", "recovered", "seconds", "cpu_seconds", "peak_mib"]
Row = dict[str, Any]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="uniattn bench calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face directory of a Llama")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--format", default="ids", help="of both files")
    parser.add_argument("--plan", type=int, nargs=3, metavar=("GROUP", "BEGIN", "END"), required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true", help="a random model, no loss, fewer arms")
    parser.add_argument("--layers", type=int, default=32, help="of the random model")
    parser.add_argument("--hidden", type=int, default=512, help="of the random model, with heads of 64")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if not args.speed_only and not (args.model and args.calibration and args.held_out):
        parser.error("--model, --calibration and --held-out are needed without --speed-only")
    return args


def write_random_model(folder: Path, layers: int, hidden: int) -> None:
    """The proportions of Llama-2-7B; weights as transformers initialises them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8 * hidden, hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=layers,
            num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=2048,
        )  # fmt: skip
    ).save_pretrained(folder)


def write_random_documents(file: Path, tokens: int, length: int, vocabulary: int) -> None:
    import random

    draw = random.Random(0)
    documents = [draw.choices(range(3, vocabulary), k=length) for _ in range(-(-tokens // length))]
    file.write_text("".join(" ".join(map(str, ids)) + "\n" for ids in documents))


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.work = args.out / "work"
        self.calibration = Data(args.calibration, args.format)
        whole = self.prepare(self.work / "prepare", samples=0)
        self.documents, self.document_tokens = whole["kept"], whole["tokens"] / whole["kept"]

    def config(self, arm: Arm, run: Path, samples: int) -> dict[str, Any]:
        args = self.args
        config = arms.config(arm, run, args.model, args.plan, args.max_length, self.calibration, samples)
        if args.held_out:
            config["data"]["eval"] = Data(args.held_out, args.format).section()
        return config

    def prepare(self, run: Path, samples: int) -> dict[str, int]:
        """Puts the calibration documents, and no others, under RUN/data; their counts."""
        config = self.config(arms.DEFAULT, run, samples)
        config["data"].pop("eval", None)
        return arms.run("prepare", config)[0]["calibration"]

    def samples(self, tokens: int) -> int:
        """The number of documents that have about so many tokens."""
        count = round(tokens / self.document_tokens)
        if not 2 <= count <= self.documents:
            raise SystemExit(f"{tokens} tokens are {count} documents; {self.args.calibration} has {self.documents}")
        return count

    def measure(self, arm: Arm, tokens: int) -> Row:
        """One calibration, and the held-out loss of what it gives; the run directory is made anew."""
        run, samples = self.work / f"{arm.name} {tokens}", self.samples(tokens)
        shutil.rmtree(run, ignore_errors=True)
        row: Row = {"arm": arm.name, "tokens": tokens}
        usage = None
        if arm is arms.PUBLISHED_ARM:
            prepared = self.work / f"prepared {tokens}"
            self.prepare(prepared, samples)
            usage = arms.published(self.args.model, self.args.plan, self.args.max_length, prepared, run)
        elif arm.fit:
            _, usage = arms.run("calibrate", self.config(arm, run, samples))
        if usage:
            row |= {"seconds": usage.seconds, "cpu_seconds": usage.cpu_seconds, "peak_mib": usage.peak_bytes / 2**20}
        if not self.args.speed_only:
            row["loss"] = arms.run("run", self.config(arm, run, samples))[0]["loss"]
        return row

    def base_loss(self) -> float:
        run = self.work / "base"
        shutil.rmtree(run, ignore_errors=True)
        return arms.run("run", self.config(arms.NONE, run, samples=0) | {"plan": None})[0]["loss"]


def summarise(measured: list[Row], base: float | None) -> list[Row]:
    """One row per arm and number of tokens: medians, and the share of the gap to the base that is recovered."""
    rows: dict[tuple[str, int], Row] = {}
    for row in measured:
        same = [other for other in measured if (other["arm"], other["tokens"]) == (row["arm"], row["tokens"])]
        medians = {key: statistics.median(other[key] for other in same) for key in row if key not in ("arm", "tokens")}
        rows[row["arm"], row["tokens"]] = row | medians
    for row in rows.values():
        if base is not None:
            shared = rows[arms.NONE.name, row["tokens"]]["loss"]
            row["recovered"] = (shared - row["loss"]) / (shared - base)
    return list(rows.values())


def tables(rows: list[Row], sizes: list[int]) -> str:
    """A Markdown table per quantity: arms down, numbers of tokens across."""
    forms = {
        "loss": ("held-out loss", "{:.4f}"), "recovered": ("share of the gap recovered", "{:.1%}"),
        "seconds": ("wall time, s", "{:.2f}"), "cpu_seconds": ("CPU time, s", "{:.2f}"),
        "peak_mib": ("peak memory, MiB", "{:.0f}"),
    }  # fmt: skip
    parts = []
    for key, (title, form) in forms.items():
        body = []
        for name in dict.fromkeys(row["arm"] for row in rows if key in row):
            found = {row["tokens"]: form.format(row[key]) for row in rows if row["arm"] == name}
            body.append([name, *(found[size] for size in sizes)])
        if body:
            parts.append(markdown([title, *(f"{size:,} tokens" for size in sizes)], body))
    return "\n".join(parts)


def plot(rows: list[Row], base: float | None, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = {"loss": "held-out loss, nats", "cpu_seconds": "CPU time, s", "peak_mib": "peak memory, MiB"}
    keys = {key: title for key, title in keys.items() if any(key in row for row in rows)}
    figure, axes = pyplot.subplots(1, len(keys), figsize=(4.5 * len(keys), 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, keys.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(row["arm"] for row in rows)):
            points = [(row["tokens"], row[key]) for row in rows if row["arm"] == name and key in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=f"C{number}", label=name)
        if key == "loss" and base is not None:
            axis.axhline(base, color="black", linewidth=0.8, linestyle=":", label="base")
        axis.set(title=title, xlabel="calibration tokens", xscale="log", yscale="linear" if key == "loss" else "log")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=150)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = arms.ARMS
    if args.speed_only:
        args.model, args.calibration, args.format = args.out / "model", args.out / "random.ids", "ids"
        write_random_model(args.model, args.layers, args.hidden)
        write_random_documents(args.calibration, max(args.tokens), args.max_length, 8 * args.hidden)
        chosen = [arms.PUBLISHED_ARM, arms.COMPENSATION, arms.DEFAULT]
    bench = Bench(args)
    base = None if args.speed_only else bench.base_loss()
    measured = []
    for _ in range(args.rounds):
        for tokens in args.tokens:
            for arm in chosen:
                measured.append(bench.measure(arm, tokens))
                print(measured[-1], flush=True)
    rows = summarise(measured, base)
    write_csv(args.out / "calibrate.csv", COLUMNS, rows)
    ends = f"; base loss {base:.4f}" if base is not None else ""
    text = f"Medians of {args.rounds} rounds; {conditions()}{ends}.\n\n{tables(rows, args.tokens)}"
    (args.out / "calibrate.md").write_text(text)
    plot(rows, base, args.out / "calibrate.png")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
