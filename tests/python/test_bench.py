"""`uniattn bench NAME` starts the benchmark of that name."""

import pytest

NAMES = ("attention", "calibrate", "decode", "prefill", "train")


@pytest.mark.parametrize("name", NAMES)
def test_help_is_the_benchmarks_own(run_uniattn, name):
    done = run_uniattn.run("bench", name, "--help")
    assert done.returncode == 0 and f"usage: uniattn bench {name}" in done.stdout, done.stderr


def test_usage_errors_keep_their_exit_code(run_uniattn):
    run_uniattn.fails(2, "bench", "nothing", naming=["subcommand"])
    run_uniattn.fails(2, "bench", "calibrate", "--plan", "2", naming=["--plan"])
