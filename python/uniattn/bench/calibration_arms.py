"""The ways to calibrate that the calibration benchmarks compare, and how each one is run and measured."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from uniattn.bench.process import Usage, measured, program


class Arm(NamedTuple):
    name: str
    fit: list[str] | None  # calibration.fit; None: the program does not calibrate
    compensation: str = "full"  # plan.compensation; "D/8": rank


NONE = Arm("shared, no compensation", None, "none")
PUBLISHED_ARM = Arm("published", None)
COMPENSATION = Arm("W_c", ["compensation"])
ALL = ["head_map", "value", "output", "compensation"]
DEFAULT = Arm("default", ALL)
ARMS = [
    NONE,
    PUBLISHED_ARM,
    COMPENSATION,
    Arm("W_c + W_o", ["output", "compensation"]),
    DEFAULT,
    Arm("default, rank D/8", ALL, "D/8"),
    Arm("default, no W_c", ALL[:3], "none"),
]
ZERO = Arm("zero", None)  # a full W_c of zeros, to be trained


class Data(NamedTuple):
    path: Path
    format: str  # as data.train[].format

    def section(self) -> list[dict[str, str]]:
        return [{"path": str(self.path), "format": self.format}]


def hidden_size(model: Path) -> int:
    return json.loads((model / "config.json").read_text())["hidden_size"]


def config(arm: Arm, run: Path, model: Path, plan: tuple[int, int, int], max_length: int, calibration: Data,
           samples: int) -> dict[str, Any]:  # fmt: skip
    """The sections of a configuration that calibrates on `samples` documents (0: all) and stops there."""
    compensation = {"rank": hidden_size(model) // 8} if arm.compensation == "D/8" else arm.compensation
    return {
        "run": {"name": run.name, "dir": str(run)},
        "model": {"path": str(model), "dtype": "float32"},
        "plan": {"mode": "share_probs", **dict(zip(("group", "begin", "end"), plan)), "compensation": compensation},
        "calibration": arm.fit and {"data": calibration.section(), "samples": samples, "fit": arm.fit},
        "data": {"max_length": max_length},
        "stages": [],
        "export": {"dtype": "float32"},
    }


def run(command: str, config: dict[str, Any]) -> tuple[Any, Usage]:
    """The result of `uniattn COMMAND`, and what it took. The configuration is left beside the run directory."""
    file = Path(config["run"]["dir"] + ".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: section for name, section in config.items() if section is not None}
    file.write_text(json.dumps(kept, indent=1))  # JSON is YAML
    return measured([str(program()), command, str(file), "--json"])


def published(model: Path, plan: tuple[int, int, int], max_length: int, prepared: Path, run: Path) -> Usage:
    """Runs the published procedure on a prepared run's documents; leaves its result where `run` starts from."""
    words = ["--model", model, "--plan", *plan, "--length", max_length, "--data", prepared / "data", "--run", run]
    result, usage = measured([sys.executable, "-m", "uniattn.bench.published", *map(str, words)])
    return Usage(result["seconds"], result["cpu_seconds"], usage.peak_bytes)
