"""Softmax unification in attention: operators that let neighbouring layers share one attention pattern."""

from uniattn import _library

_library.load()

from uniattn.convert import convert  # noqa: E402 - the operators exist once the library is loaded
from uniattn.decoding import (  # noqa: E402
    append_to_cache,
    decode_attend,
    decode_attention,
    prefill_attend,
    prefill_attention,
    read_cache,
)
from uniattn.generation import Generation, Model, load  # noqa: E402
from uniattn.ops import (  # noqa: E402
    Probs,
    attend,
    attention,
    compensated_output,
    gated_activation,
    linear,
    linear_cross_entropy,
    rms_norm,
    rotary,
)
from uniattn.plan import LayerPlan, SharingPlan  # noqa: E402

__all__ = [
    "Generation",
    "LayerPlan",
    "Model",
    "Probs",
    "SharingPlan",
    "append_to_cache",
    "attend",
    "attention",
    "compensated_output",
    "convert",
    "decode_attend",
    "decode_attention",
    "gated_activation",
    "linear",
    "linear_cross_entropy",
    "load",
    "prefill_attend",
    "prefill_attention",
    "read_cache",
    "rms_norm",
    "rotary",
]
