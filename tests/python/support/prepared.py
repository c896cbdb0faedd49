"""What `uniattn prepare` leaves behind."""

import json

from safetensors.numpy import load_file


def prepare(run_uniattn, project, sources, name="prepared", **data):
    """(counts of the training set, documents as (ids, labels) with -100 where there is no loss)."""
    data = {"train": sources, "max_length": 4096} | data
    config, run = project.config(name, plan=None, calibration=None, stages=None, data=data)
    counts = run_uniattn("prepare", config)["train"]
    return counts, documents(run)


def documents(run):
    (manifest,) = (run / "data").glob("*/prepared.json")
    found = []
    for shard in json.loads(manifest.read_text())["shards"]:
        columns = load_file(manifest.parent / shard["file"])
        for begin, end in zip(columns["offsets"], columns["offsets"][1:]):
            ids, supervised = columns["tokens"][begin:end].tolist(), columns["supervised"][begin:end]
            found.append((ids, [i if s else -100 for i, s in zip(ids, supervised)]))
    return found
