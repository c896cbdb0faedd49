"""Configurations of small runs, and what they leave behind."""

import json
import random
from pathlib import Path

import sentencepiece
import torch
import yaml

from support.stories import write_ids
from transformers import AutoModelForCausalLM

VOCAB = 320


def write_tokenizer(folder):
    """A SentencePiece model of VOCAB pieces with byte fallback, trained on a few sentences."""
    words = "the model shares one attention pattern between layers and learns what is missing from it".split()
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(words, k=12)) for _ in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(Path(folder) / "tokenizer"), vocab_size=VOCAB,
        model_type="bpe", byte_fallback=True, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip


def random_documents(count, longest, seed=0, vocab=VOCAB):
    generator = random.Random(seed)
    return [[generator.randrange(3, vocab) for _ in range(generator.randint(8, longest))] for _ in range(count)]


class Project:
    """A folder with training and held-out ids, a base model, and configurations over them."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.train = write_ids(folder / "train.ids", random_documents(40, 60, seed=1))
        self.held_out = write_ids(folder / "held_out.ids", random_documents(6, 60, seed=2))

    def config(self, name, **sections):
        """configs/`name`.yaml for the run `name`; a section given as None is left out. Returns (file, run folder)."""
        ids = lambda path: [{"path": str(path), "format": "ids"}]
        config = {
            "run": {"name": name, "dir": str(self.folder / name), "seed": 7},
            "model": {"path": str(self.model), "dtype": "float32"},
            "plan": {"mode": "share_probs", "group": 2, "begin": 0, "end": 4, "compensation": "full"},
            "calibration": {"data": ids(self.train), "samples": 20},
            "data": {"train": ids(self.train), "eval": ids(self.held_out), "max_length": 64},
            "stages": [
                {"name": "compensation", "train": "compensation", "max_steps": 4, "learning_rate": 1.0e-3},
                {"name": "all", "train": "all", "max_steps": 6, "learning_rate": 1.0e-3},
            ],
            "optimizer": {"micro_batch": 2, "accumulation": 2},
            "export": {"dtype": "float32"},
        } | sections
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
        return file, self.folder / name


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run):
    """The lines of metrics.jsonl that are steps, not evaluations."""
    return [line for line in metrics(run) if "loss" in line]


def snapshot_bytes(run, step):
    """The tensors of a snapshot as they lie on disk, by file name."""
    files = sorted((run / "checkpoints" / f"step-{step}").glob("*.safetensors"))
    assert files, f"no snapshot of step {step} in {run}"
    return {file.name: file.read_bytes() for file in files}


def read_ids(file):
    return [[int(i) for i in line.split()] for line in file.read_text().splitlines()]


def transformers_loss(path, documents):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        sums = [model(torch.tensor([d]), labels=torch.tensor([d])).loss.item() * (len(d) - 1) for d in documents]
    return sum(sums) / sum(len(d) - 1 for d in documents)
