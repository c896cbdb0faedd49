"""The plain formulas that every operator is tested against, differentiated by autograd itself."""

import torch


def probabilities(q, k, causal=True, window=0, softcap=0.0, scale=None):
    """One sequence: q [tokens, heads, head_dim], k [tokens, kv_heads, head_dim] -> P [heads, tokens, tokens]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[2] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i = torch.arange(len(q), device=q.device)[:, None]
    j = torch.arange(len(q), device=q.device)[None, :]
    hidden = torch.zeros_like(i > j)
    if causal:
        hidden |= j > i
    if window:
        hidden |= i - j >= window
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


def superblock(q, k, values, head_maps, cu_seqlens, **mask):
    """Outputs of the leader (values[0]) and its followers over packed sequences, with P in full."""
    outs = [[] for _ in values]
    bounds = cu_seqlens.tolist()
    for begin, end in zip(bounds, bounds[1:]):
        p = probabilities(q[begin:end], k[begin:end], **mask)
        for out, v, head_map in zip(outs, values, head_maps):
            v = v[begin:end].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            out.append(torch.einsum("hij,jhd->ihd", p if head_map is None else p[head_map], v))
    return [torch.cat(out) for out in outs]


def rms_norm(x, weight, eps, unit_offset=False):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight if unit_offset else weight)


def rotary(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def gated_activation(gate, up, activation):
    act = {"silu": torch.nn.functional.silu, "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}
    return act[activation](gate) * up


def linear_cross_entropy(hidden, weight, labels, softcap=0.0):
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)


def linear(x, weight):
    return x @ weight.T
