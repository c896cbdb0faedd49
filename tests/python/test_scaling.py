"""What --dry-run says of memory and traffic, against what is measured."""

import re
import subprocess

import pytest
import yaml
from support.models import write_base
from support.ranks import LAUNCH_VARIABLES, TOOLS, run_ranks
from support.runs import VOCAB, Project

TRAIN = TOOLS / "train_ranks"
DIVISIONS = [  # ranks, parallel
    (1, {}),
    (2, {"shard": "none"}),
    (2, {"shard": "optimizer"}),
    (2, {"shard": "gradients"}),
    (4, {"shard": "full"}),
    (4, {"shard": "full", "replicas": 2}),
    (2, {"shard": "gradients", "offload": "optimizer"}),
]

pytestmark = pytest.mark.skipif(not TRAIN.is_file(), reason=f"no {TRAIN}: build the target train_ranks")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A project with a model so deep that one layer is little, beside which the activations of 16 tokens are too."""
    folder = tmp_path_factory.mktemp("scaling")
    return Project(folder, write_base(folder / "base", vocab_size=VOCAB, hidden_size=128, intermediate_size=320,
                                      num_hidden_layers=20, head_dim=32))  # fmt: skip


def config_of(project, name, parallel, steps, train="all", accumulation=1, dtype="float32"):
    file, _ = project.config(
        name, calibration=None, plan={"mode": "share_probs", "group": 2, "begin": 0, "end": 20}, model={"path": str(project.model), "dtype": dtype},
        data={"train": [{"path": str(project.train), "format": "ids"}], "max_length": 16, "over_long": "split"},
        stages=[{"name": "only", "train": train, "max_steps": steps, "learning_rate": 1.0e-3}],
        optimizer={"micro_batch": 1, "accumulation": accumulation}, checkpoint={"every_steps": 1000},
        parallel={"timeout_seconds": 60, **parallel}, run={"name": name, "dir": str(project.folder / name), "seed": 1,
                                                          "peak_tflops": 1},
    )  # fmt: skip
    return file


def label(ranks, parallel):
    return f"{ranks}-" + "-".join(map(str, parallel.values()))


CASES = [
    ("all", 1, "float32"), ("all", 2, "float32"), ("all", 1, "bfloat16"), ("compensation", 1, "float32")
]  # fmt: skip


@pytest.fixture(scope="module")
def peaks(large):
    """Measured bytes of tensors on the fullest rank, by case."""
    found = {}
    for ranks in sorted({ranks for ranks, _ in DIVISIONS}):
        cases = [(parallel, *case) for r, parallel in DIVISIONS if r == ranks for case in CASES]
        files = [
            config_of(large, f"{label(ranks, parallel)}-{train}-{accumulation}-{dtype}", parallel, 2, train, accumulation, dtype)
            for parallel, train, accumulation, dtype in cases
        ]  # fmt: skip
        outputs = [[int(line) for line in out.split()] for _, out, _ in run_ranks([TRAIN, *files], ranks)]
        for i, file in enumerate(files):
            found[file.stem] = max(output[i] for output in outputs)
    return found


@pytest.mark.parametrize("train, accumulation, dtype", CASES)
@pytest.mark.parametrize("ranks, parallel", DIVISIONS)
def test_memory_is_the_formulas(run_uniattn, large, peaks, ranks, parallel, train, accumulation, dtype):
    name = f"{label(ranks, parallel)}-{train}-{accumulation}-{dtype}"
    plan = run_uniattn("train", large.folder / f"{name}.yaml", "--dry-run", "--world-size", ranks)
    expected = plan["memory"]["only"]
    assert (expected["host"] > 0) == ("offload" in parallel)
    # On CPUs what a GPU would offload lies in the same memory.
    assert peaks[name] == pytest.approx(expected["total"] + expected["host"], rel=0.05), expected


def bytes_on_the_wire(file, ranks):
    """What all ranks send in a run, by the counters of a network of their own."""
    variables = "MASTER_ADDR=127.0.0.1 MASTER_PORT=29400 OMP_NUM_THREADS=1"
    script = f"""
        unset {" ".join(LAUNCH_VARIABLES)}
        ip link set lo up
        for rank in $(seq 0 {ranks - 1}); do
            RANK=$rank LOCAL_RANK=$rank WORLD_SIZE={ranks} {variables} {TRAIN} {file} &
            pids="$pids $!"
        done
        for pid in $pids; do wait $pid || exit 1; done
        grep lo: /proc/net/dev"""
    done = subprocess.run(["unshare", "--net", "bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(re.search(r"lo:\s*(\d+)", done.stdout)[1])


@pytest.mark.parametrize("ranks, parallel, accumulation, dtype", [
    (2, {"shard": "none"}, 1, "float32"), (2, {"shard": "optimizer"}, 2, "float32"),
    (2, {"shard": "gradients"}, 2, "bfloat16"), (2, {"shard": "full"}, 1, "bfloat16"),
    (2, {"shard": "full"}, 2, "float32"), (4, {"shard": "full", "replicas": 2}, 1, "float32"),
])  # fmt: skip
def test_traffic_is_the_formulas(run_uniattn, large, ranks, parallel, accumulation, dtype):
    """Gradients travel in float32, parameters in the compute dtype."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not have a network of its own (unshare --net), whose counters would be read")
    name, totals = f"wire-{label(ranks, parallel)}-{accumulation}-{dtype}", {}
    for steps in (1, 5):  # the difference is free of what happens once
        file = config_of(large, f"{name}-{steps}", parallel, steps, accumulation=accumulation, dtype=dtype)
        totals[steps] = bytes_on_the_wire(file, ranks)
    plan = run_uniattn("train", file, "--dry-run", "--world-size", ranks)
    expected = sum(plan["sent"]["only"].values()) * ranks
    assert (totals[5] - totals[1]) / 4 == pytest.approx(expected, rel=0.02)


def test_the_table_names_what_it_assumes(run_uniattn, large):
    file = config_of(large, "imagined", {"shard": "full", "replicas": 2}, 1)
    done = run_uniattn.run("train", file, "--dry-run", "--world-size", 16, "--device", "h100")
    assert done.returncode == 0, done.stderr
    assert "parallel.shard full, 16 ranks, 2 of them with each slice" in done.stdout
    assert re.search(r"[\d.]+ s on h100", done.stdout)


def test_what_cannot_be_divided_is_refused(run_uniattn, large):
    file = config_of(large, "indivisible", {"shard": "full", "replicas": 3}, 1)
    run_uniattn.fails(2, "train", file, "--dry-run", "--world-size", 4, naming=["parallel.replicas is 3"])
    run_uniattn.fails(2, "train", file, "--world-size", 3, naming=["--dry-run"])


def test_replicas_without_shards_are_refused(run_uniattn, large):
    file = config_of(large, "unsharded", {"replicas": 2}, 1)
    run_uniattn.fails(2, "train", file, naming=["parallel.replicas"])
    config = yaml.safe_load(file.read_text())
    config["parallel"] = {"shard": "everything"}
    file.write_text(yaml.safe_dump(config))
    run_uniattn.fails(2, "train", file, naming=["none, optimizer, gradients, full"])
