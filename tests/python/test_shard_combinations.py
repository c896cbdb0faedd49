"""What else a configuration can ask for, together with each way to divide the state over the ranks."""

import pytest
import torch
from support.models import GEMMA2, LLAMA3, write_base
from support.ranks import TOOLS, newest_snapshot, run_ranks, snapshot_tensors
from support.runs import VOCAB, Project, metrics, random_documents, steps, write_tokenizer
from support.stories import write_ids

TRAIN = TOOLS / "train_ranks"
RANKS, ROWS = 3, 12  # per step
DIVISIONS = {
    "none": {}, "optimizer": {"shard": "optimizer"}, "gradients": {"shard": "gradients"}, "full": {"shard": "full"},
}  # fmt: skip
STAGE = {"max_steps": 2, "learning_rate": 1.0e-3}
STAGES = [{"name": "one", "train": "compensation", **STAGE}, {"name": "two", "train": "all", **STAGE}]
PATTERNS = ["model.layers.[13].self_attn.*", "model.norm.weight"]


def distilled(first, second, weight):
    """Both stages with a teacher each."""
    teacher = lambda target: {"distill": {"target": target, "weight": weight}}
    return [STAGES[0] | teacher(first), STAGES[1] | teacher(second)]


# Superblock of four with every mode; patterns leave out what lies below the lowest and above the highest trained tensor.
SUPERBLOCK = {"layers": [
    {"layer": 1, "mode": "share_probs", "leader": 0, "compensation": "full", "head_map": [3, 0, 0, 2]},
    {"layer": 2, "mode": "share_kv", "leader": 0, "compensation": {"rank": 6}},
    {"layer": 3, "mode": "share_probs", "leader": 0, "compensation": {"rank": 4}},
]}  # fmt: skip
CASES = {
    "superblock": {"plan": SUPERBLOCK},
    "checkpointing": {"plan": SUPERBLOCK, "optimizer": {"activation_checkpointing": True}},
    "attention": {"stages": distilled("attention", "logits", 1.0)},
    "logits": {"stages": distilled("logits", "attention", 0.5), "optimizer": {"activation_checkpointing": True}},
    "tied teacher": {"model": "tied", "stages": distilled("logits", "logits", 0.5)},
    "patterns": {"stages": [{"name": "some", "train": PATTERNS, **STAGE}, STAGES[1]]},
    "held-out": {"evaluation": {"every_steps": 1}, "checkpoint": {"every_steps": 1, "keep_last": 1, "keep_best": 1}},
    "decay": {"optimizer": {"weight_decay": 0.1, "clip_norm": 0.01}},
}  # fmt: skip

pytestmark = pytest.mark.skipif(not TRAIN.is_file(), reason=f"no {TRAIN}: build the target train_ranks")


class Runs:
    MODELS = {"untied": {"scaling": LLAMA3}, "tied": {"scaling": LLAMA3, "tie_word_embeddings": True}, "gemma2": GEMMA2}

    def __init__(self, folder, *models):
        self.projects = {}
        for model in models:
            (folder / model).mkdir()
            base = write_base(folder / model / "base", vocab_size=VOCAB, **self.MODELS[model])
            write_tokenizer(base)
            self.projects[model] = Project(folder / model, base)

    def config(self, name, ranks, accumulation=2, model="untied", documents=None, dtype="float32", optimizer={}, parallel={},
               **sections):  # fmt: skip
        project = self.projects[model]
        train = write_ids(project.folder / f"{name}.ids", documents) if documents else project.train
        source = lambda path: [{"path": str(path), "format": "ids"}]
        file, _ = project.config(name, **{
            "calibration": None, "stages": STAGES, "model": {"path": str(project.model), "dtype": dtype},
            "data": {"train": source(train), "eval": source(project.held_out), "max_length": 64, "pack": False},
            "checkpoint": {"every_steps": 100}, "parallel": {"timeout_seconds": 60, **parallel},
            "optimizer": {"micro_batch": ROWS // (ranks * accumulation), "accumulation": accumulation, "eps": 1e-2, **optimizer},
            **sections,
        })  # fmt: skip
        return file

    def folder(self, name, model="untied"):
        return self.projects[model].folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case on one rank, and on several by each division."""
    runs = Runs(tmp_path_factory.mktemp("combinations"), "untied", "tied")
    run_ranks([TRAIN, *[runs.config(f"{case} alone", 1, **options) for case, options in CASES.items()]], 1)
    run_ranks([TRAIN, *[runs.config(f"{case} {division}", RANKS, parallel=parallel, **options)
                        for case, options in CASES.items() for division, parallel in DIVISIONS.items()]], RANKS)  # fmt: skip
    return runs


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()


def assert_same_training(run, reference):
    ours, theirs = (metrics(path) for path in (run, reference))
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for line, expected in zip(ours, theirs):
        for key in ("loss", "grad_norm", "distill_loss", "held_out_loss"):
            if key in expected:
                assert line[key] == pytest.approx(expected[key], rel=1e-6), (key, expected)
    found, expected = (snapshot_tensors(newest_snapshot(path)) for path in (run, reference))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert relative(found[name], tensor) <= 2e-6, name


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("case", CASES)
def test_equals_one_process(runs, case, division):
    model = CASES[case].get("model", "untied")
    assert_same_training(runs.folder(f"{case} {division}", model), runs.folder(f"{case} alone", model))


@pytest.mark.parametrize("division", DIVISIONS)
def test_the_best_snapshot_stays(runs, division):
    kept = lambda run: sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept(runs.folder(f"held-out {division}")) == kept(runs.folder("held-out alone"))


@pytest.mark.parametrize("division", DIVISIONS)
def test_fewer_rows_than_ranks(tmp_path, division):
    """One document: all ranks but one have nothing, in every micro-batch but one."""
    runs = Runs(tmp_path, "untied")
    documents = random_documents(1, 40, seed=9)
    for name, ranks, parallel in (("alone", 1, {}), ("divided", RANKS, DIVISIONS[division])):
        run_ranks([TRAIN, runs.config(name, ranks, documents=documents, parallel=parallel)], ranks)
    assert_same_training(runs.folder("divided"), runs.folder("alone"))


@pytest.mark.parametrize("division", ["none", "optimizer", "gradients"])
def test_samples_of_one_rank(tmp_path, division):
    """Rank 0 writes them while the others wait; with `full` they are refused."""
    runs = Runs(tmp_path, "untied")
    samples = {"prompts": ["the model"], "every_steps": 1, "max_new_tokens": 8}
    for name, ranks, parallel in (("alone", 1, {}), ("divided", RANKS, DIVISIONS[division])):
        run_ranks([TRAIN, runs.config(name, ranks, parallel=parallel, samples=samples)], ranks)
    assert_same_training(runs.folder("divided"), runs.folder("alone"))
    texts = [(runs.folder(name) / "samples.jsonl").read_text() for name in ("alone", "divided")]
    assert texts[0].count("\n") == 4 and texts[1] == texts[0]


@pytest.mark.parametrize("division", DIVISIONS)
def test_one_rank_whose_loss_is_not_finite(tmp_path, division):
    """Its step is left out by all, and the training around it is the one that a single process does."""
    runs = Runs(tmp_path, "gemma2")
    spoil_token(runs.projects["gemma2"].model, 5)
    documents = [[6 if token == 5 else token for token in ids] for ids in random_documents(2 * ROWS, 40)]
    documents[3][2] = 5
    for name, ranks, parallel in (("alone", 1, {}), ("divided", RANKS, DIVISIONS[division])):
        options = {"model": "gemma2", "documents": documents, "plan": None, "stages": STAGES[1:], "parallel": parallel}
        run_ranks([TRAIN, runs.config(name, ranks, **options)], ranks)
    ours, theirs = (steps(runs.folder(name, "gemma2")) for name in ("divided", "alone"))
    assert [line["updated"] for line in ours] == [line["updated"] for line in theirs]
    assert sorted(line["updated"] for line in ours) == [False, True]
    found, expected = (snapshot_tensors(newest_snapshot(runs.folder(name, "gemma2"))) for name in ("divided", "alone"))
    for name, tensor in expected.items():
        kept = tensor.isfinite()
        assert torch.equal(found[name].isfinite(), kept) and relative(found[name][kept], tensor[kept]) <= 1e-6, name


def spoil_token(model, token):
    """Gemma-2 scales embeddings: this one is infinite then."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token, 0] = 3e38
    save_file(weights, model / "model.safetensors", {"format": "pt"})
