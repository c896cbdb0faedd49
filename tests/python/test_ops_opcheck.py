"""torch.library.opcheck on every operator, and that none is left out."""

import pytest
import torch
import uniattn

from support.superblocks import draw, make_superblock

ops = torch.ops.uniattn
RAW = ("test_schema", "test_faketensor")  # of an operator below autograd
MAP = torch.tensor([1, 1, 0, 3])
KEEP = (False, True)


def leaf(*shape, seed=0):
    return draw(shape, seed=seed).requires_grad_()


def superblock(lengths=(70, 3), keep_probs=False, dtype=torch.float32):
    """A leader's tensors and a follower's: q, k, v, follower_v, cu_seqlens, and the right to the leader's P."""
    q, k, values, cu_seqlens = make_superblock(list(lengths), 4, 2, 8, 2, dtype)
    leaves = [t.requires_grad_() for t in (q, k, *values)]
    _, probs = uniattn.attention(*leaves[:3], cu_seqlens, followers=1, keep_probs=keep_probs)
    return *leaves, cu_seqlens, probs[0]


def attention():
    """Without followers, whose handles' gradients are private, and tiles, which have places that nobody reads."""
    q, k, v, _, cu_seqlens, _ = superblock()
    return (q, k, v, cu_seqlens, 0), {"keep_probs": False}


def attend(keep_probs, head_map):
    q, k, _, v, cu_seqlens, p = superblock(keep_probs=keep_probs)
    handles = [h.detach().requires_grad_() for h in (p.handle_out, p.handle_value, p.handle_delta)]
    return (q.detach(), k.detach(), p.lse, p.tiles, v, cu_seqlens, *handles, head_map), {}


def forward(keep_probs, **mask):
    q, k, v, _, cu_seqlens, _ = superblock()
    return [x.detach() for x in (q, k, v, cu_seqlens)], {"keep_probs": keep_probs} | mask


def of_pattern(keep_probs, *others, **mask):
    """The leader's P as raw operators take it, and `others` made of (q, k, v)."""
    q, k, v, follower_v, cu_seqlens, p = superblock(keep_probs=keep_probs)
    pattern = [x.detach() for x in (q, k, p.lse, p.tiles)]
    tensors = {"q": q.detach(), "v": v.detach(), "follower_v": follower_v.detach(), "cu_seqlens": cu_seqlens}
    return [*pattern, *(tensors.get(x, x) if isinstance(x, str) else x for x in others)], mask


def whole_backward(keep_probs):
    (q, k, lse, tiles, v, follower_v), _ = of_pattern(keep_probs, "v", "follower_v")
    cu_seqlens = torch.tensor([0, 70, 73], dtype=torch.int32)
    delta = torch.ones_like(lse)
    return (q, k, lse, tiles, cu_seqlens, [q, q], [v, follower_v], [delta, delta], [None, MAP]), {}


def angles(tokens, half):
    angle = draw((tokens, half), seed=9)
    return angle.cos(), angle.sin()


def pages():
    lengths = torch.tensor([40, 3], dtype=torch.int32)
    table = torch.tensor([[3, 0, 1], [2, 0, 0]], dtype=torch.int32)
    cache = draw((5, 2, 16, 16), torch.float32)
    return cache, table, lengths


def decode_attention():
    cache, table, lengths = pages()
    return (draw((2, 4, 16), torch.float32), cache, cache.clone(), table, lengths, 40), {}


def decode_attend():
    cache, table, lengths = pages()
    return (draw((2, 4, 48), torch.float32), cache, table, lengths, MAP), {}


def prefill():
    q, k = draw((3, 4, 16), torch.float32), draw((5, 2, 16), torch.float32)
    return q, k, torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 5], dtype=torch.int32)


def prefill_attention(tiles=None):
    q, k, *bounds = prefill()
    return (q, k, k.clone(), *bounds), {"tiles": tiles}


def prefill_attend(tiles=None):
    q, k, *bounds = prefill()
    lse = ops.prefill_attention(q, k, k, *bounds)[1]
    return (q, k, lse, k.clone(), *bounds, MAP), {"tiles": tiles}


LABELS = torch.tensor([3, -100, 0, 6, -100, 2, 2])
SLOTS = torch.tensor([3, 4])
CASES = [
    ("attention", attention),
    *(("attend", lambda keep=keep: attend(keep, MAP)) for keep in KEEP),
    ("attend", lambda: attend(False, None)),
    *(("attention_forward", lambda keep=keep: forward(keep)) for keep in KEEP),
    ("attention_forward", lambda: forward(True, window=5)),
    *(("attend_forward", lambda keep=keep: of_pattern(keep, "follower_v", "cu_seqlens", MAP)) for keep in KEEP),
    *(("attend_backward_value", lambda keep=keep: of_pattern(keep, "q", "cu_seqlens", MAP)) for keep in KEEP),
    *(("superblock_backward", lambda keep=keep: whole_backward(keep)) for keep in KEEP),
    ("attention_delta", lambda: ((draw((7, 4, 8)), draw((7, 4, 8), seed=1)), {})),
    ("rms_norm", lambda: ((leaf(3, 8), leaf(8), 1e-5), {})),
    ("rms_norm_forward", lambda: ((draw((3, 8)), draw((8,)), 1e-5, True), {})),
    ("rms_norm_backward", lambda: ((draw((3, 8)), draw((3, 8)), draw((8,)), draw((3,)), True), {})),
    ("rotary", lambda: ((leaf(5, 3, 8), *angles(5, 4)), {})),
    ("gated_activation", lambda: ((leaf(3, 8), leaf(3, 8, seed=1), "silu"), {})),
    ("gated_activation_backward", lambda: ((draw((3, 8)), draw((3, 8)), draw((3, 8)), "gelu_tanh"), {})),
    ("linear", lambda: ((leaf(2, 3, 8), leaf(5, 8)), {})),
    ("compensated_output", lambda: ((draw((7, 6)), leaf(4, 6), draw((7, 4)), leaf(4, 4)), {})),
    ("linear_cross_entropy", lambda: ((leaf(7, 4), leaf(9, 4), LABELS), {})),
    ("linear_cross_entropy_forward", lambda: ((draw((7, 4)), draw((9, 4)), LABELS, 2.0, 3), {})),
    (
        "linear_cross_entropy_backward",
        lambda: ((draw((7,)), draw((7, 4)), draw((9, 4)), LABELS, draw((7,)), 2.0, 3), {}),
    ),
    ("append_to_cache", lambda: ((pages()[0], draw((2, 2, 16), torch.float32), SLOTS), {})),
    ("read_cache", lambda: ((pages()[0], SLOTS), {})),
    ("decode_attention", decode_attention),
    ("decode_attend", decode_attend),
    *(("prefill_attention", lambda tiles=tiles: prefill_attention(tiles)) for tiles in (None, torch.zeros(4, 1000))),
    *(("prefill_attend", lambda tiles=tiles: prefill_attend(tiles)) for tiles in (None, torch.zeros(4, 1000))),
]
DIFFERENTIABLE = {"attention", "attend", "rms_norm", "rotary", "gated_activation", "linear"}
DIFFERENTIABLE |= {"compensated_output", "linear_cross_entropy"}


@pytest.mark.parametrize("name, make", CASES, ids=[name for name, _ in CASES])
def test_opcheck(name, make):
    arguments, options = make()
    every = {} if name in DIFFERENTIABLE else {"test_utils": RAW}
    torch.library.opcheck(getattr(ops, name).default, tuple(arguments), options, **every)


def test_no_operator_is_left_out():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("uniattn::")}
    assert {f"uniattn::{name}" for name, _ in CASES} == registered
