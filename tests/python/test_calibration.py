"""The init calculation's result against the normal equations, in float64 over the plain forward."""

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from support.models import GEMMA2, LLAMA3, write_base
from support.oracle import Oracle
from support.runs import VOCAB, Project, random_documents, read_ids, transformers_loss
from support.stories import write_ids

RIDGE = 0.05


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path, write_base(tmp_path / "base", vocab_size=VOCAB, scaling=LLAMA3))


def calibrate(run_uniattn, project, documents):
    write_ids(project.train, documents)
    calibration = {"data": [{"path": str(project.train), "format": "ids"}], "ridge": RIDGE, "fit": ["compensation"]}
    config, run = project.config("fit", calibration=calibration, stages=None)
    run_uniattn("run", config)
    return run


def test_compensation_solves_the_ridge_problem(run_uniattn, project):
    """Each follower in order, the ones before it compensated. Equal documents make the held-out choice immaterial."""
    document = sum(random_documents(8, 64, seed=4), [])[:64]
    run = calibrate(run_uniattn, project, [document] * 8)
    base, unified = Oracle(project.model), Oracle(run / "export")
    base.logits(document), unified.logits(document)
    for layer in (1, 3):
        w = unified.w[f"model.layers.{layer}.self_attn.compensation.weight"]
        x, branch, after = unified.trace[layer]
        missing = base.trace[layer][2] - (after - x @ w.T)
        gram = x.T @ x
        expected = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ missing).T
        assert (w - expected).norm() <= 1e-3 * expected.norm(), f"layer {layer}"


def test_documents_do_not_mix(run_uniattn, project):
    """The report's residual is over real tokens of separate documents: each attends to itself, positions from zero."""
    documents = random_documents(12, 50, seed=6)
    run = calibrate(run_uniattn, project, documents)
    report = json.loads((run / "calibration" / "report.json").read_text())
    assert report["fitted_tokens"] + report["held_out_tokens"] == sum(map(len, documents))
    base, unified = Oracle(project.model), Oracle(run / "export")
    left = norm = 0
    for document in documents:
        base.logits(document), unified.logits(document)
        left += (base.trace[1][2] - unified.trace[1][2]).square().sum().item()
        norm += base.trace[1][2].square().sum().item()
    (first,) = [entry for entry in report["layers"] if entry["layer"] == 1]
    shares = [first["residual"]["after"], first["held_out_residual"]["after"]]
    assert min(shares) <= left / norm <= max(shares)


def test_stopped_calibration_continues(run_uniattn, project):
    """SIGTERM ends it after a layer; the same command goes on there and gives the same bits as one undisturbed."""
    write_ids(project.train, random_documents(600, 60, seed=5))
    plan = {"mode": "share_probs", "group": 4, "begin": 0, "end": 4, "compensation": "full"}
    calibration = {"data": [{"path": str(project.train), "format": "ids"}], "samples": 0}
    (whole, whole_run), (config, run) = (
        project.config(name, plan=plan, calibration=calibration, stages=None) for name in ("whole", "stopped")
    )
    run_uniattn("calibrate", whole)
    process = run_uniattn.start("calibrate", config)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (run.exists() and "layer  1 follows" in read(run / "log.txt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and json.loads(out)["outcome"] == "stopped"
    assert (run / "calibration" / "progress").exists() and not (run / "calibration" / "plan.json").exists()
    report = run_uniattn("calibrate", config)
    assert [entry["layer"] for entry in report["layers"]] == [1, 2, 3]
    assert "continuing the calibration at layer" in read(run / "log.txt")
    assert not (run / "calibration" / "progress").exists()
    assert read(run / "calibration" / "plan.json") == read(whole_run / "calibration" / "plan.json")
    found, expected = (load_file(folder / "calibration" / "weights.safetensors") for folder in (run, whole_run))
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def read(file):
    return file.read_text() if file.exists() else ""


# Every third layer keeps its kind of mask: sliding layers follow a sliding leader, global ones a global leader.
MODES = {
    "share_kv": [{"layer": 1, "mode": "share_kv", "leader": 0}, {"layer": 3, "mode": "share_kv", "leader": 2}],
    "linear": [{"layer": 2, "mode": "linear", "compensation": {"rank": 6}}],
    "skip": [{"layer": 1, "mode": "skip"}, {"layer": 3, "mode": "share_probs", "leader": 2}],
    "num_kv_heads": [
        {"layer": 1, "mode": "full", "num_kv_heads": 1},
        {"layer": 2, "mode": "share_probs", "leader": 1, "compensation": "none"},
    ],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_calibrated(run_uniattn, project, mode):
    """Held-out error never grows, and what was fitted is what the export computes."""
    check_calibrated(run_uniattn, project, {"layers": MODES[mode]})


def test_fewer_kv_heads_have_their_values_fitted(run_uniattn, project):
    """A layer with fewer key/value heads keeps its own attention: the merged W_v is refitted along with W_o."""
    write_ids(project.train, random_documents(80, 60, seed=8))
    plan, left = {"layers": [{"layer": 1, "mode": "full", "num_kv_heads": 1}]}, {}
    for fit in (["output"], ["value", "output"]):
        calibration = {"data": [{"path": str(project.train), "format": "ids"}], "samples": 0, "fit": fit}
        config, run = project.config("-".join(fit), plan=plan, calibration=calibration, stages=None)
        (layer,) = run_uniattn("calibrate", config)["layers"]
        left[len(fit)] = layer["held_out_residual"]["after"]
        weights = load_file(run / "calibration" / "weights.safetensors")
        assert {name.split(".")[-2] for name in weights} == {{"value": "v_proj", "output": "o_proj"}[name] for name in fit}
    assert left[2] < left[1]


def test_gemma2_is_calibrated(run_uniattn, tmp_path):
    """Norms behind attention, soft-caps, interleaved superblocks of sliding and of global layers."""
    project = Project(tmp_path, write_base(tmp_path / "base", vocab_size=VOCAB, **GEMMA2))
    layers = [{"layer": 2, "mode": "share_probs", "leader": 0}, {"layer": 3, "mode": "share_probs", "leader": 1}]
    check_calibrated(run_uniattn, project, {"layers": layers})


def check_calibrated(run_uniattn, project, plan):
    write_ids(project.train, random_documents(80, 60, seed=8))
    calibration = {"data": [{"path": str(project.train), "format": "ids"}], "samples": 0}
    config, run = project.config("fit", plan=plan, calibration=calibration, stages=None)
    result = run_uniattn("run", config)
    report = json.loads((run / "calibration" / "report.json").read_text())
    assert [entry["layer"] for entry in report["layers"]] == [entry["layer"] for entry in plan["layers"]]
    for entry in report["layers"]:
        before, after = (entry["held_out_residual"][key] for key in ("before", "after"))
        assert after <= before * (1 + 1e-3) and (entry["mode"] == "skip" or after < before)
    documents = read_ids(project.held_out)
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=1e-4)
    assert result["loss"] == pytest.approx(transformers_loss(run / "export", documents), abs=1e-4)
