"""Every mode of a plan, alone and mixed, through the whole program: eval, generate, train, export, inspect."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.models import FULL, GEMMA2, MASK_PLANS, MISTRAL, MODE_PLANS, full, pooled, write_base, write_unified
from support.oracle import Oracle
from support.runs import VOCAB, Project, random_documents, snapshot_bytes
from support.stories import write_ids
from transformers import AutoModelForCausalLM, LlamaForCausalLM

PLANS = MODE_PLANS | MASK_PLANS
CASES = [({}, plan) for plan in MODE_PLANS] + [(MISTRAL, "one_leader"), (MISTRAL, "mixed")]
CASES += [(GEMMA2, plan) for plan in ("linear", "skip", "kv_heads", *MASK_PLANS)]
CASES += [({"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}, "four_of_six")]
PLANS["four_of_six"] = [full(2), full(3), MODE_PLANS["share_kv"][1], FULL]


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)


def make(tmp_path, shape, plan):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, **shape)
    return write_unified(tmp_path / "unified", base, PLANS[plan])


def as_config(plan):
    """The `plan` section of a configuration for entries of `uniattn.layers`."""
    layers = []
    for i, entry in enumerate(plan):
        if entry == FULL:
            continue
        rank = entry.get("compensation_rank", "none")
        layers.append({k: v for k, v in entry.items() if k != "compensation_rank"} | {
            "layer": i, "compensation": "full" if rank is None else rank if rank == "none" else {"rank": rank},
        })  # fmt: skip
    return {"layers": layers}


def train(run_uniattn, tmp_path, shape, plan, **sections):
    """A run of two steps in each stage. Returns (result, run folder, project)."""
    project = Project(tmp_path, write_base(tmp_path / "base", vocab_size=VOCAB, **shape))
    trained = ["compensation"] if any("compensation_rank" in entry for entry in PLANS[plan]) else []
    stages = [{"name": n, "train": n, "max_steps": 2, "learning_rate": 1.0e-3} for n in (*trained, "all")]
    config, run = project.config(
        "modes", **{"plan": as_config(PLANS[plan]), "calibration": None, "stages": stages} | sections
    )
    return run_uniattn("run", config), run, project


@pytest.mark.parametrize("shape,plan", CASES, ids=str)
def test_logits(run_uniattn, tmp_path, shape, plan):
    path, docs = make(tmp_path, shape, plan), random_documents(3, 40, seed=3)
    ids, file = write_ids(tmp_path / "eval.ids", docs), tmp_path / "logits.safetensors"
    run_uniattn("eval", "--model", path, "--ids", ids, "--window", 64, "--dtype", "float32", "--logits", file)
    logits, model, oracle = load_file(file)["logits"], load(path), Oracle(path)
    with torch.no_grad():
        theirs = torch.cat([model(torch.tensor([doc])).logits[0] for doc in docs])
    exact = torch.cat([oracle.logits(doc) for doc in docs])
    assert (logits - exact).abs().max() <= 2e-4 * exact.abs().max()
    assert (logits - theirs).abs().max() <= 2e-4 * exact.abs().max()


@pytest.mark.parametrize("shape,plan", [({"head_dim": 32}, "small_leader"), (GEMMA2, "sliding_follows_global")])
def test_bfloat16(run_uniattn, tmp_path, shape, plan):
    path, docs = make(tmp_path, shape, plan), random_documents(3, 40, seed=3)
    ids = write_ids(tmp_path / "eval.ids", docs)
    result = run_uniattn("eval", "--model", path, "--ids", ids, "--window", 64, "--dtype", "bfloat16")
    assert result["loss"] == pytest.approx(Oracle(path).loss(docs, 64)[0], abs=5e-2)


@pytest.mark.parametrize("shape,plan", CASES, ids=str)
def test_generate_equals_transformers(run_uniattn, tmp_path, shape, plan):
    path, prompt = make(tmp_path, shape, plan), random_documents(1, 20, seed=5)[0]
    out = load(path).generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, pad_token_id=0)
    expected = out[0, len(prompt) :].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    ids = " ".join(map(str, prompt))
    result = run_uniattn("generate", "--model", path, "--ids", ids, "--max-new-tokens", 30, "--dtype", "float32")
    assert result["ids"] == expected


@pytest.mark.parametrize("shape,plan", CASES, ids=str)
def test_train_and_export(run_uniattn, tmp_path, shape, plan):
    result, run, project = train(run_uniattn, tmp_path, shape, plan)
    exported = json.loads((run / "export" / "config.json").read_text())
    assert exported["uniattn"]["layers"] == PLANS[plan]
    docs = [[int(i) for i in line.split()] for line in project.held_out.read_text().splitlines()]
    loss, tokens = Oracle(run / "export").loss(docs, 64)
    assert result["loss"] == pytest.approx(loss, abs=1e-4)
    model = load(run / "export")
    with torch.no_grad():
        sums = [model(torch.tensor([d]), labels=torch.tensor([d])).loss.item() * (len(d) - 1) for d in docs]
    assert sum(sums) / tokens == pytest.approx(loss, abs=1e-4)


def test_heads_are_pooled_on_the_way_in(run_uniattn, tmp_path):
    _, run, project = train(run_uniattn, tmp_path, {}, "mixed", stages=None)
    before, after = load_file(project.model / "model.safetensors"), load_file(run / "export" / "model.safetensors")
    for name in ("k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{name}.weight"
        torch.testing.assert_close(after[name], pooled(before[name], 1, 12))
    plan = json.loads((run / "export" / "config.json").read_text())["uniattn"]["layers"]
    assert plan[1] == {"mode": "skip"}  # linear without a compensation
    assert not [name for name in after if ".1.self_attn." in name or ".3.self_attn." in name]


def test_resume_is_bit_exact(run_uniattn, tmp_path):
    _, run, project = train(run_uniattn, tmp_path, {}, "mixed")
    config = tmp_path / "resumed.yaml"
    config.write_text((tmp_path / "modes.yaml").read_text().replace(str(run), str(tmp_path / "resumed")))
    for _ in range(4):
        run_uniattn("train", config, "--stop-after", 1)
    assert snapshot_bytes(tmp_path / "resumed", 4) == snapshot_bytes(run, 4)


def test_fine_tuning_an_export(run_uniattn, tmp_path):
    _, run, _ = train(run_uniattn, tmp_path, {}, "mixed", stages=None)
    project = Project(tmp_path, run / "export")
    stages = [{"name": "more", "train": "all", "max_steps": 2, "learning_rate": 1.0e-3}]
    config, again = project.config("again", plan=None, calibration=None, stages=stages)
    run_uniattn("run", config)
    assert json.loads((again / "export" / "config.json").read_text()) == json.loads(
        (run / "export" / "config.json").read_text()
    )
    before, after = load_file(run / "export" / "model.safetensors"), load_file(again / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    name = "model.layers.0.self_attn.k_proj.weight"
    assert 0 < (before[name] - after[name]).abs().max() < 1e-2


@pytest.mark.parametrize("plan", MODE_PLANS)
def test_inspect_and_caches(run_uniattn, tmp_path, plan):
    path = make(tmp_path, {}, plan)
    result = run_uniattn("inspect", "--model", path)
    assert result["parameters"] == sum(t.numel() for t in Oracle(path).w.values())
    tensors = {"full": 2, "share_probs": 1}  # keys and values of one head take 12 floats
    expected = [tensors.get(e["mode"], 0) * e.get("num_kv_heads", 2) * 12 * 4 for e in PLANS[plan]]
    assert [layer["kv_bytes_per_token"] for layer in result["layers"]] == expected
    assert [layer.get("num_kv_heads") for layer in result["layers"]] == [e.get("num_kv_heads") for e in PLANS[plan]]
    generated = run_uniattn("generate", "--model", path, "--ids", "5 6 7", "--max-new-tokens", 5)
    cached = run_uniattn("inspect", "--model", path, "--tokens", 7)  # the last one is never read
    assert generated["cache_bytes"] == cached["cache_bytes"] == sum(expected) * 64  # one page


def test_fewer_heads_fail_elsewhere(tmp_path):
    with pytest.raises(Exception, match="size mismatch|mismatched"):
        LlamaForCausalLM.from_pretrained(make(tmp_path, {}, "kv_heads"))


def test_other_masks_need_to_be_asked_for(run_uniattn, tmp_path):
    project = Project(tmp_path, write_base(tmp_path / "base", vocab_size=VOCAB, **GEMMA2))
    plan = {"group": 2, "begin": 0, "end": 4, "mode": "share_kv", "compensation": "none"}
    config, _ = project.config("masks", plan=plan, calibration=None, stages=None)
    run_uniattn.fails(2, "inspect", config, naming=["layer 1 is global", "leader 0 is sliding", "`mask: leader`"])
    result = run_uniattn("inspect", config, "plan.mask=leader", "plan.num_kv_heads=1")
    assert [layer.get("mask") for layer in result["layers"]] == [None, "leader", None, "leader"]
    assert result["kv_fraction"] == 0.25


def test_base_heads_in_an_export_are_refused(run_uniattn, tmp_path):
    """An exported directory holds pooled weights; those of the base in it are a mistake."""
    path = make(tmp_path, {}, "kv_heads")
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights)
    name = "model.layers.0.self_attn.k_proj.weight"
    run_uniattn.fails(1, "generate", "--model", path, "--ids", "5", naming=[name, "[24, 48]", "[12, 48]"])
