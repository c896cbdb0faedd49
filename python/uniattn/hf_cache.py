"""The cache of `modeling_uniattn.py` for the operators: keys and values in pages, laid out by the sharing plan."""

from functools import cached_property
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from uniattn.decoding import append_to_cache, read_cache

PAGE = 64  # tokens


def bounds(counts: Tensor) -> Tensor:
    """The boundaries of packed sequences of these lengths, int32 [sequences + 1]."""
    return pad(counts.cumsum(0, dtype=torch.int32), (1, 0))


class Layout:
    """Where the tokens of one forward pass lie in the pages of the layers that have one window.

    Row b owns pages b * slots to (b + 1) * slots of a layer; its token t, padding not counted, lies in the
    (t // PAGE % slots)-th of them. `table` int32 [batch, slots] says so to the operators.
    """

    def __init__(self, slots: int, window: Optional[int], lengths: Tensor, rows: Tensor, positions: Tensor):
        """lengths: int32 [batch], the tokens of each row, those of this pass included; rows and positions: int64 [tokens],
        of this pass.
        """
        self.batch, self.slots, self.window = len(lengths), slots, window
        self.lengths, self.rows = lengths, rows
        self.table = torch.arange(self.batch * slots, dtype=torch.int32, device=lengths.device).view(self.batch, slots)
        self.kept = None  # of the tokens that are written, where some are not
        if window is not None and len(rows) > self.batch:  # a window may have passed some already
            self.kept = (positions // PAGE > (lengths[rows] - 1) // PAGE - slots).nonzero().squeeze(1)
            rows, positions = rows[self.kept], positions[self.kept]
        self.written = self.places(rows, positions)

    def places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """The places of tokens in a layer's pages, as the operators count them."""
        return (rows * self.slots + positions // PAGE % self.slots) * PAGE + positions % PAGE

    @cached_property
    def sight(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the tokens of this pass see: the places of earlier ones; the order that puts these and the new ones row
        by row; the boundaries of the rows then, int32 [batch + 1].
        """
        new = torch.bincount(self.rows, minlength=self.batch)
        old = self.lengths - new
        first = torch.zeros_like(old) if self.window is None else (old - self.window + 1).clamp(min=0)
        counts = old - first
        rows = torch.arange(self.batch, device=old.device).repeat_interleave(counts)
        positions = torch.arange(len(rows), device=old.device) - (counts.cumsum(0) - counts - first)[rows]
        order = torch.cat([rows, self.rows]).argsort(stable=True)
        return self.places(rows, positions), order, bounds(counts + new)

    def write(self, pages: Optional[Tensor], x: Optional[Tensor]) -> Optional[Tensor]:
        """`pages` [batch * slots, kv_heads, PAGE, head_dim], made or enlarged where they must be, with x in them.

        x [tokens, kv_heads, head_dim]: the tokens of this pass; None for a layer that keeps none.
        """
        if x is None:
            return None
        x = x.detach()
        pages = x.new_empty(0, x.shape[1], PAGE, x.shape[2]) if pages is None else pages
        pages = self.enlarged(pages)
        append_to_cache(pages, x if self.kept is None else x[self.kept], self.written)
        return pages

    def read(self, pages: Tensor, x: Tensor) -> Tensor:
        """What the tokens of this pass see, row by row [keys, kv_heads, head_dim]; x is their own."""
        places, order, _ = self.sight
        return torch.cat([read_cache(self.enlarged(pages), places), x])[order]

    def enlarged(self, pages: Tensor) -> Tensor:
        """`pages` with room for `slots` of them in each row."""
        if len(pages) == self.batch * self.slots:
            return pages
        smaller = pages.unflatten(0, (self.batch, -1))
        larger = pages.new_empty(self.batch, self.slots, *pages.shape[1:])
        larger[:, : smaller.shape[1]] = smaller
        return larger.flatten(0, 1)


class PagedLayer:
    """What one layer keeps: `keys` and `values` [pages, kv_heads, PAGE, head_dim], None where its mode does without."""

    is_compileable, is_croppable = False, True

    def __init__(self, window: Optional[int]):
        self.window, self.is_sliding = window, window is not None
        self.keys: Optional[Tensor] = None
        self.values: Optional[Tensor] = None


class PagedCache(Cache):
    """Keys and values of all tokens but padding. Layers with a window keep the pages in sight and use them in turn.

    Only the operators read it; to `transformers` it is as long as a cache with padding would be.
    """

    def __init__(self, windows: list[Optional[int]]):
        """windows: of each layer, the tokens in its sight, None for all."""
        super().__init__(layers=[PagedLayer(window) for window in windows])
        self.keeps_past = False
        self.reset()

    def reset(self) -> None:
        self.real: Optional[Tensor] = None  # bool [batch, columns]: which were not padding
        self.slots: dict[Optional[int], int] = {}  # pages per row, of the layers with a window
        for layer in self.layers:
            layer.keys = layer.values = None

    def extend(self, real: Tensor) -> None:
        """Counts the tokens of a pass: real bool [batch, columns], where False is padding."""
        if self.real is not None and len(self.real) != len(real):
            raise ValueError(f"the cache holds a batch of {len(self.real)}, and this one is of {len(real)}")
        self.real = real if self.real is None else torch.cat([self.real, real], 1)

    def layout(self, window: Optional[int], *tokens: Tensor) -> Layout:
        """Of the layers with this window; tokens: lengths, rows and positions. Pages grow by a quarter."""
        pages = -(-self.get_seq_length() // PAGE)
        slots = self.slots.get(window, 0)
        if pages > slots:
            slots = pages + pages // 4
        if window is not None and not self.keeps_past:
            slots = min(slots, (window + PAGE - 2) // PAGE + 1)
        self.slots[window] = slots
        return Layout(slots, window, *tokens)

    def update(self, k: Optional[Tensor], v: Optional[Tensor], layer_idx: int, layout: Layout):
        """Writes the packed tokens of this pass; the layer's pages of keys and of values, None without."""
        layer = self.layers[layer_idx]
        layer.keys, layer.values = layout.write(layer.keys, k), layout.write(layer.values, v)
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.real is None else self.real.shape[1]

    def get_max_length(self, layer_idx: Optional[int] = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    @property
    def is_initialized(self) -> bool:
        return self.real is not None

    @property
    def batch_size(self) -> int:
        return -1 if self.real is None else len(self.real)

    def activate_past_recording(self) -> None:
        """Keeps what a window has passed, so that :meth:`crop` can go back; no effect on a cache that holds tokens."""
        self.keeps_past = self.keeps_past or self.real is None

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last -tokens_to_remove columns."""
        if tokens_to_remove == 0 or self.real is None:
            return
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
        if not self.keeps_past and any(window is not None and self.get_seq_length() > window for window in self.slots):
            raise RuntimeError(
                "a layer has dropped what its window has passed: call activate_past_recording() on the empty cache"
            )
        self.real = self.real[:, :tokens_to_remove]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`, in that order; a row may come several times."""
        if self.real is None:
            return
        batch, self.real = len(self.real), self.real[indices]
        for layer in self.layers:
            for name in ("keys", "values"):
                pages = getattr(layer, name)
                if pages is not None:
                    rows = pages.unflatten(0, (batch, -1)).index_select(0, indices.to(pages.device))
                    setattr(layer, name, rows.flatten(0, 1))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.real is not None:
            rows = torch.arange(len(self.real), device=self.real.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))
