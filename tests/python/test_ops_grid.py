"""The error rule over the whole range of shapes, a sample of it by default; UNIATTN_FULL_GRID=1 runs all. And memory."""

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import uniattn

import formulas
from support.superblocks import check_error, draw, gradients, make_superblock, run_superblock

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS = [(4, 4), (4, 2), (4, 1), (3, 1)]
HEAD_DIMS = [64, 96, 128, 256, 20]
MASKS = [{}, {"causal": False}, {"window": 100}, {"causal": False, "window": 30}]
SOFTCAPS = [0.0, 20.0]
GROUPS = [1, 2, 3, 4, 8]
LENGTHS = [[1], [113], [239], [1023], [1024], [4097], [0, 5, 1, 0, 300, 64, 1], [511, 1, 513]]
KEEP = [False, True]
AXES = (DTYPES, HEADS, HEAD_DIMS, MASKS, SOFTCAPS, GROUPS, LENGTHS, KEEP)


def cases():
    """A fixed sample in which every value of every axis occurs; long sequences of many wide heads are left to all."""
    grid = list(itertools.product(*AXES))
    if os.environ.get("UNIATTN_FULL_GRID") == "1":
        return grid
    cheap = [c for c in grid if sum(c[6]) < 1100 and c[5] * sum(c[6]) * c[2] < 150_000]
    sample = random.Random(0).sample(cheap, 60)
    return sample + [(torch.float32, (2, 1), 64, {}, 0.0, 2, [4097], keep) for keep in KEEP]


def name(case):
    dtype, heads, head_dim, mask, softcap, group, lengths, keep = case
    return f"{str(dtype)[6:]}-{heads}-{head_dim}-{mask}-cap{softcap}-g{group}-{lengths}-{'kept' if keep else 'rebuilt'}"


def head_map(layer, heads):
    """None for some layers, otherwise a map that repeats heads and crosses KV groups."""
    return None if layer % 2 == 0 else torch.tensor([(layer + 2 * n) % heads for n in range(heads)])


@pytest.mark.parametrize("case", cases(), ids=name)
def test_error_is_at_most_twice_the_formulas(case):
    dtype, (heads, kv_heads), head_dim, mask, softcap, group, lengths, keep = case
    q, k, values, cu_seqlens = make_superblock(lengths, heads, kv_heads, head_dim, group, dtype)
    maps, options = [head_map(i, heads) for i in range(group)], mask | {"softcap": softcap}
    wide = [t.double() for t in (q, k, *values)]
    exact = gradients(formulas.superblock, *wide[:2], wide[2:], maps, cu_seqlens, **options)
    plain = gradients(formulas.superblock, q, k, values, maps, cu_seqlens, **options)
    ours = gradients(run_superblock, q, k, values, maps, cu_seqlens, keep_probs=keep, **options)
    for a, p, e in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], [*exact[0], *exact[1]], strict=True):
        check_error(a, p, e, dtype)
    again = gradients(run_superblock, q, k, values, maps, cu_seqlens, keep_probs=keep, **options)
    assert all(torch.equal(a, b) for a, b in zip([*ours[0], *ours[1]], [*again[0], *again[1]], strict=True))


def poisoned(x):
    """x inside a larger tensor of NaN."""
    padded = torch.full((x.shape[0] + 2, x.shape[1] + 1, x.shape[2] + 16), float("nan"), dtype=x.dtype, device=x.device)
    return padded[1:-1, :-1, 8:-8].copy_(x)


@pytest.mark.parametrize(
    "device, head_dim, dtype, keep",
    [("cpu", 32, dtype, keep) for dtype in (torch.float32, torch.bfloat16) for keep in KEEP]
    + [("cuda", head_dim, torch.bfloat16, False) for head_dim in (64, 96, 128, 256) if torch.cuda.is_available()],
)
@pytest.mark.parametrize("mask", [{}, {"window": 10}, {"causal": False}], ids=str)
def test_what_lies_beside_the_tensors_is_not_read(device, head_dim, dtype, keep, mask):
    q, k, values, cu_seqlens = make_superblock([70, 3, 0, 1], 4, 2, head_dim, 3, dtype, device)
    maps, options = [None, head_map(1, 4).to(device), None], mask | {"keep_probs": keep}
    clean = gradients(run_superblock, q, k, values, maps, cu_seqlens, **options)
    leaves = [poisoned(x).requires_grad_() for x in (q, k, *values)]
    outs = run_superblock(*leaves[:2], leaves[2:], maps, cu_seqlens, **options)
    loss = sum((out * draw(out.shape, dtype, 50 + i).to(device)).sum() for i, out in enumerate(outs))
    grads = torch.autograd.grad(loss, leaves)
    for a, b in zip([*outs, *grads], [*clean[0], *clean[1]], strict=True):
        assert torch.equal(a, b)


def test_one_sequence_never_reaches_another():
    """NaN in the second of three packed sequences stays there."""
    for keep, dtype in itertools.product(KEEP, (torch.float32, torch.bfloat16, torch.float64)):
        q, k, values, cu_seqlens = make_superblock([40, 30, 50], 2, 2, 32, 2, dtype)
        for x in (q, k, *values):
            x[40:70] = float("nan")
        outs, grads = gradients(run_superblock, q, k, values, [None, None], cu_seqlens, keep_probs=keep)
        for x in [*outs, *grads]:
            assert x[:40].isfinite().all() and x[70:].isfinite().all()


MEASURE_MEMORY = """
import resource, sys, torch, uniattn
torch.set_num_threads(2)
tokens, head_dim = int(sys.argv[1]), int(sys.argv[2])
q, k, v, v_1 = (torch.randn(tokens, 1, head_dim, requires_grad=True) for _ in range(4))
out, probs = uniattn.attention(q, k, v, followers=1, keep_probs=False)
(out + uniattn.attend(probs[0], v_1)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("head_dim", [16, 10, 272], ids=["kernels", "widened", "composite"])
def test_memory_is_linear_in_tokens(head_dim):
    """Twice the tokens: one [tokens, tokens] matrix would add 50 million floats."""
    path = os.pathsep.join([str(Path(uniattn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    peaks = []
    for tokens in (4096, 8192):
        command = [sys.executable, "-c", MEASURE_MEMORY, str(tokens), str(head_dim)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout) * 1024)
    assert peaks[1] - peaks[0] < 0.5 * 4 * (8192**2 - 4096**2)

