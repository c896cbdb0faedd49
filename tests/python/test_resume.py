"""A stopped, killed or failed training run goes on as if nothing had happened."""

import json
import shutil
import signal
import time

import pytest
from support.runs import metrics, snapshot_bytes


def without_times(lines):
    return [{k: v for k, v in m.items() if k not in ("seconds", "tokens_per_s")} for m in lines]


def assert_same_training(run, reference):
    assert snapshot_bytes(run, 10) == snapshot_bytes(reference, 10)
    assert without_times(metrics(run)) == without_times(metrics(reference))


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resume_is_bit_exact(finished, run_uniattn, project, stop):
    config, run = project.config("resumed")
    run_uniattn("calibrate", config)
    assert run_uniattn("train", config, "--stop-after", stop)["outcome"] == "stopped"
    assert len(metrics(run)) == stop
    assert run_uniattn("train", config)["outcome"] == "finished"
    assert_same_training(run, finished[1])


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_a_signal(finished, run_uniattn, project, signal_number):
    config, run = project.config("killed", checkpoint={"every_steps": 1})
    run_uniattn("calibrate", config)
    process = run_uniattn.start("train", config)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-2" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal_number)
    out, _ = process.communicate(timeout=60)
    if signal_number == signal.SIGTERM:
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
