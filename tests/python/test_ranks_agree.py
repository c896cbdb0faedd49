"""What commands find on 2 and 4 ranks is what they find alone: calibration, plan search, evaluation."""

import json
import sys

import pytest
from safetensors.torch import load_file
from support.models import LLAMA3, write_base
from support.runs import VOCAB, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agree")
    return Project(folder, write_base(folder / "base", vocab_size=VOCAB, num_hidden_layers=5, scaling=LLAMA3))


def launcher(ranks):
    return () if ranks == 1 else (
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", ranks,
    )  # fmt: skip


def results(run_uniattn, ranks, *arguments):
    """The one JSON object that all ranks together print."""
    done = run_uniattn.run(*arguments, "--json", prefix=launcher(ranks))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_ranks(make):
    return {ranks: make(ranks) for ranks in (1, 2, 4)}


def ids(path):
    return [{"path": str(path), "format": "ids"}]


@pytest.mark.parametrize("plan", [
    {"mode": "share_probs", "group": 2, "begin": 1, "end": 5, "compensation": {"rank": 8}},
    {"layers": [{"layer": 2, "mode": "share_kv", "leader": 0, "compensation": "full"},
                {"layer": 3, "mode": "linear", "compensation": {"rank": 8}}]},
], ids=["share_probs", "mixed"])  # fmt: skip
def test_calibration(run_uniattn, project, plan, request):
    def calibrate(ranks):
        calibration = {"data": ids(project.train), "samples": 0}
        file, run = project.config(f"{request.node.callspec.id}-{ranks}", plan=plan, calibration=calibration, stages=None)
        return results(run_uniattn, ranks, "calibrate", file), load_file(run / "calibration" / "weights.safetensors")

    runs = by_ranks(calibrate)
    alone, weights = runs[1]
    for report, found in (runs[2], runs[4]):
        assert report["layers"].__len__() == len(alone["layers"])
        for ours, theirs in zip(report["layers"], alone["layers"]):
            assert ours["layer"] == theirs["layer"] and ours.get("head_map") == theirs.get("head_map")
        assert found.keys() == weights.keys()
        for name, tensor in weights.items():
            assert (found[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def test_plan_search(run_uniattn, project):
    def search(ranks):
        file, _ = project.config(
            f"search-{ranks}", plan=None, calibration={"data": ids(project.train), "samples": 0}, stages=None,
            search={"budget": {"followers": 2}, "max_group": 3, "rescore": 2},
        )  # fmt: skip
        return results(run_uniattn, ranks, "plan", file)

    runs = by_ranks(search)
    for ranks in (2, 4):
        assert runs[ranks]["base_loss"] == pytest.approx(runs[1]["base_loss"], rel=1e-6)
        for key, number in (("candidates", "increase"), ("plans", "loss")):
            assert [one.get("name", one.get("segment")) for one in runs[ranks][key]] == [
                one.get("name", one.get("segment")) for one in runs[1][key]]
            for ours, theirs in zip(runs[ranks][key], runs[1][key]):
                assert ours[number] == pytest.approx(theirs[number], abs=1e-5)


@pytest.mark.parametrize("how", [(), ("--layerwise",)], ids=["whole", "layerwise"])
def test_evaluation(run_uniattn, project, how):
    runs = by_ranks(lambda ranks: results(
        run_uniattn, ranks, "eval", "--model", project.model, "--ids", project.train, "--window", 32, *how))  # fmt: skip
    for ranks in (2, 4):
        assert runs[ranks]["tokens"] == runs[1]["tokens"]
        assert runs[ranks]["loss"] == pytest.approx(runs[1]["loss"], rel=1e-6)


def test_evaluation_with_fewer_windows_than_ranks(run_uniattn, project, tmp_path):
    (tmp_path / "one.ids").write_text("5 6 7 8\n")
    evaluate = lambda ranks, *how: results(
        run_uniattn, ranks, "eval", "--model", project.model, "--ids", tmp_path / "one.ids", *how
    )
    for how in ((), ("--layerwise",)):
        assert evaluate(4, *how) == pytest.approx(evaluate(1, *how), rel=1e-6)


def test_logits_are_written_by_one_process(run_uniattn, project, tmp_path):
    done = run_uniattn.run("eval", "--model", project.model, "--ids", project.train, "--logits", tmp_path / "logits.safetensors",
                           prefix=launcher(2))  # fmt: skip
    assert done.returncode != 0 and "--logits is written by one process, and there are 2" in done.stderr
