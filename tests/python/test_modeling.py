"""modeling_uniattn.py against a plain PyTorch forward, and inside the machinery of `transformers`."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import (
    FULL,
    GEMMA2,
    LLAMA3,
    MASK_PLANS,
    MISTRAL,
    MODE_PLANS,
    edit_config,
    follower,
    write_base,
    write_unified,
    write_word_tokenizer,
)
from support.oracle import Oracle
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM, LlamaForCausalLM, MistralForCausalLM, pipeline

MAP = [3, 0, 0, 2]
BASES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "llama3": {"scaling": LLAMA3, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16},
    "linear": {"scaling": {"rope_type": "linear", "factor": 4.0}},
    "published": {"scaling": LLAMA3, "published": True},
    "mistral": MISTRAL,
    "gemma2": GEMMA2,
}
PLANS = {
    "pairs": [FULL, follower(0, rank=None), FULL, follower(2)],
    "superblock": [FULL, follower(0, rank=5), follower(0, rank=None), follower(0)],
    "interleaved": [FULL, FULL, follower(0, rank=5), follower(1, rank=None)],
    "head_map": [FULL, FULL, follower(0, rank=None, head_map=MAP), follower(1, head_map=[1, 1, 1, 1])],
}
CASES = [("llama", plan) for plan in (*PLANS, *MODE_PLANS)]
CASES += [(base, "superblock") for base in BASES if base != "gemma2"]
CASES += [("published", "head_map"), ("mistral", "head_map"), ("mistral", "mixed"), ("gemma2", "interleaved")]
CASES += [("gemma2", plan) for plan in MASK_PLANS]
PLANS |= MODE_PLANS | MASK_PLANS


def make(tmp_path, base="llama", plan="head_map", **kwargs):
    return write_unified(tmp_path / "unified", write_base(tmp_path / "base", **BASES[base]), PLANS[plan], **kwargs)


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


def random_ids(*shape):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unified(tmp_path):
    return make(tmp_path)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "uniattn"])
@pytest.mark.parametrize("base,plan", CASES)
def test_logits(tmp_path, base, plan, attention):
    if base == "gemma2" and attention == "sdpa":
        pytest.skip("sdpa has no soft-cap; transformers refuses it for Gemma-2")
    path, ids = make(tmp_path, base, plan), random_ids(2, 40)
    model = load(path, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    expected = torch.stack([Oracle(path).logits(row) for row in ids])
    with torch.no_grad():
        error = (model(ids).logits - expected).abs().max()
    assert error <= 2e-4 * expected.abs().max()


def test_followers_have_no_query_and_key_projection(unified):
    names = set(load(unified).state_dict())
    assert "model.layers.1.self_attn.q_proj.weight" in names
    for layer in (2, 3):
        assert not {f"model.layers.{layer}.self_attn.{p}_proj.weight" for p in "qk"} & names


def test_follower_attention_is_the_leaders(unified):
    weights = load(unified, attn_implementation="eager")(random_ids(1, 9), output_attentions=True).attentions
    torch.testing.assert_close(weights[2], weights[0][:, MAP])


@pytest.mark.parametrize("base,plan", CASES)
def test_generate_with_cache(tmp_path, base, plan):
    model, prompt = load(make(tmp_path, base, plan), attn_implementation="eager"), random_ids(1, 6)
    options = {"max_new_tokens": 50, "min_new_tokens": 50, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), model.generate(prompt, use_cache=False, **options))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}])
def test_generate_other_ways(unified, options):
    model, prompt = load(unified, attn_implementation="sdpa"), random_ids(2, 6)
    common = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "num_beams": options.get("num_beams", 1)}
    assert torch.equal(model.generate(prompt, **common | options), model.generate(prompt, use_cache=False, **common))


def test_followers_cache_values_only(tmp_path):
    model = load(make(tmp_path, plan="superblock"), attn_implementation="sdpa")
    cache = model(random_ids(2, 11), use_cache=True).past_key_values
    numbers = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    one = 2 * 2 * 11 * 12  # batch, kv_heads, tokens, head_dim
    assert numbers == [2 * one, one, one, one]


@pytest.mark.parametrize("base", ["llama", "mistral"])
def test_left_padding(tmp_path, base):
    model, long, short = load(make(tmp_path, base)), random_ids(1, 13), random_ids(1, 5)
    ids = torch.cat([long, torch.cat([torch.zeros(1, 8, dtype=torch.int64), short], 1)])
    mask = torch.ones_like(ids)
    mask[1, :8] = 0
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    batch = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(batch[0], model.generate(long, **options)[0])
    assert torch.equal(batch[1, 8:], model.generate(short, **options)[0])


@pytest.mark.parametrize("base", ["llama", "tied", "published", "mistral", "gemma2"])
def test_save_pretrained_round_trip(tmp_path, base):
    model, ids = load(make(tmp_path, base, "interleaved")), random_ids(1, 20)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_uniattn.py").is_file()
    again = load(tmp_path / "again")
    assert again.config.uniattn == model.config.uniattn
    assert again.config.layer_types == model.config.layer_types
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(Exception, match="layer_types"):
        LlamaForCausalLM.from_pretrained(tmp_path / "again")


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(unified, reentrant):
    ids, gradients = random_ids(2, 17), []
    for checkpointing in (False, True):
        model = load(unified).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_loss_is_mean_next_token_loss(unified):
    ids = random_ids(1, 30)
    loss, tokens = Oracle(unified).loss(ids.tolist(), 30)
    assert tokens == 29
    assert load(unified)(ids, labels=ids).loss.item() == pytest.approx(loss, abs=1e-5)


def test_bfloat16(unified):
    ids = random_ids(1, 30)
    loss = load(unified, dtype=torch.bfloat16)(ids, labels=ids).loss.item()
    assert loss == pytest.approx(Oracle(unified).loss(ids.tolist(), 30)[0], abs=5e-2)


def test_pipeline(tmp_path):
    write_word_tokenizer(tmp_path / "tokenizer")
    path = make(tmp_path, tokenizer=tmp_path / "tokenizer")
    generate = pipeline("text-generation", model=str(path), trust_remote_code=True)
    text = generate("w5 w6 w7", max_new_tokens=8, min_new_tokens=8, do_sample=False)[0]["generated_text"]
    expected = load(path).generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, min_new_tokens=8, do_sample=False)[0]
    assert text.replace(" ", "") == "".join(f"w{i}" for i in expected)


@pytest.mark.parametrize("cls", [LlamaForCausalLM, MistralForCausalLM, Gemma2ForCausalLM])
def test_plain_classes_refuse(unified, cls):
    with pytest.raises(Exception, match="layer_types.*share_probs|share_probs.*layer_types"):
        cls.from_pretrained(unified)


def test_refused_without_trust(unified):
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(unified, trust_remote_code=False)


def layer_edit(layer, **changes):
    return lambda config: config["uniattn"]["layers"][layer].update(changes)


BAD_CONFIGS = {
    "version": (lambda c: c["uniattn"].update(version=2), "version"),
    "family": (lambda c: c["uniattn"].update(base_model_type="gpt2"), "base_model_type"),
    "no plan": (lambda c: c.pop("uniattn"), "uniattn"),
    "unknown key": (lambda c: c["uniattn"].update(extra=1), "extra"),
    "mode": (layer_edit(2, mode="share_all"), "share_all"),
    "layer key": (layer_edit(2, num_kv_heads=1), "num_kv_heads"),
    "mask": (layer_edit(2, mask="own"), "mask"),
    "kv heads": (layer_edit(0, num_kv_heads=2), "num_kv_heads 2"),
    "follower of a follower": (layer_edit(3, leader=2), "leader 2"),
    "leader above": (layer_edit(2, leader=3), "leader 3"),
    "negative leader": (layer_edit(2, leader=-1), "leader -1"),
    "head map length": (layer_edit(2, head_map=[0, 1]), "head_map"),
    "head map range": (layer_edit(2, head_map=[0, 1, 2, 4]), "head_map"),
    "rank": (layer_edit(2, compensation_rank=48), "compensation_rank"),
    "layer count": (lambda c: c["uniattn"]["layers"].pop(), "layer"),
    "mask type": (lambda c: c["layer_types"].__setitem__(0, "no_attention"), "no_attention"),
    "biases": (lambda c: c.update(attention_bias=True), "attention_bias"),
}


@pytest.mark.parametrize("edit,naming", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_config_is_refused(unified, edit, naming):
    edit_config(unified, edit)
    with pytest.raises(Exception, match=naming):
        load(unified)


def test_mixed_mask_types_are_refused(tmp_path):
    path = make(tmp_path, "gemma2", "global_follows_sliding")
    load(path)
    edit_config(path, lambda c: c["uniattn"]["layers"][1].pop("mask"))
    with pytest.raises(ValueError, match="layers.1..*different mask types"):
        load(path)


@pytest.mark.parametrize(
    "name,shape",
    [("model.layers.1.self_attn.k_proj.weight", None), ("model.layers.2.self_attn.q_proj.weight", (48, 48))],
)
def test_weights_that_do_not_fit_are_refused(unified, name, shape):
    file = unified / "model.safetensors"
    weights = load_file(file)
    if shape is None:
        del weights[name]
    else:
        weights[name] = torch.zeros(shape)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=name):
        load(unified)


def test_sharded_weights(unified, tmp_path):
    model, ids = load(unified), random_ids(1, 12)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path / "sharded")(ids).logits, model(ids).logits)
