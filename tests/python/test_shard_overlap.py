"""Communication runs beside computation, and only when it must: the order in which a rank starts, computes and waits."""

import pytest
from support.models import write_base
from support.ranks import TOOLS, run_ranks
from support.runs import VOCAB, Project

TRAIN = TOOLS / "train_ranks"
RANKS, LAYERS = 2, 4
COMPUTES = {"uniattn::linear", "uniattn::attention_forward", "uniattn::superblock_backward", "aten::embedding_dense_backward"}
GATHER, REDUCE = [(f"start {name}", f"wait for {name}") for name in ("all-gather", "reduce-scatter")]

pytestmark = pytest.mark.skipif(not TRAIN.is_file(), reason=f"no {TRAIN}: build the target train_ranks")


@pytest.fixture(scope="module")
def step_of(tmp_path_factory):
    """step_of(shard, accumulation, …) → what rank 0 did in a step, in order: (forward and backward passes, update)."""
    folder, known = tmp_path_factory.mktemp("overlap"), {}
    project = Project(folder, write_base(folder / "base", vocab_size=VOCAB, num_hidden_layers=LAYERS))

    def make(shard, accumulation, train="all"):
        name = f"{shard}-{accumulation}-{train}"
        if name not in known:
            run(name, shard, accumulation, train)
            known[name] = (folder / f"{name}.txt").read_text().splitlines()
        lines = known[name]
        update = lines.index("aten::_fused_adamw_")
        return lines[:update], lines[update:]

    def run(name, shard, accumulation, train):
        file, _ = project.config(
            name, calibration=None, parallel={"shard": shard, "timeout_seconds": 60},
            data={"train": [{"path": str(project.train), "format": "ids"}], "max_length": 64},
            stages=[{"name": "only", "train": train, "max_steps": 1, "learning_rate": 1.0e-3}],
            optimizer={"micro_batch": 1, "accumulation": accumulation},
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRAIN_RANKS_TIMELINE", str(folder / f"{name}.txt"))
            run_ranks([TRAIN, file], RANKS)

    return make


def micro_batches(lines):
    """Each from its embedding on."""
    begins = [i for i, line in enumerate(lines) if line == "aten::embedding"]
    return [lines[begin:end] for begin, end in zip(begins, [*begins[1:], None])]


def computes_meanwhile(lines, collective):
    """Of each of these collectives, in the order of their starts: is something computed before it is waited for?"""
    start, wait = collective
    found, pending = [], []
    for line in lines:
        if line == start:
            pending.append(len(found))
            found.append(False)
        elif line == wait:
            pending.pop(0)
        elif line in COMPUTES:
            for i in pending:
                found[i] = True
    assert not pending
    return found


def test_parameters_of_the_next_part_come_while_this_one_computes(step_of):
    lines, _ = step_of("full", 1)
    gathers = computes_meanwhile(lines, GATHER)
    assert len(gathers) == (LAYERS + 2) + LAYERS, gathers
    # Not so the first two of the forward pass, beside which there is but the embedding to look up, and the first of
    # the backward pass, which the head's own gradient just precedes.
    assert gathers == [False, False] + LAYERS * [True] + [False] + (LAYERS - 1) * [True]


@pytest.mark.parametrize("shard", ["none", "optimizer", "gradients", "full"])
def test_gradients_are_reduced_while_the_part_below_computes(step_of, shard):
    lines, _ = step_of(shard, 2)
    reductions = computes_meanwhile(micro_batches(lines)[-1], REDUCE)
    assert reductions == (LAYERS + 1) * [True] + [False]  # below the embedding there is nothing


@pytest.mark.parametrize("shard", ["none", "optimizer", "gradients", "full"])
def test_gradients_are_sent_in_the_last_micro_batch(step_of, shard):
    lines, _ = step_of(shard, 3)
    *early, last = micro_batches(lines)
    assert last.count(REDUCE[0]) == LAYERS + 2
    for batch in early:
        if shard == "full":  # it keeps no whole sums: its gradients go in each
            assert batch.count(REDUCE[0]) == LAYERS + 2
        else:
            assert not [line for line in batch if line.startswith("start ")]


def test_frozen_parts_send_no_gradients(step_of):
    """Stage 1 trains the compensations of two of the four layers."""
    lines, _ = step_of("full", 1, train="compensation")
    assert lines.count(REDUCE[0]) == 2


def test_updates_run_beside_the_gathering_of_others(step_of):
    _, lines = step_of("optimizer", 2)
    starts, waits, updates = (
        [i for i, line in enumerate(lines) if line == kind] for kind in (*GATHER, "aten::_fused_adamw_")
    )
    assert len(waits) == LAYERS + 2
    starts = [i for i in starts if i > updates[0]][: len(waits)]
    for start, wait in list(zip(starts, waits))[:-1]:
        assert any(start < i < wait for i in updates)
