"""Several processes as one group: sums, agreement, and what happens when a rank dies, hangs or never comes."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.ranks import TOOLS, Ranks, environment

PROBE = TOOLS / "parallel_probe"

pytestmark = pytest.mark.skipif(not PROBE.is_file(), reason=f"no {PROBE}: build the target parallel_probe")


def ranks_of(scenario, world_size, timeout=60, absent=()):
    return Ranks([PROBE, scenario, timeout], world_size, absent=absent)


def wait_until_joined(ranks):
    for process in ranks.processes.values():
        assert json.loads(process.stdout.readline())["world_size"] == len(ranks.processes)


def probe(scenario, variables):
    """One process, run to its end."""
    return subprocess.run([PROBE, scenario, "5"], env=environment(**variables), capture_output=True, text=True,
                          timeout=60)


def sample(rank, elements, dtype):
    return (torch.arange(1, elements + 1, dtype=torch.float64) * (rank + 1) / 7).to(dtype)


def check_sums(seen, world_size):
    """`seen` holds what each rank printed."""
    assert sorted(one["rank"] for one in seen) == list(range(world_size))
    for name, dtype, tolerance in [("Float", torch.float32, 1e-6), ("Double", torch.float64, 1e-14),
                                   ("BFloat16", torch.bfloat16, 2e-2), ("Long", torch.int64, 0)]:
        expected = sum(sample(rank, 20, dtype).double() for rank in range(world_size))
        torch.testing.assert_close(torch.tensor(seen[0][name], dtype=torch.float64), expected, rtol=tolerance, atol=0)
    transposed = sum(sample(rank, 6, torch.float32).view(2, 3).t() for rank in range(world_size)).flatten().double()
    torch.testing.assert_close(torch.tensor(seen[0]["transposed"], dtype=torch.float64), transposed, rtol=1e-6, atol=0)

    broadcast = sample(world_size - 1, 3, torch.float32).tolist()
    for one in seen:
        assert {key: one[key] for key in ("Float", "BFloat16", "digests")} == {
            key: seen[0][key] for key in ("Float", "BFloat16", "digests")}
        assert len(set(one["digests"])) == 1
        assert one["broadcast"] == broadcast
        assert one["sum"] == world_size * (world_size + 1) // 2
        assert one["double_sum"] == world_size / 2
        assert one["any"] == [False, True]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_sums_of_ranks_started_by_hand(world_size):
    with ranks_of("sums", world_size) as ranks:
        results = ranks.results()
    assert [code for code, _, _ in results] == [0] * world_size, results
    check_sums([json.loads(out) for _, out, _ in results], world_size)


def torchrun(world_size, scenario, timeout=60):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    return subprocess.run([*launcher, "--no-python", PROBE, scenario, str(timeout)],
                          env=environment(), capture_output=True, text=True, timeout=180)


def test_sums_under_torchrun():
    finished = torchrun(2, "sums")
    assert finished.returncode == 0, finished.stderr
    check_sums([json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")], 2)


def test_torchrun_reports_a_rank_that_differs():
    finished = torchrun(2, "differ")
    assert finished.returncode != 0
    assert "the configuration of rank 1 is not the one of rank 0" in finished.stderr


def test_one_rank_needs_no_environment_and_no_socket():
    for variables in ({}, {"WORLD_SIZE": 1, "RANK": 0}):
        alone = probe("sums", variables)
        assert alone.returncode == 0, alone.stderr
        check_sums([json.loads(alone.stdout)], 1)
    alone = probe("sockets", {})
    assert not [target for target in json.loads(alone.stdout)["open"] if target.startswith("socket:")]


def assert_all_end_and_one_says(results, message):
    """Every rank ends with code 1, and just one of them says why."""
    assert [code for code, _, _ in results] == [1] * len(results), results
    told = [err for _, _, err in results if message in err]
    assert len(told) == 1, results


def test_one_rank_names_the_one_that_differs():
    with ranks_of("differ", 3) as ranks:
        results = ranks.results()
    assert_all_end_and_one_says(results, "the configuration of rank 1 is not the one of rank 0")


@pytest.mark.parametrize("world_size, victim, message", [
    (2, 1, "rank 1 has died or is stopped; rank 0 of 2 noticed it"),
    (3, 2, "rank 2 has died or is stopped"),
    (3, 0, "rank 0, which ran the store at 127.0.0.1:"),
])  # fmt: skip
def test_a_killed_rank_ends_the_others(world_size, victim, message):
    with ranks_of("forever", world_size, timeout=20) as ranks:
        wait_until_joined(ranks)
        time.sleep(0.3)
        ranks[victim].kill()
        start = time.monotonic()
        results = ranks.results()
        assert time.monotonic() - start < 25
    assert_all_end_and_one_says([result for rank, result in enumerate(results) if rank != victim], message)


def test_a_stopped_rank_ends_the_others_after_the_timeout():
    with ranks_of("forever", 2, timeout=3) as ranks:
        wait_until_joined(ranks)
        ranks[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        _, err = ranks[0].communicate(timeout=60)
        assert time.monotonic() - start < 15
        assert ranks[0].returncode == 1
        assert "rank 1 has died or is stopped; rank 0 of 2 noticed it: all-reduce failed" in err
        ranks[1].send_signal(signal.SIGCONT)  # finds that it is over
        assert ranks[1].wait(timeout=30) == 1


def test_a_rank_that_is_stuck_is_named_and_ended():
    with ranks_of("stuck", 3, timeout=3) as ranks:
        results = ranks.results(timeout=60)
    assert_all_end_and_one_says(results, "rank 1 lives but did not come in time")
    assert "rank 1 of 3 is ended: another rank has failed" in results[1][2]


def test_an_exception_on_one_rank_ends_all_at_once():
    start = time.monotonic()
    with ranks_of("throw", 3, timeout=60) as ranks:
        results = ranks.results()
    assert time.monotonic() - start < 30
    assert_all_end_and_one_says(results, "rank 1 of 3: out of patience")
    assert "rank 0 of 3 ends: rank 1 has failed and says why" in results[0][2]


def test_a_rank_that_never_comes_is_named():
    with ranks_of("sums", 3, timeout=3, absent=[1]) as ranks:
        results = ranks.results()
    for code, _, err in results:
        assert code == 1, err
    assert "rank 0 of 3: rank 1 is not there after 3 s" in results[0][2]


def test_ranks_without_a_store_end():
    with ranks_of("sums", 2, timeout=3, absent=[0]) as ranks:
        (code, _, err), = ranks.results()
    assert code == 1
    assert "rank 1 of 2: cannot reach the store at 127.0.0.1:" in err


def test_ranks_of_a_slurm_step(tmp_path):
    """The variables that srun sets, and a host name as it abbreviates lists of them."""
    step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NODELIST": "localhost,other[3-7]", "SLURM_JOB_ID": 1234,
            "SLURM_STEP_ID": 0}  # fmt: skip
    processes = [
        subprocess.Popen([PROBE, "sums", "60"], stdout=subprocess.PIPE, text=True,
                         env=environment(**step, SLURM_PROCID=rank, SLURM_LOCALID=rank))
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    check_sums([json.loads(out) for out in outputs], 2)


@pytest.mark.parametrize("broken, message", [
    ({"RANK": "2"}, "RANK is '2', expected an integer from 0 to 1"),
    ({"RANK": ""}, "RANK is ''"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
    ({"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "2"}, "SLURM_PROCID is '2'"),
    ({"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "MASTER_ADDR": ""},
     "SLURM_STEP_NODELIST is not set"),
])
def test_a_wrong_environment_is_refused(broken, message):
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500} | broken
    finished = probe("sums", variables)
    assert finished.returncode == 2
    assert message in finished.stderr
