"""The program end to end on small models: run, train, resume, export, generate, inspect."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from support.models import LLAMA3, follower, write_base, write_unified
from support.oracle import Oracle
from support.runs import VOCAB, Project, metrics, random_documents, snapshot_bytes
from support.stories import write_ids
from transformers import AutoModelForCausalLM, LlamaForCausalLM

FULL = {"mode": "full"}
PLANS = {
    "pairs": [FULL, follower(0, rank=None), FULL, follower(2)],
    "superblock": [FULL, follower(0, rank=5), follower(0, rank=None), follower(0)],
    "head_map": [FULL, FULL, follower(0, rank=None, head_map=[3, 0, 0, 2]), follower(1, head_map=[1, 1, 1, 1])],
}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "base", vocab_size=VOCAB, scaling=LLAMA3)


@pytest.fixture
def project(tmp_path, base):
    return Project(tmp_path, base)


@pytest.fixture(scope="module")
def finished(run_uniattn, base, tmp_path_factory):
    """(result, run folder, project) of one whole `uniattn run`."""
    project = Project(tmp_path_factory.mktemp("finished"), base)
    config, run = project.config("whole")
    return run_uniattn("run", config), run, project


def transformers_loss(path, documents):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        sums = [model(torch.tensor([d]), labels=torch.tensor([d])).loss.item() * (len(d) - 1) for d in documents]
    return sum(sums) / sum(len(d) - 1 for d in documents)


def read_ids(file):
    return [[int(i) for i in line.split()] for line in file.read_text().splitlines()]


def test_run_exports_what_it_evaluated(finished):
    result, run, project = finished
    documents = read_ids(project.held_out)
    assert result["outcome"] == "finished"
    assert result["tokens"] == sum(len(d) - 1 for d in documents)
    assert result["loss"] == pytest.approx(Oracle(run / "export").loss(documents, 64)[0], abs=1e-4)
    assert result["loss"] == pytest.approx(transformers_loss(run / "export", documents), abs=1e-4)


def test_run_trains_each_stage(finished):
    _, run, _ = finished
    lines = metrics(run)
    assert [(m["stage"], m["step"]) for m in lines] == [("compensation", i + 1) for i in range(4)] + [("all", i + 1) for i in range(6)]
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
    assert report["followers"]
    for entry in report["followers"]:
        assert entry["after"] < entry["before"]
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


def train_straight(run_uniattn, project, name="straight", **sections):
    config, run = project.config(name, **sections)
    run_uniattn("calibrate", config)
    assert run_uniattn("train", config)["outcome"] == "finished"
    return run


def without_times(lines):
    return [{k: v for k, v in m.items() if k not in ("seconds", "tokens_per_s")} for m in lines]


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resume_is_bit_exact(run_uniattn, project, stop):
    straight = train_straight(run_uniattn, project)
    config, run = project.config("resumed")
    run_uniattn("calibrate", config)
    assert run_uniattn("train", config, "--stop-after", stop)["outcome"] == "stopped"
    assert len(metrics(run)) == stop
    assert run_uniattn("train", config)["outcome"] == "finished"
    assert snapshot_bytes(run, 10) == snapshot_bytes(straight, 10)
    assert without_times(metrics(run)) == without_times(metrics(straight))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_a_signal(run_uniattn, project, signal_number):
    straight = train_straight(run_uniattn, project, checkpoint={"every_steps": 1})
    config, run = project.config("killed", checkpoint={"every_steps": 1})
    run_uniattn("calibrate", config)
    process = subprocess.Popen([run_uniattn.binary, "train", config, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-2" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal_number)
    out, _ = process.communicate(timeout=60)
    if signal_number == signal.SIGTERM:
        assert process.returncode == 0 and json.loads(out)["outcome"] == "stopped"
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (run / "checkpoints" / "step-10").exists()
    assert run_uniattn("train", config)["outcome"] == "finished"
    assert snapshot_bytes(run, 10) == snapshot_bytes(straight, 10)
    assert without_times(metrics(run)) == without_times(metrics(straight))


def assert_same_metrics(lines, expected):
    """Sums in another order: equal to 1e-6 at the first step, then the small differences go through AdamW."""
    assert len(lines) == len(expected)
    for i, (line, reference) in enumerate(zip(lines, expected)):
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(reference[key], rel=1e-6 if i == 0 else 1e-4), f"step {i + 1}: {key}"
        assert line["supervised_tokens"] == reference["supervised_tokens"]


@pytest.mark.parametrize("pack", [True, False])
def test_splits_of_a_step_are_equal(run_uniattn, project, pack):
    runs, changes = {}, {"data": {**data_section(project), "pack": pack}}
    for micro, accumulation in ((1, 4), (2, 2), (4, 1)):
        optimizer = {"micro_batch": micro, "accumulation": accumulation}
        name = f"{micro}x{accumulation}"
        runs[name] = metrics(train_straight(run_uniattn, project, name, optimizer=optimizer, stages=one_stage(4), **changes))
    assert_same_metrics(runs["2x2"], runs["1x4"])
    assert_same_metrics(runs["4x1"], runs["1x4"])


def test_two_ranks_equal_one(run_uniattn, project):
    one = train_straight(run_uniattn, project, "one", stages=one_stage(4), optimizer={"micro_batch": 1, "accumulation": 4})
    config, run = project.config("two", stages=one_stage(4), optimizer={"micro_batch": 1, "accumulation": 2})
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", 2)
    for command in ("calibrate", "train"):
        done = run_uniattn.run(command, config, prefix=launcher)
        assert done.returncode == 0, done.stderr
    assert_same_metrics(metrics(run), metrics(one))


def one_stage(steps):
    return [{"name": "all", "train": "all", "max_steps": steps, "learning_rate": 1.0e-3}]


def data_section(project):
    ids = lambda path: [{"path": str(path), "format": "ids"}]
    return {"train": ids(project.train), "eval": ids(project.held_out), "max_length": 64}


@pytest.mark.parametrize("plan", [None, *PLANS.values()], ids=["base", *PLANS])
def test_generate_equals_transformers(run_uniattn, base, tmp_path, plan):
    path = base if plan is None else write_unified(tmp_path / "unified", base, plan)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    prompt = random_documents(1, 20, seed=5)[0]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)[0, len(prompt) :].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    ids = " ".join(map(str, prompt))
    result = run_uniattn("generate", "--model", path, "--ids", ids, "--max-new-tokens", 40, "--dtype", "float32")
    assert result["ids"] == expected


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


def test_damaged_snapshot_is_refused(run_uniattn, project):
    config, run = project.config("damaged")
    run_uniattn("calibrate", config)
    run_uniattn("train", config, "--stop-after", 3)
    file = run / "checkpoints" / "step-3" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    run_uniattn.fails(1, "train", config, naming=[file])
    shutil.rmtree(file.parent)
    assert run_uniattn("train", config)["outcome"] == "finished"
