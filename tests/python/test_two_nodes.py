"""Two nodes with a network between them: network name spaces of this machine, joined by a virtual cable, torchrun on each."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from support.ranks import environment, newest_snapshot, snapshot_tensors
from support.runs import steps

NODES, RANKS_PER_NODE = 2, 2
INTERFACE = "uniattn0"
STEPS = [
    {"name": "compensation", "train": "compensation", "max_steps": 3, "learning_rate": 1.0e-3},
    {"name": "all", "train": "all", "max_steps": 3, "learning_rate": 1.0e-3},
]


class Node:
    """A network of its own, as long as a process that sleeps in it."""

    def __init__(self, number):
        self.number = number
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "3600"])
        deadline = time.monotonic() + 10
        while self.network() == os.readlink("/proc/self/ns/net"):
            assert time.monotonic() < deadline and self.holder.poll() is None
            time.sleep(0.01)

    def network(self):
        return os.readlink(f"/proc/{self.holder.pid}/ns/net")

    def address(self):
        return f"10.77.0.{self.number + 1}"

    def inside(self, *command):
        return ["nsenter", "--net", "--target", str(self.holder.pid), *map(str, command)]

    def set_up(self):
        for command in (["addr", "add", f"{self.address()}/24", "dev", INTERFACE], ["link", "set", INTERFACE, "up"],
                        ["link", "set", "lo", "up"]):  # fmt: skip
            subprocess.run(self.inside("ip", *command), check=True)

    def lose(self):
        """Kills all that runs here; the network stays."""
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                if int(process) != self.holder.pid and os.readlink(f"/proc/{process}/ns/net") == self.network():
                    os.kill(int(process), signal.SIGKILL)
            except OSError:  # it has ended
                pass

    def start(self, command, port):
        """torchrun as docs/distributed.md has it."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", NODES, "--node-rank", self.number,
                    "--nproc-per-node", RANKS_PER_NODE, "--master-addr", "10.77.0.1", "--master-port", port]  # fmt: skip
        return subprocess.Popen(
            self.inside(*torchrun, "--no-python", *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(GLOO_SOCKET_IFNAME=INTERFACE),
        )  # fmt: skip


def cable(nodes):
    ends = [["netns", str(node.holder.pid)] for node in nodes]
    return subprocess.run(["ip", "link", "add", INTERFACE, *ends[0], "type", "veth", "peer", "name", INTERFACE, *ends[1]],
                          capture_output=True, text=True)  # fmt: skip


@pytest.fixture(scope="module")
def nodes():
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not make networks (unshare --net)")
    nodes = []
    try:
        nodes += [Node(number) for number in range(NODES)]
        made = cable(nodes)
        if made.returncode != 0:
            pytest.skip(f"this machine has no virtual cables (ip link add … type veth): {made.stderr.strip()}")
        for node in nodes:
            node.set_up()
        yield nodes
    finally:
        for node in nodes:
            node.holder.kill()
            node.holder.wait()


def run_on(nodes, command, port):
    """All nodes to their end: (exit code, stderr) of each torchrun."""
    launchers = [node.start(command, port) for node in nodes]
    outputs = [launcher.communicate(timeout=120) for launcher in launchers]
    return [(launcher.returncode, err) for launcher, (_, err) in zip(launchers, outputs)]


def assert_equal_to(run, reference):
    assert [line["step"] for line in steps(run)] == [line["step"] for line in steps(reference)]
    for line, expected in zip(steps(run), steps(reference)):
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(expected[key], rel=1e-6), (expected["step"], key)
    found, expected = (snapshot_tensors(newest_snapshot(path)) for path in (run, reference))
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def configure(project, name, micro_batch, **parallel):
    return project.config(
        name, stages=STEPS, optimizer={"micro_batch": micro_batch, "accumulation": 2, "eps": 1e-2},
        checkpoint={"every_steps": 1}, parallel={"timeout_seconds": 30, **parallel},
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(run_uniattn, tmp_path_factory, base):
    """One process."""
    from support.runs import Project

    project = Project(tmp_path_factory.mktemp("reference"), base)
    file, run = configure(project, "alone", 4)
    run_uniattn("run", file)
    return project, run


def test_two_nodes_train_and_resume(nodes, reference, binary):
    """Slices within a node and replicas across them; then slices across all, by the same command."""
    project, expected = reference
    file, run = configure(project, "nodes", 1, shard="full", replicas=NODES)
    results = run_on(nodes, [binary, "calibrate", file], port=29501)
    assert [code for code, _ in results] == [0, 0], results
    results = run_on(nodes, [binary, "train", file, "--stop-after", 4], port=29502)
    assert [code for code, _ in results] == [0, 0], results
    assert newest_snapshot(run).name == "step-4"
    configure(project, "nodes", 1, shard="gradients")
    results = run_on(nodes, [binary, "run", file], port=29503)
    assert [code for code, _ in results] == [0, 0], results
    assert_equal_to(run, expected)
    ours, theirs = (load_file(path / "export" / "model.safetensors") for path in (run, expected))
    assert all((ours[name] - tensor).norm() <= 1e-5 * tensor.norm() for name, tensor in theirs.items())


def test_a_lost_node_ends_the_other_and_the_run_goes_on(nodes, reference, binary):
    project, expected = reference
    file, run = configure(project, "lost", 1, shard="full")
    launchers = [node.start([binary, "run", file], 29504) for node in nodes]
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "step-2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    nodes[1].lose()
    _, err = launchers[0].communicate(timeout=120)
    launchers[1].communicate()
    assert launchers[0].returncode != 0 and "has died or is stopped" in err, err
    assert newest_snapshot(run).name != "step-6"
    results = run_on(nodes, [binary, "run", file], port=29505)
    assert [code for code, _ in results] == [0, 0], results
    assert_equal_to(run, expected)
