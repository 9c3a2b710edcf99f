"""Gemma 3 for text: Gemma 2 with normalised heads, other windows, and other positions where there is none."""

from __future__ import annotations

import dataclasses
from typing import Any

from auditor.reference.architecture import ModelConfig, Rope
from auditor.reference.config import Fields
from auditor.reference.families import common, gemma2, rotary

# What transformers assumes when the file has no such field.
DEFAULT_PATTERN = 6
DEFAULT_THETA = 1_000_000.0
DEFAULT_LOCAL_THETA = 10_000.0


def describe(fields: Fields) -> ModelConfig:
    """Read a `gemma3_text` configuration."""
    fields.refuse("attn_logit_softcapping", because="transformers does not apply it")
    plan = dataclasses.replace(gemma2.attention(fields), qk_norm="head")
    pattern = fields.integer("sliding_window_pattern", DEFAULT_PATTERN)
    kinds = common.layer_types(fields, lambda index: common.SLIDING if (index + 1) % pattern else common.FULL)
    turns = ropes(fields)
    layers = [
        dataclasses.replace(plan, rope=turns[kind], window=gemma2.window(fields, kind)) for kind in kinds
    ]
    return gemma2.decoder(fields, layers, gemma2.softcap(fields, "final_logit_softcapping", 0.0))


def ropes(fields: Fields) -> dict[str, Rope]:
    """Read the rotary parameters by kind of layer; those of the old form hold for full attention only."""
    nested = fields.raw.get("rope_parameters") or {}
    if not isinstance(nested, dict) or nested.keys() - {common.FULL, common.SLIDING}:
        fields.unsupported("rope_parameters that are not given by kind of layer", "give them so")
    old = fields.raw.get("rope_scaling") or {}
    theta = fields.number("rope_theta", DEFAULT_THETA)
    local = fields.number("rope_local_base_freq", DEFAULT_LOCAL_THETA)
    return {
        common.FULL: _rope(fields, nested.get(common.FULL), theta, old),
        common.SLIDING: _rope(fields, nested.get(common.SLIDING), local, {}),
    }


def _rope(fields: Fields, raw: Any, theta: float, changes: Any) -> Rope:
    if not isinstance(raw, dict | None) or not isinstance(changes, dict):
        fields.corrupt("rotary parameters must be an object")
    values = {"rope_theta": theta} | (raw or {}) | changes
    return rotary.parsed(fields, values, allowed=("default", "linear"))
