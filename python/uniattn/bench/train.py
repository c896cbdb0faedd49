"""A training step, ours against transformers and PyTorch: tokens per second and peak memory.

    uniattn bench train                                  # 8 layers, D 512, length 1,024, float32 and bfloat16
    uniattn bench train --dtype float32 --rounds 9 --csv train.csv --plot train.png

Sides: transformers under eager PyTorch, the same under torch.compile, our un-unified step, and ours with superblocks of
--group layers. All four train the same random Llama on the same rows, one document of --length tokens each, with AdamW
(fused), clipping and float32 master weights; in bfloat16 the peers run under autocast. A step counts from fetching its
rows to the updated weights. The sides take turns, --steps steps each after one that does not count; the table has the
medians over all steps and the median over the rounds of the ratios within a round.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from uniattn.bench.process import program
from uniattn.bench.report import conditions, markdown, write_csv

COLUMNS = ["dtype", "side", "round", "seconds", "tokens_per_s", "peak_mib"]
EAGER, COMPILED, OURS = "transformers, eager", "transformers, compiled", "uniattn"
Row = dict[str, Any]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="uniattn bench train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512, help="with heads of 64")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--micro-batch", type=int, default=1, help="rows of a step")
    parser.add_argument("--group", type=int, default=4, help="layers of a superblock")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=4, help="that count, in each turn of a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(argv)


def write_model(folder: Path, args: argparse.Namespace) -> None:
    """The proportions of Llama-2; weights as transformers initialises them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=-(-8 * args.hidden // 3 // 32) * 32,
            num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64, num_key_value_heads=args.hidden // 64,
            max_position_embeddings=args.length, tie_word_embeddings=False,
        )  # fmt: skip
    ).save_pretrained(folder)


def write_documents(file: Path, args: argparse.Namespace) -> None:
    import torch

    ids = torch.randint(3, args.vocabulary, (64, args.length), generator=torch.Generator().manual_seed(0))
    file.write_text("".join(" ".join(map(str, row)) + "\n" for row in ids.tolist()))


class Peer:
    """transformers in a process of its own, which waits between its turns."""

    def __init__(self, folder: Path, dtype: str, compiled: bool, args: argparse.Namespace):
        settings = {"model": str(folder / "model"), "documents": str(folder / "documents.ids"), "dtype": dtype,
                    "compiled": compiled, "rows": args.micro_batch}  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uniattn.bench.train_peer", json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.turn(2)  # compiles

    def turn(self, steps: int) -> tuple[list[float], int]:
        """Seconds of each step, and peak memory in bytes."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the transformers side ended with exit code {self.process.wait()}; its message is above")
        told = json.loads(line)
        return told["seconds"], told["peak_bytes"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """`uniattn train`, started anew for each turn; start, data preparation and checkpoint are outside its steps."""

    def __init__(self, folder: Path, dtype: str, group: int, args: argparse.Namespace):
        self.run, self.config = folder / "run", folder / f"{dtype}-{group}.yaml"
        plan = {"group": group, "begin": 0, "end": args.layers, "compensation": "none"} if group else None
        sections = {
            "run": {"name": "bench", "dir": str(self.run), "peak_tflops": 1.0},
            "model": {"path": str(folder / "model"), "dtype": dtype},
            "plan": plan,
            "data": {"train": [{"path": str(folder / "documents.ids"), "format": "ids"}], "max_length": args.length},
            "stages": [{"name": "all", "train": "all", "max_steps": 100000, "learning_rate": 1.0e-5}],
            "optimizer": {"micro_batch": args.micro_batch},
        }
        self.config.write_text(json.dumps({key: value for key, value in sections.items() if value}))

    def turn(self, steps: int) -> tuple[list[float], int]:
        shutil.rmtree(self.run, ignore_errors=True)
        done = subprocess.run(
            [program(), "train", self.config, "--stop-after", str(steps)], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"uniattn train ended with exit code {done.returncode}:\n{done.stderr}")
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return [line["seconds"] for line in lines], lines[-1]["peak_memory_bytes"]

    def close(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)


def measure(folder: Path, dtype: str, args: argparse.Namespace) -> list[Row]:
    sides = {
        EAGER: Peer(folder, dtype, False, args),
        COMPILED: Peer(folder, dtype, True, args),
        OURS: Ours(folder, dtype, 0, args),
        shared(args): Ours(folder, dtype, args.group, args),
    }
    rows = []
    for turn in range(args.rounds):
        for name, side in sides.items():
            seconds, peak = side.turn(1 + args.steps)
            for value in seconds[1:]:
                speed = args.length * args.micro_batch / value
                row = {"dtype": dtype, "side": name, "round": turn, "seconds": value, "tokens_per_s": speed}
                rows.append(row | {"peak_mib": peak / 2**20})
        print(f"{dtype}: round {turn + 1} of {args.rounds}", file=sys.stderr)
    for side in sides.values():
        side.close()
    return rows


def shared(args: argparse.Namespace) -> str:
    return f"uniattn, groups of {args.group}"


def of(rows: list[Row], column: str, **wanted: Any) -> list[Any]:
    return [row[column] for row in rows if all(row[key] == value for key, value in wanted.items())]


def ratio(rows: list[Row], dtype: str, side: str, other: str) -> float:
    """How many times faster `side` is than `other`: the median over rounds."""
    rounds = sorted(set(of(rows, "round", dtype=dtype)))
    median = lambda name, turn: statistics.median(of(rows, "seconds", dtype=dtype, side=name, round=turn))
    return statistics.median(median(other, turn) / median(side, turn) for turn in rounds)


def table(rows: list[Row], args: argparse.Namespace) -> str:
    cells = []
    for dtype in args.dtype:
        for side in (EAGER, COMPILED, OURS, shared(args)):
            cells.append(
                [f"{dtype}, {side}", f"{statistics.median(of(rows, 'tokens_per_s', dtype=dtype, side=side)):.0f}"]
                + [f"{ratio(rows, dtype, side, other):.2f}" for other in (EAGER, COMPILED, OURS)]
                + [f"{max(of(rows, 'peak_mib', dtype=dtype, side=side)):.0f}"]
            )
    return markdown(["", "tokens/s", "to eager", "to compiled", "to uniattn", "peak MiB"], cells)


def plot(file: Path, rows: list[Row], args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides = (EAGER, COMPILED, OURS, shared(args))
    figure, axes = pyplot.subplots(1, len(args.dtype), figsize=(5 * len(args.dtype), 4), squeeze=False)
    for axis, dtype in zip(axes[0], args.dtype):
        axis.boxplot([of(rows, "tokens_per_s", dtype=dtype, side=side) for side in sides], orientation="horizontal")
        axis.set_yticks(range(1, len(sides) + 1), sides)
        axis.set_xlim(left=0)
        axis.set_title(dtype)
        axis.set_xlabel("tokens/s")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    model = f"{args.layers} layers, D {args.hidden}, vocabulary {args.vocabulary}"
    print(f"{conditions()}; {model}, {args.micro_batch} x {args.length} tokens a step\n")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", args)
        write_documents(Path(folder) / "documents.ids", args)
        rows = [row for dtype in args.dtype for row in measure(Path(folder), dtype, args)]
    print(table(rows, args), end="")
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)
    if args.plot:
        plot(args.plot, rows, args)


if __name__ == "__main__":
    main(sys.argv[1:])
