"""The superblock operators against the plain formula, against SDPA with borrowed Q and K, and their error messages."""

import os
import subprocess
import sys

import pytest
import torch
import uniattn

import formulas
from support.superblocks import MASKS, assert_close, check_error, composite, draw, gradients, make_superblock, packed, run_superblock

PACKS = [[9], [1], [0, 6, 0, 1, 8, 1, 0]]
CUDA = ["cuda"] if torch.cuda.is_available() else []
CUDA_HEAD_DIMS = [64, 96, 128, 256] if CUDA else []


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_superblock_equals_the_formula(mask, lengths, heads, kv_heads):
    check_against_the_formula(mask, lengths, heads, kv_heads, "cpu")


@pytest.mark.parametrize("device", ["cpu", *CUDA])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_superblock_over_several_blocks_equals_the_formula(mask, device):
    check_against_the_formula(mask, [260, 1, 20], 4, 2, device)


def check_against_the_formula(mask, lengths, heads, kv_heads, device):
    q, k, values, cu_seqlens = make_superblock(lengths, heads, kv_heads, 8, layers=4, device=device)
    collapse = torch.zeros(heads, dtype=torch.int64, device=device)  # every head reads leader head 0
    shuffled = torch.tensor([(3 * n + 1) % heads for n in range(heads)], device=device)
    head_maps = [None, None, collapse, shuffled]
    outs, grads = gradients(run_superblock, q, k, values, head_maps, cu_seqlens, **mask)
    expected_outs, expected_grads = gradients(formulas.superblock, q, k, values, head_maps, cu_seqlens, **mask)
    assert_close(outs, expected_outs)
    assert_close(grads, expected_grads)


def test_followers_equal_sdpa_with_borrowed_queries_and_keys():
    q, k, values, cu_seqlens = make_superblock([33], 4, 2, 16, layers=2)
    outs = run_superblock(q, k, values, [None, None], cu_seqlens)
    for out, v in zip(outs, values):
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(0, 1) for t in (q, k, v)), is_causal=True, enable_gqa=True
        )
        assert_close([out], [expected.transpose(0, 1)])


def test_gradcheck():
    q, k, values, cu_seqlens = make_superblock([3, 0, 1], 4, 2, 2, layers=3)
    head_maps = [None, None, torch.tensor([2, 2, 0, 3])]

    def function(*tensors):
        return tuple(run_superblock(*tensors[:2], tensors[2:], head_maps, cu_seqlens, softcap=4.0, window=2))

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (q, k, *values)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[64, 1, 130], [239]], ids=str)
@pytest.mark.parametrize("mask", [{}, {"window": 40}, {"softcap": 5.0}, {"causal": False, "window": 70}], ids=str)
@pytest.mark.parametrize(
    "device, heads, kv_heads, head_dim",
    [("cpu", 4, 2, 32), ("cpu", 2, 2, 80), ("cpu", 3, 1, 20)]
    + [("cuda", 4, 2, head_dim) for head_dim in CUDA_HEAD_DIMS],
)
def test_low_precision_error_is_at_most_twice_the_formulas(dtype, lengths, mask, device, heads, kv_heads, head_dim):
    q, k, values, cu_seqlens = make_superblock(lengths, heads, kv_heads, head_dim, 3, dtype, device)
    maps = [None, None, torch.tensor([1, 1, 2, 0], device=device)[:heads] % heads]
    wide = [t.double() for t in (q, k, *values)]
    exact_outs, exact_grads = gradients(formulas.superblock, *wide[:2], wide[2:], maps, cu_seqlens, **mask)
    plain_outs, plain_grads = gradients(formulas.superblock, q, k, values, maps, cu_seqlens, **mask)
    outs, grads = gradients(run_superblock, q, k, values, maps, cu_seqlens, **mask)
    for ours, plain, exact in zip([*outs, *grads], [*plain_outs, *plain_grads], [*exact_outs, *exact_grads], strict=True):
        check_error(ours, plain, exact, dtype)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", [[1], [113], [64, 0, 1, 63, 200]], ids=str)
def test_cpu_kernels_equal_the_composite_ones(mask, lengths):
    ops = torch.ops.uniattn
    q, k, (v, grad), cu_seqlens = make_superblock(lengths, 4, 2, 48, layers=2, dtype=torch.float32)
    head_map = torch.tensor([3, 3, 0, 1])
    grad_out = draw(q.shape, torch.float32, 20)
    out, lse, tiles = composite(ops.attention_forward, q, k, v, cu_seqlens, **mask)
    delta = composite(ops.attention_delta, grad_out, out)
    layers = ([grad_out, grad_out], [v, grad], [delta, delta], [None, head_map])
    calls = [
        (ops.attention_forward, q, k, v, cu_seqlens),
        (ops.attend_forward, q, k, lse, tiles, v, cu_seqlens, head_map),
        (ops.attend_backward_value, q, k, lse, tiles, grad_out, cu_seqlens, head_map),
        (ops.superblock_backward, q, k, lse, tiles, cu_seqlens, *layers),
    ]
    torch.testing.assert_close(ops.attention_delta(grad_out, out), delta, rtol=1e-5, atol=1e-5)
    for operator, *arguments in calls:
        actual, expected = operator(*arguments, **mask), composite(operator, *arguments, **mask)
        torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_results_are_bit_equal_for_any_number_of_threads():
    q, k, values, cu_seqlens = make_superblock([150, 90], 4, 2, 32, layers=3, dtype=torch.float32)
    maps = [None, torch.tensor([0, 0, 2, 1]), None]
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            outs, grads = gradients(run_superblock, q, k, values, maps, cu_seqlens)
            runs.append([*outs, *grads])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize("head_dim", CUDA_HEAD_DIMS)
def test_cuda_kernels_repeat_to_the_bit(head_dim):
    q, k, values, cu_seqlens = make_superblock([150, 1, 0, 700], 4, 2, head_dim, 3, torch.bfloat16, "cuda")
    maps = [None, torch.tensor([0, 0, 2, 1], device="cuda"), None]
    runs = [gradients(run_superblock, q, k, values, maps, cu_seqlens) for _ in range(3)]
    for outs, grads in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip([*outs, *grads], [*runs[0][0], *runs[0][1]], strict=True))


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_lesser_instruction_sets(capability):
    """Runs a few of these tests again on the kernels of an older processor, which PyTorch's own variable selects."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    tests = "composite_ones or (twice and float32 and 64) or (test_low and silu)"
    files = [__file__, __file__.replace("attention", "layers")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", tests, *files]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_unused_and_unneeded_handles_are_skipped():
    q, k, values, cu_seqlens = make_superblock([7, 4], 4, 2, 8, layers=3)
    leaves = [t.requires_grad_() for t in (q, k, *values)]
    out, probs = uniattn.attention(*leaves[:3], cu_seqlens, followers=3)
    follower = uniattn.attend(probs[2], leaves[3])
    uniattn.attend(probs[0], leaves[4])  # used, but the loss does not depend on it
    grads = torch.autograd.grad(out.sum() + follower.square().sum(), leaves[:4])
    expected_outs = formulas.superblock(*leaves[:2], leaves[2:4], [None, None], cu_seqlens)
    loss = expected_outs[0].sum() + expected_outs[1].square().sum()
    assert_close(grads, torch.autograd.grad(loss, leaves[:4]))


def test_loss_of_a_follower_alone_reaches_the_leader():
    q, k, values, cu_seqlens = make_superblock([11], 2, 2, 8, layers=2)
    leaves = [t.requires_grad_() for t in (q, k, *values)]
    _, probs = uniattn.attention(*leaves[:3], cu_seqlens, followers=1)
    grads = torch.autograd.grad(uniattn.attend(probs[0], leaves[3]).square().sum(), [leaves[0], leaves[1], leaves[3]])
    expected = formulas.superblock(*leaves[:2], leaves[2:], [None, None], cu_seqlens)[1].square().sum()
    assert_close(grads, torch.autograd.grad(expected, [leaves[0], leaves[1], leaves[3]]))


def test_a_frozen_leader_leaves_the_values_trainable():
    q, k, values, cu_seqlens = make_superblock([11], 2, 2, 8, layers=2)
    v = values[1].requires_grad_()
    _, probs = uniattn.attention(q, k, values[0], cu_seqlens, followers=1)
    (grad,) = torch.autograd.grad(uniattn.attend(probs[0], v).square().sum(), [v])
    expected = formulas.superblock(q, k, [values[0], v], [None, None], cu_seqlens)[1].square().sum()
    assert_close([grad], torch.autograd.grad(expected, [v]))


def test_a_handle_used_twice_is_refused():
    q, k, values, cu_seqlens = make_superblock([5], 2, 2, 8, layers=2)
    _, probs = uniattn.attention(q.requires_grad_(), k, values[0], cu_seqlens, followers=1)
    loss = uniattn.attend(probs[0], values[0]).sum() + uniattn.attend(probs[0], values[1]).sum()
    with pytest.raises(RuntimeError, match="one handle served more than one attend"):
        loss.backward()


def test_second_derivatives_are_refused():
    q, k, values, cu_seqlens = make_superblock([5], 2, 2, 8, layers=1)
    out, _ = uniattn.attention(q.requires_grad_(), k, values[0], cu_seqlens)
    (grad,) = torch.autograd.grad(out.square().sum(), [q], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_beyond_all_tokens_is_none(dtype):
    arguments = make_superblock([70], 2, 2, 16, 2, dtype)
    bounded = gradients(run_superblock, *arguments[:3], [None, None], arguments[3], window=2**62)
    free = gradients(run_superblock, *arguments[:3], [None, None], arguments[3])
    assert all(torch.equal(a, b) for a, b in zip([*bounded[0], *bounded[1]], [*free[0], *free[1]], strict=True))


def test_inference_mode_and_strided_inputs():
    q, k, values, cu_seqlens = make_superblock([6, 3], 4, 4, 8, layers=2)
    fused = torch.cat([q, k, values[0]], dim=1)
    with torch.inference_mode():
        out, probs = uniattn.attention(*fused.chunk(3, dim=1), cu_seqlens, followers=1)
        follower = uniattn.attend(probs[0], values[1])
    assert_close([out, follower], formulas.superblock(q, k, values, [None, None], cu_seqlens))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_tokens_at_all(dtype):
    outs, grads = gradients(run_superblock, *make_superblock([0], 4, 2, 16, 2, dtype)[:3], [None, None], packed([0, 0]))
    assert all(x.numel() == 0 for x in [*outs, *grads])


def test_autocast_computes_in_its_dtype():
    q, k, values, cu_seqlens = make_superblock([40], 4, 2, 32, layers=2, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (q, k, *values)]
    with torch.autocast("cpu", torch.bfloat16):
        outs = run_superblock(*leaves[:2], leaves[2:], [None, None], cu_seqlens)
    assert all(out.dtype == torch.bfloat16 for out in outs)
    halves = [t.detach().bfloat16() for t in leaves]
    expected = run_superblock(*halves[:2], halves[2:], [None, None], cu_seqlens)
    assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))
    grads = torch.autograd.grad(sum(out.float().square().sum() for out in outs), leaves)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": draw((6, 2, 4))}, r"k must be \[tokens, kv_heads, head_dim\].*got \[6, 2, 4\]"),
        ({"k": draw((6, 3, 8)), "v": draw((6, 3, 8))}, "k has 3 heads, which does not divide the 4 heads of q"),
        ({"v": draw((5, 2, 8))}, "v must have the shape of k"),
        ({"v": draw((6, 2, 8), torch.float32)}, "v is Float but k is Double"),
        ({"q": torch.ones(6, 4, 8, dtype=torch.int64)}, "q must have a floating dtype"),
        ({"q": draw((6, 32))}, r"q must be \[tokens, heads, head_dim\]"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "cu_seqlens must be int32"),
        ({"cu_seqlens": packed([4])}, "cu_seqlens must end at the number of tokens, 6, got 4"),
        ({"cu_seqlens": packed([7])}, "cu_seqlens must end at the number of tokens, 6, got 7"),
        ({"cu_seqlens": packed([5, -2, 3])}, r"cu_seqlens must not fall, but cu_seqlens\[2\] = 3 follows 5"),
        ({"cu_seqlens": torch.tensor([1, 6], dtype=torch.int32)}, "cu_seqlens must start at 0, got 1"),
        ({"window": -1}, "window must be 0"),
        ({"softcap": -1.0}, "softcap must be 0"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"followers": -1}, "followers must be 0 or more"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"q": draw((6, 4, 8)), "k": draw((6, 2, 8)), "v": draw((6, 2, 8)), "cu_seqlens": packed([6])}
    with pytest.raises((ValueError, RuntimeError), match=message):
        uniattn.attention(**(arguments | change))


@pytest.mark.parametrize(
    "head_map, message",
    [
        (torch.tensor([0, 1, 2, 4]), r"head_map\[3\] is 4, but the leader has heads 0 to 3"),
        (torch.tensor([0, -1, 2, 3]), r"head_map\[1\] is -1"),
        (torch.tensor([0, 1]), r"head_map must be int64 \[heads\] = \[4\]"),
        (torch.tensor([0, 1, 2, 3], dtype=torch.int32), "head_map must be int64"),
    ],
)
def test_bad_head_maps_are_named(head_map, message):
    q, k, values, cu_seqlens = make_superblock([6], 4, 2, 8, layers=2)
    _, probs = uniattn.attention(q, k, values[0], cu_seqlens, followers=1)
    with pytest.raises(ValueError, match=message):
        uniattn.attend(probs[0], values[1], head_map)


def test_compiles_as_one_graph():
    def function(q, k, values, cu_seqlens, head_map):
        out, probs = uniattn.attention(q, k, values[0], cu_seqlens, followers=1)
        return out + uniattn.attend(probs[0], values[1], head_map)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    head_map = torch.tensor([1, 1, 0, 3])
    for lengths in ([6, 3], [4, 9, 1]):
        q, k, values, cu_seqlens = make_superblock(lengths, 4, 2, 8, layers=2)
        leaves = [t.requires_grad_() for t in (q, k, *values)]
        out = compiled(*leaves[:2], leaves[2:], cu_seqlens, head_map)
        expected = sum(formulas.superblock(*leaves[:2], leaves[2:], [None, head_map], cu_seqlens))
        assert_close([out], [expected])
        assert_close(torch.autograd.grad(out.square().sum(), leaves), torch.autograd.grad(expected.square().sum(), leaves))
