"""What users get wrong, and what happens to files: the exit code, and what the message names."""

import json
import shutil
import struct

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.models import edit_config, follower, write_base, write_unified
from support.runs import VOCAB, Project, write_tokenizer

ERROR, USAGE = 1, 2


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = write_base(tmp_path_factory.mktemp("models") / "base", vocab_size=VOCAB)
    write_tokenizer(path)
    return path


@pytest.fixture
def model(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def project(tmp_path, model):
    return Project(tmp_path, model)


def test_missing_config(run_uniattn, tmp_path):
    run_uniattn.fails(USAGE, "run", tmp_path / "none.yaml", naming=["none.yaml"])


def test_no_and_unknown_command(run_uniattn):
    run_uniattn.fails(USAGE)
    run_uniattn.fails(USAGE, "trian")


def test_malformed_yaml(run_uniattn, project):
    file, _ = project.config("bad")
    file.write_text("run: {name: x\nmodel: [}\n")
    run_uniattn.fails(USAGE, "run", file, naming=["bad.yaml"])


def test_unknown_key_names_the_nearest(run_uniattn, project):
    file, _ = project.config("bad", optimizer={"micro_bach": 2})
    run_uniattn.fails(USAGE, "run", file, naming=["bad.yaml", "micro_bach", "micro_batch"])
    file, _ = project.config("good")
    run_uniattn.fails(USAGE, "run", file, "optimizer.acumulation=2", naming=["acumulation", "accumulation"])


@pytest.mark.parametrize(
    "section,naming",
    [
        ({"optimizer": {"micro_batch": 0}}, "micro_batch"),
        ({"optimizer": {"micro_batch": "two"}}, "micro_batch"),
        ({"optimizer": {"schedule": "sometimes"}}, "sometimes"),
        ({"model": {"path": "", "dtype": "float32"}}, "path"),
        ({"stages": [{"name": "all", "train": "all", "learning_rate": 1e-3}]}, "max_steps"),
        ({"stages": [{"name": "all", "train": "some", "max_steps": 1, "learning_rate": 1e-3}]}, "some"),
    ],
)
def test_values_out_of_range(run_uniattn, project, section, naming):
    run_uniattn.fails(USAGE, "run", project.config("bad", **section)[0], naming=[naming])


@pytest.mark.parametrize(
    "plan",
    [
        {"group": 2, "begin": 4, "end": 6},
        {"group": 2, "begin": -1, "end": 4},
        {"group": 2, "begin": 2, "end": 2},
        {"group": 2, "begin": 0, "end": 4, "compensation": {"rank": 4800}},
        {"layers": [{"layer": 1, "mode": "share_probs", "leader": 2}]},
        {"layers": [{"layer": 4, "mode": "share_probs", "leader": 0}]},
        {
            "layers": [
                {"layer": 1, "mode": "share_probs", "leader": 0},
                {"layer": 2, "mode": "share_probs", "leader": 1},
            ]
        },
        {"layers": [{"layer": 1, "mode": "share_probs", "leader": 0, "head_map": [0, 1]}]},
        {"layers": [{"layer": 1, "mode": "share_probs", "leader": 0, "head_map": [0, 1, 2, 9]}]},
    ],
    ids=str,
)
def test_plan_out_of_range(run_uniattn, project, plan):
    run_uniattn.fails(USAGE, "run", project.config("bad", plan=plan)[0])


def test_missing_model(run_uniattn, project):
    config, _ = project.config("bad", model={"path": str(project.folder / "nowhere")})
    run_uniattn.fails(ERROR, "run", config, naming=["nowhere"])


def test_missing_data(run_uniattn, project):
    project.train.unlink()
    run_uniattn.fails(ERROR, "run", project.config("bad")[0], naming=["train.ids"])


def alpaca(project, text):
    file = project.folder / "samples.jsonl"
    file.write_text(text)
    data = {"train": [{"path": str(file), "format": "alpaca"}], "max_length": 64}
    return project.config("bad", calibration=None, data=data)[0]


GOOD = json.dumps({"instruction": "Say", "input": "what", "output": "is missing"}) + "\n"


def test_malformed_json_line_is_named(run_uniattn, project):
    config = alpaca(project, GOOD * 4 + '{"instruction": "Say", "output": \n' + GOOD)
    run_uniattn.fails(ERROR, "run", config, naming=["samples.jsonl", "5"])


def test_ids_out_of_the_vocabulary(run_uniattn, project, model):
    ids = project.folder / "bad.ids"
    ids.write_text(f"1 2 3\n1 {VOCAB} 3\n")
    run_uniattn.fails(ERROR, "eval", "--model", model, "--ids", ids, naming=["bad.ids", str(VOCAB)])
    ids.write_text("1 2 3\n1 two 3\n")
    run_uniattn.fails(ERROR, "eval", "--model", model, "--ids", ids, naming=["bad.ids", "two"])


def test_another_configuration_in_the_same_run(run_uniattn, project):
    config, _ = project.config("same", stages=None)
    run_uniattn("prepare", config)
    run_uniattn.fails(USAGE, "prepare", config, "run.seed=8", naming=["seed"])


def evaluate_fails(run_uniattn, project, model, *naming):
    run_uniattn.fails(ERROR, "eval", "--model", model, "--ids", project.held_out, naming=naming)


def rewrite(model, edit):
    file = model / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, {"format": "pt"})


def test_wrong_shape(run_uniattn, project, model):
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(model, lambda w: w.update({name: torch.zeros(79, 48)}))
    evaluate_fails(run_uniattn, project, model, name, "79", "80")


def test_missing_tensor(run_uniattn, project, model):
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(model, lambda w: w.pop(name))
    evaluate_fails(run_uniattn, project, model, name)


def test_truncated_safetensors(run_uniattn, project, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    evaluate_fails(run_uniattn, project, model, "model.safetensors")


@pytest.mark.parametrize("size", [2**63, 10**12, 10])
def test_safetensors_header_size(run_uniattn, project, model, size):
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    evaluate_fails(run_uniattn, project, model, "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(run_uniattn, project, model, value):
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(model, lambda w: w[name].view(-1)[7].fill_(value))
    evaluate_fails(run_uniattn, project, model, name)


def test_nothing_to_predict(run_uniattn, project, model):
    project.held_out.write_text("5\n6\n")
    evaluate_fails(run_uniattn, project, model)


def edit_header(model, edit):
    file = model / "model.safetensors"
    data = file.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


HEADERS = {
    "overlap": lambda h: h["model.norm.weight"].update(data_offsets=h["lm_head.weight"]["data_offsets"]),
    "beyond the end": lambda h: h["model.norm.weight"].update(data_offsets=[10**15, 10**15 + 192]),
    "shape": lambda h: h["model.norm.weight"].update(shape=[47]),
    "negative shape": lambda h: h["model.norm.weight"].update(shape=[-48]),
    "overflowing shape": lambda h: h["model.norm.weight"].update(shape=[2**40, 2**40]),
    "dtype": lambda h: h["model.norm.weight"].update(dtype="F33"),
}


@pytest.mark.parametrize("edit", HEADERS.values(), ids=HEADERS)
def test_damaged_safetensors_header(run_uniattn, project, model, edit):
    edit_header(model, edit)
    evaluate_fails(run_uniattn, project, model, "model.safetensors")


def test_index_that_leaves_the_directory(run_uniattn, project, model):
    (model / "model.safetensors").rename(project.folder / "outside.safetensors")
    names = load_file(project.folder / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {name: "../outside.safetensors" for name in names}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    evaluate_fails(run_uniattn, project, model, "outside.safetensors")


@pytest.mark.parametrize(
    "edit,naming",
    [
        (lambda c: c.update(model_type="gpt2"), "gpt2"),
        (lambda c: c.update(attention_bias=True), "attention_bias"),
        (lambda c: c["rope_parameters"].update(rope_type="yarn"), "yarn"),
        (lambda c: c.pop("hidden_size"), "hidden_size"),
        (lambda c: c.update(num_key_value_heads=3), "num_key_value_heads"),
        (lambda c: c.update(hidden_act="relu"), "relu"),
    ],
)
def test_config_json_that_cannot_be_honoured(run_uniattn, project, model, edit, naming):
    edit_config(model, edit)
    evaluate_fails(run_uniattn, project, model, naming)


@pytest.mark.parametrize(
    "edit,naming",
    [
        (lambda u: u.update(version=2), "version"),
        (lambda u: u["layers"][1].update(mode="share_all"), "share_all"),
        (lambda u: u["layers"][1].update(leader=3), "leader"),
        (lambda u: u["layers"][1].update(head_map=[0, 1, 2, 4]), "head"),
        (lambda u: u["layers"].pop(), "layers"),
        (lambda u: u["layers"][1].update(surprise=1), "surprise"),
    ],
)
def test_unified_directory_that_cannot_be_honoured(run_uniattn, project, original, tmp_path, edit, naming):
    plan = [{"mode": "full"}, follower(0, rank=None), {"mode": "full"}, follower(2)]
    path = write_unified(tmp_path / "unified", original, plan)
    edit_config(path, lambda config: edit(config["uniattn"]))
    evaluate_fails(run_uniattn, project, path, naming)


def test_resolved_configuration_is_kept(run_uniattn, project):
    config, run = project.config("kept", stages=None)
    run_uniattn("prepare", config, "optimizer.clip_norm=0.5")
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["clip_norm"] == 0.5
