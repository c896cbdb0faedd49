"""P kept between the passes of a superblock: the same numbers as rebuilt, freed when done, chosen by a budget."""

import pytest
import torch
import uniattn

import formulas
from support.superblocks import MASKS, assert_close, check_error, gradients, make_superblock, packed, run_superblock

PACKS = [[9], [0, 6, 0, 1, 8, 1, 0], [64, 1, 130], [260, 1, 20]]
MAP = torch.tensor([3, 3, 0, 1])


def kept(*arguments, **options):
    return run_superblock(*arguments, keep_probs=True, **options)


def rebuilt(*arguments, **options):
    return run_superblock(*arguments, keep_probs=False, **options)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("head_dim", [8, 16])
def test_kept_equals_the_formula_in_float64(mask, lengths, head_dim):
    q, k, values, cu_seqlens = make_superblock(lengths, 4, 2, head_dim, layers=3)
    maps = [None, MAP, None]
    outs, grads = gradients(kept, q, k, values, maps, cu_seqlens, **mask)
    expected_outs, expected_grads = gradients(formulas.superblock, q, k, values, maps, cu_seqlens, **mask)
    assert_close(outs, expected_outs)
    assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("head_dim", [64, 48, 20])
def test_kernels_give_the_same_bits_either_way(dtype, mask, lengths, head_dim):
    q, k, values, cu_seqlens = make_superblock(lengths, 4, 2, head_dim, 3, dtype)
    runs = [gradients(function, q, k, values, [None, MAP, None], cu_seqlens, **mask) for function in (kept, rebuilt)]
    for a, b in zip([*runs[0][0], *runs[0][1]], [*runs[1][0], *runs[1][1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [{}, {"window": 40}, {"softcap": 5.0}, {"causal": False, "window": 70}], ids=str)
def test_kept_error_is_at_most_twice_the_formulas(dtype, mask):
    q, k, values, cu_seqlens = make_superblock([64, 1, 130], 4, 2, 32, 3, dtype)
    maps, wide = [None, MAP, None], [t.double() for t in (q, k, *values)]
    exact = gradients(formulas.superblock, *wide[:2], wide[2:], maps, cu_seqlens, **mask)
    plain = gradients(formulas.superblock, q, k, values, maps, cu_seqlens, **mask)
    ours = gradients(kept, q, k, values, maps, cu_seqlens, **mask)
    for a, p, e in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], [*exact[0], *exact[1]], strict=True):
        check_error(a, p, e, dtype)


def test_gradcheck():
    q, k, values, cu_seqlens = make_superblock([3, 0, 1], 4, 2, 2, layers=3)

    def function(*tensors):
        return tuple(kept(*tensors[:2], tensors[2:], [None, None, MAP], cu_seqlens, softcap=4.0, window=2))

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (q, k, *values)])


def test_one_layer_alone_can_keep_its_own():
    arguments = make_superblock([70], 2, 2, 16, 1, torch.float32)
    runs = [gradients(f, *arguments[:3], [None], arguments[3]) for f in (kept, rebuilt)]
    assert all(torch.equal(a, b) for a, b in zip([*runs[0][0], *runs[0][1]], [*runs[1][0], *runs[1][1]], strict=True))


@pytest.mark.parametrize("options, size", [({}, 3), ({"window": 64}, 3), ({"window": 1}, 2), ({"causal": False}, 4)])
def test_tiles_hold_what_the_mask_leaves(options, size):
    """100 tokens are two tiles of rows: three blocks of 64 x 64 under a causal mask."""
    q, k, values, _ = make_superblock([100], 2, 2, 16, 2, torch.bfloat16)
    _, probs = uniattn.attention(q, k, values[0], followers=1, keep_probs=True, **options)
    assert probs[0].tiles.shape == (2, size * 64 * 64) and probs[0].tiles.dtype == torch.bfloat16


@pytest.mark.parametrize("lengths", [[1] * 65, [63, 2], [64, 1], [129, 130, 1, 1], [0, 0]], ids=str)
@pytest.mark.parametrize("window", [None, 1, 63, 64, 65, 2**62])
def test_any_pack_fits_the_tiles(lengths, window):
    for dtype in (torch.float32, torch.float64):
        arguments = make_superblock(lengths, 2, 1, 16, 2, dtype)
        outs = kept(*arguments[:3], [None, None], arguments[3], window=window)
        expected = formulas.superblock(*arguments[:3], [None, None], arguments[3], window=window or 0)
        assert_close(outs, expected, 1e-5 if dtype == torch.float32 else 1e-9)


def test_auto_keeps_within_the_budget_and_for_followers_only():
    q, k, values, _ = make_superblock([100], 2, 2, 16, 2, torch.float32)
    size = 2 * 3 * 64 * 64 * 4

    def is_kept(**options):
        return torch.ops.uniattn.attention(q, k, values[0], packed([100]), **options)[2].numel() > 0

    assert is_kept(followers=1) and is_kept(followers=1, probs_budget=size)
    assert not is_kept(followers=1, probs_budget=size - 1)
    assert not is_kept(followers=0)
    assert not is_kept(followers=1, keep_probs=False)
    assert is_kept(followers=1, keep_probs=True, probs_budget=0)



def test_tiles_are_freed_with_the_last_use():
    q, k, values, _ = make_superblock([512], 2, 2, 16, 2, torch.float32)
    leaves = [t.requires_grad_() for t in (q, k, *values)]
    out, probs = uniattn.attention(*leaves[:3], followers=1, keep_probs=True)
    tiles = probs[0].tiles.untyped_storage()._weak_ref()
    alive = lambda: not torch.UntypedStorage._expired(tiles)
    out = out + uniattn.attend(probs[0], leaves[3])
    del probs
    assert alive()  # in the graph
    out.sum().backward()
    assert not alive()
    torch.UntypedStorage._free_weak_ref(tiles)


def test_compiles_as_one_graph():
    def function(q, k, values, cu_seqlens):
        out, probs = uniattn.attention(q, k, values[0], cu_seqlens, followers=1, keep_probs=True)
        return out + uniattn.attend(probs[0], values[1], MAP)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([6, 3], [70, 9, 1]):
        q, k, values, cu_seqlens = make_superblock(lengths, 4, 2, 8, layers=2)
        leaves = [t.requires_grad_() for t in (q, k, *values)]
        out, expected = compiled(*leaves[:2], leaves[2:], cu_seqlens), function(*leaves[:2], leaves[2:], cu_seqlens)
        assert_close([out], [expected])
        assert_close(torch.autograd.grad(out.square().sum(), leaves), torch.autograd.grad(expected.square().sum(), leaves))


def test_autocast():
    q, k, values, cu_seqlens = make_superblock([40], 4, 2, 32, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outs = kept(q, k, values, [None, None], cu_seqlens)
    halves = [t.bfloat16() for t in (q, k, *values)]
    assert all(torch.equal(a, b) for a, b in zip(outs, rebuilt(*halves[:2], halves[2:], [None, None], cu_seqlens)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keep_probs": "always"}, 'keep_probs must be True, False or "auto"'),
        ({"probs_budget": -1}, "probs_budget must be a number of bytes"),
    ],
)
def test_bad_choices_are_named(change, message):
    q, k, values, _ = make_superblock([6], 4, 2, 8, layers=1)
    with pytest.raises(ValueError, match=message):
        uniattn.attention(q, k, values[0], **change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_of_another_size_are_refused(dtype):
    q, k, values, cu_seqlens = make_superblock([70], 2, 2, 16, 2, dtype)
    _, probs = uniattn.attention(q, k, values[0], cu_seqlens, followers=1, keep_probs=True)
    wrong = probs[0]._replace(tiles=probs[0].tiles[:, :-1].contiguous())
    with pytest.raises(ValueError, match="tiles must be"):
        uniattn.attend(wrong, values[1])
    with pytest.raises(ValueError, match="tiles must be"):
        uniattn.attend(probs[0]._replace(tiles=probs[0].tiles[:1]), values[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_rebuilds():
    q, k, values, cu_seqlens = make_superblock([70], 2, 2, 64, 2, torch.bfloat16, "cuda")
    _, probs = uniattn.attention(q, k, values[0], cu_seqlens, followers=1)
    assert probs[0].tiles.numel() == 0
    with pytest.raises(ValueError, match="P can be kept on a CPU only"):
        uniattn.attention(q, k, values[0], cu_seqlens, keep_probs=True)
