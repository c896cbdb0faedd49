#!/usr/bin/env python3
"""Times a superblock of g layers against g calls of scaled_dot_product_attention, interleaved in one run.

Prints CSV: median milliseconds of both sides, the median of the per-round ratios, and the useful GFLOP/s (causal
products that g separate layers need, recomputation not counted). Rounds in which this process did not get its threads
are dropped: a row with 0 rounds says that the machine was busy.

    python scripts/bench_attention.py --group 4 --tokens 1024 --heads 8 --kv-heads 8 --head-dim 64 --dtype float32
"""

import argparse
import csv
import itertools
import platform
import statistics
import sys
import time

import torch
import torch.nn.functional as F

try:
    import uniattn
except ImportError:  # not installed: the source tree
    sys.path.insert(0, __file__.rsplit("/", 2)[0] + "/python")
    import uniattn


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    return parser.parse_args()


class Superblock:
    """The two sides, forward and backward, on the same random tensors."""

    def __init__(self, group, tokens, heads, kv_heads, head_dim, dtype, device):
        def draw(heads):
            return torch.randn(tokens, heads, head_dim, dtype=dtype, device=device).requires_grad_()

        self.q = [draw(heads) for _ in range(group)]
        self.k = [draw(kv_heads) for _ in range(group)]
        self.v = [draw(kv_heads) for _ in range(group)]
        self.grads = [torch.randn_like(self.q[0]) for _ in range(group)]

    def shared_forward(self):
        out, probs = uniattn.attention(self.q[0], self.k[0], self.v[0], followers=len(self.v) - 1)
        return [out] + [uniattn.attend(p, v) for p, v in zip(probs, self.v[1:])]

    def separate_forward(self):
        outs = []
        for q, k, v in zip(self.q, self.k, self.v):
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
            outs.append(out.squeeze(0).transpose(0, 1))
        return outs

    def backward(self, outs):
        torch.autograd.grad(outs, [*self.q[:1], *self.k[:1], *self.v], self.grads)

    def backward_separate(self, outs):
        torch.autograd.grad(outs, [*self.q, *self.k, *self.v], self.grads)


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(function, device, threads):
    """(result, milliseconds, whether the threads really ran)."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, 1e3 * wall, device != "cpu" or cpu > 0.85 * threads * wall


def measure(block, device, threads, rounds):
    """Per phase a list of (ours, theirs) in milliseconds."""
    samples = {"forward": [], "backward": [], "both": []}
    for i in range(rounds + 3):
        ours, a, ok_a = timed(block.shared_forward, device, threads)
        theirs, b, ok_b = timed(block.separate_forward, device, threads)
        _, c, ok_c = timed(lambda: block.backward(ours), device, threads)
        _, d, ok_d = timed(lambda: block.backward_separate(theirs), device, threads)
        if i < 3:
            continue
        for phase, pair, ok in (
            ("forward", (a, b), ok_a and ok_b),
            ("backward", (c, d), ok_c and ok_d),
            ("both", (a + c, b + d), ok_a and ok_b and ok_c and ok_d),
        ):
            if ok:
                samples[phase].append(pair)
    return samples


def useful_gflop(phase, group, tokens, heads, head_dim):
    """2 products forward and 4 backward per layer for separate layers, over the causal half."""
    product = 2e-9 * heads * head_dim * tokens * (tokens + 1) / 2
    return group * product * {"forward": 2, "backward": 4, "both": 6}[phase]


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or platform.machine()
    print(f"# torch {torch.__version__}, {where}, {args.threads} threads")
    out = csv.writer(sys.stdout)
    out.writerow("dtype group tokens heads kv_heads head_dim phase rounds ours_ms sdpa_ms ratio ours_gflops sdpa_gflops".split())
    for dtype, group, tokens, kv_heads, head_dim in itertools.product(
        args.dtype, args.group, args.tokens, args.kv_heads, args.head_dim
    ):
        block = Superblock(group, tokens, args.heads, kv_heads, head_dim, getattr(torch, dtype), args.device)
        for phase, pairs in measure(block, args.device, args.threads, args.rounds).items():
            row = [dtype, group, tokens, args.heads, kv_heads, head_dim, phase, len(pairs)]
            if pairs:
                ours, theirs = (statistics.median(side) for side in zip(*pairs))
                ratio = statistics.median(b / a for a, b in pairs)
                gflop = useful_gflop(phase, group, tokens, args.heads, head_dim)
                row += [f"{x:.3g}" for x in (ours, theirs, ratio, 1e3 * gflop / ours, 1e3 * gflop / theirs)]
            out.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
