"""Measures the models of the quickstart with the program and writes a table and a plot of them.

python scripts/quickstart_summary.py --program build/release/uniattn --data HELDOUT.jsonl --out runs/quickstart \\
    base=DIR finetuned=DIR shared=DIR calibrated=DIR uniattn=DIR

Writes OUT/summary.json, {"arms": [{"name", "loss", "parameters", "kv_bytes_per_token", "prefill_tokens_per_s", "decode_tokens_per_s"}]},
and OUT/summary.png. Loss is in nats per answer token of DATA.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPT_TOKENS, NEW_TOKENS = 512, 256
COLUMNS = (
    ("loss", "held-out loss", "{:.4f}"),
    ("parameters", "parameters", "{:,}"),
    ("kv_bytes_per_token", "KV bytes/token", "{:,}"),
    ("prefill_tokens_per_s", "prefill tokens/s", "{:,.0f}"),
    ("decode_tokens_per_s", "decode tokens/s", "{:,.0f}"),
)
Arm = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--data", type=Path, required=True, help="held-out instructions, JSONL in alpaca form")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7, help="speed measurements per model; the median is reported")
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    args = parser.parse_args()

    models = dict(model.split("=", 1) for model in args.models)
    arms = [quality(args.program, name, directory, args.data) for name, directory in models.items()]
    with tempfile.TemporaryDirectory() as scratch:
        endless = {name: without_end(Path(directory), Path(scratch) / name) for name, directory in models.items()}
        add_speeds(args.program, arms, endless, args.repeats)
    table = format_table(arms)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps({"arms": arms}, indent=2) + "\n")
    plot(arms, args.out / "summary.png")
    print(f"\n{table}\n\nloss: nats per answer token on {args.data}")
    print(f"speed: median of {args.repeats} runs taken in turns, one thread, {PROMPT_TOKENS} prompt tokens, {NEW_TOKENS} generated")
    print(f"written: {args.out / 'summary.json'}, {args.out / 'summary.png'}")


def run(program: str, *arguments: str, threads: int | None = None) -> Any:
    """One command of the program with --json; what it logs goes to stderr."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    finished = subprocess.run([program, *arguments, "--json"], stdout=subprocess.PIPE, env=environment)
    if finished.returncode:
        sys.exit(f"quickstart_summary: `{program} {arguments[0]}` failed with exit code {finished.returncode}")
    return json.loads(finished.stdout)


def quality(program: str, name: str, directory: str, data: Path) -> Arm:
    size = run(program, "inspect", "--model", directory)
    loss = run(program, "eval", "--model", directory, "--data", str(data), "--format", "alpaca")["loss"]
    return {"name": name, "loss": loss, **{key: size[key] for key in ("parameters", "kv_bytes_per_token")}}


def without_end(directory: Path, copy: Path) -> str:
    """A copy of the model that knows no end token: all models must generate the same number of tokens to be compared."""
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    config["eos_token_id"] = None
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "generation_config.json").unlink(missing_ok=True)
    return str(copy)


def add_speeds(program: str, arms: list[Arm], models: dict[str, str], repeats: int) -> None:
    """Models take turns, so that a busy neighbour on the machine slows all of them.

    One thread: these models are too small to gain from more, and threads that wait for each other make the times jump.
    """
    vocabulary = json.loads((Path(next(iter(models.values()))) / "config.json").read_text())["vocab_size"]
    ids = " ".join(map(str, random.Random(0).choices(range(3, vocabulary), k=PROMPT_TOKENS)))
    keys = ("prefill_tokens_per_s", "decode_tokens_per_s")
    samples: dict[tuple[str, str], list[float]] = {(name, key): [] for name in models for key in keys}
    for _ in range(repeats):
        for name, directory in models.items():
            result = run(program, "generate", "--model", directory, "--ids", ids, "--max-new-tokens", str(NEW_TOKENS), threads=1)
            for key in keys:
                samples[name, key].append(result[key])
    for arm in arms:
        arm.update({key: statistics.median(samples[arm["name"], key]) for key in keys})


def format_table(arms: list[Arm]) -> str:
    rows = [["model", *(title for _, title, _ in COLUMNS)]]
    rows += [[arm["name"], *(form.format(arm[key]) for key, _, form in COLUMNS)] for arm in arms]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))) + " |"
        for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * (width - 1) + (":" if i else "-") for i, width in enumerate(widths)) + " |")
    return "\n".join(lines)


def plot(arms: list[Arm], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    panels = (("loss", "held-out loss, nats"), ("kv_bytes_per_token", "KV cache, bytes per token"), ("decode_tokens_per_s", "decode, tokens/s"))
    names = [arm["name"] for arm in arms]
    for axis, (key, title) in zip(axes, panels, strict=True):
        values = [arm[key] for arm in arms]
        axis.bar_label(axis.bar(names, values, color="#4878a8"), fmt="{:,.4g}", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelrotation=20, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.12)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
