"""The superblock operators as an attention implementation of `modeling_uniattn.py`: attn_implementation="uniattn".

It is for whole sequences: training, and the forward pass without a cache. With a cache (generation) the same name runs
the PyTorch attention of `transformers`.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from uniattn.ops import Probs, attend, attention

NAME = "uniattn"


class Packing(NamedTuple):
    """Where the real tokens of a batch [B, T] lie. `tokens` int64: their places in the flattened batch, None for all.

    `cu_seqlens` int32: the boundaries of the sequences they form.
    """

    tokens: Optional[Tensor]
    cu_seqlens: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """[B, heads, T, head_dim] -> [tokens, heads, head_dim]."""
        x = x.transpose(1, 2).flatten(0, 1)
        return x if self.tokens is None else x[self.tokens]

    def unpack(self, x: Tensor, batch: int, length: int) -> Tensor:
        """[tokens, heads, head_dim] -> [B, T, heads, head_dim]; padding is 0."""
        if self.tokens is not None:
            x = x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, self.tokens, x)
        return x.unflatten(0, (batch, length))


def make_packing(h: Tensor, attention_mask: Optional[Tensor], position_ids: Tensor) -> Packing:
    """The packing of h [B, T, D]: by an attention mask [B, T] where there is one (0 is padding), else a sequence starts
    in each row and wherever the positions [B or 1, T] do not go on by one.
    """
    batch, length = h.shape[:2]
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(
            f'attn_implementation="{NAME}" takes an attention_mask [batch, tokens], got {list(attention_mask.shape)}; '
            "set another implementation for masks of your own"
        )
    if attention_mask is not None:
        real = attention_mask.to(torch.bool)
        lengths = real.sum(1, dtype=torch.int32)
        bounds = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return Packing(None if bool(real.all()) else real.flatten().nonzero().squeeze(1), bounds)
    starts = torch.ones(batch, length, dtype=torch.bool, device=h.device)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    bounds = starts.flatten().nonzero().squeeze(1).to(torch.int32)
    return Packing(None, torch.nn.functional.pad(bounds, (0, 1), value=batch * length))


def superblock_attention(
    module, q: Tensor, k: Tensor, v: Tensor, patterns: Optional[list[Probs]], packing: Packing, keep_probs
) -> tuple[Tensor, Optional[list[Probs]]]:
    """One layer's heads [B, T, heads, head_dim], and what it leaves for its followers.

    q, k, v [B, heads or kv_heads, T, head_dim] are the layer's own or its leader's; patterns: what the leader left.
    """
    if module.training and module.config.attention_dropout:
        raise ValueError(
            f'attn_implementation="{NAME}" has no attention dropout, and attention_dropout is '
            f"{module.config.attention_dropout}: set it to 0"
        )
    batch, _, length, _ = q.shape
    if module.place is not None and patterns is not None and _reaches_the_leader(patterns[module.place], q):
        heads = attend(patterns[module.place], packing.pack(v), module.head_index(q.device))
        return packing.unpack(heads, batch, length), None
    q, k, v = module.spread_heads(q, k, v)
    if module.pattern_followers:  # followers bring the model's number of value heads, and the operators want as many keys
        k, v = (x.repeat_interleave(module.config.num_key_value_heads // x.shape[1], dim=1) for x in (k, v))
    heads, patterns = attention(
        packing.pack(q),
        packing.pack(k),
        packing.pack(v),
        packing.cu_seqlens,
        followers=module.pattern_followers,
        window=module.sliding_window,
        softcap=module.softcap or 0.0,
        scale=module.scaling,
        keep_probs=keep_probs,
    )
    return packing.unpack(heads, batch, length), patterns or None


def _reaches_the_leader(probs: Probs, q: Tensor) -> bool:
    """Whether gradients that q is due can go through the handle.

    Under reentrant gradient checkpointing they cannot: the handle is of a forward pass without gradients. The pattern is
    then made again, from the q and k that the follower was given.
    """
    return probs.handle_out.requires_grad or not (torch.is_grad_enabled() and q.requires_grad)


def _attention_with_cache(module, *args, **kwargs):
    forward = eager_attention_forward if module.softcap else sdpa_attention_forward
    return forward(module, *args, **kwargs)


AttentionInterface.register(NAME, _attention_with_cache)
AttentionMaskInterface.register(NAME, eager_mask)
