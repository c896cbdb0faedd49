"""Calibration's result does not depend on the number of ranks or on the order of the documents."""

import json
import sys

import pytest
from safetensors.torch import load_file
from support.runs import random_documents
from support.stories import write_ids

LINEAR, EVERYTHING = ["output", "compensation"], ["head_map", "value", "output", "compensation"]
DOCUMENTS = random_documents(40, 60, seed=1)


def calibrate(run_uniattn, project, name, fit, documents, ranks=1):
    """(head maps, weights) of a run on `documents`, of which the last four are held out."""
    text = write_ids(project.folder / f"{name}.ids", documents)
    calibration = {"data": [{"path": str(text), "format": "ids"}], "samples": 0, "fit": fit}
    file, run = project.config(name, calibration=calibration, stages=None)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", ranks)
    done = run_uniattn.run("calibrate", file, prefix=launcher if ranks > 1 else ())
    assert done.returncode == 0, done.stderr
    plan = json.loads((run / "calibration" / "plan.json").read_text())
    maps = [entry.get("head_map") for entry in plan["uniattn"]["layers"]]
    return maps, load_file(run / "calibration" / "weights.safetensors")


def assert_same(found, expected, tolerance):
    """The same weights, relative to each matrix; where another head map was chosen there is nothing to compare."""
    (maps, weights), (expected_maps, expected_weights) = found, expected
    if maps != expected_maps:
        pytest.skip(f"another head map was chosen: {maps} instead of {expected_maps}")
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        difference = (weights[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert difference <= tolerance, f"{name}: {difference:.1e}"


@pytest.fixture(params=[LINEAR, EVERYTHING], ids=["linear", "everything"])
def fit(request):
    return request.param


@pytest.mark.parametrize("ranks", [2, 4])
def test_rank_count(run_uniattn, project, fit, ranks):
    expected = calibrate(run_uniattn, project, "one", fit, DOCUMENTS)
    assert_same(calibrate(run_uniattn, project, "many", fit, DOCUMENTS, ranks), expected, 1e-6)


def test_document_order(run_uniattn, project, fit):
    expected = calibrate(run_uniattn, project, "forward", fit, DOCUMENTS)
    fitted, held_out = DOCUMENTS[:36], DOCUMENTS[36:]
    assert_same(calibrate(run_uniattn, project, "backward", fit, fitted[::-1] + held_out[::-1], 1), expected, 1e-6)
