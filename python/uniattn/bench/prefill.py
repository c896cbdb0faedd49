"""Time to first token of a model under several sharing plans, beside transformers on the same weights.

    uniattn bench prefill                                           # a small model, seconds
    uniattn bench prefill --shape 1b --dtype float32 --prompt 1024 4096 --csv prefill.csv --plot prefill.png

Sides take turns in one run; times are medians over the rounds. GFLOP/s count the products of the weights and of causal
attention; a plan's limit against the base is the ratio of these counts.
"""

import argparse
import resource
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from uniattn.bench.generation_arms import ARMS, SHAPES, Limits, Ours, Transformers, plan_of, write_arm, write_base
from uniattn.bench.report import conditions, markdown, write_csv

COLUMNS = ["arm", "batch", "prompt", "seconds", "tokens_per_s", "gflops", "base_ratio", "base_limit_ratio", "transformers_ratio", "cache_bytes"]  # fmt: skip


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="uniattn bench prefill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the random Llama")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["base", "g4-full", "g4-low", "g4-none", "share_kv", "linear", "skip"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, nargs="+", default=[512, 2048], help="tokens")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens of a prompt in one pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="transformers' forward through torch.compile")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(argv)


def flops(arm, shape, limits, batch, prompt):
    """Products with the weights, the head's for the last token alone, and causal attention: Q K and P V."""
    config = SHAPES[shape]
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    plan = plan_of(arm, layers, d) if arm != "base" else [{"mode": "full"}] * layers
    attending = sum(2 if entry["mode"] in ("full", "share_kv", "share_probs") else 0 for entry in plan)
    per_token = 2 * (limits.parameters - config["vocab_size"] * d)
    return batch * (prompt * per_token + attending * d * prompt**2)


def measure(sides, batch, prompt, args):
    samples = {name: [] for name in sides}
    for round_number in range(args.rounds + 1):
        for name, side in sides.items():
            if name == "transformers":
                side.prepare(batch, 0, prompt)
                seconds = side.read(prompt)
            else:
                side.prepare(batch, 0)
                seconds = side.read(prompt, max(1, args.chunk // batch))
            if round_number > 0:  # the first one warms up
                samples[name].append(seconds)
    return {name: statistics.median(times) for name, times in samples.items()}


def rows_of(times, sides, limits, args, batch, prompt):
    work = {arm: flops(arm, args.shape, limits[arm], batch, prompt) for arm in limits}
    for name, seconds in times.items():
        row = {"arm": name, "batch": batch, "prompt": prompt, "seconds": seconds, "tokens_per_s": batch * prompt / seconds}
        row |= {"base_ratio": times["base"] / seconds, "gflops": work.get(name, work["base"]) / seconds / 1e9}
        if name in work:
            row |= {"base_limit_ratio": work["base"] / work[name], "cache_bytes": sides[name].cache_bytes}
        if "transformers" in times:
            row["transformers_ratio"] = times["transformers"] / seconds
        yield row


def table(rows):
    cell = lambda row, key, form: form.format(row[key]) if key in row else ""
    forms = {"batch": "{}", "prompt": "{:,}", "seconds": "{:.3f}", "tokens_per_s": "{:.0f}", "gflops": "{:.0f}", "base_ratio": "{:.2f}", "base_limit_ratio": "{:.2f}", "transformers_ratio": "{:.2f}"}
    body = [[row["arm"], *(cell(row, key, form) for key, form in forms.items())] for row in rows]
    return markdown(["arm", "batch", "prompt", "seconds", "tokens/s", "GFLOP/s", "× base", "limit × base", "× transformers"], body)


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
    arms = list(dict.fromkeys(["base", *args.arms]))
    element, rows = 2 if args.dtype == "bfloat16" else 4, []
    with tempfile.TemporaryDirectory(prefix="uniattn-bench-") as work:
        folders = {arm: Path(work) / arm for arm in arms}
        write_base(folders["base"], args.shape, getattr(torch, args.dtype), max(args.prompt))
        for arm in arms[1:]:
            write_arm(folders[arm], folders["base"], arm)
        limits = {arm: Limits.of(folder, element) for arm, folder in folders.items()}
        print(f"{args.shape} Llama of random weights, {args.dtype}, {args.threads} threads, chunks of {args.chunk}\n{conditions()}\n")
        sides = {arm: Ours(folder, args.dtype) for arm, folder in folders.items()}
        if not args.no_transformers:
            sides["transformers"] = Transformers(folders["base"], args.dtype, args.compile)
        for batch in args.batch:
            for prompt in args.prompt:
                rows += rows_of(measure(sides, batch, prompt, args), sides, limits, args, batch, prompt)
                print(table(rows[-len(sides) :]), flush=True)
    print(f"Peak memory of this process, all sides together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
