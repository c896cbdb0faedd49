"""uniattn.convert and SharingPlan: a transformers model unified in place, against the plain formula."""

import json

import pytest
import torch
import uniattn
from support.models import FULL, GEMMA2, MASK_PLANS, MISTRAL, MODE_PLANS, edit_config, follower, write_base
from support.oracle import Oracle
from transformers import AutoModelForCausalLM
from uniattn import LayerPlan, SharingPlan

MAP = [3, 0, 0, 2]
FAMILIES = {"llama": {}, "tied": {"tie_word_embeddings": True}, "mistral": MISTRAL, "gemma2": GEMMA2}
PLANS = MODE_PLANS | {
    "superblock": [FULL, follower(0, rank=5), follower(0, rank=None), follower(0)],
    "interleaved": [FULL, FULL, follower(0, rank=5), follower(1, rank=None)],
    "head_map": [FULL, FULL, follower(0, rank=None, head_map=MAP), follower(1, head_map=[1, 1, 1, 1])],
}
CASES = [("llama", name) for name in PLANS]
CASES += [(family, name) for family in ("mistral", "tied") for name in ("superblock", "head_map")]
CASES += [("gemma2", "interleaved"), *(("gemma2", name) for name in MASK_PLANS)]
PLANS |= MASK_PLANS


def plan_of(name):
    return SharingPlan.from_section({"layers": PLANS[name]})


def convert(tmp_path, family="llama", plan="superblock", dtype=torch.float32):
    base = AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base", **FAMILIES[family]), dtype=dtype)
    model = uniattn.convert(base, plan_of(plan))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "compensation" in name:
                parameter.normal_(0, 0.1)
    return model


def random_ids(*shape):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(1))


def plain_loss(path, sequences):
    """Mean next-token loss of the directory under the plain formula, with gradients by name of its tensors."""
    oracle = Oracle(path)
    for weight in oracle.w.values():
        weight.requires_grad_()
    losses = [torch.nn.functional.cross_entropy(oracle.logits(s)[:-1], s[1:], reduction="sum") for s in sequences]
    loss = sum(losses) / sum(len(s) - 1 for s in sequences)
    loss.backward()
    return loss.item(), {name: w.grad for name, w in oracle.w.items()}


def assert_gradients(model, expected):
    for name, parameter in model.named_parameters():
        grad = expected.get(name)
        if grad is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert (parameter.grad - grad).abs().max() <= 1e-4 * grad.abs().max() + 1e-6, name


@pytest.mark.parametrize("family, plan", CASES)
def test_loss_and_gradients_are_the_plain_formulas(tmp_path, family, plan):
    model, ids = convert(tmp_path, family, plan), random_ids(2, 21)
    model.save_pretrained(tmp_path / "out")
    loss = model(ids, labels=ids).loss
    expected, gradients = plain_loss(tmp_path / "out", list(ids))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert_gradients(model, gradients)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("form", ["left", "right", "packed"])
def test_padding_and_packing(tmp_path, family, form):
    model = convert(tmp_path, family, "interleaved" if family == "gemma2" else "superblock")
    model.save_pretrained(tmp_path / "out")
    long, short = random_ids(19), random_ids(8)
    if form == "packed":
        ids = torch.cat([long, short])[None]
        positions = torch.cat([torch.arange(19), torch.arange(8)])[None]
        labels = ids.clone()
        labels[0, [0, 19]] = -100
        loss = model(ids, position_ids=positions, labels=labels).loss
    else:
        pad = torch.zeros(11, dtype=torch.int64)
        row = torch.cat([pad, short] if form == "left" else [short, pad])
        mask = torch.ones(2, 19, dtype=torch.int64)
        mask[1, slice(0, 11) if form == "left" else slice(8, 19)] = 0
        ids = torch.stack([long, row])
        labels = ids.masked_fill(mask == 0, -100)
        labels[1, int(mask[1].argmax())] = -100
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        loss = model(ids, attention_mask=mask, position_ids=positions, labels=labels).loss
    expected, gradients = plain_loss(tmp_path / "out", [long, short])
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert_gradients(model, gradients)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("plan", ["superblock", "head_map"])
def test_gradient_checkpointing(tmp_path, plan, reentrant):
    model, ids, gradients = convert(tmp_path, plan=plan).train(), random_ids(2, 17), []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    assert all(g is not None for g in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_model_is_the_same_object_with_its_parameters(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base"))
    before = dict(base.named_parameters())
    optimizer = torch.optim.SGD(base.parameters(), lr=1.0)
    model = uniattn.convert(base, plan_of("superblock"))
    assert model is base and type(model).__name__ == "UniAttnForCausalLM"
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in after if "compensation" not in name)
    assert not any(f"layers.{i}.self_attn.{p}_proj.weight" in name for i in (1, 2, 3) for p in "qk" for name in after)
    model(random_ids(1, 9), labels=random_ids(1, 9)).loss.backward()
    weight = after["model.layers.3.self_attn.v_proj.weight"]
    old = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, old)


def test_a_plan_without_compensation_keeps_the_leaders_layers_output(tmp_path):
    """New compensations add nothing: the model is the one without them."""
    plain = SharingPlan.regular(4, 2, 0, 4, compensation="none")
    ids = random_ids(1, 13)
    models = [AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base")) for _ in range(3)]
    plans = [plain, *(SharingPlan.regular(4, 2, 0, 4, compensation=c) for c in ("full", 6))]
    logits = [uniattn.convert(model, plan)(ids).logits for model, plan in zip(models, plans)]
    assert torch.equal(logits[1], logits[0]) and torch.equal(logits[2], logits[0])


def test_training_with_a_loop_of_ones_own(tmp_path):
    model, ids = convert(tmp_path).train(), random_ids(2, 30)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(15):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_and_autocast(tmp_path):
    ids = random_ids(1, 30)
    model = convert(tmp_path)
    exact = model(ids, labels=ids).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, labels=ids).loss.item() == pytest.approx(exact, abs=5e-2)
    assert model.bfloat16()(ids, labels=ids).loss.item() == pytest.approx(exact, abs=5e-2)


@pytest.mark.parametrize("family, plan", [("llama", "head_map"), ("mistral", "superblock"), ("gemma2", "interleaved")])
def test_saved_directory_is_an_export(tmp_path, run_uniattn, family, plan):
    """It loads as remote code, and the program reads it: the same loss three times."""
    model, ids = convert(tmp_path, family, plan), random_ids(1, 25)
    loss = model(ids, labels=ids).loss.item()
    model.save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["UniAttnForCausalLM"] and config["model_type"] == "uniattn"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert again(ids, labels=ids).loss.item() == pytest.approx(loss, abs=1e-5)
    (tmp_path / "text.ids").write_text(" ".join(map(str, ids[0].tolist())) + "\n")
    result = run_uniattn("eval", "--model", tmp_path / "out", "--ids", tmp_path / "text.ids", "--window", 64)
    assert result["loss"] == pytest.approx(loss, abs=1e-5)


def test_exported_model_runs_on_the_operators(tmp_path):
    model, ids = convert(tmp_path, plan="head_map"), random_ids(2, 25)
    model.save_pretrained(tmp_path / "out")
    options = {"trust_remote_code": True, "attn_implementation": "uniattn"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert again.config._attn_implementation == "uniattn"
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family, plan", [("llama", "head_map"), ("mistral", "superblock"), ("gemma2", "interleaved")])
def test_generation(tmp_path, family, plan):
    model, prompt = convert(tmp_path, family, plan).eval(), random_ids(2, 6)
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), model.generate(prompt, use_cache=False, **options))


def test_key_value_heads_are_averaged(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base"))
    weight = base.model.layers[0].self_attn.k_proj.weight.detach().clone()
    plan = SharingPlan.from_layers(4, {0: LayerPlan(num_kv_heads=1)})
    pooled = uniattn.convert(base, plan).model.layers[0].self_attn.k_proj.weight
    torch.testing.assert_close(pooled.detach(), (weight[:12] + weight[12:]) / 2)


def test_a_plan_that_shares_nothing_changes_nothing(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base"))
    assert type(uniattn.convert(base, SharingPlan.from_layers(4, {}))).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "plan, message",
    [
        (SharingPlan.regular(5, 2, 0, 5), "plan has 5 layers, the model has 4"),
        (SharingPlan.regular(4, 2, 0, 4, compensation=48), "compensation_rank 48"),
        (SharingPlan.from_layers(4, {0: LayerPlan(num_kv_heads=2)}), "num_kv_heads 2"),
        (SharingPlan.regular(4, 2, 0, 4).with_layer(1, head_map=(0, 1)), "head_map"),
        (SharingPlan.regular(4, 2, 0, 4).with_layer(3, leader=1), "leader 1"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tmp_path, plan, message):
    base = AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base"))
    with pytest.raises(ValueError, match=message):
        uniattn.convert(base, plan)
    assert type(base).__name__ == "LlamaForCausalLM" and base(random_ids(1, 5)).logits.isfinite().all()


def test_what_cannot_be_converted_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot convert a Linear"):
        uniattn.convert(torch.nn.Linear(2, 2), SharingPlan.regular(4, 2, 0, 4))
    mask = torch.ones(1, 1, 5, 5)
    with pytest.raises(ValueError, match=r"attention_mask \[batch, tokens\], got \[1, 1, 5, 5\]"):
        convert(tmp_path)(random_ids(1, 5), attention_mask=mask)


def test_dropout_is_refused(tmp_path):
    edit_config(write_base(tmp_path / "base"), lambda c: c.update(attention_dropout=0.1))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = uniattn.convert(base, plan_of("superblock")).train()
    with pytest.raises(ValueError, match="attention_dropout is 0.1"):
        model(random_ids(1, 5))


def test_plan_forms(tmp_path):
    plan = SharingPlan.regular(32, 4, 16, 33)
    assert [i for i, layer in enumerate(plan.layers) if layer.mode == "full"] == [*range(16), 16, 20, 24, 28]
    assert plan.followers_of(28) == [29, 30, 31]
    plan = plan.with_layer(17, head_map=(1, 0), compensation=3).with_layer(18, leader_mask=True).with_layer(2, num_kv_heads=1)
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    assert SharingPlan.from_yaml(tmp_path / "plan.yaml", 32) == plan
    assert SharingPlan.from_section(json.loads(json.dumps(plan.section("llama")))) == plan
    linear = SharingPlan.regular(4, 2, 0, 4, mode="linear")
    assert [layer.mode for layer in linear.layers] == ["full", "linear", "full", "linear"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("layers: 3", "expected a list `layers`"),
        ("layers:\n- {layer: 9, mode: skip}", "layer 9 is planned"),
        ("layers:\n- {layer: 1, mode: skip}\n- {layer: 1, mode: skip}", "layer 1 is listed twice"),
        ("layers:\n- {layer: 1, mode: shared}", r"layers\[0\]: mode is 'shared'"),
        ("layers:\n- {layer: 1, mode: skip, rank: 3}", "unknown keys"),
        ("layers:\n- {layer: 1, mode: share_probs}", "with leader None"),
        ("layers:\n- {layer: 1, mode: linear, compensation: {rank: 0}}", "compensation is 0"),
    ],
)
def test_bad_plan_files_are_named(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        SharingPlan.from_yaml(tmp_path / "plan.yaml", 4)


@pytest.mark.parametrize("arguments, message", [((4, 0, 0, 4), "group is 0"), ((4, 2, 4, 9), "begin 4"), ((4, 2, 2, 2), "end 2")])
def test_bad_short_forms_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SharingPlan.regular(*arguments)
