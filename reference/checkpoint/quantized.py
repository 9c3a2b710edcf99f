"""The weights that a provider declares, quantized or not, as the model computes with them.

Invariants:

- What a module is, is what both the configuration and the stored tensors say; a contradiction is an error.
- Weight-only schemes become a plain matrix in the compute dtype, rounded as `packing.Groups` and
  `QuantizedLinear.dequantized` say: no engine multiplies them otherwise.
- Schemes that round activations become a `QuantizedLinear`.
- Scales are finite and codes are numbers; other tensors are the caller's to check.

Module names are Hugging Face's, such as `model.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.declarations import read_declaration
from auditor.reference.checkpoint.declared import Declaration, Scheme
from auditor.reference.checkpoint.files import DTYPES, Checkpoint
from auditor.reference.checkpoint.key_value import Float8KeyValue, scale_names, stored_scales
from auditor.reference.checkpoint.layouts import codes_of, groups_of, quantized_parts
from auditor.reference.checkpoint.products import InputScheme, QuantizedLinear

ATTENTION = "model.layers.{}.self_attn"


def declaration_of(checkpoint: Checkpoint) -> Declaration | None:
    """Read what `config.json` declares, None for an unquantized checkpoint.

    Raises:
        ModelCorruptError, ModelUnsupportedError: as `read_declaration`.
    """
    raw = checkpoint.quantization_config
    return None if raw is None else read_declaration(raw, str(checkpoint.directory / "config.json"))


def scheme_of(checkpoint: Checkpoint, module: str, declaration: Declaration | None) -> Scheme | None:
    """Find how a module is quantized, None for a dense one.

    Raises:
        ModelCorruptError: declared quantized but stored dense, or the other way round.
        ModelUnsupportedError: two schemes are declared for it.
    """
    stored = bool(quantized_parts(checkpoint, module))
    schemes = [] if declaration is None else declaration.schemes(module)
    if len(schemes) > 1:
        raise ModelUnsupportedError(
            f"two schemes are declared for {module}", where=str(checkpoint.directory / "config.json")
        )
    undecided = declaration is not None and (
        declaration.tensors_decide or (declaration.method == "fp8" and module == "lm_head")
    )
    if schemes and not stored and undecided:
        return None
    if bool(schemes) != stored:
        raise ModelCorruptError(
            f"module {module} is " + ("stored quantized but not declared so", "declared quantized, stored dense")[bool(schemes)],
            where=str(checkpoint.directory),
        )
    return schemes[0] if schemes else None
