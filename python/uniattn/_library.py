"""Loads the operator library, once, when the package is imported, and the generation engine when it is first used."""

import functools
import importlib.machinery
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch

_NAME = "libuniattn_ops.so"


def _find() -> Path:
    """The installed library, else $UNIATTN_LIBRARY, else the release build of the source tree this file is in."""
    package = Path(__file__).resolve().parent
    candidates = [package / "lib" / _NAME]
    if "UNIATTN_LIBRARY" in os.environ:
        candidates.append(Path(os.environ["UNIATTN_LIBRARY"]))
    candidates.append(package.parents[1] / "build" / "release" / _NAME)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = "\n  ".join(str(candidate) for candidate in candidates)
    raise ImportError(
        "uniattn's operator library was not found; build it with ./scripts/build or set UNIATTN_LIBRARY. "
        f"Tried:\n  {tried}"
    )


def load() -> None:
    torch.ops.load_library(str(_find()))


@functools.cache
def engine() -> ModuleType:
    """The extension module `_engine`, which is built beside the operator library."""
    path = _find().parent / "_engine.so"
    if not path.is_file():
        raise ImportError(f"uniattn's generation engine was not found at {path}; build it with ./scripts/build")
    loader = importlib.machinery.ExtensionFileLoader("_engine", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_engine", loader))
    loader.exec_module(module)
    return module
