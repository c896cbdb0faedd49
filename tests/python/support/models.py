"""Makers of small random models: plain Hugging Face directories, and unified ones in the export format."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

MODELING = Path(__file__).parents[3] / "python" / "uniattn" / "modeling_uniattn.py"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA2 = {
    "family": "gemma2",
    "sliding_window": 8,
    "query_pre_attn_scalar": 7,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
MISTRAL = {"family": "mistral", "sliding_window": 8}
DROPPED = {  # the projections that a mode does without
    "full": (),
    "share_probs": ("q_proj", "k_proj"),
    "share_kv": ("k_proj", "v_proj"),
    "linear": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "skip": ("q_proj", "k_proj", "v_proj", "o_proj"),
}


FULL, SKIP = {"mode": "full"}, {"mode": "skip"}


def full(num_kv_heads):
    return FULL | {"num_kv_heads": num_kv_heads}


def linear(rank=None):
    """rank: None for a full matrix."""
    return {"mode": "linear", "compensation_rank": rank}


def write_base(path, family="llama", seed=0, published=False, scaling=None, rope_theta=10000.0, **overrides):
    """A random model as `transformers` saves it; `published`: config.json in the dialect of the original releases."""
    fields = dict(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
        pad_token_id=None, tie_word_embeddings=False, rope_parameters={"rope_theta": rope_theta, **(scaling or {"rope_type": "default"})},
    )  # fmt: skip
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **fields | overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomize(model)
    model.save_pretrained(path)
    if published:
        edit_config(path, to_published)
    return Path(path)


def randomize(model):
    """Weights large enough for attention and logits to be far from uniform, norms that are not all ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                scale = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.normal_(0, 1.0 if "embed" in name else scale * parameter.shape[1] ** -0.5)


def to_published(config):
    """rope_parameters → rope_theta and rope_scaling; dtype → torch_dtype."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)


def edit_config(path, edit):
    file = Path(path) / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config, indent=2))


def write_word_tokenizer(path):
    """Token i of write_base's vocabulary is the word w<i>."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0").save_pretrained(path)


def follower(leader, mode="share_probs", rank="none", head_map=None, **extra):
    """An entry of `uniattn.layers`; rank: "none", None for a full matrix, or a number; extra: further keys of it."""
    entry = {"mode": mode, "leader": leader, **extra}
    if rank != "none":
        entry["compensation_rank"] = rank
    if head_map is not None:
        entry["head_map"] = head_map
    return entry


def write_unified(path, base, layers, seed=0, tokenizer=None):
    """The base directory in the export format under the plan `layers`, with a random compensation where it has one."""
    path, base = Path(path), Path(base)
    config = json.loads((base / "config.json").read_text())
    types = config.get("layer_types") or [mask_type(config, i) for i in range(len(layers))]
    config |= {
        "architectures": ["UniAttnForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_uniattn.UniAttnConfig",
            "AutoModelForCausalLM": "modeling_uniattn.UniAttnForCausalLM",
        },
        "uniattn": {"version": 1, "base_model_type": config["model_type"], "layers": layers},
        "pruned_heads": {str(i): [] for i, entry in enumerate(layers) if entry["mode"] != "full"},
        "layer_types": [t if entry["mode"] == "full" else entry["mode"] for t, entry in zip(types, layers)],
        "model_type": "uniattn",
    }
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    save_file(
        unified_weights(load_file(base / "model.safetensors"), layers, seed, config["head_dim"]),
        path / "model.safetensors",
        {"format": "pt"},
    )
    shutil.copy(MODELING, path)
    for extra in (base / "generation_config.json", *(Path(tokenizer).glob("tokenizer*") if tokenizer else ())):
        shutil.copy(extra, path)
    return path


def mask_type(config, layer):
    """Where config.json has no list: Mistral slides in every layer that has a window, Gemma-2 in every other one."""
    slides = config.get("sliding_window") and not (config["model_type"] == "gemma2" and layer % 2 == 1)
    return "sliding_attention" if slides else "full_attention"


# One plan for every mode and for what they do to each other, over write_base's four layers.
MODE_PLANS = {
    "share_kv": [FULL, follower(0, "share_kv", rank=None), FULL, follower(2, "share_kv")],
    "linear": [FULL, linear(), FULL, linear(5)],
    "skip": [SKIP, FULL, SKIP, FULL],
    "kv_heads": [full(1), FULL, full(1), FULL],
    "one_leader": [FULL, follower(0, rank=5), follower(0, "share_kv", rank=None), follower(0, head_map=[3, 0, 0, 2])],
    "small_leader": [full(1), follower(0, head_map=[1, 1, 3, 0]), follower(0, "share_kv", rank=5), follower(0)],
    "mixed": [full(1), linear(5), follower(0, rank=None), SKIP],
}  # fmt: skip
# For Gemma-2, whose even layers slide: sliding and global layers follow one another under the leader's mask.
MASK_PLANS = {
    "global_follows_sliding": [
        FULL,
        follower(0, rank=None, mask="leader"),
        follower(0, "share_kv", rank=5),
        follower(0, "share_kv", mask="leader"),
    ],
    "sliding_follows_global": [full(1), full(1), follower(1, mask="leader"), follower(1, "share_kv", rank=None)],
}


def pooled(weight, kv_heads, head_dim):
    """k_proj or v_proj with the rows of neighbouring heads averaged, so that kv_heads are left."""
    each = len(weight) // (kv_heads * head_dim)
    heads = weight.split(head_dim)
    return torch.cat([sum(heads[i : i + each]) / each for i in range(0, len(heads), each)])


def unified_weights(weights, layers, seed, head_dim):
    generator = torch.Generator().manual_seed(seed)
    size = weights["model.norm.weight"].shape[0]
    for i, entry in enumerate(layers):
        prefix = f"model.layers.{i}.self_attn."
        for name in DROPPED[entry["mode"]]:
            del weights[f"{prefix}{name}.weight"]
        for name in ("k_proj", "v_proj") if "num_kv_heads" in entry else ():
            weight = f"{prefix}{name}.weight"
            weights[weight] = pooled(weights[weight], entry["num_kv_heads"], head_dim)
        shapes = {}
        if "compensation_rank" in entry:
            rank = entry["compensation_rank"]
            shapes = (
                {"weight": (size, size)} if rank is None else {"down.weight": (rank, size), "up.weight": (size, rank)}
            )
        for name, shape in shapes.items():
            weights[f"{prefix}compensation.{name}"] = 0.3 * torch.randn(shape, generator=generator) * shape[1] ** -0.5
    return weights
