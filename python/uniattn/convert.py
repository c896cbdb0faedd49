"""`uniattn.convert`: a loaded `transformers` model becomes a unified one, in place."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from uniattn.plan import SharingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert(model: "PreTrainedModel", plan: SharingPlan) -> "PreTrainedModel":
    """Turns `model`, a LlamaForCausalLM, MistralForCausalLM or Gemma2ForCausalLM, into a unified model, and returns it.

    The model becomes a `UniAttnForCausalLM` (`uniattn.modeling_uniattn`) that attends with this package's operators. Its
    parameters stay the objects that they were, so that an optimizer made before keeps working; those that the plan has
    no use for are dropped, key/value heads that it reduces are averaged, and compensations are new and zero. Train it
    with any loop, on batches [B, T] with padding (`attention_mask`) or packed (`position_ids` that start again at 0);
    gradient checkpointing works. `save_pretrained` writes the directory of docs/export-format.md.

    A plan that shares nothing leaves the model as it is.

    Raises:
        ValueError: the model is of another family, or the plan does not fit it; names the layer and what is needed.
    """
    from uniattn import hf_attention, modeling_uniattn

    _check_convertible(model, plan, modeling_uniattn.FAMILIES)
    if not plan.shares:
        return model
    fields = model.config.to_dict() | {
        "uniattn": plan.section(model.config.model_type),
        "architectures": ["UniAttnForCausalLM"],
        "attn_implementation": hf_attention.NAME,
    }
    config = modeling_uniattn.UniAttnConfig(**fields)
    with torch.device("meta"):
        unified = modeling_uniattn.UniAttnForCausalLM(config)
    _take_modules(unified, model)
    for i, layer in enumerate(unified.model.layers):
        _take_attention(layer.self_attn, model.model.layers[i].self_attn)
    unified.tie_weights()
    unified.generation_config = model.generation_config
    unified.train(model.training)
    model.__class__, model.__dict__ = unified.__class__, unified.__dict__
    return model


def _check_convertible(model: "PreTrainedModel", plan: SharingPlan, families: dict) -> None:
    from transformers import PreTrainedModel

    family = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, PreTrainedModel) or family not in families or not hasattr(model, "lm_head"):
        raise ValueError(
            f"cannot convert a {type(model).__name__} of model type {family!r}: it must be a causal language model of "
            f"one of the families {', '.join(families)}"
        )
    if len(plan.layers) != model.config.num_hidden_layers:
        raise ValueError(f"the plan has {len(plan.layers)} layers, the model has {model.config.num_hidden_layers}")


def _take_modules(unified: nn.Module, base: nn.Module) -> None:
    """Everything but the attention: the same classes in both models."""
    unified.lm_head, unified.model.norm, unified.model.rotary_emb = base.lm_head, base.model.norm, base.model.rotary_emb
    unified.model.embed_tokens.weight = base.model.embed_tokens.weight  # Gemma's module scales, which ours does itself
    for ours, theirs in zip(unified.model.layers, base.model.layers):
        for name, _ in ours.named_children():
            if name != "self_attn":
                setattr(ours, name, getattr(theirs, name))


def _take_attention(ours: nn.Module, theirs: nn.Module) -> None:
    for name, projection in ours.named_children():
        if name == "compensation":
            continue
        weight = getattr(theirs, name).weight
        projection.weight = weight if weight.shape == projection.weight.shape else _pooled(weight, projection, ours)
    if ours.compensation is not None:
        like = theirs.o_proj.weight
        ours.compensation.to_empty(device=like.device).to(like.dtype)
        _initialise(ours.compensation)


def _pooled(weight: nn.Parameter, projection: nn.Linear, attention: nn.Module) -> nn.Parameter:
    """The means over neighbouring key/value heads, as many as the layer keeps."""
    heads = weight.detach().unflatten(0, (projection.out_features // attention.head_dim, -1, attention.head_dim))
    return nn.Parameter(heads.float().mean(1).flatten(0, 1).to(weight.dtype), requires_grad=weight.requires_grad)


@torch.no_grad()
def _initialise(compensation: nn.Module) -> None:
    """C = 0. Of a low rank only `up` is zero: with `down` zero as well no gradient would reach either."""
    if isinstance(compensation, nn.Linear):
        compensation.weight.zero_()
        return
    compensation.down.weight.normal_(0, compensation.down.in_features**-0.5)
    compensation.up.weight.zero_()
