"""What the benchmarks' tables and files have in common."""

import csv
import os
import platform
from pathlib import Path
from typing import Any

import torch


def conditions() -> str:
    """Where, with how many threads and with which PyTorch this was measured, for the head of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    where = [f"{cpu}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"]
    if torch.cuda.is_available():
        where.append(torch.cuda.get_device_name())
    return ", ".join([*where, f"PyTorch {torch.__version__}"])


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def write_csv(file: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """One line per row; what a row lacks stays empty."""
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
