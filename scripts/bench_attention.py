#!/usr/bin/env python3
"""`uniattn bench attention` from the source tree: see python/uniattn/bench/attention.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from uniattn.bench.attention import main  # noqa: E402

main(sys.argv[1:])
