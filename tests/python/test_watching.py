"""What training shows while it runs: evaluation, samples, TensorBoard, metrics."""

import json

import pytest
from safetensors.torch import load_file
from support.models import GEMMA2, LLAMA3, write_base
from support.runs import VOCAB, Project, metrics, steps, write_tokenizer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


@pytest.fixture
def texts(tmp_path):
    """A project whose model has a tokenizer."""
    base = write_base(tmp_path / "base", vocab_size=VOCAB, scaling=LLAMA3)
    write_tokenizer(base)
    return Project(tmp_path, base)


SECTIONS = {
    "calibration": None,
    "evaluation": {"every_steps": 2},
    "samples": {"prompts": ["the model shares", "one attention"], "every_steps": 3, "max_new_tokens": 5},
}


def curves(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag: [(e.step, make_ndarray(e.tensor_proto)[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    return scalars, texts


def test_held_out_loss_is_that_of_eval(run_uniattn, texts):
    config, run = texts.config("evaluated", **SECTIONS)
    result = run_uniattn("run", config)
    measured = {m["run_step"]: m for m in metrics(run) if "held_out_loss" in m}
    assert sorted(measured) == [0, 2, 4, 6, 8, 10]
    assert {m["held_out_tokens"] for m in measured.values()} == {result["tokens"]}
    assert measured[10]["held_out_loss"] == pytest.approx(result["loss"], rel=1e-6)
    before = run_uniattn("eval", "--model", texts.model, "--ids", texts.held_out)
    assert measured[0]["held_out_loss"] != pytest.approx(before["loss"], rel=1e-3)  # of the unified model, not the base
    assert json.loads((run / "result.json").read_text())["loss"] == result["loss"]


def test_without_a_plan_training_starts_from_the_base(run_uniattn, texts):
    stages = [{"name": "all", "train": "all", "max_steps": 1, "learning_rate": 1.0e-3}]
    config, run = texts.config("plain", **SECTIONS | {"plan": None, "stages": stages})
    run_uniattn("train", config)
    first = next(m for m in metrics(run) if "held_out_loss" in m)
    base = run_uniattn("eval", "--model", texts.model, "--ids", texts.held_out)
    assert first["step"] == 0 and first["held_out_loss"] == pytest.approx(base["loss"], rel=1e-6)


def test_samples_continue_the_prompts(run_uniattn, texts):
    config, run = texts.config("sampled", **SECTIONS)
    run_uniattn("run", config)
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    # Steps 3 and 4 of the first stage, 3 and 6 of the second.
    assert [(m["run_step"], m["prompt"]) for m in lines] == [
        (step, prompt) for step in (3, 4, 7, 10) for prompt in SECTIONS["samples"]["prompts"]
    ]
    for line in lines[-2:]:
        told = run_uniattn("generate", "--model", run / "export", "--prompt", line["prompt"], "--max-new-tokens", 5)
        assert line["text"] == told["text"]


def test_tensorboard_reads_the_events(run_uniattn, texts):
    """Over a resumed run, part of which a kill had thrown away."""
    config, run = texts.config("events", **SECTIONS)
    run_uniattn("train", config, "--stop-after", 3)
    run_uniattn("train", config, "--stop-after", 4)
    for snapshot in (run / "checkpoints").glob("step-7"):
        (snapshot / "manifest.json").unlink()
    run_uniattn("train", config)
    scalars, told = curves(run)
    lines = steps(run)
    assert [m["run_step"] for m in lines] == list(range(1, 11))
    for tag, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("train/learning_rate", "learning_rate"),
                     ("speed/tokens_per_s", "tokens_per_s"), ("memory/peak_bytes", "peak_memory_bytes")):  # fmt: skip
        assert scalars[tag] == [(m["run_step"], pytest.approx(m[key], rel=1e-6)) for m in lines], tag
    evaluations = [m for m in metrics(run) if "held_out_loss" in m]
    told_losses = [(m["run_step"], pytest.approx(m["held_out_loss"], rel=1e-6)) for m in evaluations]
    assert scalars["held_out/loss"] == told_losses
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert told["samples/the model shares"] == [
        (m["run_step"], m["text"]) for m in samples if m["prompt"] == "the model shares"
    ]


def test_metrics_say_what_a_step_took(run_uniattn, texts):
    section = {"name": "numbers", "dir": str(texts.folder / "numbers"), "peak_tflops": 0.5}
    config, run = texts.config("numbers", **SECTIONS | {"run": section})
    run_uniattn("train", config)
    log = (run / "log.txt").read_text()
    assert "MFU" in log and "supervised" in log and "held-out loss" in log
    for m in steps(run):
        assert m["tokens_per_s"] == pytest.approx(m["tokens"] / m["seconds"])
        assert 0 < m["mfu_causal"] < m["mfu"]
        assert 50e6 < m["peak_memory_bytes"] < 4e9 and m["updated"]


@pytest.mark.parametrize("target", ["attention", "logits"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_distillation_pulls_towards_the_base(run_uniattn, tmp_path, family, target):
    """Stage 1 on the compensation alone, with no calibration before; every mode, with and without checkpointing."""
    shape = {"vocab_size": VOCAB, "num_hidden_layers": 6}
    base = write_base(tmp_path / "base", **(GEMMA2 if family == "gemma2" else {"scaling": LLAMA3}) | shape)
    project = Project(tmp_path, base)
    rank = {"rank": 24}
    layers = [
        {"layer": 2, "mode": "share_probs", "leader": 0, "compensation": "full"},
        {"layer": 3, "mode": "share_kv", "leader": 1, "compensation": rank},
        {"layer": 4, "mode": "linear", "compensation": "full"}, {"layer": 5, "mode": "skip"},
    ]  # fmt: skip
    distill = {"target": target, "weight": 1.0}
    stage = {"name": "one", "train": "compensation", "max_steps": 30, "learning_rate": 3.0e-3, "distill": distill}
    losses = {}
    for checkpointing in (False, True):
        config, run = project.config(
            f"checkpointing-{checkpointing}", calibration=None, stages=[stage], plan={"layers": layers},
            optimizer={"micro_batch": 2, "accumulation": 2, "activation_checkpointing": checkpointing},
        )  # fmt: skip
        run_uniattn("train", config)
        losses[checkpointing] = [m["distill_loss"] for m in steps(run)]
    assert losses[True] == losses[False]
    assert sum(losses[True][-5:]) < 0.95 * sum(losses[True][:5])


def test_patterns_choose_what_is_trained(run_uniattn, project):
    patterns = ["model.layers.[12].self_attn.*", "*norm*"]
    stage = {"name": "some", "train": patterns, "max_steps": 2, "learning_rate": 1.0e-3}
    config, run = project.config("patterns", calibration=None, stages=[stage])
    run_uniattn("train", config)
    trained = load_file(run / "checkpoints" / "step-2" / "weights.safetensors").keys()
    assert all("norm" in name or name.split(".")[2] in "12" and "self_attn" in name for name in trained)
    assert {"model.norm.weight", "model.layers.1.self_attn.v_proj.weight"} <= set(trained)
    moments = load_file(run / "checkpoints" / "step-2" / "moments.safetensors").keys()
    assert {name.split(".", 1)[1] for name in moments} == set(trained)
    misspelt = (f"run.dir={run}-2", "stages.0.train=['*v_prj*']")
    run_uniattn.fails(2, "train", config, *misspelt, naming=["*v_prj*", "names look like `model.layers."])
