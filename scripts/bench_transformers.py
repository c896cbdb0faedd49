"""Generation by `generate` of transformers: a random Llama, and the same unified with and without the operators.

    OMP_NUM_THREADS=2 .venv/bin/python scripts/bench_transformers.py --prompt 4096

SDPA and a cache that grows where nothing else is said. Sides take turns; times are medians over the rounds, for a
further token over the medians within a round. Besides, how many tokens are the same with the operators and without.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import uniattn  # noqa: E402
from uniattn.bench.generation_arms import SHAPES  # noqa: E402
from uniattn.bench.report import conditions, markdown  # noqa: E402


class Clock:
    """A streamer that notes when tokens come."""

    def __init__(self):
        self.times = []

    def put(self, tokens):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def make_model(args, attention, group=None):
    """Of the same weights each time; with `group` unified over the last three quarters of the layers."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=2 * args.prompt)
    model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, args.dtype)).eval()
    if group is not None:
        layers = config.num_hidden_layers
        uniattn.convert(model, uniattn.SharingPlan.regular(layers, group, layers // 4, layers, compensation="none"))
    model.set_attn_implementation(attention)
    return model


def generate(model, prompt, tokens, **options):
    """The new tokens, milliseconds to the first one and for each further one."""
    clock = Clock()
    start = time.perf_counter()
    ids = model.generate(
        prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, streamer=clock, **options
    )
    times = clock.times[1:]  # behind the prompt, which is streamed first
    steps = [b - a for a, b in zip(times, times[1:])]
    return ids[:, prompt.shape[1] :], 1e3 * (times[0] - start), 1e3 * statistics.median(steps)


def main():
    args = parse_arguments()
    torch.set_num_threads(2)
    static = {"cache_implementation": "static", "disable_compile": True}
    base, unified = make_model(args, "sdpa"), make_model(args, "sdpa", group=4)
    sides = {
        "base": (base, {}),
        "base, static cache": (base, static),
        "base, static cache, eager attention": (make_model(args, "eager"), static),
        "groups of 4": (unified, {}),
        "groups of 4, static cache": (unified, static),
        "groups of 4, operators": (make_model(args, "uniattn", group=4), {}),
    }
    prompt = torch.randint(3, base.config.vocab_size, (args.batch, args.prompt))
    firsts, steps, tokens = ({name: [] for name in sides} for _ in range(3))
    for _ in range(args.rounds + 1):
        for name, (model, options) in sides.items():
            tokens[name], first, step = generate(model, prompt, args.tokens, **options)
            firsts[name].append(first), steps[name].append(step)
    print(f"{args.shape} Llama of random weights, {args.dtype}, batch {args.batch}, prompt {args.prompt}")
    print(f"{conditions()}\n")
    median = lambda times: statistics.median(times[1:])  # the first round warms up
    ours = "groups of 4, operators"
    rows = []
    for name in sides:
        step = median(steps[name])
        rows.append([name, f"{median(firsts[name]):.0f}", f"{step:.1f}", f"{step / median(steps[ours]):.2f}"])
    print(markdown(["", "first token, ms", "further tokens, ms", "to the operators"], rows))
    same = (tokens[ours] == tokens["groups of 4"]).float().mean()
    print(f"tokens equal with and without operators: {100 * same:.1f} %")


if __name__ == "__main__":
    main()
