"""The init calculation's result against the normal equations, in float64 over the plain forward."""

import json

import pytest
import torch
from support.models import LLAMA3, write_base
from support.oracle import Oracle
from support.runs import VOCAB, Project, random_documents
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
    (first,) = [entry for entry in report["followers"] if entry["layer"] == 1]
    shares = [first["residual"]["after"], first["held_out_residual"]["after"]]
    assert min(shares) <= left / norm <= max(shares)
