"""Benchmarks, side by side with the peers that are installed: `uniattn bench NAME`, or `python -m uniattn.bench.NAME`."""
