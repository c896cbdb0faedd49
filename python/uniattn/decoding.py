"""Typed wrappers of the operators of generation: caches of pages, decoding and chunked prefill. None has gradients.

A cache is [pages, kv_heads, page_size, head_dim], contiguous, and serves many sequences. Page p of sequence b, its
positions from p * page_size, is ``page_table[b, p % slots]`` (int32 [batch, slots]): as many slots as pages, or, where
a window limits sight, those in sight. ``lengths`` int32 [batch] counts a sequence's tokens, the newest included.

What ``page_table``, ``lengths``, ``slots`` and ``head_map`` hold is checked: on CPU before the work, with a ValueError;
on CUDA by the kernels, so that no step waits for the device: a wrong value ends the launch with a device-side assert.
"""

from typing import Optional

import torch
from torch import Tensor


def append_to_cache(cache: Tensor, x: Tensor, slots: Tensor) -> None:
    """Writes x [tokens, kv_heads, head_dim] into ``cache``, in place.

    Token t goes to slots[t] = page * page_size + place in the page, int64 [tokens].
    """
    torch.ops.uniattn.append_to_cache(cache, x, slots)


def read_cache(cache: Tensor, slots: Tensor) -> Tensor:
    """The rows at ``slots`` (int64 [tokens]) of ``cache``: [tokens, kv_heads, head_dim]."""
    return torch.ops.uniattn.read_cache(cache, slots)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    max_length: int,
    return_probs: bool = True,
    window: Optional[int] = None,
    softcap: float = 0.0,
    scale: Optional[float] = None,
) -> tuple[Tensor, Tensor]:
    """A leader's attention of the newest token of each sequence, whose key and value are in the cache already.

    Args:
        q: [batch, heads, head_dim].
        k_cache, v_cache: [pages, kv_heads, page_size, head_dim], in q's dtype; kv_heads divides heads.
        page_table, lengths: int32 [batch, slots] and [batch], see above.
        max_length: a bound on ``lengths``.
        return_probs: whether followers will want the rows of P.
        window, softcap, scale: as in :func:`uniattn.attention`.

    Returns:
        out [batch, heads, head_dim], and the rows of P [batch, heads, columns] in float32 (float64 for float64): column
        c is position c of the pages in sight, counted from the first of them; 0 where nothing is seen. No columns
        without ``return_probs``.
    """
    return torch.ops.uniattn.decode_attention(
        q, k_cache, v_cache, page_table, lengths, max_length, return_probs, window or 0, softcap, scale
    )


def decode_attend(
    probs: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    head_map: Optional[Tensor] = None,
    window: Optional[int] = None,
) -> Tensor:
    """A follower's: its own cached values under the leader's rows of P; no queries, no keys, no softmax.

    Args:
        probs: [batch, heads, columns], from :func:`decode_attention`.
        v_cache: [pages, kv_heads, page_size, head_dim]; other heads than the leader's are welcome, the pages are the
            same.
        head_map: int64 [heads], the leader head whose row each head reads; None is the identity.
        page_table, lengths, window: the leader's.

    Returns:
        [batch, heads, head_dim] in the dtype of ``v_cache``.
    """
    return torch.ops.uniattn.decode_attend(probs, v_cache, page_table, lengths, head_map, window or 0)


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    window: Optional[int] = None,
    softcap: float = 0.0,
    scale: Optional[float] = None,
    tiles: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the last tokens of packed sequences over all their tokens.

    Args:
        q: [tokens, heads, head_dim].
        k, v: [keys, kv_heads, head_dim], whose heads may differ in number and divide those of q.
        cu_seqlens_q, cu_seqlens_k: int32 [sequences + 1]; no sequence has more queries than keys.
        window, softcap, scale: as in :func:`uniattn.attention`.
        tiles: contiguous [heads, elements] in q's dtype, on CPU: becomes P for followers that are given it with the
            same boundaries and options. At least tokens * (keys - tokens + 128) + tokens * (tokens - 1) / 2 elements,
            or fewer with a window. None: followers rebuild P.

    Returns:
        out [tokens, heads, head_dim], and the log-sum-exp of each row [heads, tokens] in float32 (float64 for float64),
        for :func:`prefill_attend`.
    """
    return torch.ops.uniattn.prefill_attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, window or 0, softcap, scale, tiles
    )


def prefill_attend(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    head_map: Optional[Tensor] = None,
    window: Optional[int] = None,
    softcap: float = 0.0,
    scale: Optional[float] = None,
    tiles: Optional[Tensor] = None,
) -> Tensor:
    """A follower's: its own v [keys, kv_heads, head_dim] under the P of the leader's q, k and lse, or of its tiles.

    The other arguments are the leader's; head_map as in :func:`decode_attend`. Returns [tokens, heads, head_dim].
    """
    return torch.ops.uniattn.prefill_attend(
        q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, window or 0, softcap, scale, tiles
    )
