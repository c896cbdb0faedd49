"""Whatever happens to one rank of a training run, all end, one says why, and the same command goes on from there."""

import os
import random
import resource
import signal
import time

import pytest
import torch
from support.models import GEMMA2, write_base
from support.ranks import Ranks, newest_snapshot, snapshot_tensors
from support.runs import VOCAB, random_documents, steps
from support.stories import write_ids

RANKS, STEPS = 2, 8
STAGES = [
    {"name": "compensation", "train": "compensation", "max_steps": 2, "learning_rate": 1.0e-3},
    {"name": "all", "train": "all", "max_steps": STEPS - 2, "learning_rate": 1.0e-3},
]


@pytest.fixture
def training(project, binary):
    """training(name, **sections) → (command, run folder) of a sharded run that saves at every step."""

    def make(name, timeout=30, shard="full", **sections):
        file, run = project.config(name, **{
            "calibration": None, "stages": STAGES, "optimizer": {"micro_batch": 2, "accumulation": 1},
            "checkpoint": {"every_steps": 1}, "parallel": {"shard": shard, "timeout_seconds": timeout}, **sections,
        })  # fmt: skip
        return [binary, "train", file], run

    return make


def finish(command):
    with Ranks(command, RANKS) as ranks:
        results = ranks.results()
    assert [code for code, _, _ in results] == [0] * RANKS, results


def bits(run):
    return {kind: snapshot_tensors(newest_snapshot(run), kind) for kind in ("weights", "moments")}


def assert_same(run, reference):
    ours, theirs = bits(run), bits(reference)
    for kind in theirs:
        for name, tensor in theirs[kind].items():
            assert torch.equal(ours[kind][name], tensor), (kind, name)
    assert [line["loss"] for line in steps(run)] == [line["loss"] for line in steps(reference)]


def assert_failed(results, message, but=()):
    """All but the ranks in `but` end with an error, and one says so."""
    survivors = [result for rank, result in enumerate(results) if rank not in but]
    assert all(code in (1, 2) for code, _, _ in survivors), results
    assert sum(message in err for _, _, err in survivors) == 1, results


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.005)


def test_random_kills_of_random_ranks(training):
    """UNIATTN_KILLS says how many; while training and while saving, which is most of the time here."""
    kills, generator = int(os.environ.get("UNIATTN_KILLS", 2)), random.Random(0)
    command, reference = training("undisturbed")
    finish(command)
    done = 0
    for attempt in range(1000):
        command, run = training(f"killed-{attempt}")
        while done < kills:
            newest = max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*[0-9]")), default=0)
            if newest == STEPS:
                break
            with Ranks(command, RANKS) as ranks:
                wait_for(run / "checkpoints" / f"step-{newest + 1}")
                time.sleep(generator.uniform(0, 0.1))
                victim = generator.randrange(RANKS)
                ranks[victim].kill()
                results = ranks.results()
            if results[victim][0] != -signal.SIGKILL:  # it had ended
                break
            done += 1
            assert all(code != 0 for code, _, _ in results) or newest_snapshot(run).name == f"step-{STEPS}", results
        finish(command)
        assert_same(run, reference)
        if done == kills:
            return


def test_full_disk_on_one_rank(training):
    command, reference = training("undisturbed")
    finish(command)
    command, run = training("full")
    limited = lambda rank: ["bash", "-c", 'trap "" XFSZ; ulimit -f 40; exec "$@"', "bash", *command]
    with Ranks(lambda rank: limited(rank) if rank == 1 else command, RANKS) as ranks:
        results = ranks.results()
    assert_failed(results, "rank 1 of 2: cannot write")
    assert newest_snapshot(run).name == "step-2"  # those of the first stage are small enough
    finish(command)
    assert_same(run, reference)


def test_a_stopped_rank(training):
    command, reference = training("undisturbed")
    finish(command)
    command, run = training("stopped", timeout=4)
    with Ranks(command, RANKS) as ranks:
        wait_for(run / "checkpoints" / "step-2")
        ranks[1].send_signal(signal.SIGSTOP)
        out, err = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 1 and "rank 1 has died or is stopped" in err
    finish(training("stopped")[0])
    assert_same(run, reference)


def test_out_of_memory_on_one_rank(training):
    command, reference = training("undisturbed")
    finish(command)
    command, run = training("small")
    with Ranks(command, RANKS) as ranks:
        wait_for(run / "checkpoints" / "step-2")
        resource.prlimit(ranks[1].pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))  # nothing more
        results = ranks.results()
    assert all(code != 0 for code, _, _ in results), results
    said = [err for _, _, err in results if "rank 1 of 2: " in err or "rank 1 has died" in err]
    assert len(said) == 1, results
    finish(command)
    assert_same(run, reference)


def test_another_configuration_on_one_rank(training):
    command, _ = training("config")
    with Ranks(lambda rank: [*command, f"optimizer.weight_decay={0.1 * rank}", "--accept-changes"], RANKS) as ranks:
        results = ranks.results()
    assert_failed(results, "the configuration of rank 1 is not the one of rank 0")


def test_other_data_on_one_rank(training, tmp_path):
    """The same configuration finds another file where this rank runs."""
    for rank in range(RANKS):
        (tmp_path / str(rank)).mkdir()
        write_ids(tmp_path / str(rank) / "train.ids", random_documents(20, 40, seed=rank))
    command, _ = training("data", data={"train": [{"path": "train.ids", "format": "ids"}], "max_length": 64})
    with Ranks(command, RANKS, cwd=lambda rank: tmp_path / str(rank)) as ranks:
        results = ranks.results()
    assert_failed(results, "the training data of rank 1 is not the one of rank 0")


def test_a_loss_that_is_not_finite_on_one_rank(training, tmp_path):
    """Gemma-2 scales embeddings: that of one token is infinite then, and one document has it."""
    base = write_base(tmp_path / "gemma", vocab_size=VOCAB, **GEMMA2)
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][5] = 3e38
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    documents = [[token if token != 5 else 6 for token in ids] for ids in random_documents(4, 40)]
    documents[0][1] = 5
    data = write_ids(tmp_path / "train.ids", documents)
    command, run = training(
        "infinite", model={"path": str(base), "dtype": "float32"}, plan=None, stages=STAGES[1:],
        data={"train": [{"path": str(data), "format": "ids"}], "max_length": 64, "pack": False},
    )  # fmt: skip
    with Ranks(command, RANKS) as ranks:
        results = ranks.results()
    assert [code for code, _, _ in results] == [0] * RANKS, results
    warned = [line for _, _, err in results for line in err.splitlines() if "the gradient is not finite" in line]
    assert len(warned) == STEPS - 2 and all("(nor is the loss of rank " in line for line in warned), results
