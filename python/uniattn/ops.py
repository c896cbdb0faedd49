"""Typed wrappers of the operators in ``torch.ops.uniattn``.

Sequences are packed: sequence s owns tokens ``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``. Every function is
differentiable once, except where it says otherwise.
"""

from typing import Literal, NamedTuple, Optional, Union

import torch
from torch import Tensor

PROBS_BUDGET = 256 * 2**20  # bytes


class Probs(NamedTuple):
    """One follower's right to use a leader's attention pattern P; pass it to :func:`attend` once.

    ``tiles`` is P itself where it is kept, or has size [heads, 0]: then P is rebuilt from the leader's ``q``, ``k`` and
    ``lse`` [heads, tokens]. The three handles carry the follower's share of the gradient back to the leader.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    tiles: Tensor
    cu_seqlens: Tensor
    handle_out: Tensor
    handle_value: Tensor
    handle_delta: Tensor
    causal: bool
    window: int
    softcap: float
    scale: Optional[float]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Optional[Tensor] = None,
    followers: int = 0,
    causal: bool = True,
    window: Optional[int] = None,
    softcap: float = 0.0,
    scale: Optional[float] = None,
    keep_probs: Union[bool, Literal["auto"]] = "auto",
    probs_budget: int = PROBS_BUDGET,
) -> tuple[Tensor, list[Probs]]:
    """Attention of a leader: out = P v with P = softmax(mask(softcap(scale q kᵀ))).

    Args:
        q: [tokens, heads, head_dim].
        k, v: [tokens, kv_heads, head_dim]; kv_heads divides heads.
        cu_seqlens: int32 [sequences + 1] on q's device, from 0 to tokens; None is one sequence.
        followers: how many later layers will call :func:`attend` on this pattern.
        causal: token i sees tokens j <= i only.
        window: token i sees tokens j > i - window only; None is no window.
        softcap: scores become softcap * tanh(scores / softcap); 0 is no cap.
        scale: head_dim ** -0.5 when None.
        keep_probs: True keeps the tiles of P that the mask leaves, in q's dtype, until the last :class:`Probs` and the
            graph are gone: faster, on CPU only. False rebuilds P from q and k in every follower and in the backward
            pass, in memory linear in tokens. "auto" keeps it on CPU for followers where it takes at most
            ``probs_budget`` bytes.
        probs_budget: bytes that "auto" may keep; a causal pattern takes heads * tokens² / 2 elements.

    Returns:
        out [tokens, heads, head_dim], and one :class:`Probs` per follower.
    """
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, q.shape[0]], dtype=torch.int32, device=q.device)
    mask = (causal, window or 0, softcap, scale)
    if keep_probs not in (True, False, "auto"):
        raise ValueError(f'keep_probs must be True, False or "auto", got {keep_probs!r}')
    out, lse, tiles, handles = torch.ops.uniattn.attention(
        q, k, v, cu_seqlens, followers, causal=mask[0], window=mask[1], softcap=mask[2], scale=mask[3],
        keep_probs=None if keep_probs == "auto" else keep_probs, probs_budget=probs_budget,
    )  # fmt: skip
    probs = [Probs(q, k, lse, tiles, cu_seqlens, *handles[3 * i : 3 * i + 3], *mask) for i in range(followers)]
    return out, probs


def attend(probs: Probs, v: Tensor, head_map: Optional[Tensor] = None) -> Tensor:
    """Attention of a follower: its own values under the leader's pattern.

    Args:
        probs: from :func:`attention`; each one serves a single call.
        v: [tokens, kv_heads, head_dim], shaped and typed like the leader's v.
        head_map: int64 [heads]; query head n reads the pattern of leader head ``head_map[n]``. It need not be a
            permutation and may cross KV groups; None is the identity.

    Returns:
        out [tokens, heads, head_dim]. Gradients reach v, and the leader's q and k.
    """
    p = probs
    return torch.ops.uniattn.attend(
        p.q, p.k, p.lse, p.tiles, v, p.cu_seqlens, p.handle_out, p.handle_value, p.handle_delta, head_map,
        causal=p.causal, window=p.window, softcap=p.softcap, scale=p.scale,
    )  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool = False) -> Tensor:
    """x * rsqrt(mean(x²) + eps) * weight, or * (1 + weight) with ``unit_offset`` (Gemma); x [..., D], weight [D]."""
    return torch.ops.uniattn.rms_norm(x, weight, eps, unit_offset)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the pairs (i, i + head_dim / 2), as in Hugging Face.

    x [tokens, heads, head_dim]; cos and sin [tokens, head_dim / 2], float32 (or float64), not differentiated.
    """
    return torch.ops.uniattn.rotary(x, cos, sin)


def gated_activation(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """act(gate) * up, elementwise on equal shapes; activation is "silu" (SwiGLU) or "gelu_tanh" (GeGLU)."""
    return torch.ops.uniattn.gated_activation(gate, up, activation)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weightᵀ, x [..., F], weight [D, F]; on CPU in float32 at the processor's full speed.

    Differentiable any number of times.
    """
    return torch.ops.uniattn.linear(x, weight)


def compensated_output(o: Tensor, w_o: Tensor, x: Tensor, w_c: Tensor) -> Tensor:
    """o w_oᵀ + x w_cᵀ: output projection and compensation; o [tokens, F], w_o [D, F], x [tokens, D], w_c [D, D]."""
    return torch.ops.uniattn.compensated_output(o, w_o, x, w_c)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float = 0.0, chunk: int = 1024
) -> Tensor:
    """Cross-entropy of softcap(hidden weightᵀ) without ever holding the logits of more than ``chunk`` tokens.

    hidden [tokens, D], weight [vocab, D], labels int64 [tokens] (-100: ignored). Returns the loss per token, float32
    [tokens], 0 where ignored.
    """
    return torch.ops.uniattn.linear_cross_entropy(hidden, weight, labels, softcap, chunk)
