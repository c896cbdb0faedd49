"""Softmax unification in attention: operators that let neighbouring layers share one attention pattern."""

from uniattn import _library

_library.load()

from uniattn.generation import Generation, Model, load  # noqa: E402 - the operators exist once the library is loaded
from uniattn.ops import (  # noqa: E402 - the operators exist once the library is loaded
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

__all__ = [
    "Generation",
    "Model",
    "Probs",
    "attend",
    "attention",
    "compensated_output",
    "gated_activation",
    "linear",
    "linear_cross_entropy",
    "load",
    "rms_norm",
    "rotary",
]
