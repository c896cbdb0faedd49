"""`uniattn prepare`: every record is accounted for, whatever it holds, in memory that does not grow with the data."""

import json
import os
import random
import subprocess
import sys

import pytest
from support.prepared import documents, prepare
from support.runs import Project, write_tokenizer

GOOD = {"messages": [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "the model"}]}
SPELLINGS = ["<s>", "</s>", "<unk>", "<|eot_id|>", "[INST]", "<start_of_turn>", "<0x0A>", "\u2581", "\ufeff", "\0", "\u202e", "\U0010ffff"]


@pytest.fixture(scope="module")
def text_project(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    model = folder / "model"
    model.mkdir()
    for file in base.iterdir():
        (model / file.name).symlink_to(file)
    write_tokenizer(model)
    return Project(folder, model)


def random_value(generator, depth=0):
    if depth < 4 and generator.random() < 0.5:
        items = [random_value(generator, depth + 1) for _ in range(generator.randint(0, 4))]
        keys = ["messages", "role", "content", "text", "instruction", "input", "output", "user", "assistant"]
        return items if generator.random() < 0.5 else {generator.choice(keys): item for item in items}
    return generator.choice([None, True, 0, -1, 1e300, "", " ", "user", "assistant", "system", "tool", generator.choice(SPELLINGS)])


def damaged_line(generator):
    """One line of bytes, and whether it is a record that can be learnt from (None: whatever it turns out to be)."""
    message = lambda role, content: {"role": role, "content": content}
    text = "".join(generator.choices([*SPELLINGS, "the ", "model", "\n", " ", "é", "😀"], k=generator.randint(0, 12)))
    kind = generator.randrange(9)
    if kind == 0:
        return json.dumps(random_value(generator)).encode(), None
    if kind == 1:  # bytes that are hardly JSON, without line breaks
        return bytes(generator.choice([b for b in range(256) if b not in (10, 13)]) for _ in range(generator.randint(1, 60))), None
    if kind == 2:  # cut short
        line = json.dumps(GOOD).encode()
        return line[: generator.randint(1, len(line) - 1)], False
    if kind == 3:  # invalid UTF-8 inside a string
        return json.dumps(GOOD).encode().replace(b"model", generator.choice([b"\xff", b"\xc3", b"\xed\xa0\x80"])), False
    if kind == 4:
        blank = generator.choice(["", " ", "\n\t", "\u3000", "\u00a0 "])
        return json.dumps({"messages": [message("user", text + "q"), message("assistant", blank)]}).encode(), False
    if kind == 5:
        return json.dumps({"messages": [message("user", text), message("user", text)]}).encode(), False
    if kind == 6:
        roles = generator.choices(["system", "user", "assistant", "tool"], k=generator.randint(0, 5))
        return json.dumps({"messages": [message(role, text) for role in roles]}).encode(), None
    if kind == 7:
        return json.dumps({"messages": [message("user", text), message("assistant", text + " yes")]}).encode(), True
    return json.dumps(GOOD).encode(), True


def test_ten_thousand_damaged_and_odd_records(run_uniattn, text_project):
    generator = random.Random(11)
    lines, good = [], 0
    while len(lines) < 10_000:
        line, learnable = damaged_line(generator)
        if line.strip(b" \t\r"):  # a blank line is no record
            lines.append(line)
            good += learnable is True
    megabyte = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "the model " * 100_000}]})
    lines += [megabyte.encode(), b"[" * 1_000_000, b'{"a":' * 200_000, b'"' + b"x" * 1_000_000]
    file = text_project.folder / "damaged.jsonl"
    lines.insert(0, b'"\xff' + b"x" * 1_000_000)  # the first bad record is quoted
    file.write_bytes(b"\n".join(lines))
    source = {"path": str(file), "format": "messages"}
    counts, found = prepare(run_uniattn, text_project, [source], "damaged", max_length=256)
    dropped = sum(value for key, value in counts.items() if key.startswith("dropped_"))
    assert counts["read"] == len(lines) == counts["kept"] + dropped
    assert counts["kept"] == len(found) and good <= counts["kept"] < 0.6 * len(lines)
    assert counts["truncated"] >= 1
    assert all(any(label != -100 for label in labels) for _, labels in found)
    assert all(ids[0] == 1 and ids.count(1) == 1 and len(ids) <= 256 for ids, _ in found)
    assert f"{file}:1, record 1" in counts["sources"][0]["first_bad"] and len(counts["sources"][0]["first_bad"]) < 500

    config, _ = text_project.config(
        "strict", plan=None, calibration=None, stages=None, data={"train": [source], "bad_records": "error"}
    )
    run_uniattn.fails(1, "prepare", config, naming=[f"{file}:", "record"])


def test_a_truncated_answer_keeps_its_end(run_uniattn, text_project):
    file = text_project.folder / "long.jsonl"
    chats = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "the model " * n}] for n in range(1, 60)]
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    _, found = prepare(run_uniattn, text_project, [{"path": str(file), "format": "messages"}], "long", max_length=32)
    assert len(found) == len(chats)
    assert all(ids[-1] == 2 == labels[-1] and ids.count(2) == 1 for ids, labels in found)


def test_sets_and_single_rounds(run_uniattn, text_project):
    folder = text_project.folder
    rounds = [GOOD, {"messages": GOOD["messages"] * 2}, {"messages": [{"role": "user", "content": " "}, GOOD["messages"][1]]}]
    (folder / "tulu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rounds))
    (folder / "pmc.json").write_text(json.dumps([{"instruction": "i", "input": "", "output": "o", "source": "s"}] * 3))
    sources = [
        {"path": str(folder / "tulu.jsonl"), "format": "tulu_single_round", "weight": 2},
        {"path": str(folder / "pmc.json"), "format": "alpaca"},
    ]
    counts, found = prepare(run_uniattn, text_project, sources, "sets")
    assert (counts["read"], counts["kept"], counts["dropped_filtered"]) == (6, 4, 2)
    assert [source["kept"] for source in counts["sources"]] == [1, 3] and counts["sources"][0]["weight"] == 2
    assert counts["tokens"] == sum(len(ids) for ids, _ in found)
    assert counts["supervised"] == sum(label != -100 for _, labels in found for label in labels)


def test_the_report_of_a_second_run_is_that_of_the_first(run_uniattn, text_project):
    (text_project.folder / "again.jsonl").write_text(json.dumps(GOOD) + "\n{\n")
    source = {"path": str(text_project.folder / "again.jsonl"), "format": "messages"}
    config, run = text_project.config("again", plan=None, calibration=None, stages=None, data={"train": [source]})
    first = run_uniattn.run("prepare", config, "--show", 1)
    (manifest,) = (run / "data").glob("*/prepared.json")
    written = manifest.stat().st_mtime_ns
    second = run_uniattn.run("prepare", config, "--show", 1)
    assert first.returncode == 0 and first.stdout == second.stdout and manifest.stat().st_mtime_ns == written
    assert "<BOS><|user|> what is it <|assistant|>[[the model<EOS>]]" in first.stdout
    assert "again.jsonl:2" in first.stderr and "again.jsonl:2" in second.stderr


# A process counts the memory of the one that it was forked from: this one is small.
MEASURE = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"""


def peak_memory(binary, config):
    """Bytes; the program must succeed."""
    command = [sys.executable, "-c", MEASURE, binary, "prepare", config]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


def test_memory_does_not_grow_with_the_data(binary, text_project):
    line = json.dumps({"messages": [GOOD["messages"][0], {"role": "assistant", "content": "the model learns " * 600}]}) + "\n"
    memory = {}
    for megabytes in (6, 24):
        file = text_project.folder / f"{megabytes}.jsonl"
        file.write_text(line * (megabytes * 1_000_000 // len(line)))
        source = {"path": str(file), "format": "messages"}
        config, _ = text_project.config(
            f"memory-{megabytes}", plan=None, calibration=None, stages=None, data={"train": [source], "max_length": 64}
        )
        memory[megabytes] = peak_memory(binary, config)
    assert memory[24] - memory[6] < 8_000_000
