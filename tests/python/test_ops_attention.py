"""The superblock operators against the plain formula, against SDPA with borrowed Q and K, and their error messages."""

import pytest
import torch
import uniattn

import formulas

MASKS = [
    {},
    {"causal": False},
    {"window": 5},
    {"causal": False, "window": 4},
    {"softcap": 3.0},
    {"window": 7, "softcap": 2.0, "scale": 0.4},
]
PACKS = [[9], [1], [0, 6, 0, 1, 8, 1, 0], [300, 1, 20]]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(lengths):
    return torch.tensor([0] + lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)


def make_superblock(lengths, heads, kv_heads, head_dim, layers, dtype=torch.float64):
    tokens = sum(lengths)
    q = draw((tokens, heads, head_dim), dtype, 1)
    k = draw((tokens, kv_heads, head_dim), dtype, 2)
    values = [draw((tokens, kv_heads, head_dim), dtype, 3 + i) for i in range(layers)]
    return q, k, values, packed(lengths)


def run_superblock(q, k, values, head_maps, cu_seqlens, **mask):
    out, probs = uniattn.attention(q, k, values[0], cu_seqlens, len(values) - 1, **mask)
    return [out] + [uniattn.attend(p, v, m) for p, v, m in zip(probs, values[1:], head_maps[1:])]


def gradients(function, q, k, values, head_maps, cu_seqlens, **mask):
    leaves = [t.detach().requires_grad_() for t in (q, k, *values)]
    outs = function(leaves[0], leaves[1], leaves[2:], head_maps, cu_seqlens, **mask)
    weighted = sum((out * draw(out.shape, out.dtype, 50 + i)).sum() for i, out in enumerate(outs))
    return outs, torch.autograd.grad(weighted, leaves)


def assert_close(actual, expected, relative=1e-9):
    for a, e in zip(actual, expected, strict=True):
        error = (a - e).abs().max() if e.numel() else 0.0
        assert error <= relative * max(1.0, e.abs().max() if e.numel() else 1.0)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_superblock_equals_the_formula(mask, lengths, heads, kv_heads):
    q, k, values, cu_seqlens = make_superblock(lengths, heads, kv_heads, 8, layers=4)
    collapse = torch.zeros(heads, dtype=torch.int64)  # every head reads leader head 0
    shuffled = torch.tensor([(3 * n + 1) % heads for n in range(heads)])
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
    q, k, values, cu_seqlens = make_superblock([4, 0, 1, 3], 4, 2, 4, layers=3)
    head_maps = [None, None, torch.tensor([2, 2, 0, 3])]

    def function(*tensors):
        return tuple(run_superblock(*tensors[:2], tensors[2:], head_maps, cu_seqlens, softcap=4.0, window=3))

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (q, k, *values)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[64, 1, 130], [300]], ids=str)
@pytest.mark.parametrize("mask", [{}, {"window": 40}, {"softcap": 5.0}], ids=str)
def test_low_precision_error_is_at_most_twice_the_formulas(dtype, lengths, mask):
    q, k, values, cu_seqlens = make_superblock(lengths, 4, 2, 32, layers=3, dtype=dtype)
    maps = [None, None, torch.tensor([1, 1, 3, 0])]
    wide = [t.double() for t in (q, k, *values)]
    exact_outs, exact_grads = gradients(formulas.superblock, *wide[:2], wide[2:], maps, cu_seqlens, **mask)
    plain_outs, plain_grads = gradients(formulas.superblock, q, k, values, maps, cu_seqlens, **mask)
    outs, grads = gradients(run_superblock, q, k, values, maps, cu_seqlens, **mask)
    for ours, plain, exact in zip([*outs, *grads], [*plain_outs, *plain_grads], [*exact_outs, *exact_grads], strict=True):
        allowed = 2 * (plain.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
        assert (ours.double() - exact).abs().max() <= allowed


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


def test_inference_mode_and_strided_inputs():
    q, k, values, cu_seqlens = make_superblock([6, 3], 4, 4, 8, layers=2)
    fused = torch.cat([q, k, values[0]], dim=1)
    with torch.inference_mode():
        out, probs = uniattn.attention(*fused.chunk(3, dim=1), cu_seqlens, followers=1)
        follower = uniattn.attend(probs[0], values[1])
    assert_close([out, follower], formulas.superblock(q, k, values, [None, None], cu_seqlens))


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


def test_opcheck():
    q, k, values, cu_seqlens = make_superblock([6, 3], 4, 2, 8, layers=2)
    leaves = [t.requires_grad_() for t in (q, k, *values)]
    torch.library.opcheck(torch.ops.uniattn.attention.default, (*leaves[:3], cu_seqlens, 0))  # gradients of handles are private
    _, probs = uniattn.attention(*leaves[:3], cu_seqlens, followers=1)
    p = probs[0]
    handles = [h.detach().requires_grad_() for h in (p.handle_out, p.handle_value, p.handle_delta)]
    head_map = torch.tensor([1, 1, 0, 3])
    for arguments in [(), (head_map,)]:
        torch.library.opcheck(
            torch.ops.uniattn.attend.default,
            (q.detach(), k.detach(), p.lse, leaves[3], cu_seqlens, *handles, *arguments),
        )


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
