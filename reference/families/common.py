"""What most families' configurations have in common: sizes, head counts, windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import rotary

FULL, SLIDING = "full_attention", "sliding_attention"


def decoder(fields: Fields, layer: Callable[[int], LayerPlan], **overrides: Any) -> ModelConfig:
    """Build a decoder of `num_hidden_layers` layers with the usual names and sizes."""
    values: dict[str, Any] = {
        "model_type": fields.raw["model_type"],
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": fields.integer("hidden_size"),
        "context_length": context_length(fields),
        "norm": Norm(fields.number("rms_norm_eps", 1e-6)),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings"),
        "layers": tuple(layer(index) for index in range(fields.integer("num_hidden_layers"))),
    }
    return ModelConfig(**(values | overrides))


def context_length(fields: Fields) -> int:
    """The most positions: as stated, or what YaRN stretches the original context to, which engines serve."""
    stated = fields.integer("max_position_embeddings")
    raw = rotary.stored(fields)
    if rotary.rope_type(raw) != "yarn":
        return stated
    original = fields.number(rotary.ORIGINAL, stated, holder=raw)
    return max(stated, int(original * fields.number("factor", holder=raw)))


def heads(fields: Fields, default_key_value: int | None = None) -> tuple[int, int]:
    """Query and key/value heads; an absent count means `default_key_value`, a null one the query heads."""
    count = fields.integer("num_attention_heads")
    key_value = count
    if fields.raw.get("num_key_value_heads") is not None:
        key_value = fields.integer("num_key_value_heads")
    elif "num_key_value_heads" not in fields.raw and default_key_value is not None:
        key_value = default_key_value
    if count % key_value:
        fields.corrupt(f"{count} attention heads cannot share {key_value} key/value heads evenly")
    return count, key_value


def head_dim(fields: Fields, query_heads: int, default: int | None = None) -> int:
    """A head's size; an absent field means `default`, or the hidden size divided among the heads."""
    if fields.raw.get("head_dim") is not None:
        size = fields.integer("head_dim")
    elif default is not None and "head_dim" not in fields.raw:
        size = default
    else:
        size, rest = divmod(fields.integer("hidden_size"), query_heads)
        if rest:
            fields.corrupt(f"hidden_size is not a multiple of {query_heads} attention heads")
    if size % 2 or size == 0:
        fields.corrupt(f"head_dim {size}: rotary embeddings need an even size")
    return size


def experts(fields: Fields, name: str, other: str | None = None) -> tuple[int, int]:
    """How many experts there are, under either name, and how many a row goes to."""
    count = fields.integer(name) if other is None else fields.either(name, other)
    chosen = fields.integer("num_experts_per_tok")
    if chosen > count:
        fields.corrupt(f"num_experts_per_tok {chosen} exceeds the {count} experts")
    return count, chosen


def sliding_window(fields: Fields, default: int | None) -> int | None:
    """The window's size, None where it is null."""
    if fields.raw.get("sliding_window", default) is None:
        return None
    return fields.integer("sliding_window", default)


def layer_types(
    fields: Fields, default: Callable[[int], str], known: tuple[str, ...] = (FULL, SLIDING)
) -> list[str]:
    """What kind of layer each is, as listed or by the family's rule."""
    layers = fields.integer("num_hidden_layers")
    types = fields.raw.get("layer_types")
    if types is None:
        return [default(index) for index in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        fields.corrupt(f"layer_types must list {layers} layers")
    for kind in types:
        if kind not in known:
            fields.unsupported(f"layer type {kind!r}", f"implemented: {', '.join(known)}")
    return types
