"""`uniattn convert`: other precisions and shard sizes, and checkpoints of the published UniAttn code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import FULL, GEMMA2, edit_config, follower, write_base, write_unified
from support.runs import random_documents, write_ids, write_tokenizer

VOCAB = 97


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
    unified = write_unified(tmp_path / "unified", base, [FULL, follower(0, rank=None), follower(0, rank=5), FULL])
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


def publish(base, unified, folder, plan):
    """`unified` as the published code saves it: followers keep q_proj and k_proj, and the compensation is a v2_proj."""
    shutil.copytree(base, folder)
    names = ("grouping_idx", "grouping_begin_idx", "grouping_end_idx")
    edit_config(folder, lambda config: config.update(zip(names, plan)))
    ending = ".self_attn.compensation.weight"
    added = {n.replace(ending, ".v2_proj.weight"): w for n, w in tensors_of(unified).items() if n.endswith(ending)}
    save_file(tensors_of(base) | added, folder / "model.safetensors", {"format": "pt"})
    return added


@pytest.mark.parametrize("plan", [(2, 0, 5), (3, 2, 33)])  # of the second, layer 2 follows layer 1
@pytest.mark.parametrize("family", [{}, GEMMA2], ids=["llama", "gemma2"])
def test_published_checkpoints(run_uniattn, tmp_path, ids, plan, family):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, num_hidden_layers=5, **family)
    group, begin, end = plan
    leader, layers = None, []
    for i in range(5):
        follows = i % group and begin <= i < end
        leader = leader if follows else i
        mask = {"mask": "leader"} if family and (i - leader) % 2 else {}
        layers.append(follower(leader, rank=None, **mask) if follows else FULL)
    expected = write_unified(tmp_path / "expected", base, layers)
    published = tmp_path / "published"
    added = publish(base, expected, published, plan)
    assert len(added) == sum(layer != FULL for layer in layers) > 0

    options, out = ["--group", group, "--begin", begin, "--end", end], tmp_path / "out"
    run_uniattn("convert", "--model", published, *options, "--out", out, "--dtype", "float32")
    losses = [run_uniattn("eval", "--model", folder, "--ids", ids)["loss"] for folder in (expected, out)]
    assert losses[0] == losses[1]
    assert tensors_of(out).keys() == tensors_of(expected).keys()

    run_uniattn.fails(1, "eval", "--model", published, "--ids", ids, naming=["published", "uniattn convert"])
    wrong = ["--group", group + 1, *options[2:]]
    run_uniattn.fails(2, "convert", "--model", published, *wrong, "--out", out, naming=["grouping_idx", group])
    weights = tensors_of(published)
    del weights[next(iter(added))]
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    run_uniattn.fails(1, "convert", "--model", published, *options, "--out", out, naming=["v2_proj", "another plan"])


@pytest.mark.parametrize("family", [{}, GEMMA2], ids=["llama", "gemma2"])
def test_layer_by_layer_the_loss_is_the_same(run_uniattn, tmp_path, ids, family):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, **family)
    unified = write_unified(tmp_path / "unified", base, [FULL, FULL, follower(0, rank=None), follower(1, rank=5)])
    for folder in (base, unified):
        whole = run_uniattn("eval", "--model", folder, "--ids", ids, "--dtype", "float32")
        layerwise = run_uniattn("eval", "--model", folder, "--ids", ids, "--dtype", "float32", "--layerwise")
        assert whole["tokens"] == layerwise["tokens"] and whole["loss"] == pytest.approx(layerwise["loss"], rel=1e-12)
