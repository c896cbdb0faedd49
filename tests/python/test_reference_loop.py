"""Ten optimizer steps of the program against a training loop of PyTorch and `transformers` in float64."""

import json
import math

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from support.models import LLAMA3, follower, write_base, write_unified
from support.runs import VOCAB, Project, metrics, random_documents
from support.stories import write_ids
from test_training import short, tokenize
from transformers import AutoModelForCausalLM

STEPS, PEAK, WARMUP, DECAY, CLIP, BETAS, EPS = 10, 1e-3, 0.3, 0.1, 1.0, (0.9, 0.95), 1e-6
FULL = {"mode": "full"}


class Reference:
    """What one would write by hand: cosine schedule, clipping by the global norm, AdamW without decay for vectors."""

    def __init__(self, path):
        self.model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float64)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=EPS)

    def step(self, step, documents):
        """Loss and gradient norm; documents: (ids, number of prompt tokens). The clipped gradients stay."""
        warmup = math.ceil(WARMUP * STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
        rate = (step + 1) / warmup if step < warmup else cosine
        count, total = sum(len(ids) - prompt for ids, prompt in documents), 0.0
        self.optimizer.zero_grad()
        for ids, prompt in documents:
            logits = self.model(torch.tensor([ids])).logits[0, prompt - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[prompt:]), reduction="sum") / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP).item()
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK * rate
        self.optimizer.step()
        return total, norm


def config_of(project, train, rows, length):
    stages = [{"name": "all", "train": "all", "max_steps": STEPS, "learning_rate": PEAK}]
    return project.config(
        "ours", plan=None, calibration=None, stages=stages,
        data={"train": train, "max_length": length, "pack": True},
        optimizer={"micro_batch": 1, "accumulation": rows, "warmup_ratio": WARMUP, "weight_decay": DECAY,
                   "clip_norm": CLIP, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS},
    )  # fmt: skip


def compare(run_uniattn, project, train, documents, rows, length):
    """All documents are in every step, so that their order does not matter."""
    config, run = config_of(project, train, rows, length)
    reference = Reference(project.model)
    run_uniattn("train", config, "--stop-after", 1)
    ours = metrics(run)
    loss, norm = reference.step(0, documents)
    assert ours[0]["supervised_tokens"] == sum(len(ids) - prompt for ids, prompt in documents)
    compare_gradients(run, reference.model)
    run_uniattn("train", config)
    expected = [(loss, norm)] + [reference.step(step, documents) for step in range(1, STEPS)]
    for line, (loss, norm) in zip(metrics(run), expected, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-5), line["step"]
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4), line["step"]
    weights = load_file(run / "checkpoints" / f"step-{STEPS}" / "weights.safetensors")
    for name, parameter in reference.model.named_parameters():
        ours = weights[name].double()
        assert (ours - parameter.detach()).norm() <= 1e-5 * parameter.norm(), name


def compare_gradients(run, model):
    """The first moment after one step is (1 - beta1) times the clipped gradient."""
    moments = load_file(run / "checkpoints" / "step-1" / "moments.safetensors")
    for name, parameter in model.named_parameters():
        ours = moments[f"exp_avg.{name}"].double() / (1 - BETAS[0])
        assert (ours - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


@pytest.mark.parametrize("unified", [False, True], ids=["base", "unified"])
def test_made_documents(run_uniattn, tmp_path, unified):
    plan = [FULL, follower(0, rank=5, head_map=[3, 0, 0, 2]), follower(0, rank=None), FULL]
    base = write_base(tmp_path / "base", vocab_size=VOCAB, scaling=LLAMA3)
    project = Project(tmp_path, write_unified(tmp_path / "unified", base, plan) if unified else base)
    documents = random_documents(6, 60, seed=4)
    write_ids(project.train, documents)
    train = [{"path": str(project.train), "format": "ids"}]
    compare(run_uniattn, project, train, [(ids, 1) for ids in documents], rows=4, length=128)


@pytest.mark.parametrize("name", ["pmc_llama_instructions_1000", "tulu3_sft_filtered_1000"])
def test_published_samples(run_uniattn, material, stories, tmp_path, name):
    """Alpaca and single-round Tulu-3 prompts, rendered and tokenized here."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(stories.path / "tokenizer.model"))
    samples = short(material, name, pieces)
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    documents = [tokenize(sample, pieces) for sample in samples]
    train = [{"path": str(file), "format": "alpaca"}]
    compare(run_uniattn, Project(tmp_path, stories.path), train, documents, rows=2, length=512)
