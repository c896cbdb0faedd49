"""The `uniattn` command of an installed package: becomes the program that was built into it.

Outside the package `uniattn`, whose import loads PyTorch: the program needs PyTorch's libraries, not Python.
"""

import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    program = _directory("uniattn") / "bin" / "uniattn"
    if not program.exists():
        sys.exit(f"uniattn: {program} is missing; install the package with `pip install .` from its source tree")
    # torch may live in another site directory than this package, where the program's run path does not reach.
    libraries = [str(_directory("torch") / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    os.environ["UNIATTN_PYTHON"] = sys.executable  # for `uniattn bench`
    os.execv(program, ["uniattn", *sys.argv[1:]])


def _directory(package: str) -> Path:
    """Where `package` is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"uniattn: the package {package} is not installed in {sys.prefix}")
    return Path(spec.submodule_search_locations[0])
