"""Rotary positions as configurations write them: old and new fields, and each type's own parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from auditor.reference.architecture import Rope
from auditor.reference.config import Fields

DEFAULT_THETA = 10_000.0
ORIGINAL = "original_max_position_embeddings"
YARN = (
    "factor",
    ORIGINAL,
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
# Rope types and the fields each has besides `rope_theta`.
ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": YARN,
    "longrope": ("factor", ORIGINAL, "attention_factor", "short_factor", "long_factor"),
}
USUAL = ("default", "linear", "llama3", "yarn")


def rope(fields: Fields, *, allowed: tuple[str, ...] = USUAL, theta: float = DEFAULT_THETA) -> Rope:
    """Read the rotary parameters of a model in which all layers share them and whole heads turn."""
    if ORIGINAL in fields.raw:
        fields.unsupported(f"{ORIGINAL} outside the rotary parameters", "move it inside")
    if fields.raw.get("partial_rotary_factor") not in (None, 1, 1.0):
        fields.unsupported("partial_rotary_factor", "only whole heads are rotated")
    return parsed(fields, stored(fields), allowed=allowed, theta=theta)


def stored(fields: Fields) -> dict[str, Any]:
    """Return the object with the rotary parameters, the old one before the new, or an empty one."""
    new = fields.raw.get("rope_parameters")
    raw = fields.raw.get("rope_scaling") or new or {}
    if not isinstance(raw, dict):
        fields.corrupt("rotary parameters must be an object")
    return dict(raw)


def parsed(
    fields: Fields, raw: dict[str, Any], *, allowed: tuple[str, ...] = USUAL, theta: float = DEFAULT_THETA
) -> Rope:
    """Read one object of rotary parameters; a theta inside wins over one outside, as in transformers."""
    kind = rope_type(raw)
    if kind not in allowed:
        fields.unsupported(f"rope type {kind!r}", f"supported: {', '.join(allowed)}")
    if raw.get("partial_rotary_factor") not in (None, 1, 1.0):
        fields.unsupported("partial_rotary_factor", "only whole heads are rotated")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *ROPE_FIELDS[kind]}
    if unknown := sorted(raw.keys() - known):
        fields.unsupported(
            f"rotary parameter {unknown[0]} with rope type {kind}", "remove it if it means nothing"
        )
    theta = fields.number("rope_theta", fields.number("rope_theta", theta), holder=raw)
    return _READERS[kind](fields, raw, theta)


def rope_type(raw: dict[str, Any]) -> Any:
    """Return the type under its new or its old name."""
    return raw.get("rope_type", raw.get("type", "default"))


def magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's growth of attention with the stretch of the context (section 3.4 of the paper)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _original(fields: Fields, raw: dict[str, Any]) -> int:
    return int(fields.number(ORIGINAL, fields.integer("max_position_embeddings"), holder=raw))


def _optional(fields: Fields, raw: dict[str, Any], name: str) -> float:
    """A number, 0 where it is absent, null or zero."""
    return fields.number(name, holder=raw) if raw.get(name) else 0.0


def _default(fields: Fields, raw: dict[str, Any], theta: float) -> Rope:
    del fields, raw
    return Rope(theta)


def _linear(fields: Fields, raw: dict[str, Any], theta: float) -> Rope:
    return Rope(theta, "linear", factor=fields.number("factor", holder=raw))


def _llama3(fields: Fields, raw: dict[str, Any], theta: float) -> Rope:
    low, high = (fields.number(name, holder=raw) for name in ("low_freq_factor", "high_freq_factor"))
    if high <= low:
        fields.corrupt(f"high_freq_factor {high} must exceed low_freq_factor {low}")
    return Rope(
        theta,
        "llama3",
        factor=fields.number("factor", holder=raw),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context_length=_original(fields, raw),
    )


def _yarn(fields: Fields, raw: dict[str, Any], theta: float) -> Rope:
    factor = fields.number("factor", holder=raw)
    attention = _optional(fields, raw, "attention_factor")
    mscale, mscale_all_dim = (_optional(fields, raw, name) for name in ("mscale", "mscale_all_dim"))
    if not attention and mscale and mscale_all_dim:
        attention = magnitude(factor, mscale) / magnitude(factor, mscale_all_dim)
    truncate = raw.get("truncate", True)
    if not isinstance(truncate, bool):
        fields.corrupt(f"truncate must be true or false, found {truncate!r}")
    return Rope(
        theta,
        "yarn",
        factor=factor,
        original_context_length=_original(fields, raw),
        beta_fast=_optional(fields, raw, "beta_fast") or 32.0,
        beta_slow=_optional(fields, raw, "beta_slow") or 1.0,
        truncate=truncate,
        attention_factor=attention or magnitude(factor),
    )


def _longrope(fields: Fields, raw: dict[str, Any], theta: float) -> Rope:
    original = _original(fields, raw)
    factor = _optional(fields, raw, "factor") or fields.integer("max_position_embeddings") / original
    attention = _optional(fields, raw, "attention_factor")
    if not attention:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(
        theta,
        "longrope",
        short_factors=_divisors(fields, raw, "short_factor"),
        long_factors=_divisors(fields, raw, "long_factor"),
        original_context_length=original,
        attention_factor=attention,
    )


def _divisors(fields: Fields, raw: dict[str, Any], name: str) -> tuple[float, ...]:
    values = raw.get(name)
    if not isinstance(values, list) or not values:
        fields.corrupt(f"{name} must list a number for each rotary frequency")
    return tuple(fields.number(name, holder={name: value}) for value in values)


_READERS: dict[str, Callable[[Fields, dict[str, Any], float], Rope]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
