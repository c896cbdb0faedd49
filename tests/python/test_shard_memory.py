"""With `shard: full` no rank ever holds the model: not while it reads, trains, exports, or evaluates what it exported."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from support.models import write_base
from support.ranks import run_ranks
from support.runs import VOCAB, Project

RANKS = 4
SHAPE = {"vocab_size": VOCAB, "hidden_size": 512, "intermediate_size": 1536, "head_dim": 128}
# One tensor is trained, so that there is hardly more than parameters.
STAGES = [{"name": "norm", "train": ["model.norm.weight"], "max_steps": 2, "learning_rate": 1.0e-3}]
# A process counts the memory of the one that it was forked from: this one is small.
MEASURE = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"""


def run_model(binary, folder, layers, shard):
    """A whole `uniattn run`: (parameters, the fullest rank's resident bytes, run folder)."""
    folder.mkdir()
    project = Project(folder, write_base(folder / "base", num_hidden_layers=layers, **SHAPE))
    file, run = project.config(
        "run", plan={"mode": "share_probs", "group": 2, "begin": 0, "end": layers, "compensation": "none"},
        calibration=None, stages=STAGES, model={"path": str(project.model), "dtype": "bfloat16"},
        optimizer={"micro_batch": 1}, parallel={"shard": shard, "timeout_seconds": 60}, export={"max_shard_gb": 0.01},
    )  # fmt: skip
    outputs = run_ranks([sys.executable, "-c", MEASURE, binary, "run", file], RANKS)
    parameters = sum(tensor.numel() for tensor in load_file(project.model / "model.safetensors").values())
    return parameters, max(int(out) for _, out, _ in outputs), run


def bytes_per_parameter(binary, folder, shard):
    """By how much a rank grows with the model. Both are large enough to hide what a program takes for a moment at its start."""
    small, large = (run_model(binary, folder / f"{layers}-{shard}", layers, shard) for layers in (20, 36))
    return (large[1] - small[1]) / (large[0] - small[0])


def test_no_rank_holds_the_model(binary, tmp_path, monkeypatch):
    """Resident memory, with what is mapped of files: 2 bytes of each parameter, divided; whole they would be 2 more."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # else the C library keeps what was freed
    assert bytes_per_parameter(binary, tmp_path, "full") < 2 / RANKS + 0.5
    assert bytes_per_parameter(binary, tmp_path, "gradients") > 1.5  # that is, the measure tells them apart


def test_a_divided_export_is_the_whole_model(binary, tmp_path):
    _, _, run = run_model(binary, tmp_path / "model", 2, "full")
    base = load_file(tmp_path / "model" / "base" / "model.safetensors")
    exported = {}
    for file in (run / "export").glob("*.safetensors"):
        exported |= load_file(file)
    assert len(list((run / "export").glob("*.safetensors"))) > 1
    for name, tensor in exported.items():
        if name != "model.norm.weight":
            assert torch.equal(tensor, base[name].to(tensor.dtype)), name
    assert set(base) - set(exported) == {f"model.layers.1.self_attn.{x}_proj.weight" for x in "qk"}
    assert not torch.equal(exported["model.norm.weight"].float(), base["model.norm.weight"])
