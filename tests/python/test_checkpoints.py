"""`uniattn convert`: other precisions and shard sizes, and checkpoints of the published UniAttn code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import GEMMA2, edit_config, unify, write_base
from support.runs import random_documents, write_ids, write_tokenizer

VOCAB = 97
SHARED = {"mode": "share_probs", "leader": 0, "compensation_rank": None}


def tensors_of(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def ids(tmp_path):
    return write_ids(tmp_path / "held_out.ids", random_documents(6, 60, seed=2, vocab=VOCAB))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_precision_and_shards(run_uniattn, tmp_path, dtype):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, published=True)
    write_tokenizer(base)
    (base / "generation_config.json").write_text('{"temperature": 0.5}')
    out = tmp_path / "out"
    run_uniattn("convert", "--model", base, "--out", out, "--dtype", dtype, "--max-shard-gb", 0.00005)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    original, converted = tensors_of(base), tensors_of(out)
    assert original.keys() == converted.keys()
    assert all(torch.equal(original[name].to(getattr(torch, dtype)), converted[name]) for name in original)
    for name in ("tokenizer.model", "generation_config.json"):
        assert (base / name).read_bytes() == (out / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert after == before | {"torch_dtype": dtype}


def test_a_unified_model_stays_what_it_is(run_uniattn, tmp_path, ids):
    base = write_base(tmp_path / "base", vocab_size=VOCAB)
    unified = unify(base, tmp_path / "unified", [{"mode": "full"}, SHARED, SHARED, {"mode": "full"}])
    run_uniattn("convert", "--model", unified, "--out", tmp_path / "out", "--dtype", "float32")
    losses = [run_uniattn("eval", "--model", folder, "--ids", ids)["loss"] for folder in (unified, tmp_path / "out")]
    assert losses[0] == losses[1]


def test_weights_that_are_not_numbers_are_named(run_uniattn, tmp_path):
    base = write_base(tmp_path / "base", vocab_size=VOCAB)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    done = run_uniattn.fails(1, "convert", "--model", base, "--out", tmp_path / "out", naming=["layers.2.mlp.up_proj", "NaN"])
    assert not (tmp_path / "out").exists(), done.stderr


def test_a_tied_head_may_be_there_twice(run_uniattn, tmp_path, ids):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, tie_word_embeddings=True)
    twice = tmp_path / "twice"
    shutil.copytree(base, twice)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, twice / "model.safetensors", {"format": "pt"})
    losses = [run_uniattn("eval", "--model", folder, "--ids", ids)["loss"] for folder in (base, twice)]
    assert losses[0] == losses[1]


def publish(base, folder, group, begin, end):
    """`base` as the published code saves it under a plan: followers keep q_proj and k_proj, and have a v2_proj."""
    shutil.copytree(base, folder)
    edit_config(folder, lambda c: c.update(grouping_idx=group, grouping_begin_idx=begin, grouping_end_idx=end))
    weights, added = load_file(folder / "model.safetensors"), {}
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    generator = torch.Generator().manual_seed(4)
    for i in range(layers):
        if i % group and begin <= i < end:
            added[i] = 0.05 * torch.randn(48, 48, generator=generator)
    weights |= {f"model.layers.{i}.v2_proj.weight": weight for i, weight in added.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return added


@pytest.mark.parametrize("plan", [(2, 0, 5), (3, 2, 33)])  # of the second, layer 2 follows layer 1
@pytest.mark.parametrize("family", [{}, GEMMA2], ids=["llama", "gemma2"])
def test_published_checkpoints(run_uniattn, tmp_path, ids, plan, family):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, num_hidden_layers=5, **family)
    added = publish(base, tmp_path / "published", *plan)
    options = [text for pair in zip(("--group", "--begin", "--end"), plan) for text in pair]
    out = tmp_path / "out"
    run_uniattn("convert", "--model", tmp_path / "published", *options, "--out", out, "--dtype", "float32")

    layers, leader = [], None
    for i in range(5):
        leader = leader if i in added else i
        mixed = family and (i - leader) % 2
        layers.append(SHARED | {"leader": leader} | ({"mask": "leader"} if mixed else {}) if i in added else {"mode": "full"})
    compensation = {i: {"weight": weight} for i, weight in added.items()}
    expected = unify(base, tmp_path / "expected", layers, compensation=compensation)
    losses = [run_uniattn("eval", "--model", folder, "--ids", ids)["loss"] for folder in (expected, out)]
    assert losses[0] == losses[1]
    assert not any(f"layers.{i}.self_attn.q_proj" in name for name in tensors_of(out) for i in added)

    run_uniattn.fails(1, "eval", "--model", tmp_path / "published", "--ids", ids, naming=["published", "uniattn convert"])
    wrong = [options[0], plan[0] + 1, *options[2:]]
    run_uniattn.fails(2, "convert", "--model", tmp_path / "published", *wrong, "--out", out, naming=["grouping_idx", plan[0]])


@pytest.mark.parametrize("family", [{}, GEMMA2], ids=["llama", "gemma2"])
def test_layer_by_layer_the_loss_is_the_same(run_uniattn, tmp_path, ids, family):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, **family)
    interleaved = [{"mode": "full"}, {"mode": "full"}, SHARED, SHARED | {"leader": 1}]
    unified = unify(base, tmp_path / "unified", interleaved)
    for folder in (base, unified):
        whole = run_uniattn("eval", "--model", folder, "--ids", ids, "--dtype", "float32")
        layerwise = run_uniattn("eval", "--model", folder, "--ids", ids, "--dtype", "float32", "--layerwise")
        assert whole["tokens"] == layerwise["tokens"] and whole["loss"] == pytest.approx(layerwise["loss"], rel=1e-12)
