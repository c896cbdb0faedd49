"""A stopped, killed or failed training run goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from support.runs import metrics, snapshot_bytes, steps

MEASURED = ("seconds", "tokens_per_s", "mfu", "mfu_causal", "peak_memory_bytes")


def without_times(lines):
    return [{k: v for k, v in m.items() if k not in MEASURED} for m in lines]


def assert_same_training(run, reference):
    assert snapshot_bytes(run, 10) == snapshot_bytes(reference, 10)
    assert without_times(metrics(run)) == without_times(metrics(reference))


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resume_is_bit_exact(finished, run_uniattn, project, stop):
    config, run = project.config("resumed")
    run_uniattn("calibrate", config)
    assert run_uniattn("train", config, "--stop-after", stop)["outcome"] == "stopped"
    assert metrics(run)[-1]["run_step"] == stop
    assert run_uniattn("train", config)["outcome"] == "finished"
    assert_same_training(run, finished[1])


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_resume_after_a_signal(finished, run_uniattn, project, signal_number):
    config, run = project.config("killed", checkpoint={"every_steps": 1})
    run_uniattn("calibrate", config)
    process = run_uniattn.start("train", config)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-2" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal_number)
    out, _ = process.communicate(timeout=60)
    if signal_number != signal.SIGKILL:
        assert process.returncode == 0 and json.loads(out)["outcome"] == "stopped"
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (run / "checkpoints" / "step-10").exists()
    assert run_uniattn("train", config)["outcome"] == "finished"
    assert_same_training(run, finished[1])


def test_full_disk_loses_nothing(finished, run_uniattn, project):
    config, run = project.config("full")
    run_uniattn("calibrate", config)
    run_uniattn("train", config, "--stop-after", 3)
    done = run_uniattn.run("train", config, largest_file=20_000)
    assert done.returncode == 1, done.stderr
    assert "step-10" in done.stderr or "step-4" in done.stderr, done.stderr
    assert run_uniattn("train", config)["outcome"] == "finished"
    assert_same_training(run, finished[1])


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


def test_random_kills(run_uniattn, project):
    """SIGKILL at random moments, half of them while a snapshot is being written: the end is that of an undisturbed run.

    UNIATTN_KILLS sets how many; 200 take a quarter of an hour.
    """
    kills, steps = int(os.environ.get("UNIATTN_KILLS", 12)), 40
    sections = {
        "stages": [{"name": "all", "train": "all", "max_steps": steps, "learning_rate": 1.0e-3}],
        "evaluation": {"every_steps": 7}, "checkpoint": {"every_steps": 3, "keep_last": 1, "keep_best": 1},
        "optimizer": {"micro_batch": 1, "accumulation": 4},
    }  # fmt: skip
    config, straight = project.config("straight", calibration=None, **sections)
    run_uniattn("train", config)
    generator, rounds, killed, unfinished = random.Random(0), 0, 0, 0
    while killed < kills:
        config, run = project.config(f"killed-{rounds}", calibration=None, **sections)
        rounds += 1
        while killed < kills:
            left = unfinished_snapshots(run)
            process = run_uniattn.start("train", config)
            kill_somewhere(process, run, left, generator)
            if process.wait(timeout=120) == 0:
                break
            killed += 1
            unfinished += bool(unfinished_snapshots(run) - left)
        assert run_uniattn("train", config)["outcome"] == "finished"
        assert snapshot_bytes(run, steps) == snapshot_bytes(straight, steps)
        assert without_times(metrics(run)) == without_times(metrics(straight))
        assert not any((run / "checkpoints").glob("*.partial"))
        shutil.rmtree(run)
    print(f"{killed} kills in {rounds} runs, {unfinished} while a snapshot was being written")


def kill_somewhere(process, run, left, generator):
    """Kills the process while it writes a snapshot, or at a moment from its start to beyond its end.

    left: the unfinished snapshots that stood there before.
    """
    if generator.random() < 0.5:
        while process.poll() is None and not unfinished_snapshots(run) - left:
            time.sleep(0.0005)
        time.sleep(generator.uniform(0, 0.004))
    else:
        time.sleep(generator.uniform(0, 3.0))
    process.kill()


def unfinished_snapshots(run):
    """Names and numbers of the folders: a name may come again."""
    try:
        return {(folder.name, folder.stat().st_ino) for folder in (run / "checkpoints").glob("*.partial")}
    except FileNotFoundError:  # renamed meanwhile
        return set()


def test_resume_in_another_split(run_uniattn, project):
    """The rows of a step stay the same: losses go on as they would have, to rounding."""
    straight = split_run(run_uniattn, project, "straight", [(1, 4)])
    changed = split_run(run_uniattn, project, "changed", [(1, 4), (4, 1), (2, 2)])
    assert [m["supervised_tokens"] for m in changed] == [m["supervised_tokens"] for m in straight]
    assert [m["loss"] for m in changed] == pytest.approx([m["loss"] for m in straight], rel=1e-4)
    assert [m["grad_norm"] for m in changed] == pytest.approx([m["grad_norm"] for m in straight], rel=1e-3)


def split_run(run_uniattn, project, name, splits):
    config, run = project.config(name, calibration=None)
    for micro, accumulation in splits:
        split = (f"optimizer.micro_batch={micro}", f"optimizer.accumulation={accumulation}")
        stop = () if (micro, accumulation) == splits[-1] else ("--stop-after", 3)
        run_uniattn("train", config, *split, *stop)
    return steps(run)


def test_changes_are_named_and_refused(run_uniattn, project):
    config, run = project.config("changed", calibration=None)
    run_uniattn("train", config, "--stop-after", 3)
    changes = ("optimizer.beta2=0.95", "stages.1.learning_rate=0.5")
    keys = [change.split("=")[0] for change in changes]
    run_uniattn.fails(2, "train", config, *changes, naming=[*keys, "0.999", "--accept-changes"])
    batch = ["micro_batch x optimizer.accumulation", "4 there, 8 now"]
    run_uniattn.fails(2, "train", config, "optimizer.micro_batch=4", naming=batch)
    run_uniattn.fails(2, "train", config, "plan.group=4", "--accept-changes", naming=["plan.group"])
    # What changes no weight needs no flag.
    run_uniattn("train", config, "--stop-after", 1, "checkpoint.keep_last=3", "export.dtype=bfloat16")
    accepted = (*changes, "optimizer.micro_batch=4", "--accept-changes")
    assert run_uniattn("train", config, *accepted)["outcome"] == "finished"
    assert metrics(run)[-1]["run_step"] == 10


def test_changed_data_is_named_and_refused(run_uniattn, project):
    config, run = project.config("data", calibration=None)
    run_uniattn("train", config, "--stop-after", 3)
    with open(project.train, "a") as file:
        file.write("5 6 7 8 9\n")
    run_uniattn.fails(2, "train", config, naming=["training data", "--accept-changes"])
    assert run_uniattn("train", config, "--accept-changes")["outcome"] == "finished"


def test_epochs_keep_their_share_when_the_batch_changes(run_uniattn, project):
    """Half an epoch in steps of 4 rows, the rest in steps of 2: every row once."""
    stages = [{"name": "all", "train": "all", "epochs": 1, "learning_rate": 1.0e-3}]
    config, run = project.config("epoch", calibration=None, stages=stages, data=unpacked(project))
    run_uniattn("train", config, "--stop-after", 5)
    run_uniattn("train", config, "optimizer.accumulation=1", "--accept-changes")
    lines = steps(run)
    assert len(lines) == 5 + 10
    assert sum(m["tokens"] for m in lines) == sum(len(line.split()) for line in project.train.read_text().splitlines())


def unpacked(project):
    ids = lambda path: [{"path": str(path), "format": "ids"}]
    return {"train": ids(project.train), "eval": ids(project.held_out), "max_length": 64, "pack": False}


def test_best_snapshots_stay(run_uniattn, project):
    # A rate that overshoots: the end is not the best.
    stages = [{"name": "all", "train": "all", "max_steps": 8, "learning_rate": 0.05}]
    checkpoint = {"every_steps": 1, "keep_last": 1, "keep_best": 2}
    config, run = project.config("best", calibration=None, stages=stages, checkpoint=checkpoint)
    run_uniattn("train", config)
    losses = {m["run_step"]: m["held_out_loss"] for m in metrics(run) if "held_out_loss" in m}
    assert sorted(losses) == list(range(1, 9))
    best = sorted(losses, key=losses.get)[:2]
    kept = {int(folder.name.split("-")[1]) for folder in (run / "checkpoints").glob("step-*")}
    assert kept == {8, *best}
    for step in kept:
        state = json.loads((run / "checkpoints" / f"step-{step}" / "manifest.json").read_text())["state"]
        assert state["held_out_loss"] == losses[step]


def test_snapshots_by_time(run_uniattn, project):
    checkpoint = {"every_steps": 0, "every_minutes": 1.0e-6, "keep_last": 99}
    config, run = project.config("minutes", calibration=None, checkpoint=checkpoint)
    run_uniattn("train", config)
    assert len(list((run / "checkpoints").glob("step-*"))) == 10
