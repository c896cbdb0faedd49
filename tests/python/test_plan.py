"""`uniattn plan`: what it finds, that it goes on where it stopped, and what it refuses."""

import itertools
import json
import signal
import sys
import time

import pytest
import yaml
from support.models import GEMMA2, LLAMA3, follower, write_base, write_unified
from support.runs import VOCAB, Project, random_documents
from support.stories import sample, write_ids
from transformers import AutoModelForCausalLM

USAGE = 2
HELD_OUT = 4  # of the 40 documents of a Project, at the default share


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_base(
        tmp_path_factory.mktemp("models") / "base", vocab_size=VOCAB, num_hidden_layers=6, scaling=LLAMA3
    )


@pytest.fixture
def project(tmp_path, model):
    return Project(tmp_path, model)


def search_config(project, name, budget, fit=("head_map", "value", "output", "compensation"), **search):
    """(file, run folder) of a search whose plan file the same configuration names."""
    calibration = {"data": [{"path": str(project.train), "format": "ids"}], "samples": 0, "fit": list(fit)}
    plan = {"file": str(project.folder / name / "plan" / "plan.yaml")}
    sections = {"plan": plan, "calibration": calibration, "search": {"budget": budget, **search}, "stages": None}
    return project.config(name, **sections)


def log_names(run):
    return [json.loads(line)["name"] for line in (run / "plan" / "scores.jsonl").read_text().splitlines()]


def held_out_loss(run_uniattn, project, model):
    """Of the documents that calibration holds out: the last ones of its file."""
    ids = project.folder / "last.ids"
    ids.write_text("".join(project.train.read_text().splitlines(keepends=True)[-HELD_OUT:]))
    return run_uniattn("eval", "--model", model, "--ids", ids, "--window", 64)["loss"]


def test_the_plan_runs_and_gives_the_loss_that_was_measured(run_uniattn, project):
    config, run = search_config(project, "found", {"followers": 2}, max_group=3)
    result = run_uniattn("plan", config)
    assert result["base_loss"] == pytest.approx(held_out_loss(run_uniattn, project, project.model), abs=1e-4)
    best = result["plans"][0]
    assert best["loss"] == min(plan["loss"] for plan in result["plans"])
    layers = yaml.safe_load((run / "plan" / "plan.yaml").read_text())["layers"]
    assert [layer["layer"] for layer in layers] == best["followers"] and len(layers) == 2
    run_uniattn("run", config)
    assert held_out_loss(run_uniattn, project, run / "export") == pytest.approx(best["loss"], abs=1e-4)


SHARED, UNSHARED = ["share_probs", "share_kv"], ["linear", "skip"]


@pytest.mark.parametrize(
    "family,followers,modes,single",
    [
        ("llama", 1, SHARED + UNSHARED, 5 + 5 + 6 + 6),
        ("llama", 2, SHARED, 4 + 4),
        ("gemma2", 1, SHARED + UNSHARED, 4 + 4 + 6 + 6),
    ],
)
def test_a_segment_alone_costs_what_the_plan_with_it_does(
    run_uniattn, project, tmp_path, family, followers, modes, single
):
    """Scores are found in the running model, plans by calibration: with W_c alone they are the same thing twice."""
    if family == "gemma2":  # sliding and global layers in turns: a superblock of one follower spans three layers
        project.model = write_base(tmp_path / "gemma2", vocab_size=VOCAB, num_hidden_layers=6, **GEMMA2)
    config, _ = search_config(
        project, "alone", {"followers": followers}, fit=["compensation"], modes=modes, rescore=100
    )
    result = run_uniattn("plan", config)
    increases = {entry["segment"]: entry["increase"] for entry in result["candidates"]}
    alone = [plan for plan in result["plans"] if len(plan["segments"]) == 1]
    assert len(alone) == single
    for plan in alone:
        assert plan["loss"] - result["base_loss"] == pytest.approx(increases[plan["segments"][0]], abs=1e-4), plan


def test_regular_plans_are_measured_too(run_uniattn, project):
    config, _ = search_config(project, "regular", {"followers": 3}, rescore=1)
    plans = {name: plan for plan in run_uniattn("plan", config)["plans"] for name in plan["name"].split(", ")}
    assert plans["regular 2"]["followers"] == [1, 3, 5]
    assert plans["regular 3"]["followers"] == [2, 3, 5]
    assert plans["regular 4"]["followers"] == [3, 4, 5]


# Of the model above with four of its six layers following, W_c of rank 4, after 64 tokens. Elements of a projection: 48
# by 4 heads of 12, or by 2 for keys and values; multiplications of a head's token: 12 for q k, 12 for P v.
FULL, SHARED_LAYER = 48 * (48 + 24 + 24 + 48), 48 * (24 + 48) + 2 * 4 * 48
OTHER = 6 * (2 * 48 + 3 * 48 * 80) + 2 * VOCAB * 48 + 48
FOUR_FOLLOWERS = {
    "kv_bytes": (2 * 2 + 4) / (6 * 2),
    "attention_flops": (2 * (FULL + 2 * 65 * 48) + 4 * (SHARED_LAYER + 65 * 48)) / (6 * (FULL + 2 * 65 * 48)),
    "parameters": (2 * FULL + 4 * SHARED_LAYER + OTHER) / (6 * FULL + OTHER),
}


@pytest.mark.parametrize("kind", FOUR_FOLLOWERS)
def test_shares_of_the_base(run_uniattn, project, kind):
    """What four followers just keep needs all that can be, and the least bit less is impossible."""
    share = FOUR_FOLLOWERS[kind]
    config, _ = search_config(project, kind, {kind: round(share + 1e-6, 7)}, compensation={"rank": 4}, rescore=1)
    best = run_uniattn("plan", config)["plans"][0]
    assert len(best["followers"]) == 4
    inspected = run_uniattn("inspect", config)
    assert best["kv_fraction"] == inspected["kv_fraction"]
    assert best["parameter_fraction"] == pytest.approx(FOUR_FOLLOWERS["parameters"], abs=1e-9)
    run_uniattn.fails(USAGE, "plan", config, f"search.budget.{kind}={share - 1e-5:.7f}", naming=[kind])


def test_a_search_goes_on_where_it_stopped(run_uniattn, project):
    config, whole = search_config(project, "whole", {"followers": 2}, max_group=3)
    run_uniattn("plan", config)
    plan, lines = (
        (whole / "plan" / "plan.yaml").read_text(),
        (whole / "plan" / "scores.jsonl").read_text().splitlines(keepends=True),
    )
    for kept in (0, 4, len(lines) - 1):  # in the middle of a leader's candidates, and of the measured plans
        (whole / "plan" / "plan.yaml").unlink()
        (whole / "plan" / "scores.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
        run_uniattn("plan", config)
        assert (whole / "plan" / "plan.yaml").read_text() == plan
        assert (whole / "plan" / "scores.jsonl").read_text() == "".join(lines)


def test_sigterm_ends_cleanly(run_uniattn, project):
    write_ids(project.train, random_documents(400, 60, seed=5))
    config, run = search_config(project, "stopped", {"followers": 2})
    process = run_uniattn.start("plan", config)
    scores = run / "plan" / "scores.jsonl"
    while not (scores.exists() and scores.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and json.loads(out) == {"outcome": "stopped"}
    assert not (run / "plan" / "plan.yaml").exists()
    known = log_names(run)
    assert run_uniattn("plan", config)["outcome"] == "finished"
    assert log_names(run)[: len(known)] == known and len(set(log_names(run))) == len(log_names(run))


def test_scores_serve_other_budgets_and_no_other_settings(run_uniattn, project):
    config, run = search_config(project, "again", {"followers": 1}, max_group=2, rescore=1)
    run_uniattn("plan", config)
    before = log_names(run)
    run_uniattn("plan", config, "search.budget.followers=2")
    added = log_names(run)[len(before) :]
    assert added and all(name.startswith("plan") for name in added)
    run_uniattn("plan", config, "calibration.ridge=0.5")
    assert log_names(run).count("base") == 2


def test_two_ranks_find_what_one_does(run_uniattn, project):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", 2)
    reports = []
    for name, prefix in (("one", ()), ("two", launcher)):
        config, run = search_config(project, name, {"followers": 2}, max_group=3, rescore=1)
        done = run_uniattn.run("plan", config, prefix=prefix)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((run / "plan" / "report.json").read_text()))
    one, two = reports
    assert len(log_names(run)) == len(set(log_names(run)))
    assert [plan["name"] for plan in one["plans"]] == [plan["name"] for plan in two["plans"]]
    for ours, theirs in zip(one["candidates"], two["candidates"]):
        assert ours["increase"] == pytest.approx(theirs["increase"], abs=1e-5)


def test_dry_run(run_uniattn, project):
    config, run = search_config(project, "dry", {"followers": 1}, max_group=2)
    result = run_uniattn("plan", config, "--dry-run")
    # Five leaders, each two layers beside the base's two, which also walks to the last leader; a tenth of the tokens
    # then passes the layers behind.
    assert result["candidates"] == 5
    assert result["passes"] == pytest.approx((5 * 4 + 4 + 0.1 * (4 + 3 + 2 + 1)) / 6)
    assert not run.exists()


@pytest.mark.parametrize(
    "search,naming",
    [
        ({"max_group": 3}, ["search.budget", "none"]),
        ({"budget": {"followers": 1, "kv_bytes": 0.5}}, ["search.budget", "several"]),
        ({"budget": {"kv_bytes": 1.5}}, ["search.budget.kv_bytes", "1.5"]),
        ({"budget": {"followers": 1}, "modes": ["share_probz"]}, ["search.modes.0", "share_probz"]),
        ({"budget": {"followers": 1}, "modes": []}, ["search.modes"]),
        ({"budget": {"followers": 1}, "max_group": 1}, ["search.max_group"]),
        ({"budget": {"followers": 1}, "rescore": 0}, ["search.rescore"]),
        ({"budget": {"followers": 6}}, ["followers: 6", "followers: 4", "max_group"]),
        ({"budget": {"kv_bytes": 0.5}}, ["kv_bytes: 0.5000", "kv_bytes: 0.6667"]),
        ({"budget": {"folowers": 1}}, ["folowers", "followers"]),
    ],
    ids=str,
)
def test_bad_searches(run_uniattn, project, search, naming):
    config, _ = project.config("bad", plan=None, search=search, stages=None)
    run_uniattn.fails(USAGE, "plan", config, naming=naming)


def test_what_else_is_missing(run_uniattn, project):
    config, _ = project.config("bad", stages=None)
    run_uniattn.fails(USAGE, "plan", config, naming=["bad.yaml", "search"])
    search = {"budget": {"followers": 1}}
    config, _ = project.config("bad", calibration=None, search=search)
    run_uniattn.fails(USAGE, "plan", config, naming=["search", "calibration"])
    config, _ = project.config("bad", plan=None, search=search, stages=None)
    run_uniattn.fails(USAGE, "run", config, naming=["uniattn plan", "plan.file"])
    layers = [{"mode": "full"}, follower(0)] + [{"mode": "full"}] * 4
    unified = write_unified(project.folder / "unified", project.model, layers)
    config, _ = project.config("bad", plan=None, search=search, stages=None, model={"path": str(unified)})
    run_uniattn.fails(USAGE, "plan", config, naming=["unified"])


def test_a_damaged_score_is_named(run_uniattn, project):
    config, run = search_config(project, "damaged", {"followers": 1}, max_group=2)
    run_uniattn("plan", config)
    scores = run / "plan" / "scores.jsonl"
    scores.write_text("{}\n" + scores.read_text())
    run_uniattn.fails(1, "plan", config, naming=["scores.jsonl:1"])


def every_plan(followers, layers):
    """All plans of share_probs with so many followers: each follows the nearest layer before it that does not."""
    for chosen in itertools.combinations(range(1, layers), followers):
        leaders = [max(set(range(layer)) - set(chosen)) for layer in chosen]
        yield [
            {"layer": layer, "mode": "share_probs", "leader": leader, "compensation": "full"}
            for layer, leader in zip(chosen, leaders)
        ]


def test_stories_close_to_the_exhaustive_optimum(run_uniattn, stories, tmp_path):
    """On a model that was really trained: every plan of one and two followers, measured on text of its own."""
    hf = AutoModelForCausalLM.from_pretrained(stories.path)
    calibration = write_ids(tmp_path / "calibration.ids", sample(hf, count=80, length=160, seed=1))
    held_out = write_ids(tmp_path / "held_out.ids", sample(hf, count=60, length=160, seed=2))
    ids = lambda path: [{"path": str(path), "format": "ids"}]

    def run(name, plan, **sections):
        config = {
            "run": {"name": name, "dir": str(tmp_path / name)},
            "model": {"path": str(stories.path), "dtype": "float32"},
            "plan": plan,
            "calibration": {"data": ids(calibration), "samples": 0, "held_out": 0.25},
            "data": {"eval": ids(held_out), "max_length": 256},
            "export": {"dtype": "float32"},
        } | sections
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    for followers in (1, 2):
        found = run(f"found{followers}", {"file": str(tmp_path / f"found{followers}/plan/plan.yaml")},
                    search={"budget": {"followers": followers}})  # fmt: skip
        run_uniattn("plan", found)
        loss = run_uniattn("run", found)["loss"]
        every = {
            tuple(layer["layer"] for layer in layers): run_uniattn("run", run(f"{followers}-{i}", {"layers": layers}))[
                "loss"
            ]
            for i, layers in enumerate(every_plan(followers, 5))
        }
        print(followers, f"found {loss:.4f}", {plan: round(loss, 4) for plan, loss in sorted(every.items(), key=lambda x: x[1])})
        assert loss <= min(every.values()) + 0.03
        assert loss <= every[(4,) if followers == 1 else (2, 4)]  # the regular plan `2 b 5`
