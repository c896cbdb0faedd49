"""However a step is split over micro-batches, accumulation and ranks, it is the same step."""

import sys

import pytest
from safetensors.torch import load_file
from support.runs import steps


def assert_same_metrics(lines, expected):
    """Sums in another order: equal to 1e-6 at the first step, then the small differences go through AdamW."""
    assert len(lines) == len(expected)
    for i, (line, reference) in enumerate(zip(lines, expected)):
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(reference[key], rel=1e-6 if i == 0 else 1e-4), f"step {i + 1}: {key}"
        assert line["supervised_tokens"] == reference["supervised_tokens"]


@pytest.mark.parametrize("pack", [True, False])
def test_splits_of_a_step_are_equal(run_uniattn, project, pack):
    runs, changes = {}, {"data": {**data_section(project), "pack": pack}}
    for micro, accumulation in ((1, 4), (2, 2), (4, 1)):
        optimizer = {"micro_batch": micro, "accumulation": accumulation}
        name = f"{micro}x{accumulation}"
        runs[name] = steps(
            train_straight(run_uniattn, project, name, optimizer=optimizer, stages=one_stage(4), **changes)
        )
    assert_same_metrics(runs["2x2"], runs["1x4"])
    assert_same_metrics(runs["4x1"], runs["1x4"])


def test_two_ranks_equal_one(run_uniattn, project):
    one = train_straight(
        run_uniattn, project, "one", stages=one_stage(4), optimizer={"micro_batch": 1, "accumulation": 4}
    )
    config, run = project.config("two", stages=one_stage(4), optimizer={"micro_batch": 1, "accumulation": 2})
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", 2)
    for command in ("calibrate", "train"):
        done = run_uniattn.run(command, config, prefix=launcher)
        assert done.returncode == 0, done.stderr
    fitted, reference = (load_file(r / "calibration" / "weights.safetensors") for r in (run, one))
    for name, tensor in reference.items():
        assert (fitted[name] - tensor).norm() <= 1e-4 * tensor.norm(), name
    assert_same_metrics(steps(run), steps(one))


def train_straight(run_uniattn, project, name, **sections):
    config, run = project.config(name, **sections)
    run_uniattn("calibrate", config)
    assert run_uniattn("train", config)["outcome"] == "finished"
    return run


def one_stage(steps):
    return [{"name": "all", "train": "all", "max_steps": steps, "learning_rate": 1.0e-3}]


def data_section(project):
    ids = lambda path: [{"path": str(path), "format": "ids"}]
    return {"train": ids(project.train), "eval": ids(project.held_out), "max_length": 64}
