"""A superblock of g layers against g calls of scaled_dot_product_attention, and a decode step, interleaved in one run.

    uniattn bench attention --group 1 4 --tokens 1024 --kv-heads 8 2 --csv FILE.csv --plot FILE.png
    uniattn bench attention --phases decode --tokens 4096 16384 --head-dim 128

Phases: forward, backward and both, with P rebuilt and with P kept; decode, one step of a leader and its followers at
`--tokens` cached tokens. The peer is the fastest SDPA back-end of this PyTorch on the case. Per row: median milliseconds
of both sides, the median of the ratios of each round, what is achieved (GFLOP/s of the products really done; GB/s of the
caches read), and the limit: the ratio if ours ran at the machine's measured rate of products or of reading. Rounds in
which the process did not get its threads are dropped: a row with 0 rounds says that the machine was busy.
"""

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any, Iterator

import torch

from uniattn.bench import attention_cases as cases
from uniattn.bench.report import conditions, write_csv

COLUMNS = [
    *("phase", "reuse", "dtype", "group", "tokens", "heads", "kv_heads", "head_dim", "rounds"),
    *("ours_ms", "sdpa_ms", "ratio", "limit", "ours_rate", "sdpa_rate", "unit", "backend"),
]
PHASES = ["forward", "backward", "both", "decode"]
DTYPES = ["float32", "bfloat16", "float16"]
Row = dict[str, Any]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="uniattn bench attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", nargs="+", default=PHASES, choices=PHASES)
    parser.add_argument("--reuse", nargs="+", default=["rebuilt", "kept"], choices=["rebuilt", "kept"])
    parser.add_argument("--group", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(argv)


def reuses(args: argparse.Namespace) -> list[str]:
    """A GPU only rebuilds."""
    return args.reuse if args.device == "cpu" else ["rebuilt"]


def training_rows(args: argparse.Namespace, case: cases.Case) -> Iterator[Row]:
    phases = [phase for phase in args.phases if phase != "decode"]
    if not phases:
        return
    peak = cases.product_rate(case.dtype, case.device)
    for reuse in reuses(args):
        block = cases.Superblock(case, keep_probs=reuse == "kept")
        measured = cases.measure_training(block, args.rounds)
        for phase in phases:
            ours, theirs = cases.gflop(case, phase, reuse), cases.gflop(case, phase, None)
            row = {"phase": phase, "reuse": reuse, "unit": "GFLOP/s", "backend": block.backend.name}
            yield case.columns() | row | summary(measured[phase], ours, theirs, peak)


def decode_rows(args: argparse.Namespace, case: cases.Case) -> Iterator[Row]:
    if "decode" not in args.phases:
        return
    decode = cases.Decode(case)
    peak = cases.reading_rate(round(decode.gigabytes("leader") * 1e9), case.device)
    for role, samples in cases.measure_decode(decode, args.rounds).items():
        ours, theirs = decode.gigabytes(role), decode.gigabytes("leader")
        row = {"phase": "decode", "reuse": role, "unit": "GB/s", "backend": decode.backend.name}
        yield case.columns() | row | {"group": 1} | summary(samples, ours, theirs, peak)


def summary(samples: list[tuple[float, float]], ours: float, theirs: float, peak: float) -> Row:
    """samples: (ours, theirs) in milliseconds; the rest: work of both sides, and units of it per second."""
    row: Row = {"rounds": len(samples)}
    if samples:
        ours_ms, sdpa_ms = (statistics.median(side) for side in zip(*samples))
        row |= {"ours_ms": ours_ms, "sdpa_ms": sdpa_ms, "ratio": statistics.median(b / a for a, b in samples)}
        row |= {"limit": sdpa_ms / (1e3 * ours / peak)}
        row |= {"ours_rate": 1e3 * ours / ours_ms, "sdpa_rate": 1e3 * theirs / sdpa_ms}
    return {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()}


def draw(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if "ratio" in row and row["phase"] in ("both", "decode")]
    if not rows:
        raise SystemExit(f"nothing to plot in {file}: no row of phase both or decode was measured")
    labels = [
        f"{r['phase']}, {r['reuse']}, {r['dtype']}, g={r['group']}, T={r['tokens']}, d={r['head_dim']}, "
        f"{r['heads']}/{r['kv_heads']}"
        for r in rows
    ]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.32 * len(rows)))
    axes.barh(labels, [float(r["ratio"]) for r in rows], label="measured")
    axes.plot([float(r["limit"]) for r in rows], labels, "k|", markersize=12, label="limit")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as SDPA")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    print(f"# {conditions()}, {args.threads} threads, {args.device}")
    print(",".join(COLUMNS))
    rows: list[Row] = []
    grid = itertools.product(args.dtype, args.tokens, args.kv_heads, args.head_dim)
    for dtype, tokens, kv_heads, head_dim in grid:
        make = lambda group: cases.Case(getattr(torch, dtype), group, tokens, args.heads, kv_heads, head_dim, args.device)
        parts = [training_rows(args, make(group)) for group in args.group] + [decode_rows(args, make(1))]
        for row in itertools.chain(*parts):
            rows.append(row)
            print(",".join(str(row.get(column, "")) for column in COLUMNS), flush=True)
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
