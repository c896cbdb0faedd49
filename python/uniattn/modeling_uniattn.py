"""A decoder whose layers share attention patterns, as `uniattn export` writes it: remote code for `transformers`.

Layer i of mode `share_probs` computes softmax(mask(q_l k_l^T)) v_i with its leader l's q and k, so it has no q_proj and
k_proj and caches v alone; `share_kv` uses the leader's k and v, `linear` a linear map alone, `skip` nothing. The format
of the directory is in docs/export-format.md of the uniattn project. Norms, MLPs and rotary embeddings are those of the
base model's family in `transformers`. Pure PyTorch; attn_implementation="uniattn", the default where the package `uniattn`
is installed and there is no GPU, runs whole superblocks and generation on its operators.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

try:
    from transformers import AutoConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import DynamicCache
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
    from transformers.models.gemma2 import modeling_gemma2
    from transformers.models.llama import modeling_llama
    from transformers.models.mistral import modeling_mistral
    from transformers.utils import can_return_tuple
    from transformers.utils.generic import merge_with_config_defaults
    from transformers.utils.output_capturing import capture_outputs
except ImportError as error:
    raise ImportError("modeling_uniattn.py needs transformers 5.23 or newer: pip install -U transformers") from error

try:  # registers its attention implementation
    from uniattn import hf_attention as operators
except ImportError:
    operators = None

VERSION = 1
LAYER_KEYS = {  # what an entry of `uniattn.layers` may hold beside its mode
    "full": {"num_kv_heads"},
    "share_probs": {"leader", "compensation_rank", "head_map", "mask"},
    "share_kv": {"leader", "compensation_rank", "mask"},
    "linear": {"compensation_rank"},
    "skip": set(),
}


@dataclass(frozen=True)
class Family:
    norm: type
    mlp: type
    rotary: type
    post_norms: bool = False  # norms after attention and MLP as well
    scaled_embeddings: bool = False  # embeddings times sqrt(hidden_size)


FAMILIES = {
    "llama": Family(modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP, modeling_llama.LlamaRotaryEmbedding),
    "mistral": Family(
        modeling_mistral.MistralRMSNorm, modeling_mistral.MistralMLP, modeling_mistral.MistralRotaryEmbedding
    ),
    "gemma2": Family(
        modeling_gemma2.Gemma2RMSNorm,
        modeling_gemma2.Gemma2MLP,
        modeling_gemma2.Gemma2RotaryEmbedding,
        post_norms=True,
        scaled_embeddings=True,
    ),
}


class UniAttnConfig(PreTrainedConfig):
    """The base model's configuration plus `uniattn`: {"version": 1, "base_model_type": …, "layers": [one per layer]}.

    In config.json, `layer_types` names the mode of every layer that is not `full`. Plain classes of the family then
    refuse the file instead of initialising the missing projections at random. Here they are mask types again.
    """

    model_type = "uniattn"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, uniattn=None, layer_types=None, **kwargs):
        check_plan(uniattn)
        self.uniattn = uniattn
        base = base_config(uniattn["base_model_type"], kwargs)
        base.layer_types = mask_types(uniattn["layers"], layer_types, base.layer_types)
        check_fit(uniattn["layers"], base)
        own = {k: v for k, v in base.to_dict().items() if k not in ("model_type", "architectures", "auto_map")}
        own.update({k: kwargs[k] for k in ("architectures", "auto_map", "attn_implementation") if k in kwargs})
        super().__init__(**own)

    def to_dict(self):
        out = super().to_dict()
        out["layer_types"] = [
            t if entry["mode"] == "full" else entry["mode"]
            for t, entry in zip(self.layer_types, self.uniattn["layers"])
        ]
        return out


def check_plan(uniattn):
    """Refuses what this code does not know, naming it: a version, family, mode or key; a leader that cannot lead."""
    if not isinstance(uniattn, dict):
        raise ValueError(f"config.json has no `uniattn` object (found {uniattn!r}); export the directory again")
    if uniattn.get("version") != VERSION:
        raise ValueError(
            f"`uniattn.version` is {uniattn.get('version')!r}; this code reads version {VERSION}. "
            "Use the modeling_uniattn.py that belongs to the directory."
        )
    if uniattn.get("base_model_type") not in FAMILIES:
        raise ValueError(
            f"`uniattn.base_model_type` is {uniattn.get('base_model_type')!r}, not one of {list(FAMILIES)}"
        )
    unknown = set(uniattn) - {"version", "base_model_type", "layers"}
    if unknown:
        raise ValueError(f"unknown keys in `uniattn`: {sorted(unknown)}")
    for i, entry in enumerate(uniattn["layers"]):
        if entry.get("mode") not in LAYER_KEYS:
            raise ValueError(f"`uniattn.layers[{i}].mode` is {entry.get('mode')!r}, not one of {list(LAYER_KEYS)}")
        unknown = set(entry) - LAYER_KEYS[entry["mode"]] - {"mode"}
        if unknown:
            raise ValueError(f"`uniattn.layers[{i}]` of mode {entry['mode']} has unknown keys {sorted(unknown)}")
        leader = entry.get("leader")
        if "leader" in LAYER_KEYS[entry["mode"]] and (
            type(leader) is not int or not 0 <= leader < i or uniattn["layers"][leader]["mode"] != "full"
        ):
            raise ValueError(f"`uniattn.layers[{i}]`: leader {leader!r} is not a layer of mode full below {i}")
        if entry.get("mask", "leader") != "leader":
            raise ValueError(f"`uniattn.layers[{i}].mask` is {entry['mask']!r}; the one value is 'leader'")


def mask_types(layers, layer_types, family_types):
    """The mask type of each layer: as listed for layers of mode full, otherwise as the family has it, or the leader's.

    A layer without attention has no mask; full_attention stands for it.
    """
    listed = layer_types or family_types
    if not len(layers) == len(listed) == len(family_types):
        raise ValueError(
            f"`uniattn.layers` has {len(layers)} entries and `layer_types` {len(listed)} for {len(family_types)} layers"
        )
    types = [own if t in LAYER_KEYS else t for t, own in zip(listed, family_types)]
    for i, entry in enumerate(layers):
        if entry["mode"] in ("linear", "skip"):
            types[i] = "full_attention"
        elif "mask" in entry:
            types[i] = types[entry["leader"]]
    return types


def base_config(model_type, kwargs):
    """The family's own configuration: its defaults, its checks, both dialects of the rotary settings."""
    fields = {k: v for k, v in kwargs.items() if k not in ("model_type", "architectures", "auto_map")}
    base = AutoConfig.for_model(model_type, **fields)
    if getattr(base, "layer_types", None) is None:
        kind = "sliding_attention" if getattr(base, "sliding_window", None) else "full_attention"
        base.layer_types = [kind] * base.num_hidden_layers
    if getattr(base, "attention_bias", False):
        raise ValueError("`attention_bias` is true: unified models have no biases in their attention projections")
    return base


def check_fit(layers, base):
    """Refuses a plan that does not fit the base model, naming the layer."""
    for i, entry in enumerate(layers):
        where, leader = f"`uniattn.layers[{i}]`", entry.get("leader", i)
        if base.layer_types[leader] != base.layer_types[i]:
            raise ValueError(
                f"{where} and its leader {leader} have different mask types, {base.layer_types[i]} and "
                f"{base.layer_types[leader]}; `mask: leader` allows it"
            )
        kv_heads, own = base.num_key_value_heads, entry.get("num_kv_heads")
        if own is not None and (type(own) is not int or not 0 < own < kv_heads or kv_heads % own):
            raise ValueError(f"{where}: num_kv_heads {own!r} is not a divisor of {kv_heads} below it")
        if entry["mode"] == "linear" and "compensation_rank" not in entry:
            raise ValueError(f"{where} of mode linear has no compensation_rank")
        rank = entry.get("compensation_rank")
        if rank is not None and (type(rank) is not int or not 0 < rank < base.hidden_size):
            raise ValueError(f"{where}: compensation_rank {rank!r} is not null and not in (0, {base.hidden_size})")
        heads, head_map = base.num_attention_heads, entry.get("head_map")
        if head_map is not None and (
            len(head_map) != heads or any(type(h) is not int or not 0 <= h < heads for h in head_map)
        ):
            raise ValueError(f"{where}: head_map {head_map} is not {heads} head numbers below {heads}")


def rotate(x, cos, sin):
    """x [batch, heads, tokens, head_dim] at the positions of cos and sin [batch, tokens, head_dim]."""
    return x * cos.unsqueeze(1) + modeling_llama.rotate_half(x) * sin.unsqueeze(1)


def pattern_readers(layers, leader):
    """The layers that use the attention probabilities of `leader`."""
    return [i for i, entry in enumerate(layers) if entry["mode"] == "share_probs" and entry["leader"] == leader]


def make_compensation(config, entry):
    """C(x): x W^T with W [D, D], or with W = up [D, r] times down [r, D]; None where the plan has none."""
    if "compensation_rank" not in entry:
        return None
    size, rank = config.hidden_size, entry["compensation_rank"]
    if rank is None:
        return nn.Linear(size, size, bias=False)
    down, up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False)
    return nn.Sequential(OrderedDict(down=down, up=up))


class UniAttnAttention(nn.Module):
    """The attention branch of one layer in any mode, with only the projections that mode needs."""

    def __init__(self, config, layer_idx):
        super().__init__()
        entry = config.uniattn["layers"][layer_idx]
        self.config, self.layer_idx, self.mode = config, layer_idx, entry["mode"]
        self.head_map = entry.get("head_map")
        self.head_dim, self.is_causal = config.head_dim, True
        self.scaling = getattr(config, "query_pre_attn_scalar", self.head_dim) ** -0.5
        self.softcap = getattr(config, "attn_logit_softcapping", None)
        sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding else None
        readers = pattern_readers(config.uniattn["layers"], entry.get("leader", layer_idx))
        self.pattern_followers = len(readers) if self.mode == "full" else 0
        self.place = readers.index(layer_idx) if layer_idx in readers else None  # among its leader's followers

        size, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        keys_of = config.uniattn["layers"][entry.get("leader", layer_idx)]
        self.key_groups = heads // keys_of.get("num_kv_heads", kv_heads)  # query heads per key head
        self.value_groups = heads // kv_heads if self.mode == "share_probs" else self.key_groups
        self.spread = self.head_map is not None or self.key_groups != self.value_groups
        # Read by the attention functions; where keys and values group differently, both are spread beforehand.
        self.num_key_value_groups = 1 if self.spread else self.key_groups
        kv_heads = entry.get("num_kv_heads", kv_heads)
        if self.mode in ("full", "share_kv"):
            self.q_proj = nn.Linear(size, heads * self.head_dim, bias=False)
        if self.mode == "full":
            self.k_proj = nn.Linear(size, kv_heads * self.head_dim, bias=False)
        if self.mode in ("full", "share_probs"):
            self.v_proj = nn.Linear(size, kv_heads * self.head_dim, bias=False)
        if self.mode in ("full", "share_probs", "share_kv"):
            self.o_proj = nn.Linear(heads * self.head_dim, size, bias=False)
        self.compensation = make_compensation(config, entry)

    def forward(
        self, x, lent, patterns, position_embeddings, attention_mask, past_key_values, keep_probs="auto", **kwargs
    ):
        """x [batch, tokens, D]; lent: the leader's (q, k, v); patterns: what the operators left of its P, or None.

        keep_probs: of the operators. Returns the branch's output, P or None, q, k, v and this layer's own patterns.
        """
        q, k, v = self.project(x, position_embeddings)
        on_operators = operators is not None and isinstance(attention_mask, operators.Pass)
        if on_operators:
            k, v = attention_mask.remember(self, k, v)
        elif past_key_values is not None:
            k, v = self.remember(x, k, v, past_key_values)
        q, k, v = (lender if own is None else own for own, lender in zip((q, k, v), lent))
        out, weights, own_patterns = torch.zeros_like(x), None, None
        if self.mode not in ("linear", "skip"):
            if on_operators:
                out, own_patterns = attention_mask.attend(self, q, k, v, patterns, keep_probs)
            else:
                out, weights = self.attend(q, k, v, attention_mask, **kwargs)
            out = self.o_proj(out.flatten(2))
        if self.compensation is not None:
            out = out + self.compensation(x)
        return out, weights, q, k, v, own_patterns

    def project(self, x, position_embeddings):
        """q [batch, heads, tokens, head_dim], k and v [batch, kv_heads, tokens, head_dim]; None without a weight."""
        heads = lambda name: getattr(self, name)(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = (heads(name) if hasattr(self, name) else None for name in ("q_proj", "k_proj", "v_proj"))
        q, k = (y if y is None else rotate(y, *position_embeddings) for y in (q, k))
        return q, k, v

    def remember(self, x, k, v, cache):
        """The k and v of all tokens so far, None where this layer has none.

        Caches take their length from the key slot, at any layer: values stand there where there are no keys, and one
        number per token where there are no values either. The value slot then has width zero.
        """
        if k is not None:
            return cache.update(k, v, self.layer_idx)
        kept = x[:, None, :, :1] if v is None else v
        kept, _ = cache.update(kept, kept[..., :0], self.layer_idx)
        return None, None if v is None else kept

    def spread_heads(self, q, k, v):
        """q, k and v with heads that correspond: those that a head map chooses, keys and values grouped alike."""
        if self.spread:
            readers = self.head_map or range(q.shape[1])  # per query head, the leader's that it reads
            q, k = q[:, list(readers)], k[:, [head // self.key_groups for head in readers]]
            v = v.repeat_interleave(self.value_groups, dim=1)
        return q, k, v

    def head_index(self, device):
        return None if self.head_map is None else torch.tensor(self.head_map, device=device)

    def attend(self, q, k, v, attention_mask, **kwargs):
        q, k, v = self.spread_heads(q, k, v)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, modeling_gemma2.eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        kwargs |= {"dropout": dropout, "scaling": self.scaling, "sliding_window": self.sliding_window}
        return attention(self, q, k, v, attention_mask, softcap=self.softcap, **kwargs)


class UniAttnDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx):
        super().__init__()
        family = FAMILIES[config.uniattn["base_model_type"]]
        norm = lambda: family.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = UniAttnAttention(config, layer_idx)
        self.mlp = family.mlp(config)
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.post_norms = family.post_norms
        if self.post_norms:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

    def forward(self, h, q=None, k=None, v=None, patterns=None, **kwargs):
        """h [batch, tokens, D]; the rest is the leader's, positional for gradient checkpointing. Returns all five."""
        # Checkpointing is there to save memory: P is then made again too.
        keep_probs = False if self.gradient_checkpointing and self.training else "auto"
        x = self.input_layernorm(h)
        branch, _, *own = self.self_attn(x, (q, k, v), patterns, keep_probs=keep_probs, **kwargs)
        if self.post_norms:
            h = h + self.post_attention_layernorm(branch)
            return h + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h))), *own
        h = h + branch
        return h + self.mlp(self.post_attention_layernorm(h)), *own


class UniAttnPreTrainedModel(PreTrainedModel):
    config_class = UniAttnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniAttnDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": UniAttnDecoderLayer, "attentions": UniAttnAttention}

    @property
    def _supports_sdpa(self):
        return getattr(self.config, "attn_logit_softcapping", None) is None

    def get_correct_attn_implementation(self, requested_attention, is_init_check=False):
        """The operators' where they are installed and nothing else is asked for."""
        if requested_attention is None and operators is not None and operators.is_default(self.config):
            return operators.NAME
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, modeling_gemma2.Gemma2RMSNorm):
            nn.init.zeros_(module.weight)  # this norm multiplies by 1 + weight


class UniAttnModel(UniAttnPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        family = FAMILIES[config.uniattn["base_model_type"]]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embedding_scale = config.hidden_size**0.5 if family.scaled_embeddings else None
        self.layers = nn.ModuleList(UniAttnDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = family.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = family.rotary(config)
        self.leaders = [entry.get("leader") for entry in config.uniattn["layers"]]
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is needed")
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = self.make_cache()
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(past, past + h.shape[1], device=h.device)[None]
        masks = self.masks(h, attention_mask, past_key_values, position_ids)
        position_embeddings = self.rotary_emb(h, position_ids)
        lent = {}
        for i, (layer, leader) in enumerate(zip(self.layers, self.leaders)):
            h, *own = layer(
                h,
                *lent.get(leader, ()),
                position_embeddings=position_embeddings,
                attention_mask=masks[self.config.layer_types[i]],
                past_key_values=past_key_values,
                **kwargs,
            )
            lent = {
                l: state for l, state in (lent | {i: own}).items() if l in self.leaders[i + 1 :]
            }  # until the last follower
        return BaseModelOutputWithPast(last_hidden_state=self.norm(h), past_key_values=past_key_values)

    def make_cache(self):
        """An empty cache, laid out by the plan, for the attention that is set."""
        if self.config._attn_implementation == "uniattn":
            return operators.PagedCache([layer.self_attn.sliding_window for layer in self.layers])
        return DynamicCache(config=self.config)

    def embed(self, input_ids):
        h = self.embed_tokens(input_ids)
        return h if self.embedding_scale is None else h * torch.tensor(self.embedding_scale, dtype=h.dtype)

    def masks(self, h, attention_mask, past_key_values, position_ids):
        """The mask of each mask type in use, or the operators' pass; the dictionary that generate() has prepared."""
        if isinstance(attention_mask, dict):
            return attention_mask
        if self.config._attn_implementation == "uniattn" and (
            past_key_values is None or isinstance(past_key_values, operators.PagedCache)
        ):
            one = operators.make_pass(h, attention_mask, position_ids, past_key_values)
            return dict.fromkeys(self.config.layer_types, one)
        make = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        arguments = {"config": self.config, "inputs_embeds": h, "attention_mask": attention_mask}
        arguments |= {"past_key_values": past_key_values, "position_ids": position_ids}
        return {kind: make[kind](**arguments) for kind in dict.fromkeys(self.config.layer_types)}


class UniAttnForCausalLM(UniAttnPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = UniAttnModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        """As in `transformers`, but weights that are missing or left over are an error, never a warning."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
        if wrong:
            raise ValueError(f"the weights in {args[0]} do not fit its config.json: {wrong}")
        return (model, info) if output_loading_info else model

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args):
        """As in `transformers`, but where that would make its default cache, the model makes its own."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        made = model_kwargs.get("past_key_values")
        if given is None and type(made) is DynamicCache and not made.offloading:
            model_kwargs["past_key_values"] = self.model.make_cache()
            if generation_config.is_assistant:
                model_kwargs["past_key_values"].activate_past_recording()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


UniAttnConfig.register_for_auto_class()
UniAttnForCausalLM.register_for_auto_class("AutoModelForCausalLM")
