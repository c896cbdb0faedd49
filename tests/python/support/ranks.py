"""Processes that are the ranks of one group, started as torchrun would or by torchrun itself."""

import json
import os
import socket
import subprocess
from pathlib import Path

import torch
from safetensors import safe_open

REPOSITORY = Path(__file__).parents[3]
BUILD = Path(os.environ.get("UNIATTN_BUILD", REPOSITORY / "build" / "release"))
TOOLS = BUILD / "tests" / "cpp"
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")


def environment(**variables):
    """This process's, without what names a rank, and with `variables`."""
    ours = lambda name: name not in LAUNCH_VARIABLES and not name.startswith("SLURM_")
    clean = {name: value for name, value in os.environ.items() if ours(name)}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {**clean, **quiet, **{name: str(value) for name, value in variables.items()}}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Ranks:
    """`command` as ranks 0 .. world_size - 1 but those in `absent`; killed at the end if they still live.

    command, cwd: a value, or a function of the rank where ranks differ.
    """

    def __init__(self, command, world_size, absent=(), cwd=None, port=None):
        port = port or free_port()
        of_rank = lambda value, rank: value(rank) if callable(value) else value
        self.processes = {
            rank: subprocess.Popen(
                [str(word) for word in of_rank(command, rank)], cwd=of_rank(cwd, rank), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=environment(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1",
                                MASTER_PORT=port),
            )
            for rank in range(world_size) if rank not in absent
        }  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def __getitem__(self, rank):
        return self.processes[rank]

    def results(self, timeout=240):
        """(exit code, stdout, stderr) of each, all within `timeout` seconds."""
        outputs = [process.communicate(timeout=timeout) for process in self.processes.values()]
        return [(process.returncode, *output) for process, output in zip(self.processes.values(), outputs)]


def run_ranks(command, world_size, **options):
    """Runs them to their end, which must be a good one."""
    with Ranks(command, world_size, **options) as ranks:
        results = ranks.results()
    assert [code for code, _, _ in results] == [0] * world_size, results
    return results


def newest_snapshot(run):
    return max((run / "checkpoints").glob("step-*[0-9]"), key=lambda path: int(path.name.split("-")[1]))


def snapshot_tensors(folder, kind="weights"):
    """The tensors of a snapshot, put together from the files of its ranks."""
    manifest = json.loads((folder / "manifest.json").read_text())
    flat, shapes = {}, {}
    for file, places in manifest[kind].items():
        with safe_open(folder / file, "pt") as tensors:
            for name, place in places.items():
                part = tensors.get_tensor(name).flatten()
                shapes[name] = place["shape"]
                whole = flat.setdefault(name, torch.full((torch.Size(place["shape"]).numel(),), torch.nan))
                whole[place["begin"] : place["begin"] + len(part)] = part
    return {name: whole.view(shapes[name]) for name, whole in flat.items()}
