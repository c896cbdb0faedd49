"""One training step of the program against autograd over `transformers` models in float64."""

import json
import math

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from support.models import LLAMA3, follower, write_base, write_unified
from support.oracle import Oracle
from support.runs import VOCAB, Project, metrics, random_documents
from support.stories import BOS, EOS, write_ids
from transformers import AutoModelForCausalLM

FULL = {"mode": "full"}
PLAN = [FULL, follower(0, rank=5, head_map=[3, 0, 0, 2]), follower(0, rank=None), FULL]
PACKED = {"max_length": 256, "pack": True}, {"micro_batch": 1, "accumulation": 1}
SEPARATE = {"max_length": 64, "pack": False}, {"micro_batch": 2, "accumulation": 2}


def reference_step(path, documents, trained=""):
    """Loss, gradient norm and the model with its gradients; documents: (ids, number of prompt tokens)."""
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float64)
    count = sum(len(ids) - prompt for ids, prompt in documents)
    loss = 0
    for ids, prompt in documents:
        logits = model(torch.tensor([ids])).logits[0, prompt - 1 : -1]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[prompt:]), reduction="sum") / count
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for n, p in model.named_parameters() if trained in n))
    return loss.item(), norm, model


def one_step(run_uniattn, project, train, data, optimizer, which="all", **changes):
    stage = {"name": "step", "train": which, "max_steps": 1, "learning_rate": 1.0e-3}
    config, run = project.config(
        "step", plan=None, calibration=None, stages=[stage], data={"train": train} | data,
        optimizer=optimizer | {"schedule": "constant", "warmup_ratio": 0.0} | changes,
    )  # fmt: skip
    run_uniattn("run", config)
    (line,) = metrics(run)
    return line, run


def ids_project(tmp_path, unified):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, scaling=LLAMA3, tie_word_embeddings=True)
    model = write_unified(tmp_path / "unified", base, PLAN) if unified else base
    project = Project(tmp_path, model)
    documents = random_documents(4, 60, seed=9)
    write_ids(project.train, documents)
    return project, [{"path": str(project.train), "format": "ids"}], [(ids, 1) for ids in documents]


@pytest.mark.parametrize("data,optimizer", [PACKED, SEPARATE], ids=["packed", "separate"])
@pytest.mark.parametrize("unified", [False, True], ids=["base", "unified"])
def test_loss_and_gradient(run_uniattn, tmp_path, unified, data, optimizer):
    project, train, documents = ids_project(tmp_path, unified)
    loss, norm, _ = reference_step(project.model, documents)
    line, _ = one_step(run_uniattn, project, train, data, optimizer)
    assert line["supervised_tokens"] == sum(len(ids) - 1 for ids, _ in documents)
    assert line["loss"] == pytest.approx(loss, rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_update_is_adamw(run_uniattn, tmp_path, clip):
    """Norm weights are not decayed. Compared as a whole: where a gradient is nearly zero its sign decides."""
    project, train, documents = ids_project(tmp_path, unified=True)
    _, norm, model = reference_step(project.model, documents)
    assert norm > 0.5
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == d], "weight_decay": w} for d, w in ((1, 0.0), (2, 0.1))
    ]
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    torch.optim.AdamW(groups, lr=1e-3, eps=1e-3).step()
    _, run = one_step(run_uniattn, project, train, *SEPARATE, weight_decay=0.1, clip_norm=clip, eps=1e-3)
    after = Oracle(run / "export").w
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - before[name]
        assert (after[name] - before[name] - expected).norm() <= 1e-3 * expected.norm(), name


POISON = 5  # the only token whose first channel is not zero, and the first MLP overflows on it


def poisoned_project(tmp_path):
    base = write_base(tmp_path / "poisoned", vocab_size=VOCAB, scaling=LLAMA3)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 0] = 0
    weights["model.embed_tokens.weight"][POISON, 0] = 1
    weights["model.layers.0.self_attn.o_proj.weight"][0] = 0
    weights["model.layers.0.mlp.gate_proj.weight"][:, 0] = 3e38
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    return Project(tmp_path, base)


def poisoned_config(project, documents, name):
    write_ids(project.train, documents)
    stage = {"name": "head", "train": ["lm_head.weight"], "epochs": 1, "learning_rate": 1.0e-3}
    data = {"train": [{"path": str(project.train), "format": "ids"}], "max_length": 64, "pack": False}
    optimizer = {"micro_batch": 1, "accumulation": 1}
    return project.config(name, plan=None, calibration=None, stages=[stage], data=data, optimizer=optimizer)


def test_a_step_that_is_not_finite_is_left_out(run_uniattn, tmp_path):
    project = poisoned_project(tmp_path)
    documents = [[i for i in ids if i != POISON] for ids in random_documents(6, 30, seed=3)]
    documents[2][4] = POISON
    config, run = poisoned_config(project, documents, "once")
    run_uniattn("train", config)
    lines = metrics(run)
    (left_out,) = [line for line in lines if not line["updated"]]
    assert left_out["tokens"] == len(documents[2])
    assert "not finite" in (run / "log.txt").read_text()
    assert all(math.isfinite(line["loss"]) for line in lines if line["updated"])
    weights = load_file(run / "checkpoints" / "step-6" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_many_steps_that_are_not_finite_end_the_run(run_uniattn, tmp_path):
    project = poisoned_project(tmp_path)
    config, _ = poisoned_config(project, [[1, POISON, *ids] for ids in random_documents(20, 30, seed=3)], "always")
    run_uniattn.fails(1, "train", config, naming=["10 steps in a row", "not finite"])


def test_answers_and_their_end_are_supervised(run_uniattn, material, stories, tmp_path):
    """PMC and Tulu-3 samples: prompts rendered and tokenized here, independently of the program."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(stories.path / "tokenizer.model"))
    samples = [
        s for name in ("pmc_llama_instructions_1000", "tulu3_sft_filtered_1000") for s in short(material, name, pieces)
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    documents = [tokenize(sample, pieces) for sample in samples]
    loss, norm, _ = reference_step(stories.path, documents)
    optimizer = {"micro_batch": 2, "accumulation": 2}
    data = {"max_length": 512, "pack": False}
    line, _ = one_step(
        run_uniattn, Project(tmp_path, stories.path), [{"path": str(file), "format": "alpaca"}], data, optimizer
    )
    assert line["supervised_tokens"] == sum(len(ids) - prompt for ids, prompt in documents)
    assert line["loss"] == pytest.approx(loss, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def short(material, name, pieces):
    samples = json.loads((material / "data" / f"{name}.json").read_text())
    return [s for s in samples if len(tokenize(s, pieces)[0]) < 500 and s["output"]][:2]


def tokenize(sample, pieces):
    """(ids, number of prompt tokens) of an Alpaca sample: BOS, prompt, answer, EOS."""
    instruction, text = sample.get("instruction"), sample.get("input")
    if not instruction:
        prompt = f"### Input:\n{text}\n\n### Response:"
    elif text:
        prompt = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{text}\n\n### Response:"
        )
    else:
        prompt = (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Response:"
        )
    prompt_ids = [BOS] + pieces.encode(prompt)
    # The answer follows other text, so it gets no space of its own: drop "▁" and "<0x0A>" of "\n" + answer.
    answer = pieces.encode("\n" + sample["output"])[2:]
    return prompt_ids + answer + [EOS], len(prompt_ids)
