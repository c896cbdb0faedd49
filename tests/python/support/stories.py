"""stories260K, a really trained Llama of 260,000 parameters, from llama2.c's file to a Hugging Face directory."""

import json
import shutil
import struct

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

BOS, EOS = 1, 2


def read_llama2c(path):
    """The header's seven numbers by name, and the tensors in the file's order and layout."""
    raw = path.read_bytes()
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
    c = dict(zip(names, struct.unpack_from("<7i", raw)))
    size, hidden, layers, vocab = c["dim"], c["hidden"], c["layers"], c["vocab"]
    kv = size // c["heads"] * c["kv_heads"]
    shapes = dict(
        embedding=(vocab, size), attention_norm=(layers, size), wq=(layers, size, size), wk=(layers, kv, size),
        wv=(layers, kv, size), wo=(layers, size, size), mlp_norm=(layers, size), gate=(layers, hidden, size),
        down=(layers, size, hidden), up=(layers, hidden, size), norm=(size,),
    )  # fmt: skip
    tensors, offset = {}, 28
    for name, shape in shapes.items():
        data = np.frombuffer(raw, "<f4", int(np.prod(shape)), offset)
        tensors[name] = torch.from_numpy(data.copy()).view(shape)
        offset += data.nbytes
    return c, tensors


def halves_order(w, heads):
    """Rows of wq or wk from interleaved rotary pairs (2i, 2i+1) to Hugging Face's (i, i + head_dim/2)."""
    rows, columns = w.shape
    return w.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def convert(bin_file, tokenizer_model, out):
    c, t = read_llama2c(bin_file)
    weights = {"model.embed_tokens.weight": t["embedding"], "model.norm.weight": t["norm"]}
    for i in range(c["layers"]):
        tensors = {
            "input_layernorm": t["attention_norm"][i],
            "post_attention_layernorm": t["mlp_norm"][i],
            "self_attn.q_proj": halves_order(t["wq"][i], c["heads"]),
            "self_attn.k_proj": halves_order(t["wk"][i], c["kv_heads"]),
            "self_attn.v_proj": t["wv"][i],
            "self_attn.o_proj": t["wo"][i],
            "mlp.gate_proj": t["gate"][i],
            "mlp.up_proj": t["up"][i],
            "mlp.down_proj": t["down"][i],
        }
        weights |= {f"model.layers.{i}.{name}.weight": tensor.clone() for name, tensor in tensors.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c["vocab"], "hidden_size": c["dim"],
        "intermediate_size": c["hidden"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"], "max_position_embeddings": c["context"], "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float32",
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    shutil.copy(tokenizer_model, out / "tokenizer.model")
    special = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (out / "tokenizer_config.json").write_text(json.dumps(special | {"add_bos_token": True, "add_eos_token": False}))
    return out


@torch.no_grad()
def sample(model, count, length, seed):
    """`count` texts at temperature 1, each [BOS, …] of at most `length` ids, EOS included where it was drawn."""
    torch.manual_seed(seed)
    ids = model.generate(
        torch.full((count, 1), BOS), attention_mask=torch.ones(count, 1), max_length=length, do_sample=True,
        temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=EOS,
    )  # fmt: skip
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in ids.tolist()]


class Stories:
    def __init__(self, material, folder):
        self.folder = folder
        tokenizer = material / "tokenizers" / "stories512" / "tok512.model"
        self.bin = material / "models" / "stories260K" / "stories260K.bin"
        self.path = convert(self.bin, tokenizer, folder / "model")
        self.documents = sample(AutoModelForCausalLM.from_pretrained(self.path), count=40, length=160, seed=0)
        self.ids = write_ids(folder / "stories.ids", self.documents)


def write_ids(file, documents):
    """One document per line, ids separated by spaces: the format of `eval --ids` and of data format `ids`."""
    file.write_text("".join(" ".join(map(str, ids)) + "\n" for ids in documents))
    return file
