"""The published init calculation, as reimplemented to compare with, against its formula in float64."""

import random

import torch
from support.models import follower, write_base
from support.oracle import Oracle
from uniattn.bench.published import calibrate

LENGTH, FOLLOWERS = 64, {1: 0, 3: 2}


def test_published_init_is_the_pseudo_inverse_of_mean_rows(tmp_path):
    """Followers in order, each with those before it compensated and those behind it sharing without compensation."""
    model = write_base(tmp_path / "base")
    draw = random.Random(0)
    documents = [draw.choices(range(3, 97), k=LENGTH) for _ in range(3)]
    found = calibrate(model, FOLLOWERS, documents, LENGTH)
    base, unified = Oracle(model), Oracle(model)
    unified.plan = [follower(FOLLOWERS[i]) if i in FOLLOWERS else {"mode": "full"} for i in range(4)]
    for layer in FOLLOWERS:
        x, missing = mean_rows(base, unified, layer, documents)
        expected = (torch.linalg.pinv(x) @ missing).T
        assert (found[layer] - expected).norm() <= 1e-3 * expected.norm(), f"layer {layer}"
        unified.w[f"model.layers.{layer}.self_attn.compensation.weight"] = expected


def test_padding_counts_as_text(tmp_path):
    """The published code hides no padding: a shorter text gives another result than the text alone."""
    model = write_base(tmp_path / "base")
    document = random.Random(0).choices(range(3, 97), k=LENGTH)
    alone, padded = (calibrate(model, {1: 0}, [document], length)[1] for length in (LENGTH, 2 * LENGTH))
    assert (alone - padded).norm() > 0.1 * alone.norm()


def mean_rows(base, unified, layer, documents):
    x = missing = 0
    for ids in documents:
        base.logits(ids), unified.logits(ids)
        x = x + unified.trace[layer][0] / len(documents)
        missing = missing + (base.trace[layer][2] - unified.trace[layer][2]) / len(documents)
    return x, missing
