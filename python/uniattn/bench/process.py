"""Whole processes, measured from outside."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

POLL_SECONDS = 0.01


class Usage(NamedTuple):
    seconds: float  # wall time
    cpu_seconds: float  # of all threads: what to trust on a machine with neighbours
    peak_bytes: int  # resident, mapped weights and shared libraries included


def program() -> Path:
    """The uniattn program: the one that started this benchmark, else the release build."""
    return Path(os.environ.get("UNIATTN_BINARY", "build/release/uniattn"))


def measured(command: list[str]) -> tuple[Any, Usage]:
    """The JSON object on the command's last line of output, and what it took; ends the benchmark on failure."""
    start, cpu, peak = time.perf_counter(), children_seconds(), 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        # The process's own high-water mark: what wait4 reports would include this process's at the time of the fork.
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
