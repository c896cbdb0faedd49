"""Several processes as one group: sums, agreement, and what happens when a rank dies, hangs or never comes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
PROBE = Path(os.environ.get("UNIATTN_BUILD", REPOSITORY / "build" / "release")) / "tests" / "cpp" / "parallel_probe"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")

pytestmark = pytest.mark.skipif(not PROBE.is_file(), reason=f"no {PROBE}: build the target parallel_probe")


def environment(**variables):
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**clean, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Ranks:
    """Processes started with torchrun's variables, by hand; killed at the end of the test if they still live."""

    def __init__(self, scenario, world_size, timeout=60, absent=()):
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [PROBE, scenario, str(timeout)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=environment(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1",
                                MASTER_PORT=port),
            )
            for rank in range(world_size) if rank not in absent
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def __getitem__(self, rank):
        return self.processes[rank]

    def wait_until_joined(self):
        for process in self.processes:
            assert json.loads(process.stdout.readline())["world_size"] == len(self.processes)

    def results(self):
        """(exit code, stdout, stderr) of each, all within two minutes."""
        outputs = [process.communicate(timeout=120) for process in self.processes]
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs)]


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

    parts = [(3, torch.float32), (4, torch.bfloat16), (0, torch.float32), (5, torch.float64)]
    assert len(seen[0]["several"]) == len(parts)
    for found, (elements, dtype) in zip(seen[0]["several"], parts):
        expected = sum(sample(rank, elements, dtype).float() for rank in range(world_size)).to(dtype).double()
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-6, atol=0)

    broadcast = sample(world_size - 1, 3, torch.float32).tolist()
    for one in seen:
        assert {key: one[key] for key in ("Float", "BFloat16", "several", "digests")} == {
            key: seen[0][key] for key in ("Float", "BFloat16", "several", "digests")}
        assert len(set(one["digests"])) == 1
        assert one["broadcast"] == broadcast
        assert one["sum"] == world_size * (world_size + 1) // 2
        assert one["double_sum"] == world_size / 2
        assert one["any"] == [False, True]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_sums_of_ranks_started_by_hand(world_size):
    with Ranks("sums", world_size) as ranks:
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


def test_all_ranks_name_the_one_that_differs():
    with Ranks("differ", 3) as ranks:
        results = ranks.results()
    for rank, (code, _, err) in enumerate(results):
        assert code == 1
        assert f"rank {rank} of 3: the configuration of rank 1 is not the one of rank 0" in err


@pytest.mark.parametrize("world_size, victim", [(2, 1), (3, 2), (3, 0)])
def test_a_killed_rank_ends_the_others(world_size, victim):
    timeout = 20
    with Ranks("forever", world_size, timeout) as ranks:
        ranks.wait_until_joined()
        time.sleep(0.3)
        ranks[victim].kill()
        start = time.monotonic()
        results = ranks.results()
        assert time.monotonic() - start < timeout + 5
    for rank, (code, _, err) in enumerate(results):
        if rank != victim:
            assert code == 1, err
            assert f"rank {rank} of {world_size}: all-reduce failed" in err
            assert "another rank has died or does not answer" in err


def test_a_silent_rank_ends_the_others_after_the_timeout():
    with Ranks("forever", 2, timeout=3) as ranks:
        ranks.wait_until_joined()
        ranks[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        _, err = ranks[0].communicate(timeout=60)
        assert time.monotonic() - start < 15
    assert ranks[0].returncode == 1
    assert "rank 0 of 2: all-reduce failed" in err


def test_a_rank_that_never_comes_is_named():
    with Ranks("sums", 3, timeout=3, absent=[1]) as ranks:
        results = ranks.results()
    for code, _, err in results:
        assert code == 1, err
    assert "rank 0 of 3: rank 1 is not there after 3 s" in results[0][2]


def test_ranks_without_a_store_end():
    with Ranks("sums", 2, timeout=3, absent=[0]) as ranks:
        (code, _, err), = ranks.results()
    assert code == 1
    assert "rank 1 of 2: cannot reach the store at 127.0.0.1:" in err


@pytest.mark.parametrize("broken, message", [
    ({"RANK": "2"}, "RANK is '2', expected an integer from 0 to 1"),
    ({"RANK": ""}, "RANK is ''"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
])
def test_a_wrong_environment_is_refused(broken, message):
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500} | broken
    finished = probe("sums", variables)
    assert finished.returncode == 2
    assert message in finished.stderr
