"""The operators as an attention implementation of `modeling_uniattn.py`: attn_implementation="uniattn".

A forward pass is one of three: :class:`Whole` sequences (training, evaluation, prompts), :class:`Chunk`, several tokens
behind a cache, and :class:`Step`, one token behind a cache. Each layer hands its keys and values to `remember` and then
calls `attend`. With other caches than a :class:`PagedCache` the PyTorch attention of `transformers` runs.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from uniattn.decoding import decode_attend, decode_attention, prefill_attend, prefill_attention
from uniattn.hf_cache import Layout, PagedCache, bounds
from uniattn.ops import Probs, attend, attention

NAME = "uniattn"


def is_default(config) -> bool:
    """Whether a model of this configuration attends by the operators unless told otherwise.

    They have no dropout, and their CUDA kernels have not been tried on hardware yet (docs/operators.md).
    """
    return not config.attention_dropout and not torch.cuda.is_available()


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


def make_packing(h: Tensor, real: Optional[Tensor], position_ids: Tensor) -> Packing:
    """The packing of h [B, T, D]: by real [B, T], False for padding, where it is known, else a sequence starts in each
    row and wherever the positions [B or 1, T] do not go on by one.
    """
    batch, length = h.shape[:2]
    if real is not None:
        return Packing(None if bool(real.all()) else real.flatten().nonzero().squeeze(1), bounds(real.sum(1)))
    starts = torch.ones(batch, length, dtype=torch.bool, device=h.device)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    begins = starts.flatten().nonzero().squeeze(1).to(torch.int32)
    return Packing(None, pad(begins, (0, 1), value=batch * length))


class Pass:
    """What is common to the layers of one forward pass: `packing`, and with a cache where its tokens go."""

    def __init__(self, packing: Packing, cache: Optional[PagedCache], real: Optional[Tensor]):
        """real: bool [B, T], the columns of this pass, by which `cache` has been extended."""
        self.packing, self.cache, self.layouts = packing, cache, {}
        if cache is not None:
            self.lengths = cache.real.sum(1, dtype=torch.int32)
            positions = (cache.real.cumsum(1) - 1)[:, -real.shape[1] :]
            self.tokens = self.lengths, real.nonzero()[:, 0], positions[real]

    def layout(self, module) -> Layout:
        """Where the tokens of this pass lie in layers with the module's window."""
        window = module.sliding_window
        if window not in self.layouts:
            self.layouts[window] = self.cache.layout(window, *self.tokens)
        return self.layouts[window]

    def write(self, module, k: Optional[Tensor], v: Optional[Tensor]):
        """A layer's k and v [B, kv_heads, T, head_dim] into the cache; None where it has none. Returns its pages."""
        k, v = (x if x is None else self.packing.pack(x) for x in (k, v))
        return self.cache.update(k, v, module.layer_idx, self.layout(module))


class Whole(Pass):
    """Sequences with nothing before them; differentiable."""

    def remember(self, module, k: Optional[Tensor], v: Optional[Tensor]):
        if self.cache is not None:
            self.write(module, k, v)
        return k, v

    def attend(
        self, module, q: Tensor, k: Tensor, v: Tensor, patterns: Optional[list[Probs]], keep_probs
    ) -> tuple[Tensor, Optional[list[Probs]]]:
        """One layer's heads [B, T, heads, head_dim], and what it leaves for its followers.

        q, k, v [B, heads or kv_heads, T, head_dim] are the layer's own or its leader's; patterns: what the leader left.
        """
        if module.training and module.config.attention_dropout:
            raise ValueError(
                f'attn_implementation="{NAME}" has no attention dropout, and attention_dropout is '
                f"{module.config.attention_dropout}: set it to 0"
            )
        packing, (batch, _, length, _) = self.packing, q.shape
        if module.place is not None and patterns is not None and _reaches_the_leader(patterns[module.place], q):
            heads = attend(patterns[module.place], packing.pack(v), module.head_index(q.device))
            return packing.unpack(heads, batch, length), None
        q, k, v = module.spread_heads(q, k, v)
        if module.pattern_followers:  # as many heads as the values that followers bring, which are the model's
            k, v = (x.repeat_interleave(module.config.num_key_value_heads // x.shape[1], dim=1) for x in (k, v))
        heads, patterns = attention(
            packing.pack(q),
            packing.pack(k),
            packing.pack(v),
            packing.cu_seqlens,
            followers=module.pattern_followers,
            keep_probs=keep_probs,
            **_mask(module),
        )
        return packing.unpack(heads, batch, length), patterns or None


class Chunk(Pass):
    """Several tokens behind a cache: a prompt in chunks, a further turn, drafts of assisted decoding."""

    def remember(self, module, k: Optional[Tensor], v: Optional[Tensor]):
        """Packed k and v [keys, kv_heads, head_dim] of this pass and of what it sees of the cache."""
        layer, layout = self.cache.layers[module.layer_idx], self.layout(module)
        # Read before written: the new tokens may take the places of old ones that the first of them see.
        seen = [
            None if x is None else layout.read(pages, self.packing.pack(x))
            for pages, x in ((layer.keys, k), (layer.values, v))
        ]
        self.write(module, k, v)
        return seen

    def attend(self, module, q: Tensor, k: Tensor, v: Tensor, lse: Optional[Tensor], keep_probs):
        """As in :class:`Whole`, but k and v are those of `remember`, and a leader leaves its log-sum-exp."""
        batch, _, length, _ = q.shape
        q, ends = self.packing.pack(q), (self.packing.cu_seqlens, self.layout(module).sight[2])
        if module.place is not None:
            heads = prefill_attend(q, k, lse, v, *ends, module.head_index(q.device), **_mask(module))
        else:
            heads, lse = prefill_attention(q, k, v, *ends, **_mask(module))
        return self.packing.unpack(heads, batch, length), lse


class Step(Pass):
    """One token of each row behind a cache; a leader's row of P goes to its followers."""

    def remember(self, module, k: Optional[Tensor], v: Optional[Tensor]):
        """The layer's pages."""
        return self.write(module, k, v)

    def attend(self, module, q: Tensor, k: Tensor, v: Tensor, probs: Optional[Tensor], keep_probs):
        """As in :class:`Whole`, but k and v are pages, and a leader leaves its rows of P."""
        table, window = self.layout(module).table, module.sliding_window
        if module.place is not None:
            heads = decode_attend(probs, v, table, self.lengths, module.head_index(q.device), window)
        else:
            longest, leads = self.cache.get_seq_length(), module.pattern_followers > 0
            heads, probs = decode_attention(q[:, :, 0], k, v, table, self.lengths, longest, leads, **_mask(module))
        return heads[:, None], probs


def _mask(module) -> dict:
    return {"window": module.sliding_window, "softcap": module.softcap or 0.0, "scale": module.scaling}


def make_pass(h: Tensor, attention_mask: Optional[Tensor], position_ids: Tensor, cache: Optional[PagedCache]) -> Pass:
    """The pass of h [B, T, D] behind what `cache` holds, by which the cache is extended.

    attention_mask [B, T or more], whose last T columns are looked at: 0 is padding; None: there is none. With nothing
    before them and no mask, rows hold several sequences where positions [B or 1, T] start again.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(
            f'attn_implementation="{NAME}" takes an attention_mask [batch, tokens], got {list(attention_mask.shape)}; '
            "set another implementation for masks of your own"
        )
    batch, length = h.shape[:2]
    real = None if attention_mask is None else attention_mask[:, -length:].to(torch.bool)
    all_real = torch.ones(batch, length, dtype=torch.bool, device=h.device)
    behind = cache is not None and cache.get_seq_length() > 0
    if real is None and behind:
        real = all_real
    packing = make_packing(h, real, position_ids)
    if cache is not None:
        real = all_real if real is None else real
        cache.extend(real)
    if not behind:
        return Whole(packing, cache, real)
    return (Step if length == 1 and packing.tokens is None else Chunk)(packing, cache, real)


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
