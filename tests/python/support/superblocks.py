"""Random superblocks for the tests of the attention operators, both sides of a comparison, and the error rule."""

import torch
import uniattn

MASKS = [
    {},
    {"causal": False},
    {"window": 5},
    {"causal": False, "window": 4},
    {"softcap": 3.0},
    {"window": 7, "softcap": 2.0, "scale": 0.4},
]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(lengths):
    return torch.tensor([0] + lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)


def make_superblock(lengths, heads, kv_heads, head_dim, layers, dtype=torch.float64, device="cpu"):
    tokens = sum(lengths)
    q = draw((tokens, heads, head_dim), dtype, 1).to(device)
    k = draw((tokens, kv_heads, head_dim), dtype, 2).to(device)
    values = [draw((tokens, kv_heads, head_dim), dtype, 3 + i).to(device) for i in range(layers)]
    return q, k, values, packed(lengths).to(device)


def run_superblock(q, k, values, head_maps, cu_seqlens, **options):
    """The operators' side of `formulas.superblock`; options: the mask, and keep_probs."""
    out, probs = uniattn.attention(q, k, values[0], cu_seqlens, len(values) - 1, **options)
    return [out] + [uniattn.attend(p, v, m) for p, v, m in zip(probs, values[1:], head_maps[1:])]


def gradients(function, q, k, values, head_maps, cu_seqlens, **mask):
    leaves = [t.detach().requires_grad_() for t in (q, k, *values)]
    outs = function(leaves[0], leaves[1], leaves[2:], head_maps, cu_seqlens, **mask)
    weighted = sum((out * draw(out.shape, out.dtype, 50 + i).to(out.device)).sum() for i, out in enumerate(outs))
    return outs, torch.autograd.grad(weighted, leaves)


def assert_close(actual, expected, relative=1e-9):
    for a, e in zip(actual, expected, strict=True):
        error = (a - e).abs().max() if e.numel() else 0.0
        assert error <= relative * max(1.0, e.abs().max() if e.numel() else 1.0)


def check_error(ours, plain, exact, dtype):
    """At most twice the error of the same formula in the same dtype, in the mean.

    The largest error may add some rounding of float32: where a row sees few keys, dP - delta cancels, and the plain formula
    cancels equal numbers but a kernel that never holds P has delta from O. A row of one key has no gradient at all, to
    rounding in float32 of what cancels: sums of head_dim products of numbers of order 1.
    """
    ours, plain, exact = (x.detach().double() for x in (ours, plain, exact))
    if not (exact.abs() > 1e-12).any():
        assert ours.abs().max() <= 16 * exact.shape[-1] ** 0.5 * torch.finfo(torch.float32).eps
        return
    error, allowed = (ours - exact).abs(), (plain - exact).abs()
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    # Half a rounding in float32: P of a row of one key is exp(S - LSE), which rounds, and not S / S.
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + rounding / (2 if dtype == torch.float32 else 8)
    assert error.max() <= 2 * allowed.max() + (16 if dtype == torch.float32 else 1) * rounding


def composite(operator, *arguments, **mask):
    return operator.default._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments, **mask)
