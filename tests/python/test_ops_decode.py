"""Operators of generation: caches of pages, decoding and chunked prefill against the plain formula."""

import pytest
import torch
import uniattn
from torch.nn.functional import scaled_dot_product_attention

import formulas

ops = torch.ops.uniattn
MASKS = [{}, {"window": 5}, {"window": 40, "softcap": 2.0, "scale": 0.4}, {"softcap": 3.0}]
LENGTHS = [[1], [70, 1, 33], [300, 16, 17, 600]]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Pages:
    """Keys and values of ragged sequences in scattered pages; all that no token may see is NaN."""

    def __init__(self, lengths, kv_heads, value_heads, head_dim, dtype=torch.float64, page_size=16, window=0):
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        pages = [-(-n // page_size) for n in lengths]
        slots = max(pages)
        if window:
            slots = min(slots, (window + page_size - 2) // page_size + 1)
        order = torch.randperm(sum(pages) + 2, generator=torch.Generator().manual_seed(1))
        self.table = torch.full((len(lengths), slots), -1, dtype=torch.int32)
        self.k, self.v = (
            torch.full((len(order), heads, page_size, head_dim), float("nan"), dtype=dtype)
            for heads in (kv_heads, value_heads)
        )
        self.keys, self.values, page = [], [], 0
        for b, (length, count) in enumerate(zip(lengths, pages)):
            self.keys.append(draw((length, kv_heads, head_dim), dtype, 10 + b))
            self.values.append(draw((length, value_heads, head_dim), dtype, 20 + b))
            physical = order[page : page + count]
            for p in range(count):  # later pages take the slots of those that a window has passed
                self.table[b, p % slots] = physical[p]
            page += count
            where = (physical[:, None] * page_size + torch.arange(page_size)).flatten()[:length]
            seen = slice(max(0, length - window) if window else 0, length)
            ops.append_to_cache(self.k, self.keys[b][seen], where[seen])
            ops.append_to_cache(self.v, self.values[b][seen], where[seen])

    def expected(self, q, head_map, window=0, softcap=0.0, scale=None):
        """Outputs of the leader and of a follower, and the leader's rows of P over all positions of each sequence."""
        leaders, followers, rows = [], [], []
        for b, (k, v) in enumerate(zip(self.keys, self.values)):
            queries = q[b : b + 1].expand(len(k), -1, -1)  # the formula is for whole sequences; its last row counts
            p = formulas.probabilities(queries, k, window=window, softcap=softcap, scale=scale)[:, -1]
            wide = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            leaders.append(torch.einsum("hj,jhd->hd", p, wide))
            followers.append(torch.einsum("hj,jhd->hd", p[head_map], wide))
            rows.append(p)
        return torch.stack(leaders), torch.stack(followers), rows


def decode(pages, q, head_map, window=0, **mask):
    longest = int(pages.lengths.max())
    arguments = (pages.table, pages.lengths)
    out, probs = ops.decode_attention(q, pages.k, pages.v, *arguments, longest, window=window, **mask)
    return out, ops.decode_attend(probs, pages.v, *arguments, head_map, window), probs


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads, kv_heads, value_heads", [(4, 4, 4), (6, 2, 2), (10, 1, 5)])
@pytest.mark.parametrize("dtype, head_dim", [(torch.float64, 10), (torch.float32, 64), (torch.float32, 20)])
def test_decoding_equals_the_formula(mask, lengths, heads, kv_heads, value_heads, dtype, head_dim):
    pages = Pages(lengths, kv_heads, value_heads, head_dim, dtype, window=mask.get("window", 0))
    if kv_heads != value_heads:  # the leader's own values have the heads of its keys
        leader = Pages(lengths, kv_heads, kv_heads, head_dim, dtype, window=mask.get("window", 0))
    else:
        leader = pages
    q, head_map = draw((len(lengths), heads, head_dim), dtype), torch.tensor([(3 * n + 1) % heads for n in range(heads)])
    out, probs = ops.decode_attention(q, leader.k, leader.v, leader.table, leader.lengths, max(lengths), **mask)
    following = ops.decode_attend(probs, pages.v, pages.table, pages.lengths, head_map, mask.get("window", 0))
    tolerance = 1e-10 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(out, leader.expected(q, head_map, **mask)[0], rtol=tolerance, atol=tolerance)
    expected, rows = pages.expected(q, head_map, **mask)[1:]
    torch.testing.assert_close(following, expected, rtol=tolerance, atol=tolerance)
    for b, (length, row) in enumerate(zip(lengths, rows)):
        first = max(0, length - mask.get("window", 0)) // 16 * 16 if mask.get("window") else 0
        torch.testing.assert_close(probs[b, :, : length - first], row[:, first:].to(probs.dtype), rtol=1e-5, atol=1e-6)
        assert not probs[b, :, length - first :].any()


def test_equals_sdpa():
    pages = Pages([90], 2, 2, 32, torch.float32)
    q = draw((1, 4, 32), torch.float32)
    out = decode(pages, q, None)[0]
    k, v = (x[0].transpose(0, 1)[None] for x in (pages.keys, pages.values))
    expected = scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [8, 10])
@pytest.mark.parametrize("head_dim", [20, 32, 64, 80, 128])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_bfloat16_error_is_at_most_twice_the_formulas(heads, head_dim, mask):
    pages = Pages([701, 90, 5], 2, 2, head_dim, torch.bfloat16, window=mask.get("window", 0))
    q, head_map = draw((3, heads, head_dim), torch.bfloat16), torch.arange(heads).flip(0)
    actual = decode(pages, q, head_map, **mask)[:2]
    plain = pages.expected(q, head_map, **mask)[:2]
    pages.keys, pages.values = [k.double() for k in pages.keys], [v.double() for v in pages.values]
    exact = pages.expected(q.double(), head_map, **mask)[:2]
    for ours, theirs, reference in zip(actual, plain, exact):
        error, allowed = (ours.double() - reference).abs(), (theirs.double() - reference).abs()
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt()


def test_rows_nobody_asks_for_change_nothing():
    pages = Pages([700, 90], 2, 2, 32, torch.float32)
    q = draw((2, 8, 32), torch.float32)
    arguments = (q, pages.k, pages.v, pages.table, pages.lengths, 700)
    out, probs = ops.decode_attention(*arguments, return_probs=False)
    assert probs.shape == (2, 8, 0)
    assert torch.equal(out, ops.decode_attention(*arguments)[0])


def test_results_are_bit_equal_for_any_number_of_threads():
    pages, threads = Pages([3000, 900], 2, 2, 64, torch.bfloat16), torch.get_num_threads()
    q, runs = draw((2, 8, 64), torch.bfloat16), []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            runs.append(decode(pages, q, torch.arange(8).flip(0)))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("dtype, head_dim", [(torch.float64, 10), (torch.float32, 32), (torch.float32, 20)])
@pytest.mark.parametrize("kv_heads, value_heads", [(2, 2), (1, 4)])
def test_prefill_equals_the_formula(mask, dtype, head_dim, kv_heads, value_heads):
    keys, queries, heads = [150, 1, 0, 70, 64], [150, 1, 0, 3, 40], 4
    cu_k, cu_q = (torch.tensor([0, *x], dtype=torch.int32).cumsum(0, dtype=torch.int32) for x in (keys, queries))
    q = draw((sum(keys), heads, head_dim), dtype, 1)
    k, v = (draw((sum(keys), n, head_dim), dtype, 2 + i) for i, n in enumerate((kv_heads, value_heads)))
    own = draw((sum(keys), kv_heads, head_dim), dtype, 4)
    head_map = torch.tensor([3, 3, 0, 1])
    last = torch.cat([torch.arange(b - n, b) for b, n in zip(cu_k[1:].tolist(), queries)])
    expected = formulas.superblock(q, k, [own, v], [None, head_map], cu_k, **mask)
    out, lse = ops.prefill_attention(q[last], k, own, cu_q, cu_k, **mask)
    following = ops.prefill_attend(q[last], k, lse, v, cu_q, cu_k, head_map, **mask)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close([out, following], [x[last] for x in expected], rtol=tolerance, atol=tolerance)
    tiles = torch.full((heads, 194 * (sum(keys) + 128)), float("nan"), dtype=dtype)
    kept = ops.prefill_attention(q[last], k, own, cu_q, cu_k, tiles=tiles, **mask)
    torch.testing.assert_close(kept, (out, lse), rtol=tolerance, atol=tolerance)
    nothing = torch.full_like(q[last], float("nan"))
    read = ops.prefill_attend(nothing, k, lse, v, cu_q, cu_k, head_map, tiles=tiles, **mask)
    torch.testing.assert_close(read, following, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("head_dim", [32, 48])
def test_prefill_with_kept_tiles_has_the_same_bits(head_dim):
    """Rounded to bfloat16 as an operand, P is the same whether it was kept or rebuilt."""
    cu_k, cu_q = (torch.tensor(x, dtype=torch.int32) for x in ([0, 200, 300], [0, 40, 140]))
    q, (k, v) = draw((140, 4, head_dim), torch.bfloat16), (draw((300, 2, head_dim), torch.bfloat16, i) for i in (1, 2))
    tiles = torch.empty(4, 140 * (300 + 128), dtype=torch.bfloat16)
    lse = ops.prefill_attention(q, k, v, cu_q, cu_k, window=70, tiles=tiles)[1]
    rebuilt = ops.prefill_attend(q, k, lse, v, cu_q, cu_k, window=70)
    assert torch.equal(ops.prefill_attend(q, k, lse, v, cu_q, cu_k, window=70, tiles=tiles), rebuilt)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("dtype, head_dim", [(torch.float32, 20), (torch.float16, 33), (torch.bfloat16, 128)])
def test_a_gpu_computes_what_a_cpu_does(mask, dtype, head_dim):
    pages = Pages([300, 16, 17, 600], 2, 2, head_dim, dtype, window=mask.get("window", 0))
    q, head_map = draw((4, 10, head_dim), dtype), torch.tensor([(3 * n + 1) % 10 for n in range(10)])
    expected = decode(pages, q, head_map, **mask)
    slots = torch.arange(pages.k.shape[0] * pages.k.shape[2], device="cuda")
    for name in ("k", "v"):  # by way of the kernels that read and append
        source = getattr(pages, name).cuda()
        copy = torch.full_like(source, float("nan"))
        ops.append_to_cache(copy, ops.read_cache(source, slots), slots)
        setattr(pages, name, copy)
    pages.table, pages.lengths = pages.table.cuda(), pages.lengths.cuda()
    actual = decode(pages, q.cuda(), head_map.cuda(), **mask)
    again = decode(pages, q.cuda(), head_map.cuda(), **mask)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b, e in zip(actual, again, expected):
        torch.testing.assert_close(a.cpu(), e, rtol=tolerance, atol=tolerance)
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_caches_return_what_they_were_given(dtype):
    cache = torch.full((5, 2, 16, 8), float("nan"), dtype=dtype)
    x, slots = draw((7, 2, 8), dtype), torch.tensor([3, 79, 16, 17, 0, 40, 41])
    ops.append_to_cache(cache, x.transpose(0, 1).contiguous().transpose(0, 1), slots)
    assert torch.equal(ops.read_cache(cache, slots), x)
    assert torch.equal(cache[1, :, 1], x[3])
    assert cache.isnan().sum() == cache.numel() - x.numel()


def test_errors_name_the_argument():
    pages = Pages([40, 3], 2, 2, 16, torch.float32)
    good = {"q": draw((2, 4, 16), torch.float32), "k_cache": pages.k, "v_cache": pages.v, "page_table": pages.table}
    good |= {"lengths": pages.lengths, "max_length": 40}
    bad = {
        "q": good["q"].double(),
        "v_cache": pages.v[:, :1],
        "page_table": pages.table + 100,
        "lengths": pages.lengths + 1,
        "max_length": 0,
        "window": -1,
        "softcap": -1.0,
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            ops.decode_attention(**good | {name: value})
    with pytest.raises(ValueError, match=r"3 pages, but page_table has 2 slots"):
        ops.decode_attention(**good | {"page_table": pages.table[:, :2].contiguous()})
    probs = ops.decode_attention(**good)[1]
    with pytest.raises(ValueError, match="columns"):
        ops.decode_attend(probs[..., :32], pages.v, pages.table, pages.lengths)
    with pytest.raises(ValueError, match=r"head_map\[1\] is 4"):
        ops.decode_attend(probs, pages.v, pages.table, pages.lengths, torch.tensor([0, 4, 0, 0]))
    with pytest.raises(ValueError, match=r"slots\[0\] is"):
        ops.read_cache(pages.k, torch.tensor([10**6]))
    with pytest.raises(ValueError, match="sequence 0 has 3 queries"):
        bounds = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
        q = draw((3, 4, 16), torch.float32)
        ops.prefill_attention(q, q[:2], q[:2], *bounds)
    for shape, dtype in (((4, 10), torch.float32), ((3, 3 * 131), torch.float32), ((4, 3 * 131), torch.float64)):
        with pytest.raises(ValueError, match="tiles"):
            ops.prefill_attention(q, q, q, bounds[0], bounds[0], tiles=torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(), (1,), (3,), (2, 9), (32,)], ids=str)
def test_products_of_a_few_rows(rows, dtype):
    x, w = draw((*rows, 75), dtype), draw((13, 75), dtype, 1)
    exact = x.double() @ w.double().T
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(uniattn.linear(x, w).double(), exact, rtol=tolerance, atol=tolerance)
