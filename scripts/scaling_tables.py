#!/usr/bin/env python3
"""The tables of docs/scaling.md: what `--dry-run` predicts for models of 8B and 70B shapes, none of whose weights are needed.

scripts/scaling_tables.py [build/release/uniattn]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "num_key_value_heads": 8,
         "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
         "bos_token_id": 128000, "eos_token_id": 128001, "torch_dtype": "bfloat16"}  # fmt: skip
MODELS = {
    "8B": LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
PLANS = {"8B": {"group": 4, "begin": 16, "end": 33}, "70B": {"group": 4, "begin": 40, "end": 81}}
# model, GPUs, accumulation, parallel
ROWS = [
    ("8B", 1, 48, {}),
    ("8B", 1, 48, {"offload": "optimizer"}),
    ("8B", 8, 6, {"shard": "none"}),
    ("8B", 8, 6, {"shard": "optimizer"}),
    ("8B", 8, 1, {"shard": "gradients"}),
    ("8B", 8, 6, {"shard": "full"}),
    ("8B", 64, 1, {"shard": "gradients"}),
    ("8B", 64, 1, {"shard": "full", "replicas": 8}),
    ("8B", 512, 1, {"shard": "full", "replicas": 64}),
    ("70B", 8, 6, {"shard": "full"}),
    ("70B", 64, 1, {"shard": "full"}),
    ("70B", 64, 1, {"shard": "full", "replicas": 4}),
    ("70B", 512, 1, {"shard": "full", "replicas": 16}),
]


def tensors(config):
    """(name, shape) of a plain Llama."""
    d, ff, head = config["hidden_size"], config["intermediate_size"], config["hidden_size"] // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", [config["vocab_size"], d]
    for i in range(config["num_hidden_layers"]):
        shapes = {"input_layernorm": [d], "self_attn.q_proj": [d, d], "self_attn.k_proj": [kv, d],
                  "self_attn.v_proj": [kv, d], "self_attn.o_proj": [d, d], "post_attention_layernorm": [d],
                  "mlp.gate_proj": [ff, d], "mlp.up_proj": [ff, d], "mlp.down_proj": [d, ff]}  # fmt: skip
        for name, shape in shapes.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", [d]
    yield "lm_head.weight", [config["vocab_size"], d]


def write_shapes(folder, config):
    """A model directory whose weights file has a header and a hole."""
    header, end = {}, 0
    for name, shape in tensors(config):
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def predict(program, folder, model, gpus, accumulation, parallel):
    (folder / "train.ids").write_text("1 2 3\n")
    config = {
        "run": {"name": "imagined", "dir": str(folder / "run")},
        "model": {"path": str(folder / model)},
        "plan": PLANS[model],
        "data": {"train": [{"path": str(folder / "train.ids"), "format": "ids"}]},
        "stages": [{"name": "all", "train": "all", "max_steps": 1, "learning_rate": 1.0e-5}],
        "optimizer": {"accumulation": accumulation, "activation_checkpointing": model == "70B"},
        "parallel": parallel,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [program, "train", folder / "config.yaml", "--dry-run", "--json", "--world-size", gpus, "--device", "h100"]
    return json.loads(subprocess.run([str(word) for word in command], check=True, capture_output=True).stdout)


def row(model, gpus, accumulation, parallel, result):
    memory, sent, time = (result[key]["all"] for key in ("memory", "sent", "step_seconds"))
    gb = lambda *kinds: f"{sum(memory[kind] for kind in kinds) / 1e9:.1f}"
    tokens = accumulation * 1024 / time["total"]
    shard = parallel.get("shard", "none") + (", offload" if "offload" in parallel else "")
    return (
        f"| {model} | {gpus} | {shard} | {parallel.get('replicas', 1)} | {accumulation} "
        f"| {gb('parameters')} | {gb('masters', 'moments')} | {gb('gradients')} | {gb('activations')} | {gb('buffers')} "
        f"| {gb('total')} | {gb('host')} | {sum(sent.values()) / 1e9:.1f} | {time['total']:.2f} | {time['exposed_communication']:.2f} "
        f"| {tokens:,.0f} |"
    )


def main(program="build/release/uniattn"):
    print(
        "| model | GPUs | shard | replicas | accumulation | parameters | masters, moments | gradients | activations "
        "| buffers | total, GB per rank | on host | GB sent per step | s per step | s waiting | tokens/s per GPU |\n"
        + "| --- " * 16 + "|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, config in MODELS.items():
            write_shapes(folder / model, config)
        for case in ROWS:
            print(row(*case, predict(program, folder, *case)))


if __name__ == "__main__":
    main(*sys.argv[1:])
