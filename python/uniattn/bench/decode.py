"""Time per output token of a model under several sharing plans, beside transformers on the same weights.

    uniattn bench decode                                            # a small model, seconds
    uniattn bench decode --shape 1b --dtype bfloat16 --context 4096 16384 --batch 1 4 --csv decode.csv --plot decode.png

The past is random keys and values, not read text. Sides take turns in one run; times are medians over the rounds. The
limit is the time that the bytes of weights and cache take at the speed at which this machine reads memory, measured in the
same run.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from uniattn.bench.generation_arms import ARMS, SHAPES, Limits, Ours, Transformers, write_arm, write_base
from uniattn.bench.report import conditions, markdown, write_csv

COLUMNS = ["arm", "batch", "context", "ms_per_token", "tokens_per_s", "limit_ms", "base_ratio", "base_limit_ratio", "transformers_ratio", "cache_bytes", "weight_bytes"]  # fmt: skip


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="uniattn bench decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the random Llama")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["base", "g2-full", "g4-full", "g4-low", "g4-none", "g8-low", "share_kv", "linear", "skip"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--tokens", type=int, default=4, help="decoded in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="transformers' forward through torch.compile")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(argv)


def memory_speed() -> float:
    """Bytes per second of the best of several reads of a quarter of a gigabyte."""
    x, best = torch.ones(1 << 26), 0.0
    for _ in range(8):
        start = time.perf_counter()
        x.sum()
        best = max(best, x.nbytes / (time.perf_counter() - start))
    return best


def measure(sides, batch, context, args):
    """Seconds per step of every side, medians over the rounds."""
    for name, side in sides.items():
        side.prepare(batch, context, *([args.tokens * (args.rounds + 1)] if name == "transformers" else []))
    samples = {name: [] for name in sides}
    for round_number in range(args.rounds + 1):
        for name, side in sides.items():
            if name == "transformers":
                seconds = sum(side.read(1) for _ in range(args.tokens))
            else:
                seconds = side.read(args.tokens, 1)
            if round_number > 0:  # the first one warms up
                samples[name].append(seconds / args.tokens)
    return {name: statistics.median(times) for name, times in samples.items()}


def rows_of(times, sides, limits, speed, batch, context):
    bytes_of = lambda name: limits[name].weight_bytes + sides[name].cache_bytes
    for name, seconds in times.items():
        row = {"arm": name, "batch": batch, "context": context, "ms_per_token": 1e3 * seconds, "tokens_per_s": batch / seconds}
        row["base_ratio"] = times["base"] / seconds
        if name != "transformers":
            row |= {"limit_ms": 1e3 * bytes_of(name) / speed, "base_limit_ratio": bytes_of("base") / bytes_of(name)}
            row |= {"cache_bytes": sides[name].cache_bytes, "weight_bytes": limits[name].weight_bytes}
        if "transformers" in times:
            row["transformers_ratio"] = times["transformers"] / seconds
        yield row


def table(rows):
    cell = lambda row, key, form: form.format(row[key]) if key in row else ""
    forms = {"batch": "{}", "context": "{:,}", "ms_per_token": "{:.2f}", "limit_ms": "{:.2f}", "tokens_per_s": "{:.1f}", "base_ratio": "{:.2f}", "base_limit_ratio": "{:.2f}", "transformers_ratio": "{:.2f}"}
    body = [[row["arm"], *(cell(row, key, form) for key, form in forms.items()), f"{row['cache_bytes'] / 2**20:,.1f}" if "cache_bytes" in row else ""] for row in rows]
    return markdown(["arm", "batch", "context", "ms/token", "limit ms", "tokens/s", "× base", "limit × base", "× transformers", "cache MiB"], body)


def plot(rows, file):
    import matplotlib.pyplot as plt

    batches = sorted({row["batch"] for row in rows})
    figure, panels = plt.subplots(1, len(batches), figsize=(5 * len(batches), 4), squeeze=False)
    for panel, batch in zip(panels[0], batches):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            points = [(row["context"], row["ms_per_token"]) for row in rows if row["arm"] == arm and row["batch"] == batch]
            panel.plot(*zip(*points), marker="o", label=arm)
        panel.set(title=f"batch {batch}", xlabel="tokens in the cache", ylabel="ms per step", xscale="log", yscale="log")
    panels[0][0].legend(fontsize=7)
    figure.savefig(file, bbox_inches="tight", dpi=150)


def main(argv):
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    arms = list(dict.fromkeys(["base", *args.arms]))
    element = 2 if args.dtype == "bfloat16" else 4
    rows = []
    with tempfile.TemporaryDirectory(prefix="uniattn-bench-") as work:
        folders = {arm: Path(work) / arm for arm in arms}
        write_base(folders["base"], args.shape, getattr(torch, args.dtype), max(args.context) + 4096)
        for arm in arms[1:]:
            write_arm(folders[arm], folders["base"], arm)
        speed, limits = memory_speed(), {arm: Limits.of(folder, element) for arm, folder in folders.items()}
        print(f"{args.shape} Llama of random weights, {args.dtype}, {args.threads} threads; memory reads {speed / 1e9:.1f} GB/s\n{conditions()}\n")
        sides = {arm: Ours(folder, args.dtype) for arm, folder in folders.items()}
        if not args.no_transformers:
            sides["transformers"] = Transformers(folders["base"], args.dtype, args.compile)
        for batch in args.batch:
            for context in args.context:
                times = measure(sides, batch, context, args)
                rows += rows_of(times, sides, limits, speed, batch, context)
                print(table(rows[-len(sides) :]), flush=True)
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
