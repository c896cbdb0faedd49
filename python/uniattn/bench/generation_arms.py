"""What the benchmarks of generation compare: a model under several sharing plans, and the same weights in transformers."""

import json
import time
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

import uniattn
from uniattn import _library

transformers.utils.logging.disable_progress_bar()

SHAPES = {  # Llamas of random weights
    "tiny": dict(hidden_size=64, intermediate_size=176, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4, vocab_size=512),
    "small": dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, vocab_size=8192),
    "medium": dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, vocab_size=16384),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True),
    "1b-mha": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=16, vocab_size=32000, tie_word_embeddings=True),
}  # fmt: skip
ARMS = ["base", "g2-full", "g2-low", "g2-none", "g4-full", "g4-low", "g4-none", "g8-full", "g8-low", "g8-none", "share_kv", "linear", "skip"]


def plan_of(arm: str, layers: int, hidden: int) -> list[dict]:
    """`uniattn.layers` of an arm; the last three quarters of the layers share."""
    begin = layers // 4
    if not arm.startswith("g"):
        group, mode, rank = 4, arm, "none" if arm in ("share_kv", "skip") else None
    else:
        group, mode = int(arm[1]), "share_probs"
        rank = {"full": None, "low": hidden // 8, "none": "none"}[arm.split("-")[1]]
    plan = []
    for i in range(layers):
        leads = i < begin or (i - begin) % group == 0
        entry = {"mode": "full" if leads else mode}
        if not leads and mode.startswith("share"):
            entry["leader"] = i - (i - begin) % group
        if not leads and rank != "none":
            entry["compensation_rank"] = rank
        plan.append(entry)
    return plan


def write_base(folder: Path, shape: str, dtype: torch.dtype, positions: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=positions, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="100GB")


def write_arm(folder: Path, base: Path, arm: str) -> None:
    """The base under a plan: its weights by a hard link, compensations in a file of their own."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir()
    config = json.loads((base / "config.json").read_text())
    plan = plan_of(arm, config["num_hidden_layers"], config["hidden_size"])
    types = [entry["mode"] if entry["mode"] != "full" else "full_attention" for entry in plan]
    unified = {"version": 1, "base_model_type": config["model_type"], "layers": plan}
    changes = {"architectures": ["UniAttnForCausalLM"], "model_type": "uniattn", "uniattn": unified, "layer_types": types}
    (folder / "config.json").write_text(json.dumps(config | changes))
    with safe_open(base / "model.safetensors", "pt") as file:
        names, dtype = list(file.keys()), file.get_slice("model.norm.weight")[:].dtype
    (folder / "base.safetensors").hardlink_to(base / "model.safetensors")
    weights, size = {}, config["hidden_size"]
    for i, entry in enumerate(plan):
        if "compensation_rank" in entry:
            rank, name = entry["compensation_rank"], f"model.layers.{i}.self_attn.compensation."
            shapes = {"weight": (size, size)} if rank is None else {"down.weight": (rank, size), "up.weight": (size, rank)}
            weights |= {name + key: 0.02 * torch.randn(shape).to(dtype) for key, shape in shapes.items()}
    save_file(weights, folder / "compensation.safetensors")
    index = dict.fromkeys(names, "base.safetensors") | dict.fromkeys(weights, "compensation.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def layer_weights(entry: dict, config: dict) -> dict[str, int]:
    """Elements of the weights that a layer under a plan multiplies with, by what they are for."""
    d = config["hidden_size"]
    kv = config["num_key_value_heads"] * d // config["num_attention_heads"]
    sizes = {"q": d * d, "k": kv * d, "v": kv * d, "o": d * d}
    used = {"full": "qkvo", "share_probs": "vo", "share_kv": "qo", "linear": "", "skip": ""}[entry["mode"]]
    rank = entry.get("compensation_rank", 0)
    compensation = d * d if rank is None else 2 * rank * d
    return {name: sizes[name] for name in used} | {"compensation": compensation, "mlp": 3 * d * config["intermediate_size"]}


def layers_of(arm: str, config: dict) -> list[dict]:
    layers = config["num_hidden_layers"]
    return [{"mode": "full"}] * layers if arm == "base" else plan_of(arm, layers, config["hidden_size"])


def weight_bytes(arm: str, config: dict, element: int) -> int:
    """What one pass must at least read, whatever the batch: the embedding is looked up, the head read."""
    layers = sum(sum(layer_weights(entry, config).values()) for entry in layers_of(arm, config))
    return element * (layers + config["vocab_size"] * config["hidden_size"])


class Ours:
    def __init__(self, folder: Path, dtype: str):
        self.model = uniattn.load(folder, dtype)
        self.passes = _library.engine().Passes(self.model._model)

    def prepare(self, batch: int, context: int) -> None:
        self.passes.pretend(batch, context)

    def read(self, tokens: int, chunk: int) -> float:
        return self.passes.read(tokens, chunk)

    @property
    def cache_bytes(self) -> int:
        return self.passes.cache_bytes


class Transformers:
    """A model of transformers over a static cache, compiled or not."""

    def __init__(self, model: PreTrainedModel, compiled: bool):
        self.model = model
        self.forward = model.forward
        if compiled:
            # A graph for each batch and length; without enough of them the forward would run uncompiled, and be timed so.
            torch._dynamo.config.recompile_limit = 256
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            self.forward = torch.compile(model.forward, dynamic=False)

    @torch.inference_mode()
    def prepare(self, batch: int, context: int, room: int = 0) -> None:
        config = self.model.config
        self.batch, self.cache = batch, StaticCache(config=config, max_cache_len=context + room)
        shape = (batch, config.num_key_value_heads, context, config.hidden_size // config.num_attention_heads)
        if context:
            for layer in range(config.num_hidden_layers):
                past = torch.randn(shape, dtype=self.model.dtype)
                self.cache.update(past, past, layer)
        self.position = context

    @torch.inference_mode()
    def read(self, tokens: int) -> float:
        ids = torch.randint(self.model.config.vocab_size, (self.batch, tokens))
        positions = torch.arange(self.position, self.position + tokens)[None]
        start = time.perf_counter()
        self.forward(ids, past_key_values=self.cache, position_ids=positions, logits_to_keep=1, use_cache=True)
        self.position += tokens
        return time.perf_counter() - start
