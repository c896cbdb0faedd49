"""`uniattn bench attention` runs every phase on a tiny case and writes what it says; its times are not looked at."""

import csv

import pytest

pytest.importorskip("matplotlib")


def test_rows_csv_and_plot(tmp_path, capsys, monkeypatch):
    from uniattn.bench import attention, attention_cases

    timed = attention_cases.timed
    monkeypatch.setattr(attention_cases, "timed", lambda *arguments: (*timed(*arguments)[:2], True))  # busy machines too
    files = tmp_path / "rows.csv", tmp_path / "ratios.png"
    options = ["--tokens", "65", "--heads", "4", "--kv-heads", "2", "--head-dim", "32", "--group", "1", "2", "--threads", "1"]
    attention.main([*options, "--rounds", "2", "--csv", str(files[0]), "--plot", str(files[1])])
    with open(files[0]) as file:
        rows = list(csv.DictReader(file))
    # 2 dtypes * (2 groups * 2 ways to reuse P * 3 phases + decode of a leader and a follower)
    assert len(rows) == 2 * (2 * 2 * 3 + 2)
    assert {row["phase"] for row in rows} == {"forward", "backward", "both", "decode"}
    assert all(int(row["rounds"]) == 2 and float(row["ours_ms"]) > 0 and float(row["limit"]) > 0 for row in rows)
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith("# ")
