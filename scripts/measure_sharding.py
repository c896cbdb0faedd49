#!/usr/bin/env python3
"""The table "Measured, 300 M parameters" of docs/scaling.md: memory and traffic of real ranks, beside what --dry-run says.

scripts/measure_sharding.py [--ranks 2] [--shard none full …] [--dtype bfloat16] [--csv FILE]

Needs the program and its test tools (build/release), some GB of memory per rank, and the right to make a network
(unshare --net), whose counters tell what was sent.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from scaling_tables import LLAMA, tensors

BUILD = Path(os.environ.get("UNIATTN_BUILD", Path(__file__).parents[1] / "build" / "release"))
MODEL = LLAMA | {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 18,
                 "num_attention_heads": 16, "num_key_value_heads": 16, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
DIVISIONS = [
    {"shard": "none"}, {"shard": "optimizer"}, {"shard": "gradients"}, {"shard": "full"},
    {"shard": "full", "replicas": 2}, {"shard": "optimizer", "offload": "optimizer"},
]  # fmt: skip
COLUMNS = ["ranks", "shard", "replicas", "offload", "parameters", "predicted_bytes", "measured_bytes", "memory_ratio",
           "predicted_sent", "measured_sent", "sent_ratio"]  # fmt: skip


def write_model(folder):
    """Random weights, and data of random ids. Returns the number of parameters."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for name, shape in tensors(MODEL)}
    save_file(weights, folder / "model.safetensors")
    ids = torch.randint(3, MODEL["vocab_size"], (64, 16), generator=generator).tolist()
    (folder / "train.ids").write_text("".join(" ".join(map(str, row)) + "\n" for row in ids))
    return sum(weight.numel() for weight in weights.values())


def write_config(folder, dtype, parallel, steps):
    config = {
        "run": {"name": "measured", "dir": str(folder / "run"), "peak_tflops": 1},
        "model": {"path": str(folder / "model"), "dtype": dtype},
        "plan": {"mode": "share_probs", "group": 2, "begin": 0, "end": 18},
        "data": {"train": [{"path": str(folder / "model" / "train.ids"), "format": "ids"}], "max_length": 16},
        "stages": [{"name": "all", "train": "all", "max_steps": steps, "learning_rate": 1.0e-4}],
        "checkpoint": {"every_steps": 1000},
        "parallel": parallel,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def train(folder, config, ranks):
    """Ranks in a network of their own: (most bytes of tensors on a rank, bytes that all of them sent)."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    script = f"""
        ip link set lo up
        for rank in $(seq 0 {ranks - 1}); do
            RANK=$rank LOCAL_RANK=$rank {BUILD}/tests/cpp/train_ranks {config} &
            pids="$pids $!"
        done
        for pid in $pids; do wait $pid || exit 1; done
        cat /proc/net/dev"""
    variables = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29400, "OMP_NUM_THREADS": 1}
    done = subprocess.run(["unshare", "--net", "bash", "-c", script], text=True, stdout=subprocess.PIPE,
                          env=os.environ | {name: str(value) for name, value in variables.items()})  # fmt: skip
    shutil.rmtree(folder / "run", ignore_errors=True)
    if done.returncode != 0:
        sys.exit(f"{config} on {ranks} ranks failed")
    lines = done.stdout.splitlines()
    loopback = next(line.split() for line in lines if line.strip().startswith("lo:"))
    return max(int(line) for line in lines if line.isdigit()), int(loopback[1])


def predict(config, ranks):
    command = [BUILD / "uniattn", "train", config, "--dry-run", "--json", "--world-size", str(ranks)]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    memory = plan["memory"]["all"]
    # On CPUs what a GPU would offload lies in the same memory.
    return plan["parameters"], memory["total"] + memory["host"], sum(plan["sent"]["all"].values()) * ranks


def measure(folder, ranks, dtype, parallel):
    sent = {}
    for steps in (1, 3):  # the difference is free of what happens once
        config = write_config(folder, dtype, parallel, steps)
        peak, sent[steps] = train(folder, config, ranks)
    parameters, expected_peak, expected_sent = predict(config, ranks)
    per_step = (sent[3] - sent[1]) / 2
    return dict(zip(COLUMNS, [
        ranks, parallel["shard"], parallel.get("replicas", 1), parallel.get("offload", "none"), parameters, expected_peak,
        peak, round(peak / expected_peak, 3), expected_sent, int(per_step), round(per_step / expected_sent, 3),
    ]))  # fmt: skip


def print_row(row):
    gb = lambda bytes_: f"{bytes_ / 1e9:.3f}"
    print(f"| {row['ranks']} | {row['shard']} | {row['replicas']} | {row['offload']} | {gb(row['predicted_bytes'])} "
          f"| {gb(row['measured_bytes'])} | {row['memory_ratio']:.3f} | {gb(row['predicted_sent'])} "
          f"| {gb(row['measured_sent'])} | {row['sent_ratio']:.3f} |", flush=True)  # fmt: skip


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--shard", nargs="+", default=["none", "optimizer", "gradients", "full"])
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument("--csv", type=Path)
    asked = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{write_model(folder / 'model'):,} parameters before the plan, {asked.dtype}", file=sys.stderr)
        print("| ranks | shard | replicas | offload | predicted, GB per rank | measured | ratio | predicted, GB sent per step, "
              "all ranks | measured | ratio |\n" + "| --- " * 10 + "|")  # fmt: skip
        for parallel in DIVISIONS:
            replicas = parallel.get("replicas", 1)
            if parallel["shard"] in asked.shard and asked.ranks % replicas == 0 and replicas < asked.ranks:
                rows.append(measure(folder, asked.ranks, asked.dtype, parallel))
                print_row(rows[-1])
    if asked.csv:
        with open(asked.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
