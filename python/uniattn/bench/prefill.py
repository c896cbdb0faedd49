"""Time to first token of a model under several sharing plans, beside transformers on the same weights.

    uniattn bench prefill                                           # a small model, seconds
    uniattn bench prefill --shape 1b --dtype float32 --prompt 1024 4096 --csv prefill.csv --plot prefill.png

Sides take turns in one run; times are medians over the rounds. With --compile transformers takes part twice, and its
faster side counts. GFLOP/s count the products of the weights and of causal attention; a plan's limit against the base is
the ratio of these counts.
"""

import resource
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from uniattn.bench.generation_arms import SHAPES, Ours, Transformers, layer_weights, layers_of
from uniattn.bench.generation_run import make_parser, make_sides, peer_seconds, table, write_files
from uniattn.bench.report import conditions

COLUMNS = ["arm", "batch", "prompt", "seconds", "tokens_per_s", "gflops", "base_ratio", "base_limit_ratio", "transformers_ratio", "cache_bytes"]  # fmt: skip

DEFAULT_ARMS = ["base", "g4-full", "g4-low", "g4-none", "share_kv", "linear", "skip"]
TABLE = {
    "arm": ("arm", "{}"), "batch": ("batch", "{}"), "prompt": ("prompt", "{:,}"), "seconds": ("seconds", "{:.3f}"),
    "tokens/s": ("tokens_per_s", "{:.0f}"), "GFLOP/s": ("gflops", "{:.0f}"), "× base": ("base_ratio", "{:.2f}"),
    "limit × base": ("base_limit_ratio", "{:.2f}"), "× transformers": ("transformers_ratio", "{:.2f}"),
}  # fmt: skip


def parse_arguments(argv):
    parser = make_parser("prefill", __doc__, DEFAULT_ARMS, batch=[1])
    parser.add_argument("--prompt", type=int, nargs="+", default=[512, 2048], help="tokens")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens of a prompt in one pass")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


def flops(arm, shape, batch, prompt):
    """Products with the weights, and causal attention: Q K and P V. From the last layer that has a cache on, all but its
    keys and values is needed for the last token alone, whose share is left out."""
    config = SHAPES[shape]
    plan = layers_of(arm, config)
    last = max(i for i, entry in enumerate(plan) if entry["mode"] in ("full", "share_probs"))
    attended = {"full": 2, "share_kv": 2, "share_probs": 1, "linear": 0, "skip": 0}  # products of d · prompt² FLOPs
    total = 0
    for entry in plan[:last]:
        total += 2 * prompt * sum(layer_weights(entry, config).values())
        total += attended[entry["mode"]] * config["hidden_size"] * prompt**2
    cached = layer_weights(plan[last], config)
    return batch * (total + 2 * prompt * (cached.get("k", 0) + cached["v"]))


def measure(sides, batch, prompt, args):
    samples = {name: [] for name in sides}
    for round_number in range(args.rounds + 1):
        for name, side in sides.items():
            if isinstance(side, Transformers):
                side.prepare(batch, 0, prompt)
                seconds = side.read(prompt)
            else:
                side.prepare(batch, 0)
                seconds = side.read(prompt, max(1, args.chunk // batch))
            if round_number > 0:  # the first one warms up
                samples[name].append(seconds)
    return {name: statistics.median(times) for name, times in samples.items()}


def rows_of(times, sides, args, batch, prompt):
    work = {arm: flops(arm, args.shape, batch, prompt) for arm, side in sides.items() if isinstance(side, Ours)}
    peer = peer_seconds(times, sides)
    for name, seconds in times.items():
        row = {"arm": name, "batch": batch, "prompt": prompt, "seconds": seconds, "tokens_per_s": batch * prompt / seconds}
        row |= {"base_ratio": times["base"] / seconds, "gflops": work.get(name, work["base"]) / seconds / 1e9}
        if name in work:
            row |= {"base_limit_ratio": work["base"] / work[name], "cache_bytes": sides[name].cache_bytes}
        if peer is not None:
            row["transformers_ratio"] = peer / seconds
        yield row


def plot(rows, file):
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6, 4))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        points = [(row["prompt"], row["seconds"]) for row in rows if row["arm"] == arm and row["batch"] == rows[0]["batch"]]
        panel.plot(*zip(*points), marker="o", label=arm)
    panel.set(xlabel="tokens of the prompt", ylabel="seconds to the first token", xscale="log", yscale="log")
    panel.legend(fontsize=7)
    figure.savefig(file, bbox_inches="tight", dpi=150)


def main(argv):
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="uniattn-bench-") as work:
        sides = make_sides(args, max(args.prompt), Path(work), ["sdpa"])
        print(f"{args.shape} Llama of random weights, {args.dtype}, {args.threads} threads, chunks of {args.chunk}\n{conditions()}\n")
        for batch in args.batch:
            for prompt in args.prompt:
                rows += rows_of(measure(sides, batch, prompt, args), sides, args, batch, prompt)
                print(table(rows[-len(sides) :], TABLE), flush=True)
    print(f"Peak memory of this process, all sides together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    write_files(args, rows, COLUMNS, plot)


if __name__ == "__main__":
    main(sys.argv[1:])
