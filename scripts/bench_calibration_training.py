#!/usr/bin/env python3
"""Short training from zero, from the published init, from W_c alone and from the default calibration.

    python scripts/bench_calibration_training.py --model DIR --calibration cal.ids --held-out test.ids \\
        --plan 2 1 5 --out DIR

Every point is a run of its own of so many steps, with its own schedule, on the calibration text, the same tokens in the
same order for all. Writes OUT/training.csv, .md and .png; everything runs under OUT/work.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from uniattn.bench import calibration_arms as arms  # noqa: E402 - from the source tree
from uniattn.bench.calibration_arms import Arm, Data  # noqa: E402
from uniattn.bench.report import markdown, write_csv  # noqa: E402

STARTS = [arms.ZERO, arms.PUBLISHED_ARM, arms.COMPENSATION, arms.DEFAULT]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of a Llama")
    parser.add_argument("--calibration", type=Path, required=True, help="also trained on")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--format", default="ids", help="of both files")
    parser.add_argument("--plan", type=int, nargs=3, metavar=("GROUP", "BEGIN", "END"), required=True)
    parser.add_argument("--samples", type=int, default=0, help="documents to calibrate on; 0: all")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 16, 32, 64])
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--documents-per-step", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.work = args.out / "work"
        shutil.rmtree(self.work, ignore_errors=True)
        self.text = Data(args.calibration, args.format)

    def config(self, arm: Arm, run: Path) -> dict[str, Any]:
        args = self.args
        return arms.config(arm, run, args.model, args.plan, args.max_length, self.text, args.samples)

    def calibrate(self, arm: Arm) -> Path | None:
        """What the runs of this arm start from; None: a compensation of zeros."""
        run = self.work / arm.name
        if arm is arms.PUBLISHED_ARM:
            prepared = self.work / "prepared"
            arms.run("prepare", self.config(arms.DEFAULT, prepared))
            arms.published(self.args.model, self.args.plan, self.args.max_length, prepared, run)
        elif arm.fit:
            arms.run("calibrate", self.config(arm, run))
        return run / "calibration" if arm is not arms.ZERO else None

    def train(self, arm: Arm, start: Path | None, steps: int) -> float:
        """Held-out loss after `steps` steps of training everything."""
        args, run = self.args, self.work / f"{arm.name} {steps}"
        if start:
            shutil.copytree(start, run / "calibration")
        stage = {"name": "all", "train": "all", "max_steps": steps, "learning_rate": args.learning_rate}
        sections = {
            "calibration": None,  # done: the run starts from what was copied
            "data": {
                "train": self.text.section(),
                "eval": Data(args.held_out, args.format).section(),
                "max_length": args.max_length,
            },
            "stages": [stage] if steps else [],
            "optimizer": {"micro_batch": args.documents_per_step},
        }
        return arms.run("run", self.config(arm, run) | sections)[0]["loss"]


def plot(losses: dict[str, list[float]], steps: list[int], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
    for name, points in losses.items():
        axis.plot(steps, points, marker="o", markersize=3, label=name)
    axis.set(xlabel="training steps", ylabel="held-out loss, nats", xticks=steps)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(title="started from")
    figure.savefig(file, dpi=150)


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    losses: dict[str, list[float]] = {}
    for arm in STARTS:
        start = bench.calibrate(arm)
        losses[arm.name] = [bench.train(arm, start, steps) for steps in args.steps]
        print(arm.name, losses[arm.name], flush=True)
    points = [(name, n, loss) for name, found in losses.items() for n, loss in zip(args.steps, found)]
    columns = ["start", "steps", "loss"]
    write_csv(args.out / "training.csv", columns, [dict(zip(columns, point)) for point in points])
    rows = [[name, *(f"{loss:.4f}" for loss in points)] for name, points in losses.items()]
    text = markdown(["started from", *(f"{n} steps" for n in args.steps)], rows)
    (args.out / "training.md").write_text(text)
    plot(losses, args.steps, args.out / "training.png")
    print("\n" + text)


if __name__ == "__main__":
    main()
