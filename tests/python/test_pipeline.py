"""The program end to end on small models: run, train, resume, export, generate, inspect."""

import json

import pytest
import torch
from safetensors import safe_open
from support.models import GEMMA2, LLAMA3, MISTRAL, follower, write_base, write_unified
from support.oracle import Oracle
from support.runs import VOCAB, Project, random_documents, read_ids, snapshot_bytes, steps, transformers_loss
from support.stories import write_ids
from transformers import AutoModelForCausalLM, LlamaForCausalLM

FULL = {"mode": "full"}
PLANS = {
    "pairs": [FULL, follower(0, rank=None), FULL, follower(2)],
    "superblock": [FULL, follower(0, rank=5), follower(0, rank=None), follower(0)],
    "head_map": [FULL, FULL, follower(0, rank=None, head_map=[3, 0, 0, 2]), follower(1, head_map=[1, 1, 1, 1])],
}


def test_run_exports_what_it_evaluated(finished):
    result, run, project = finished
    documents = read_ids(project.held_out)
    assert result["outcome"] == "finished"
    assert result["tokens"] == sum(len(d) - 1 for d in documents)
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=1e-4)
    assert result["loss"] == pytest.approx(transformers_loss(run / "export", documents), abs=1e-4)


def test_run_trains_each_stage(finished):
    _, run, _ = finished
    lines = steps(run)
    assert [(m["stage"], m["step"]) for m in lines] == [("compensation", i + 1) for i in range(4)] + [
        ("all", i + 1) for i in range(6)
    ]
    assert all(m["loss"] > 0 and m["grad_norm"] > 0 and m["learning_rate"] >= 0 for m in lines)


def test_run_again_does_nothing_more(finished, run_uniattn):
    result, run, project = finished
    before = snapshot_bytes(run, 10)
    assert run_uniattn("run", project.folder / "whole.yaml") == result
    assert snapshot_bytes(run, 10) == before


def test_stage_compensation_leaves_the_rest_alone(run_uniattn, project, base):
    stage = {"name": "c", "train": "compensation", "max_steps": 2, "learning_rate": 1.0e-2}
    config, run = project.config("frozen", stages=[stage], calibration=None)
    run_uniattn("run", config)
    before, after = Oracle(base, torch.float32).w, Oracle(run / "export", torch.float32).w
    changed = {name for name, tensor in after.items() if name not in before or not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{i}.self_attn.compensation.weight" for i in (1, 3)}
    assert all(after[name].abs().max() > 0 for name in changed)


def test_calibration_lowers_the_loss(run_uniattn, tmp_path, base):
    """On text that the model itself produced, so that there is something to lose."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    start = torch.randint(3, VOCAB, (64, 1))
    texts = model.generate(start, do_sample=True, max_length=48, min_length=48, top_k=0, pad_token_id=0).tolist()
    project = Project(tmp_path, base)
    write_ids(project.train, texts[:56]), write_ids(project.held_out, texts[56:])
    losses = {}
    for name, changes in {"shared": {"calibration": None}, "calibrated": {}}.items():
        losses[name] = run_uniattn("run", project.config(name, stages=None, **changes)[0])["loss"]
    report = json.loads((tmp_path / "calibrated" / "calibration" / "report.json").read_text())
    assert report["layers"]
    for entry in report["layers"]:
        assert entry["residual"]["after"] < entry["residual"]["before"]
    assert losses["calibrated"] < losses["shared"]


def test_without_a_plan_it_is_plain_fine_tuning(run_uniattn, project):
    config, run = project.config("plain", plan=None, calibration=None, stages=[
        {"name": "all", "train": "all", "max_steps": 3, "learning_rate": 1.0e-3}])  # fmt: skip
    result = run_uniattn("run", config)
    assert not (run / "export" / "modeling_uniattn.py").exists()
    model = LlamaForCausalLM.from_pretrained(run / "export")
    ids = torch.tensor([read_ids(project.held_out)[0]])
    expected = Oracle(run / "export").logits(ids[0])
    assert (model(ids).logits[0] - expected).abs().max() <= 2e-4 * expected.abs().max()
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(read_ids(project.held_out), 64)[0], abs=1e-4)


def test_plan_by_layers(run_uniattn, project):
    """Head maps and ranks of the configuration arrive in the export, trained and exact."""
    layers = [
        {"layer": 2, "mode": "share_probs", "leader": 0, "compensation": {"rank": 5}, "head_map": [3, 0, 0, 2]},
        {"layer": 3, "mode": "share_probs", "leader": 1, "compensation": "none"},
    ]
    config, run = project.config("layers", plan={"layers": layers})
    result = run_uniattn("run", config)
    plan = json.loads((run / "export" / "config.json").read_text())["uniattn"]["layers"]
    found = plan[3].pop("head_map", None)  # the calibration's
    assert found is None or len(found) == 4
    assert plan == [FULL, FULL, follower(0, rank=5, head_map=[3, 0, 0, 2]), follower(1)]
    documents = read_ids(project.held_out)
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=1e-4)
    assert result["loss"] == pytest.approx(transformers_loss(run / "export", documents), abs=1e-4)


@pytest.mark.parametrize("family,calibrated", [(MISTRAL, True), (GEMMA2, False)], ids=["mistral", "gemma2"])
def test_other_families(run_uniattn, tmp_path, family, calibrated):
    project = Project(tmp_path, write_base(tmp_path / "base", vocab_size=VOCAB, **family))
    layers = [{"layer": i, "mode": "share_probs", "leader": i - 2, "compensation": "full"} for i in (2, 3)]
    config, run = project.config("family", plan={"layers": layers}, **({} if calibrated else {"calibration": None}))
    result = run_uniattn("run", config)
    documents = read_ids(project.held_out)
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=1e-4)
    assert result["loss"] == pytest.approx(transformers_loss(run / "export", documents), abs=1e-4)


@pytest.mark.parametrize("trained", ["compensation", "all"])
def test_fine_tuning_a_unified_directory(run_uniattn, base, tmp_path, trained):
    project = Project(tmp_path, write_unified(tmp_path / "unified", base, PLANS["head_map"]))
    stages = [{"name": "more", "train": trained, "max_steps": 2, "learning_rate": 1.0e-3}]
    config, run = project.config("again", plan=None, calibration=None, stages=stages)
    result = run_uniattn("run", config)
    exported, original = (json.loads((p / "config.json").read_text()) for p in (run / "export", tmp_path / "unified"))
    assert exported == original
    assert result["loss"] == pytest.approx(transformers_loss(run / "export", read_ids(project.held_out)), abs=1e-4)


def test_bfloat16_run(run_uniattn, project):
    model = {"path": str(project.model), "dtype": "bfloat16"}
    config, run = project.config("bfloat16", model=model, export={"dtype": "bfloat16"})
    result = run_uniattn("run", config)
    documents = read_ids(project.held_out)
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_again_in_another_dtype(finished, run_uniattn, tmp_path, dtype):
    _, run, project = finished
    run_uniattn("export", run, f"export.dtype={dtype}", "export.max_shard_gb=0.0002", "--out", tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    with safe_open(shards[0], "pt") as file:
        assert file.get_tensor(next(iter(file.keys()))).dtype == getattr(torch, dtype)
    documents = read_ids(project.held_out)
    loss = transformers_loss(tmp_path / "out", documents)
    assert loss == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=2e-2)
    ids = ("--ids", project.held_out, "--window", 64, "--dtype", "float32")
    assert run_uniattn("eval", "--model", tmp_path / "out", *ids)["loss"] == pytest.approx(loss, abs=1e-4)


def test_exported_directory_fails_elsewhere(finished):
    _, run, _ = finished
    with pytest.raises(Exception, match="layer_types.*share_probs|share_probs.*layer_types"):
        LlamaForCausalLM.from_pretrained(run / "export")


GENERATE = [({"scaling": LLAMA3}, plan) for plan in (None, *PLANS)]
GENERATE += [(MISTRAL, None), (MISTRAL, "superblock"), (GEMMA2, None), (GEMMA2, "head_map")]


@pytest.mark.parametrize("shape,plan", GENERATE, ids=str)
def test_generate_equals_transformers(run_uniattn, tmp_path, shape, plan):
    path = write_base(tmp_path / "base", vocab_size=VOCAB, **shape)
    if plan is not None:
        path = write_unified(tmp_path / "unified", path, PLANS[plan])
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    prompt = random_documents(1, 20, seed=5)[0]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)[
        0, len(prompt) :
    ].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    ids = " ".join(map(str, prompt))
    result = run_uniattn("generate", "--model", path, "--ids", ids, "--max-new-tokens", 40, "--dtype", "float32")
    assert result["ids"] == expected


def test_followers_cache_values_only(run_uniattn, base, tmp_path):
    unified = write_unified(tmp_path / "unified", base, PLANS["superblock"])
    whole, shared = (
        run_uniattn("generate", "--model", path, "--ids", "5 6 7", "--max-new-tokens", 4)["cache_bytes"]
        for path in (base, unified)
    )
    assert shared / whole == pytest.approx(5 / 8)


def test_inspect(run_uniattn, base, tmp_path):
    path = write_unified(tmp_path / "unified", base, PLANS["superblock"])
    result = run_uniattn("inspect", "--model", path)
    assert result["parameters"] == sum(t.numel() for t in Oracle(path).w.values())
    assert result["base_parameters"] == sum(t.numel() for t in Oracle(base).w.values())
    assert result["followers"] == 3
    assert [layer["mode"] for layer in result["layers"]] == ["full", "share_probs", "share_probs", "share_probs"]
    assert result["base_kv_bytes_per_token"] == 4 * 2 * 2 * 12 * 4  # layers, K and V, kv_heads, head_dim, bytes
    assert result["kv_fraction"] == pytest.approx(5 / 8)


def test_inspect_llama_31_8b(run_uniattn, material, project):
    """From the published config.json and tensor index alone."""
    plan = {"mode": "share_probs", "group": 4, "begin": 16, "end": 33, "compensation": "full"}
    model = {"path": str(material / "configs" / "llama-3.1-8b-modelstock"), "dtype": "bfloat16"}
    result = run_uniattn("inspect", project.config("llama31", model=model, plan=plan)[0])
    assert result["followers"] == 12
    assert result["kv_fraction"] == pytest.approx(0.8125)
    assert result["base_parameters"] == 8030261248


PUBLISHED = {"llama-2-7b-chat": 6738415616, "mistral-7b-instruct-v0.3": 7248023552, "gemma-2-9b": 9241705984}


@pytest.mark.parametrize("name", PUBLISHED)
def test_inspect_published_configs(run_uniattn, material, name):
    assert run_uniattn("inspect", "--model", material / "configs" / name)["parameters"] == PUBLISHED[name]


def test_stories_on_pmc_and_tulu3(run_uniattn, material, stories, tmp_path):
    """A trained model and real instruction data through every phase."""
    sets = {}
    for name in ("pmc_llama_instructions_1000", "tulu3_sft_filtered_1000"):
        samples = json.loads((material / "data" / f"{name}.json").read_text())
        for part, chosen in {"train": samples[:60], "eval": samples[60:75]}.items():
            file = tmp_path / f"{name}.{part}.json"
            file.write_text(json.dumps(chosen))
            sets.setdefault(part, []).append({"path": str(file), "format": "alpaca"})
    project = Project(tmp_path, stories.path)
    plan = {"mode": "share_probs", "group": 4, "begin": 1, "end": 5, "compensation": "full"}
    config, run = project.config(
        "stories", plan=plan, calibration={"data": sets["train"], "samples": 60}, data=sets | {"max_length": 256},
    )  # fmt: skip
    result = run_uniattn("run", config)
    unified = ("--ids", stories.ids, "--window", 256, "--dtype", "float32")
    loss = run_uniattn("eval", "--model", run / "export", *unified)["loss"]
    assert loss == pytest.approx(transformers_loss(run / "export", stories.documents), abs=1e-4)
    assert run_uniattn("inspect", "--model", run / "export")["followers"] == 3
    shared = project.config("shared", plan=plan, calibration=None, data=sets | {"max_length": 256}, stages=None)[0]
    assert result["loss"] < run_uniattn("run", shared)["loss"]
    for companion in ("tokenizer.model", "tokenizer_config.json"):
        assert (run / "export" / companion).read_bytes() == (stories.path / companion).read_bytes()
