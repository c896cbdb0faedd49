"""Time per output token of a model under several sharing plans, beside transformers on the same weights.

    uniattn bench decode                                            # a small model, seconds
    uniattn bench decode --shape 1b --dtype bfloat16 --context 4096 16384 --batch 1 4 --csv decode.csv --plot decode.png

The past is random keys and values, not read text. Sides take turns in one run; times are medians over the rounds.
transformers takes part with two attentions, with --compile compiled as well, and its fastest side counts. The limit is the
time that the bytes of weights and cache take at the speed at which this machine reads memory, measured in the same run.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from uniattn.bench.generation_arms import SHAPES, Ours, Transformers, weight_bytes
from uniattn.bench.generation_run import make_parser, make_sides, peer_seconds, table, write_files
from uniattn.bench.report import conditions

COLUMNS = ["arm", "batch", "context", "ms_per_token", "tokens_per_s", "limit_ms", "base_ratio", "base_limit_ratio", "transformers_ratio", "cache_bytes", "weight_bytes"]  # fmt: skip

DEFAULT_ARMS = ["base", "g2-full", "g4-full", "g4-low", "g4-none", "g8-low", "share_kv", "linear", "skip"]
TABLE = {
    "arm": ("arm", "{}"), "batch": ("batch", "{}"), "context": ("context", "{:,}"), "ms/token": ("ms_per_token", "{:.2f}"),
    "limit ms": ("limit_ms", "{:.2f}"), "tokens/s": ("tokens_per_s", "{:.1f}"), "× base": ("base_ratio", "{:.2f}"),
    "limit × base": ("base_limit_ratio", "{:.2f}"), "× transformers": ("transformers_ratio", "{:.2f}"),
    "cache MiB": ("cache_mib", "{:,.1f}"),
}  # fmt: skip


def parse_arguments(argv):
    parser = make_parser("decode", __doc__, DEFAULT_ARMS, batch=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--tokens", type=int, default=4, help="decoded in a turn")
    parser.add_argument("--rounds", type=int, default=5)
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
    for side in sides.values():
        side.prepare(batch, context, *([args.tokens * (args.rounds + 1)] if isinstance(side, Transformers) else []))
    samples = {name: [] for name in sides}
    for round_number in range(args.rounds + 1):
        for name, side in sides.items():
            if isinstance(side, Transformers):
                seconds = sum(side.read(1) for _ in range(args.tokens))
            else:
                seconds = side.read(args.tokens, 1)
            if round_number > 0:  # the first one warms up
                samples[name].append(seconds / args.tokens)
    return {name: statistics.median(times) for name, times in samples.items()}


def rows_of(times, sides, args, speed, batch, context):
    element = getattr(torch, args.dtype).itemsize
    weights = {name: weight_bytes(name, SHAPES[args.shape], element) for name, side in sides.items() if isinstance(side, Ours)}
    bytes_of = lambda name: weights[name] + sides[name].cache_bytes
    peer = peer_seconds(times, sides)
    for name, seconds in times.items():
        row = {"arm": name, "batch": batch, "context": context, "ms_per_token": 1e3 * seconds, "tokens_per_s": batch / seconds}
        row["base_ratio"] = times["base"] / seconds
        if name in weights:
            row |= {"limit_ms": 1e3 * bytes_of(name) / speed, "base_limit_ratio": bytes_of("base") / bytes_of(name)}
            row |= {"cache_bytes": sides[name].cache_bytes, "weight_bytes": weights[name]}
        if peer is not None:
            row["transformers_ratio"] = peer / seconds
        yield row


def with_cache_mib(row):
    return row | {"cache_mib": row["cache_bytes"] / 2**20} if "cache_bytes" in row else row


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
    rows = []
    with tempfile.TemporaryDirectory(prefix="uniattn-bench-") as work:
        sides = make_sides(args, max(args.context) + 4096, Path(work), ["sdpa", "eager"])
        speed = memory_speed()
        print(f"{args.shape} Llama of random weights, {args.dtype}, {args.threads} threads; memory reads {speed / 1e9:.1f} GB/s\n{conditions()}\n")
        for batch in args.batch:
            for context in args.context:
                times = measure(sides, batch, context, args)
                rows += rows_of(times, sides, args, speed, batch, context)
                print(table([with_cache_mib(row) for row in rows[-len(sides) :]], TABLE), flush=True)
    write_files(args, rows, COLUMNS, plot)


if __name__ == "__main__":
    main(sys.argv[1:])
