"""Ranks of the compensations, chosen layer by layer from an energy or a budget of parameters."""

import json
import signal
import time

import pytest
from safetensors.torch import load_file
from support.runs import random_documents, write_ids

PLAN = {"mode": "share_probs", "group": 2, "begin": 0, "end": 4, "compensation": "full"}
SIZE = 48


def calibrated(run_uniattn, project, name, **calibration):
    """The run directory, and the compensations' ranks by layer, SIZE where they are full."""
    section = {"data": [{"path": str(project.train), "format": "ids"}], "samples": 0, **calibration}
    config, run = project.config(name, plan=PLAN, calibration=section, stages=None)
    report = run_uniattn("calibrate", config)
    layers = json.loads(read(run / "calibration" / "plan.json"))["uniattn"]["layers"]
    ranks = {i: layer["compensation_rank"] or SIZE for i, layer in enumerate(layers) if "compensation_rank" in layer}
    for layer in report["layers"]:
        rank = ranks.get(layer["layer"], 0)
        assert layer["compensation"] == {0: "none", SIZE: "full"}.get(rank, f"rank {rank}")
    return run, ranks


def compensation_elements(run):
    weights = load_file(run / "calibration" / "weights.safetensors")
    return sum(weight.numel() for name, weight in weights.items() if "compensation" in name)


def read(file):
    return file.read_text() if file.exists() else ""


def test_more_energy_takes_more_ranks(run_uniattn, project):
    run, few = calibrated(run_uniattn, project, "few", ranks={"energy": 0.3})
    _, many = calibrated(run_uniattn, project, "many", ranks={"energy": 0.8})
    assert set(many) == {1, 3} and all(1 <= few[i] < many[i] for i in many), (few, many)
    assert read(run / "log.txt").count("missing from the stream") == 4  # two followers, surveyed and fitted
    assert not (run / "calibration" / "progress").exists()
    run_uniattn("export", run, "--out", run / "export")
    assert run_uniattn("eval", "--model", run / "export", "--ids", project.held_out)["loss"] > 0


@pytest.mark.parametrize("share", [0.005, 0.02, 0.5])
def test_parameters_stay_within_the_budget(run_uniattn, project, share):
    run, ranks = calibrated(run_uniattn, project, "budget", ranks={"parameters": share})
    budget = share * run_uniattn("inspect", "--model", project.model)["parameters"]
    elements = compensation_elements(run)
    assert elements <= budget
    assert elements > budget - 2 * SIZE or ranks == {1: SIZE, 3: SIZE}


def test_two_budgets_are_refused(run_uniattn, project):
    section = {"data": [{"path": str(project.train), "format": "ids"}], "ranks": {"energy": 0.5, "parameters": 0.1}}
    config, _ = project.config("both", plan=PLAN, calibration=section, stages=None)
    run_uniattn.fails(2, "calibrate", config, naming=["calibration.ranks", "one of them"])


def test_a_finished_survey_is_not_repeated(run_uniattn, project):
    """SIGTERM while the chosen ranks are fitted; the same command goes on and gives the bits of an undisturbed run."""
    write_ids(project.train, random_documents(600, 60, seed=5))
    section = {"data": [{"path": str(project.train), "format": "ids"}], "samples": 0, "ranks": {"energy": 0.5}}
    (whole, whole_run), (config, run) = (
        project.config(name, plan=PLAN, calibration=section, stages=None) for name in ("whole", "stopped")
    )
    run_uniattn("calibrate", whole)
    process = run_uniattn.start("calibrate", config)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and "layer  3: compensation" not in read(run / "log.txt"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and json.loads(out)["outcome"] == "stopped"
    run_uniattn("calibrate", config)
    assert read(run / "log.txt").count("layer  1 follows") == 2  # once surveyed, once fitted
    for file in ("plan.json", "weights.safetensors"):
        assert (run / "calibration" / file).read_bytes() == (whole_run / "calibration" / file).read_bytes()
