"""`uniattn eval` against `transformers` and against a plain PyTorch forward."""

import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import GEMMA2, LLAMA3, MISTRAL, follower, write_base, write_unified
from support.oracle import Oracle
from support.stories import write_ids
from transformers import AutoModelForCausalLM

FULL = {"mode": "full"}
SHAPES = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1, "num_hidden_layers": 2},
    "odd": {
        "hidden_size": 60,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "intermediate_size": 77,
        "vocab_size": 131,
    },
    "wide heads": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32},
    "llama3": {"scaling": LLAMA3, "rope_theta": 500000.0},
    "llama3 published": {"scaling": LLAMA3, "rope_theta": 500000.0, "published": True, "tie_word_embeddings": True},
    "linear": {"scaling": {"rope_type": "linear", "factor": 4.0}},
    "published": {"published": True},
    "mistral": MISTRAL,
    "mistral published": MISTRAL | {"published": True},
    "mistral without window": MISTRAL | {"sliding_window": None},
    "gemma2": GEMMA2,
    "gemma2 published": GEMMA2 | {"published": True},
}
PLANS = {
    "pairs": [FULL, follower(0, rank=None), FULL, follower(2)],
    "superblock": [FULL, follower(0, rank=5), follower(0, rank=None), follower(0)],
    "interleaved": [FULL, FULL, follower(0, rank=5), follower(1, rank=None)],
    "head_map": [FULL, FULL, follower(0, rank=None, head_map=[3, 0, 0, 2]), follower(1, head_map=[1, 1, 1, 1])],
}


def documents(count, longest, vocab=97, seed=0):
    generator = random.Random(seed)
    return [[generator.randrange(vocab) for _ in range(generator.randint(2, longest))] for _ in range(count)]


def evaluate(run_uniattn, model, ids, window, *more):
    return run_uniattn("eval", "--model", model, "--ids", ids, "--window", window, "--dtype", "float32", *more)


def assert_logits_equal(run_uniattn, path, docs, window, folder):
    """One row of logits per input position, windows in order, within 2e-4 of the logit scale of transformers'."""
    file = folder / "logits.safetensors"
    ids = write_ids(folder / "eval.ids", docs)
    result = evaluate(run_uniattn, path, ids, window, "--logits", file)
    model = AutoModelForCausalLM.from_pretrained(path)
    windows = [doc[i : i + window] for doc in docs for i in range(0, len(doc), window)]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([piece])).logits[0] for piece in windows])
    logits = load_file(file)["logits"]
    assert logits.dtype == torch.float32
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 2e-4 * expected.abs().max()
    assert result["tokens"] == sum(len(piece) - 1 for piece in windows)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits(run_uniattn, tmp_path, shape):
    base = write_base(tmp_path / "base", **shape)
    assert_logits_equal(run_uniattn, base, documents(3, 60), 40, tmp_path)


def test_logits_past_8192_positions(run_uniattn, tmp_path):
    scaling = LLAMA3 | {"original_max_position_embeddings": 8192}
    base = write_base(
        tmp_path / "base", scaling=scaling, rope_theta=500000.0, vocab_size=16, hidden_size=16, intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=131072,
    )  # fmt: skip
    long = [[random.Random(3).randrange(16) for _ in range(8500)]]
    assert_logits_equal(run_uniattn, base, long, 8500, tmp_path)


def test_loss_is_the_mean_over_predicted_tokens(run_uniattn, tmp_path):
    base, docs = write_base(tmp_path / "base"), documents(5, 70)
    result = evaluate(run_uniattn, base, write_ids(tmp_path / "eval.ids", docs), 32)
    loss, tokens = Oracle(base).loss(docs, 32)
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(loss, abs=1e-4)
    assert result["perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)


UNIFIED = [({"scaling": LLAMA3}, plan) for plan in PLANS] + [({"tie_word_embeddings": True}, "pairs")]
UNIFIED += [(MISTRAL, "superblock"), (GEMMA2, "interleaved"), (GEMMA2 | {"published": True}, "interleaved")]


@pytest.mark.parametrize("shape,plan", UNIFIED, ids=str)
def test_unified_directory(run_uniattn, tmp_path, shape, plan):
    base, plan = write_base(tmp_path / "base", **shape), PLANS[plan]
    path, docs = write_unified(tmp_path / "unified", base, plan), documents(4, 50)
    loss, tokens = Oracle(path).loss(docs, 50)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    with torch.no_grad():
        sums = [model(torch.tensor([d]), labels=torch.tensor([d])).loss.item() * (len(d) - 1) for d in docs]
    result = evaluate(run_uniattn, path, write_ids(tmp_path / "eval.ids", docs), 50)
    assert result["tokens"] == tokens
    assert sum(sums) / tokens == pytest.approx(loss, abs=1e-4)
    assert result["loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sharded_half_precision_weights(run_uniattn, tmp_path, dtype):
    base, docs = write_base(tmp_path / "base"), documents(3, 40)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model.save_pretrained(tmp_path / "half", max_shard_size="30KB")
    assert (tmp_path / "half" / "model.safetensors.index.json").exists()
    result = evaluate(run_uniattn, tmp_path / "half", write_ids(tmp_path / "eval.ids", docs), 64)
    assert result["loss"] == pytest.approx(Oracle(tmp_path / "half").loss(docs, 64)[0], abs=1e-4)


def test_tied_duplicate_is_accepted(run_uniattn, tmp_path):
    base, docs = write_base(tmp_path / "base", tie_word_embeddings=True), documents(3, 40)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    result = evaluate(run_uniattn, base, write_ids(tmp_path / "eval.ids", docs), 64)
    assert result["loss"] == pytest.approx(Oracle(base).loss(docs, 64)[0], abs=1e-4)


def test_short_and_empty_lines(run_uniattn, tmp_path):
    """A document of one token predicts nothing; so does the one-token rest of a longer one."""
    base, ids = write_base(tmp_path / "base"), tmp_path / "eval.ids"
    ids.write_text("5\n\n" + " ".join(map(str, range(3, 20))) + "\n  7   8 \n6 7")
    docs = [[5], list(range(3, 20)), [7, 8], [6, 7]]
    result = evaluate(run_uniattn, base, ids, 16)
    loss, tokens = Oracle(base).loss(docs, 16)
    assert result["tokens"] == tokens == 17
    assert result["loss"] == pytest.approx(loss, abs=1e-4)


def test_bfloat16_loss(run_uniattn, tmp_path):
    base, docs = write_base(tmp_path / "base"), documents(6, 60)
    ids = write_ids(tmp_path / "eval.ids", docs)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokens = sum(len(d) - 1 for d in docs)
    with torch.no_grad():
        expected = (
            sum(model(torch.tensor([d]), labels=torch.tensor([d])).loss.item() * (len(d) - 1) for d in docs) / tokens
        )
    result = run_uniattn("eval", "--model", base, "--ids", ids, "--window", 64, "--dtype", "bfloat16")
    assert result["loss"] == pytest.approx(expected, abs=1e-2)


def test_stories_converter_keeps_the_function(stories):
    """The converted directory against the interleaved-pair forward of the original layout, on one document."""
    ids = stories.documents[0]
    expected = original_logits(stories.bin, ids)
    assert (Oracle(stories.path).logits(ids) - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_stories_loss(run_uniattn, stories):
    loss, tokens = Oracle(stories.path).loss(stories.documents, 512)
    result = evaluate(run_uniattn, stories.path, stories.ids, 512)
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(loss, abs=1e-4)
    assert 1.0 < loss < 1.7  # a trained model on text of its own


def original_logits(bin_file, ids):
    """llama2.c's own formulas: rotary pairs (2i, 2i+1), weights as they lie in the file."""
    from support.stories import read_llama2c

    c, t = read_llama2c(bin_file)
    head_dim, each = c["dim"] // c["heads"], c["heads"] // c["kv_heads"]
    angle = torch.arange(len(ids))[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    norm = lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w
    split = lambda x: x.unflatten(-1, (-1, head_dim)).transpose(0, 1)

    def rope(x):
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
            torch.ones_like(angle), angle
        )
        return torch.view_as_real(turned).flatten(-2)

    h = t["embedding"][ids]
    for i in range(c["layers"]):
        x = norm(h, t["attention_norm"][i])
        q, k, v = rope(split(x @ t["wq"][i].T)), rope(split(x @ t["wk"][i].T)), split(x @ t["wv"][i].T)
        scores = q @ k.repeat_interleave(each, 0).transpose(1, 2) * head_dim**-0.5
        future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        heads = scores.masked_fill(future, -torch.inf).softmax(-1) @ v.repeat_interleave(each, 0)
        h = h + heads.transpose(0, 1).flatten(1) @ t["wo"][i].T
        x = norm(h, t["mlp_norm"][i])
        h = h + (torch.nn.functional.silu(x @ t["gate"][i].T) * (x @ t["up"][i].T)) @ t["down"][i].T
    return norm(h, t["norm"]) @ t["embedding"].T
