"""A checkpoint's tensors made into decoder layers: names, shapes and fusing, in one place.

Invariant: a model has exactly the parameters its configuration calls for; a tensor that is missing,
misshapen, not finite or left over is an error, for a reference that drops a tensor is another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelUnsupportedError

if TYPE_CHECKING:
    from auditor.reference.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer's parameters, matrices as [outputs, inputs].

    `qkv` stacks the query, key and value projections and `gate_up` the two halves of the MLP, since one
    product is quicker than three; each output element is the same dot product either way. `qk_norm` is
    [query + key/value heads, head_dim], None where the architecture has no such norm.
    """

    index: int
    sliding_window: int | None
    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """List every parameter's HF name and shape."""
    hidden, middle = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    projections = (
        ("self_attn.q_proj", query, hidden, config.qkv_bias),
        ("self_attn.k_proj", key_value, hidden, config.qkv_bias),
        ("self_attn.v_proj", key_value, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, query, config.output_bias),
        ("mlp.gate_proj", middle, hidden, config.mlp_bias),
        ("mlp.up_proj", middle, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, middle, config.mlp_bias),
    )
    norms = [("input_layernorm", hidden), ("post_attention_layernorm", hidden)]
    if config.qk_norm:
        norms += [("self_attn.q_norm", config.head_dim), ("self_attn.k_norm", config.head_dim)]
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}"
        shapes |= {f"{prefix}.{name}.weight": (size,) for name, size in norms}
        shapes |= {f"{prefix}.{name}.weight": (rows, columns) for name, rows, columns, _ in projections}
        shapes |= {f"{prefix}.{name}.bias": (rows,) for name, rows, _, biased in projections if biased}
    return shapes


def check_parameters(
    config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype, *, where: str
) -> dict[str, Tensor]:
    """Return exactly the architecture's parameters, rounded to `dtype`.

    Raises:
        ModelCorruptError: a tensor that is missing, misshapen, or not finite in `dtype`.
        ModelUnsupportedError: a tensor that the architecture does not use.

    """
    shapes = parameter_shapes(config)
    parameters = {}
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelCorruptError(f"tensor {name} is missing", where=where, fix="copy the whole checkpoint")
        tensor = tensors[name].to(dtype)
        if tuple(tensor.shape) != shape:
            raise ModelCorruptError(f"tensor {name} is {list(tensor.shape)}, not {list(shape)}", where=where)
        if not torch.isfinite(tensor).all():
            raise ModelCorruptError(f"tensor {name} holds NaN or infinity in {dtype}", where=where)
        parameters[name] = tensor
    for name in sorted(tensors.keys() - shapes.keys()):
        if name.endswith("rotary_emb.inv_freq"):
            continue  # a buffer that old checkpoints carry; frequencies come from the configuration
        if name == HEAD and torch.equal(tensors[HEAD], tensors[EMBEDDING]):
            continue  # tied, and written twice
        raise ModelUnsupportedError(
            f"tensor {name} has no place in a {config.model_type} model with this configuration", where=where
        )
    return parameters


def build_layer(config: ModelConfig, parameters: dict[str, Tensor], index: int) -> Layer:
    """Build layer `index`; entries of `parameters` that are fused become views, so nothing is held twice."""
    prefix = f"model.layers.{index}"

    def fused(names: tuple[str, ...]) -> Tensor:
        full = [f"{prefix}.{name}" for name in names]
        matrix = torch.cat([parameters[name] for name in full])
        sizes = [len(parameters[name]) for name in full]
        parameters.update(zip(full, torch.split(matrix, sizes), strict=True))
        return matrix

    def norm(name: str) -> Tensor:
        return parameters[f"{prefix}.{name}.weight"]

    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up = ("mlp.gate_proj", "mlp.up_proj")
    qk_norm = None
    if config.qk_norm:
        counts = torch.tensor([config.num_attention_heads, config.num_key_value_heads])
        pair = torch.stack((norm("self_attn.q_norm"), norm("self_attn.k_norm")))
        qk_norm = pair.repeat_interleave(counts, dim=0)
    return Layer(
        index=index,
        sliding_window=config.sliding_windows[index],
        attention_norm=norm("input_layernorm"),
        qkv=fused(tuple(f"{name}.weight" for name in qkv)),
        qkv_bias=fused(tuple(f"{name}.bias" for name in qkv)) if config.qkv_bias else None,
        qk_norm=qk_norm,
        output=parameters[f"{prefix}.self_attn.o_proj.weight"],
        output_bias=parameters.get(f"{prefix}.self_attn.o_proj.bias"),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=fused(tuple(f"{name}.weight" for name in gate_up)),
        gate_up_bias=fused(tuple(f"{name}.bias" for name in gate_up)) if config.mlp_bias else None,
        down=parameters[f"{prefix}.mlp.down_proj.weight"],
        down_bias=parameters.get(f"{prefix}.mlp.down_proj.bias"),
    )
