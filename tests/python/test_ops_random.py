"""Random arguments to every operator: what fits is computed, the rest is refused by name, and nothing crashes.

docs/operators.md says how to run this file under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import random
import re

import pytest
import torch
import uniattn

ops = torch.ops.uniattn
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NUMBERS = [0, 1, -1, 3, 2**40, -(2**40)]


def bounds(*lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def sight(pick):
    return {"window": pick([0, 0, 1, 7, 2**40]), "softcap": pick([0.0, 2.0]), "scale": pick([None, 0.3])}


def heads(pick):
    """Numbers of query heads and of KV heads, a head_dim and a dtype."""
    return *pick([(4, 4), (4, 2), (6, 1), (1, 1)]), pick([1, 8, 16, 20, 64, 257]), pick(DTYPES)


def superblock(pick):
    (n, kv, d, dtype), tokens = heads(pick), pick([0, 1, 5, 64, 130])
    q, k, v, v_1 = (torch.ones(tokens, h, d, dtype=dtype, requires_grad=True) for h in (n, kv, kv, kv))
    head_map = pick([None, torch.randint(0, n, (n,))])
    options = sight(pick) | {"causal": pick([True, False]), "keep_probs": pick([True, False, "auto"])}
    cu_seqlens = pick([None, bounds(tokens), bounds(tokens // 2, 0, tokens - tokens // 2)])
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens, "follower_v": v_1, "head_map": head_map}
    return arguments | {"probs_budget": 2**20} | options


def run_superblock(follower_v, head_map, **arguments):
    out, probs = uniattn.attention(followers=1, **arguments)
    following = uniattn.attend(probs[0], follower_v, head_map)
    leaves = [x for x in (*arguments.values(), follower_v) if isinstance(x, torch.Tensor) and x.requires_grad]
    return out, following, *torch.autograd.grad(out.sum() + following.sum(), leaves, allow_unused=True)


def decoding(pick):
    (n, kv, d, dtype), page_size = heads(pick), pick([1, 5, 16, 32])
    lengths = torch.randint(1, 70, (pick([0, 1, 3]),), dtype=torch.int32)
    slots = -(-70 // page_size)
    cache = torch.ones(2 * slots, kv, page_size, d, dtype=dtype)
    table = torch.randint(0, 2 * slots, (len(lengths), slots), dtype=torch.int32)
    q, head_map = torch.ones(len(lengths), n, d, dtype=dtype), pick([None, torch.randint(0, n, (n,))])
    arguments = {"q": q, "k_cache": cache, "v_cache": cache.clone(), "page_table": table, "lengths": lengths}
    return arguments | {"max_length": 70, "head_map": head_map} | sight(pick)


def run_decoding(q, k_cache, v_cache, page_table, lengths, max_length, head_map, window, softcap, scale):
    out, probs = ops.decode_attention(
        q, k_cache, v_cache, page_table, lengths, max_length, window=window, softcap=softcap, scale=scale
    )
    return out, probs, ops.decode_attend(probs, v_cache, page_table, lengths, head_map, window)


def following(pick):
    """A row of P that need not be one."""
    arguments = decoding(pick)
    columns = pick([70, 80, 96, 0, 16])
    probs = torch.ones(*arguments["q"].shape[:2], columns, dtype=pick([torch.float32, torch.float64]))
    names = ("v_cache", "page_table", "lengths", "head_map", "window")
    return {"probs": probs} | {name: arguments[name] for name in names}


def caching(pick):
    _, kv, d, dtype = heads(pick)
    cache, tokens = torch.ones(3, kv, pick([1, 5, 16]), d, dtype=dtype), pick([0, 1, 7])
    slots = torch.randint(0, 3 * cache.shape[2], (tokens,))
    return {"cache": cache, "x": torch.ones(tokens, kv, d, dtype=dtype), "slots": slots}


def run_caching(cache, x, slots):
    ops.append_to_cache(cache, x, slots)
    return cache, ops.read_cache(cache, slots)


def prefill(pick):
    (n, kv, d, dtype), keys = heads(pick), [0, 5, 70]
    queries = [0, pick([0, 1, 5]), pick([1, 64, 70])]
    q, k, v = (torch.ones(sum(t), h, d, dtype=dtype) for t, h in ((queries, n), (keys, kv), (keys, kv)))
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens_q": bounds(*queries), "cu_seqlens_k": bounds(*keys)}
    tiles = pick([None, torch.zeros(n, 75 * (75 + 128), dtype=dtype)])
    return arguments | {"head_map": pick([None, torch.randint(0, n, (n,))]), "tiles": tiles} | sight(pick)


def run_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, head_map, **options):
    out, lse = ops.prefill_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
    return out, ops.prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, **options)


def rows(pick, *shapes):
    """Tensors that want gradients, of [tokens, …] where a shape begins with None."""
    dtype, tokens = pick(DTYPES), pick([0, 1, 5, 70])
    sizes = [[tokens if size is None else size for size in shape] for shape in shapes]
    return [torch.ones(size, dtype=dtype, requires_grad=True) for size in sizes]


def norm(pick):
    width = pick([1, 3, 16, 67])
    x, weight = rows(pick, [None, width], [width])
    return {"x": x, "weight": weight, "eps": 1e-5, "unit_offset": pick([True, False])}


def rotation(pick):
    width = pick([2, 6, 32, 70])
    (x,) = rows(pick, [None, 3, width])
    angle = torch.ones(len(x), width // 2, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return {"x": x, "cos": angle.cos(), "sin": angle.sin()}


def activation(pick):
    gate, up = rows(pick, [None, pick([1, 16, 35])], [None, 1])
    return {"gate": gate, "up": up.expand_as(gate), "activation": pick(["silu", "gelu_tanh"])}


def product(pick):
    width = pick([1, 16, 75])
    x, weight = rows(pick, [None, width], [13, width])
    return {"x": x, "weight": weight}


def compensated(pick):
    o, w_o, x, w_c = rows(pick, [None, 12], [20, 12], [None, 20], [20, 20])
    return {"o": o, "w_o": w_o, "x": x, "w_c": w_c}


def cross_entropy(pick):
    hidden, weight = rows(pick, [None, 16], [pick([1, 9, 65]), 16])
    labels = torch.randint(0, len(weight), (len(hidden),))
    options = {"softcap": pick([0.0, 2.0]), "chunk": pick([1, 3, 1024])}
    return {"hidden": hidden, "weight": weight, "labels": labels} | options


def differentiated(operator):
    def run(**arguments):
        out = operator(**arguments)
        leaves = [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.requires_grad]
        return out, *torch.autograd.grad(out.sum(), leaves, allow_unused=True)

    return run


CASES = {
    "superblock": (superblock, run_superblock),
    "decoding": (decoding, run_decoding),
    "decode_attend": (following, ops.decode_attend),
    "caches": (caching, run_caching),
    "prefill": (prefill, run_prefill),
    "rms_norm": (norm, differentiated(uniattn.rms_norm)),
    "rotary": (rotation, differentiated(uniattn.rotary)),
    "gated_activation": (activation, differentiated(uniattn.gated_activation)),
    "linear": (product, differentiated(uniattn.linear)),
    "compensated_output": (compensated, differentiated(uniattn.compensated_output)),
    "linear_cross_entropy": (cross_entropy, differentiated(uniattn.linear_cross_entropy)),
}


def other_tensor(x, pick):
    """x changed in its shape, dtype, device, strides or, where these are places and lengths, values."""
    changes = [
        lambda: x.to(pick([*DTYPES, torch.int32, torch.int64, torch.bool])),
        lambda: x.to("meta"),
        lambda: x.unsqueeze(0),
        lambda: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda: x.select(0, 0) if len(x) else x,
        lambda: torch.cat([x, x], pick(range(x.dim()))),
        lambda: x.narrow(pick(range(x.dim())), 0, 0),
    ]
    if not x.is_floating_point():
        changes += [lambda: x + pick(NUMBERS[1:]), lambda: x * 0 + pick([-1, 0, 1, 2**30]), lambda: x.flip(0)]
    changed = pick(changes)().detach()
    return changed.requires_grad_(x.requires_grad and changed.is_floating_point())


def change_one(arguments, pick):
    name = pick(list(arguments))
    value = arguments[name]
    if isinstance(value, torch.Tensor):
        arguments[name] = other_tensor(value, pick)
    elif isinstance(value, str):
        arguments[name] = "another"
    elif isinstance(value, int) and not isinstance(value, bool):
        arguments[name] = pick(NUMBERS)
    elif isinstance(value, float):
        arguments[name] = pick([-1.0, 0.0, float("nan"), float("inf"), 1e30])


@pytest.mark.parametrize("name", CASES)
def test_random_arguments_are_computed_or_refused(name):
    make, run = CASES[name]
    torch.manual_seed(0)
    numbers, outcomes = random.Random(name), []
    for _ in range(400):
        arguments = make(numbers.choice)
        changed = numbers.random() < 0.6
        if changed:
            change_one(arguments, numbers.choice)
        try:
            results = run(**arguments)
            outcomes.append("computed")
        except (ValueError, RuntimeError) as error:
            outcomes.append("refused")
            words = set(re.findall(r"\w+", str(error)))
            assert changed or name == "decode_attend", error  # whose rows of P may be too short as they are
            assert words & {*arguments, "tiles", "cache", "delta"}, error
            continue
        if not changed:
            results = [results] if isinstance(results, torch.Tensor) else results
            assert all(x.isfinite().all() for x in results if x is not None)
    assert outcomes.count("computed") > 50 and outcomes.count("refused") > 25
