"""The ways to calibrate that the calibration benchmarks compare, and how each one is run and measured."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

PUBLISHED = Path(__file__).resolve().parents[1] / "tests" / "python" / "support" / "published.py"
POLL_SECONDS = 0.01


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


class Usage(NamedTuple):
    seconds: float  # wall time
    cpu_seconds: float  # of all threads: what to trust on a machine with neighbours
    peak_bytes: int  # resident, mapped weights and shared libraries included


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


class Program:
    def __init__(self, binary: Path):
        self.binary = binary

    def __call__(self, command: str, config: dict[str, Any]) -> tuple[Any, Usage]:
        """The result of `uniattn COMMAND`, and what it took. The configuration is left beside the run directory."""
        file = Path(config["run"]["dir"] + ".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: section for name, section in config.items() if section is not None}
        file.write_text(json.dumps(kept, indent=1))  # JSON is YAML
        return measured([str(self.binary), command, str(file), "--json"])


def published(model: Path, plan: tuple[int, int, int], max_length: int, prepared: Path, run: Path) -> Usage:
    """Runs the published procedure on a prepared run's documents; leaves its result where `run` starts from."""
    words = ["--model", model, "--plan", *plan, "--length", max_length, "--data", prepared / "data", "--run", run]
    result, usage = measured([sys.executable, str(PUBLISHED), *map(str, words)])
    return Usage(result["seconds"], result["cpu_seconds"], usage.peak_bytes)


def measured(command: list[str]) -> tuple[Any, Usage]:
    """The JSON object on the command's last line of output, and what it took; ends the script on failure."""
    start, cpu, peak = time.perf_counter(), children_seconds(), 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        # The process's own high-water mark: what wait4 reports would include this script's at the time of the fork.
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - start
        out.seek(0), err.seek(0)
        if process.returncode:
            sys.exit(f"`{' '.join(command)}` ended with exit code {process.returncode}:\n{err.read()}")
        return json.loads(out.read().splitlines()[-1]), Usage(seconds, children_seconds() - cpu, peak)


def children_seconds() -> float:
    """CPU time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def high_water(pid: int) -> int:
    """Peak resident bytes of a process; 0 when it has just ended. Neither side starts further processes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def conditions() -> str:
    """Where and with how many threads this was measured, for the head of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{cpu}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
