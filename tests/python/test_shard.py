"""Every strategy on every number of ranks trains the model that one process trains."""

import json
from itertools import product

import pytest
import torch
import yaml
from support.models import LLAMA3, write_base
from support.ranks import TOOLS, newest_snapshot, run_ranks, snapshot_tensors
from support.runs import VOCAB, Project, random_documents, steps
from support.stories import write_ids

TRAIN = TOOLS / "train_ranks"
ROWS = 24  # per step; the second step of an epoch has 3, so that some micro-batches of some ranks have none
EPS = 1e-2  # AdamW: so that the rounding of a gradient near zero is not blown up to a whole step
STRATEGIES = ["none", "optimizer", "gradients", "full"]
STAGES = [
    {"name": "compensation", "train": "compensation", "max_steps": 2, "learning_rate": 1.0e-3},
    {"name": "all", "train": "all", "max_steps": 3, "learning_rate": 1.0e-3},
]

pytestmark = pytest.mark.skipif(not TRAIN.is_file(), reason=f"no {TRAIN}: build the target train_ranks")


class Runs:
    """Runs of small models, by name, each on a number of ranks."""

    def __init__(self, folder):
        self.projects = {}
        for tied in (False, True):
            name = "tied" if tied else "untied"
            base = write_base(folder / f"base-{name}", vocab_size=VOCAB, scaling=LLAMA3, tie_word_embeddings=tied)
            (folder / name).mkdir()
            self.projects[name] = Project(folder / name, base)
            write_ids(self.projects[name].train, random_documents(ROWS + 3, 40, seed=3))

    def config(self, name, ranks, accumulation=1, model="untied", dtype="float32", moments="float32", **parallel):
        """The configuration file of run `name`; a second call changes how the same run is divided."""
        project = self.projects[model]
        file, _ = project.config(
            name, calibration=None, data=self.data(project), model={"path": str(project.model), "dtype": dtype}, stages=STAGES,
            optimizer={"micro_batch": ROWS // (ranks * accumulation), "accumulation": accumulation, "eps": EPS,
                       "moments": moments},
            checkpoint={"every_steps": 100}, parallel={"timeout_seconds": 60, **parallel},
        )  # fmt: skip
        return file

    @staticmethod
    def data(project):
        source = lambda path: [{"path": str(path), "format": "ids"}]
        return {"train": source(project.train), "eval": source(project.held_out), "max_length": 64, "pack": False}

    def folder(self, name, model="untied"):
        return self.projects[model].folder / name


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_same_run(run, reference, tolerance):
    ours, theirs = steps(run), steps(reference)
    assert len(ours) == len(theirs) == 5
    for line, expected in zip(ours, theirs):
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(expected[key], rel=tolerance), (run.name, expected["step"], key)
        for key in ("tokens", "supervised_tokens"):
            assert line[key] == expected[key], (run.name, expected["step"], key)
    # A moment is a gradient, of which single tensors carry more rounding than the norm of all.
    for kind, allowed in (("weights", tolerance), ("moments", 5 * tolerance)):
        found, expected = (snapshot_tensors(newest_snapshot(path), kind) for path in (run, reference))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert relative(found[name], tensor) <= allowed, (run.name, kind, name)


def variants(ranks):
    """(name, options) of the runs that are compared on this number of ranks."""
    for shard, accumulation, model in product(STRATEGIES, (1, 2), ("untied", "tied")):
        if ranks > 1 or shard == "none":
            name = f"{ranks}-{shard}-{accumulation}-{model}"
            yield name, {"shard": shard, "accumulation": accumulation, "model": model}
    if ranks == 4:
        for shard in STRATEGIES[1:]:
            yield f"4-{shard}-hybrid", {"shard": shard, "accumulation": 2, "replicas": 2}
    for shard in STRATEGIES if ranks > 1 else ["none"]:
        for accumulation in (1, 2):
            options = {"shard": shard, "accumulation": accumulation, "dtype": "bfloat16"}
            yield f"{ranks}-{shard}-{accumulation}-bfloat16", options
            yield f"{ranks}-{shard}-{accumulation}-bfloat16-repeat", options
    if ranks == 3:
        for shard in STRATEGIES:
            yield f"3-{shard}-repeat", {"shard": shard, "accumulation": 2, "model": "tied"}
            yield f"3-{shard}-moments", {"shard": shard, "moments": "bfloat16"}
    if ranks in (1, 3):
        for shard in STRATEGIES if ranks > 1 else ["none"]:
            yield f"{ranks}-{shard}-offload", {"shard": shard, "accumulation": 2, "model": "tied", "offload": "optimizer"}
            yield f"{ranks}-{shard}-bfloat16-offload", {"shard": shard, "dtype": "bfloat16", "offload": "optimizer"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs but those of test_resume, done."""
    runs = Runs(tmp_path_factory.mktemp("shard"))
    for ranks in (1, 2, 3, 4):
        files = [runs.config(name, ranks, **options) for name, options in variants(ranks)]
        run_ranks([TRAIN, *files], ranks)
    return runs


@pytest.mark.parametrize("model", ["untied", "tied"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("shard", STRATEGIES)
def test_strategy_equals_one_process(runs, shard, ranks, accumulation, model):
    run = runs.folder(f"{ranks}-{shard}-{accumulation}-{model}", model)
    assert_same_run(run, runs.folder(f"1-none-1-{model}", model), tolerance=1e-6)


@pytest.mark.parametrize("shard", STRATEGIES[1:])
def test_replicas_of_shards_equal_one_process(runs, shard):
    assert_same_run(runs.folder(f"4-{shard}-hybrid"), runs.folder("1-none-1-untied"), tolerance=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("shard", STRATEGIES)
def test_bfloat16_within_its_rounding(runs, shard, ranks, accumulation):
    run = runs.folder(f"{ranks}-{shard}-{accumulation}-bfloat16")
    assert_same_run(run, runs.folder("1-none-1-bfloat16"), tolerance=2e-2)


def bits(run):
    return {kind: snapshot_tensors(newest_snapshot(run), kind) for kind in ("weights", "moments")}


def assert_same_bits(run, other):
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in steps(run)] == [line[key] for line in steps(other)]
    ours, theirs = bits(run), bits(other)
    for kind in ours:
        for name, tensor in theirs[kind].items():
            assert torch.equal(ours[kind][name], tensor), (run.name, kind, name)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("shard", STRATEGIES[1:])
def test_strategies_give_the_same_bits(runs, shard, ranks):
    """Sums are taken in the ranks' order, whoever keeps them."""
    assert_same_bits(runs.folder(f"{ranks}-{shard}-1-untied"), runs.folder(f"{ranks}-none-1-untied"))


@pytest.mark.parametrize("shard", STRATEGIES[1:])
def test_rounding_by_chance_is_the_same_for_all_strategies(runs, shard):
    assert_same_bits(runs.folder(f"3-{shard}-moments"), runs.folder("3-none-moments"))
    assert not torch.equal(
        bits(runs.folder("3-none-moments"))["weights"]["model.norm.weight"],
        bits(runs.folder("3-none-1-untied"))["weights"]["model.norm.weight"],
    )


@pytest.mark.parametrize("shard", STRATEGIES)
def test_repeats_give_the_same_bits(runs, shard):
    assert_same_bits(runs.folder(f"3-{shard}-repeat", "tied"), runs.folder(f"3-{shard}-2-tied", "tied"))
    for ranks, accumulation in product((2, 3, 4), (1, 2)):
        run = f"{ranks}-{shard}-{accumulation}-bfloat16"
        assert_same_bits(runs.folder(f"{run}-repeat"), runs.folder(run))


@pytest.mark.parametrize("ranks, shard", [(1, "none"), *[(3, shard) for shard in STRATEGIES]])
def test_offloaded_masters_and_moments_give_the_same_bits(runs, ranks, shard):
    """Here the device is the host: the same kernel updates what has been copied there and back."""
    assert_same_bits(runs.folder(f"{ranks}-{shard}-offload", "tied"), runs.folder(f"{ranks}-{shard}-2-tied", "tied"))
    assert_same_bits(runs.folder(f"{ranks}-{shard}-bfloat16-offload"), runs.folder(f"{ranks}-{shard}-1-bfloat16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to offload from")
def test_offloading_without_a_gpu_is_refused(runs, run_uniattn):
    file = runs.config("refused", 1, offload="optimizer")
    run_uniattn.fails(2, "train", file, naming=["parallel.offload", "no GPU"])
    assert run_uniattn("train", file, "--dry-run")["memory"]["all"]["host"] > 0


@pytest.mark.parametrize("chain", [
    [(4, "full", 1), (2, "optimizer", 2)],
    [(1, "none", 1), (3, "full", 3), (2, "gradients", 1)],
    [(2, "none", 2), (3, "full", 1)],
    [(3, "optimizer offload", 1), (2, "full", 2), (3, "full offload", 2)],
])  # fmt: skip
def test_resume_on_other_ranks_by_another_strategy(runs, chain):
    """After 1, 2 and 4 of the steps, that is within both stages and between them, other ranks go on by other rules."""
    name = "resume-" + "-".join(f"{ranks}{shard.replace(' ', '-')}" for ranks, shard, _ in chain)
    for i, (ranks, shard, steps) in enumerate(chain):
        shard, *offload = shard.split()
        file = runs.config(name, ranks, shard=shard, offload="optimizer" if offload else "none")
        last = i + 1 == len(chain)
        run_ranks([TRAIN, str(file) if last else f"{file}@{steps}"], ranks)
    assert_same_run(runs.folder(name), runs.folder("1-none-1-untied"), tolerance=1e-6)


def test_a_rank_writes_only_its_share(runs):
    folder = newest_snapshot(runs.folder("4-full-1-untied"))
    for kind in ("weights", "moments"):
        sizes = [(folder / f"{kind}-{rank:05}-of-00004.safetensors").stat().st_size for rank in range(1, 5)]
        assert max(sizes) < 1.1 * sum(sizes) / 4, sizes
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {file.name for file in folder.glob("*.safetensors")} == set(manifest["files"])


def test_a_split_that_changes_the_step_is_refused(runs, run_uniattn):
    """Half the rows per step would be another run."""
    file = runs.config("1-none-1-untied", 1)
    config = yaml.safe_load(file.read_text())
    config["optimizer"]["micro_batch"] = ROWS // 2
    file.write_text(yaml.safe_dump(config))
    run_uniattn.fails(2, "train", file, naming=["rows of a step", "24 there, 12 now"])
