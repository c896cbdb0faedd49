"""The forward pass of a base or unified directory in plain PyTorch: explicit T x T softmax, any dtype."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file


def inverse_frequencies(config, head_dim):
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    inverse = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        return inverse / rope["factor"]
    if kind == "llama3":
        wavelength, old = 2 * math.pi / inverse, rope["original_max_position_embeddings"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = ((old / wavelength - low) / (high - low)).clamp(0, 1)
        return inverse * (smooth + (1 - smooth) / rope["factor"])
    assert kind == "default", kind
    return inverse


class Oracle:
    def __init__(self, path, dtype=torch.float64):
        self.config = json.loads((Path(path) / "config.json").read_text())
        files = sorted(Path(path).glob("*.safetensors"))
        self.w = {name: t.to(dtype) for file in files for name, t in load_file(file).items()}
        self.dtype, c = dtype, self.config
        self.family = c.get("uniattn", {}).get("base_model_type", c["model_type"])
        self.heads, self.layers = c["num_attention_heads"], c["num_hidden_layers"]
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.plan = c["uniattn"]["layers"] if "uniattn" in c else [{"mode": "full"}] * self.layers

    def norm(self, x, name):
        weight = self.w[name + ".weight"] + (1 if self.family == "gemma2" else 0)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * weight

    def split(self, x, name):
        return (
            (x @ self.w[name + ".weight"].T).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        )  # [heads, T, head_dim]

    def rope(self, x):
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * inverse_frequencies(self.config, self.head_dim)
        cos, sin, (a, b) = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def window(self, i):
        i = self.plan[i].get("leader", i)
        if self.family == "llama" or (self.family == "gemma2" and i % 2 == 1):
            return None
        return self.config["sliding_window"]

    def spread(self, x):
        """Keys or values [kv_heads, T, head_dim], one for each query head."""
        return x.repeat_interleave(self.heads // len(x), 0)

    def probs(self, i, q, k):
        c = self.config
        scale = c["query_pre_attn_scalar"] if self.family == "gemma2" else self.head_dim
        s = q @ self.spread(k).transpose(1, 2) * scale**-0.5
        if c.get("attn_logit_softcapping"):
            s = c["attn_logit_softcapping"] * torch.tanh(s / c["attn_logit_softcapping"])
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        hidden = (distance < 0) | (distance >= (self.window(i) or q.shape[1]))
        return s.masked_fill(hidden, -torch.inf).softmax(-1)

    def attention(self, i, x, lent):
        """o_i [T, D] before any post-norm; lent[l] = (P, k, v) of layer l."""
        entry, p = self.plan[i], f"model.layers.{i}.self_attn."
        mode, out = entry["mode"], torch.zeros_like(x)
        if mode in ("full", "share_kv"):
            q = self.rope(self.split(x, p + "q_proj"))
            k = self.rope(self.split(x, p + "k_proj")) if mode == "full" else lent[entry["leader"]][1]
            v = self.split(x, p + "v_proj") if mode == "full" else lent[entry["leader"]][2]
            lent[i] = probs, _, _ = self.probs(i, q, k), k, v
        elif mode == "share_probs":
            probs = lent[entry["leader"]][0][entry.get("head_map", list(range(self.heads)))]
            v = self.split(x, p + "v_proj")
        if mode not in ("linear", "skip"):
            heads = (probs @ self.spread(v)).transpose(0, 1).flatten(1)
            out = heads @ self.w[p + "o_proj.weight"].T
        if p + "compensation.weight" in self.w:
            out = out + x @ self.w[p + "compensation.weight"].T
        if p + "compensation.up.weight" in self.w:
            out = out + x @ self.w[p + "compensation.down.weight"].T @ self.w[p + "compensation.up.weight"].T
        return out

    def mlp(self, x, p):
        gate, up = x @ self.w[p + "mlp.gate_proj.weight"].T, x @ self.w[p + "mlp.up_proj.weight"].T
        gelu = lambda y: torch.nn.functional.gelu(y, approximate="tanh")
        act = gelu if self.family == "gemma2" else torch.nn.functional.silu
        return (act(gate) * up) @ self.w[p + "mlp.down_proj.weight"].T

    def logits(self, ids):
        """ids: one sequence. Returns [T, vocab]; leaves trace[i] = (x, branch, stream after attention) of layer i."""
        embedding, lent, self.trace = self.w["model.embed_tokens.weight"], {}, []
        h = embedding[torch.as_tensor(ids)]
        h = h * (h.shape[-1] ** 0.5 if self.family == "gemma2" else 1)
        for i in range(self.layers):
            p = f"model.layers.{i}."
            x = self.norm(h, p + "input_layernorm")
            branch = self.attention(i, x, lent)
            self.trace.append((x, branch, h + branch))
            if self.family == "gemma2":
                h = h + self.norm(branch, p + "post_attention_layernorm")
                branch = self.mlp(self.norm(h, p + "pre_feedforward_layernorm"), p)
                h = h + self.norm(branch, p + "post_feedforward_layernorm")
            else:
                h = h + branch
                h = h + self.mlp(self.norm(h, p + "post_attention_layernorm"), p)
        logits = self.norm(h, "model.norm") @ self.w.get("lm_head.weight", embedding).T
        cap = self.config.get("final_logit_softcapping")
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def loss(self, documents, window):
        """Mean next-token loss in nats over documents cut into windows, and the number of predicted tokens."""
        total = count = 0
        for ids in documents:
            for start in range(0, len(ids), window):
                piece = torch.tensor(ids[start : start + window])
                if len(piece) > 1:
                    total += torch.nn.functional.cross_entropy(
                        self.logits(piece)[:-1], piece[1:], reduction="sum"
                    ).item()
                    count += len(piece) - 1
        return total / count, count
