"""How good calibration is on stories260K: all ways to calibrate, the published init and a plain ridge compared."""

import json

import pytest
import torch
from support.models import follower
from support.oracle import Oracle
from uniattn.bench.published import calibrate as published_calibrate
from uniattn.bench.published import leaders, write_calibration
from support.runs import Project
from support.stories import sample, write_ids
from transformers import AutoModelForCausalLM

LENGTH, DOCUMENTS, FITTED = 256, 140, 104  # the rest measures
PLAN = (2, 1, 5)
FOLLOWERS = leaders(*PLAN, layers=5)
RIDGES = [10.0**e for e in range(-6, 2)]
FITS = {
    "W_c": {"fit": ["compensation"]},
    "W_c + W_o": {"fit": ["output", "compensation"]},
    "default": {},
    "rank": {"compensation": {"rank": 8}},  # D/8
    "no W_c": {"compensation": "none"},
}


@pytest.fixture(scope="module")
def losses(run_uniattn, stories, tmp_path_factory):
    """Held-out loss by way to calibrate; "base" and "shared" are the two ends."""
    project = Project(tmp_path_factory.mktemp("quality"), stories.path)
    documents = sample(AutoModelForCausalLM.from_pretrained(stories.path), DOCUMENTS, LENGTH, seed=1)
    fitted, held_out = documents[:FITTED], documents[FITTED:]
    write_ids(project.train, fitted), write_ids(project.held_out, held_out)

    found = {"base": Oracle(stories.path, torch.float32).loss(held_out, LENGTH)[0]}
    found["ridge"] = ridge(project, fitted, held_out)
    for name, options in FITS.items():
        found[name] = run_uniattn("run", config(project, name, **options)[0])["loss"]
    found["shared"] = run_uniattn("run", config(project, "shared", calibrated=False)[0])["loss"]
    file, run = config(project, "published", calibrated=False)
    weights = published_calibrate(stories.path, FOLLOWERS, fitted, LENGTH)
    write_calibration(run, 5, FOLLOWERS, weights)
    found["published"] = run_uniattn("run", file)["loss"]
    print(json.dumps(found))
    return found


def config(project, name, calibrated=True, compensation="full", **calibration):
    ids = lambda path: [{"path": str(path), "format": "ids"}]
    return project.config(
        name,
        plan={"mode": "share_probs", **dict(zip(("group", "begin", "end"), PLAN)), "compensation": compensation},
        calibration={"data": ids(project.train), "samples": 0, **calibration} if calibrated else None,
        data={"eval": ids(project.held_out), "max_length": LENGTH},
        stages=None,
    )


def ridge(project, documents, held_out):
    """Loss with W_c by token-level ridge, plainly in float64; its strength from a tenth of the documents."""
    base, unified = Oracle(project.model), Oracle(project.model)
    unified.plan = [follower(FOLLOWERS[i]) if i in FOLLOWERS else {"mode": "full"} for i in range(5)]
    cut = len(documents) * 9 // 10
    for layer in FOLLOWERS:
        x, y = rows(base, unified, layer, documents[:cut])
        x_held_out, y_held_out = rows(base, unified, layer, documents[cut:])
        gram = x.T @ x
        penalty = gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        solutions = [torch.linalg.solve(gram + strength * penalty, x.T @ y) for strength in RIDGES]
        best = min(solutions, key=lambda w: (y_held_out - x_held_out @ w).norm())
        unified.w[f"model.layers.{layer}.self_attn.compensation.weight"] = best.T
    return unified.loss(held_out, LENGTH)[0]


def rows(base, unified, layer, documents):
    """The layer's normed inputs and what its stream lacks, over all tokens."""
    x, y = [], []
    for ids in documents:
        base.logits(ids), unified.logits(ids)
        x.append(unified.trace[layer][0])
        y.append(base.trace[layer][2] - unified.trace[layer][2])
    return torch.cat(x), torch.cat(y)


def recovered(losses, name):
    return (losses["shared"] - losses[name]) / (losses["shared"] - losses["base"])


def test_compensation_alone_is_as_good_as_a_plain_ridge(losses):
    assert losses["W_c"] <= losses["ridge"] + 1e-3  # the two choose the ridge's strength on other documents


def test_default_recovers_clearly_more_than_the_linear_fits(losses):
    assert recovered(losses, "W_c + W_o") > recovered(losses, "W_c") + 0.1
    assert recovered(losses, "default") > recovered(losses, "W_c + W_o") + 0.05


def test_a_smaller_compensation_costs_little(losses):
    assert recovered(losses, "no W_c") >= recovered(losses, "default") - 0.05
    assert losses["rank"] <= losses["default"] + 0.03


def test_published_init_is_worse_than_every_fit(losses):
    assert losses["published"] > max(losses[name] for name in FITS)
