"""Calibration where there is little or nothing to fit: solved with finite weights, or refused with a reason."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import write_base
from support.runs import VOCAB, Project, random_documents
from support.stories import write_ids

ERROR, USAGE = 1, 2
PLAN = {"mode": "share_probs", "group": 2, "begin": 1, "end": 3, "compensation": "full"}  # layer 2 follows layer 1
FITS = [["compensation"], ["output", "compensation"], ["head_map", "value", "output", "compensation"]]


def edited(folder, edit):
    """A project over a base model whose weights `edit` has changed."""
    path = write_base(folder / "base", vocab_size=VOCAB)
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return Project(folder, path)


def config(project, **calibration):
    data = [{"path": str(project.train), "format": "ids"}]
    return project.config("fit", plan=PLAN, stages=None, calibration={"data": data, "samples": 0, **calibration})


def solved(run_uniattn, project, **calibration):
    """The fitted weights (none where fitting did not help) and the follower's report.

    Asserts that all is finite, and that the fit is no worse than none on what it was fitted to.
    """
    file, run = config(project, **calibration)
    assert math.isfinite(run_uniattn("run", file)["loss"])
    weights = load_file(run / "calibration" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    (follower,) = json.loads((run / "calibration" / "report.json").read_text())["layers"]
    assert follower["residual"]["after"] <= follower["residual"]["before"] * (1 + 1e-6) + 1e-12
    return weights, follower


@pytest.mark.parametrize("fit", FITS, ids=len)
def test_features_that_are_always_zero(run_uniattn, tmp_path, fit):
    """A rank-deficient X: sixteen of the follower's normed inputs vanish, and nothing is fitted to them."""

    def edit(weights):
        weights["model.layers.2.input_layernorm.weight"][:16] = 0

    weights, _ = solved(run_uniattn, edited(tmp_path, edit), fit=fit)
    compensation = weights["model.layers.2.self_attn.compensation.weight"]
    assert compensation[:, 16:].abs().max() > 0
    assert compensation[:, :16].abs().max() <= 1e-6 * compensation.abs().max()


@pytest.mark.parametrize("fit", FITS, ids=len)
def test_constant_features(run_uniattn, tmp_path, fit):
    """Documents that repeat one token: every row of X is the same."""
    project = edited(tmp_path, lambda weights: None)
    write_ids(project.train, [[7] * 30] * 6)
    solved(run_uniattn, project, fit=fit)


@pytest.mark.parametrize("fit", FITS, ids=len)
def test_fewer_tokens_than_dimensions(run_uniattn, tmp_path, fit):
    project = edited(tmp_path, lambda weights: None)
    write_ids(project.train, random_documents(3, 9, seed=5))
    solved(run_uniattn, project, fit=fit)


def test_a_singular_problem_without_ridge_is_refused(run_uniattn, tmp_path):
    project = edited(tmp_path, lambda weights: None)
    write_ids(project.train, random_documents(3, 9, seed=5))
    file, run = config(project, fit=["compensation"], ridge=0)
    run_uniattn.fails(ERROR, "calibrate", file, naming=["layer 2", "ridge"])
    assert not (run / "calibration" / "weights.safetensors").exists()


@pytest.mark.parametrize("fit", FITS, ids=len)
def test_a_follower_that_lacks_nothing(run_uniattn, tmp_path, fit):
    """Layer 1 adds nothing and layer 2 has its queries, keys and norm: sharing is exact, and calibration keeps it."""

    def edit(weights):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.layers.1.{name}.weight"].zero_()
        for name in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj"):
            weights[f"model.layers.2.{name}.weight"] = weights[f"model.layers.1.{name}.weight"].clone()

    project = edited(tmp_path, edit)
    weights, follower = solved(run_uniattn, project, fit=fit)
    assert follower["residual"]["before"] <= 1e-12 and follower["held_out_residual"]["after"] <= 1e-12
    base = load_file(project.model / "model.safetensors")
    for name, tensor in weights.items():  # a compensation of zeros, and the projections as they were
        torch.testing.assert_close(tensor, base.get(name, torch.zeros_like(tensor)), rtol=0, atol=1e-4)
    plan = json.loads((project.folder / "fit" / "calibration" / "plan.json").read_text())
    assert plan["uniattn"]["layers"][2].get("head_map", [0, 1, 2, 3]) == [0, 1, 2, 3]


def test_activations_that_are_not_finite_are_refused(run_uniattn, tmp_path):
    def edit(weights):
        weights["model.layers.0.mlp.down_proj.weight"].fill_(3e38)

    file, run = config(edited(tmp_path, edit))
    run_uniattn.fails(ERROR, "calibrate", file, naming=["layer", "finite"])
    assert not (run / "calibration" / "weights.safetensors").exists()


def test_a_single_document_is_refused(run_uniattn, tmp_path):
    """None would be left to choose the ridge on."""
    project = edited(tmp_path, lambda weights: None)
    write_ids(project.train, random_documents(1, 60, seed=5))
    run_uniattn.fails(USAGE, "calibrate", config(project)[0], naming=["two documents"])
