"""What configurations with Mamba-2 layers have in common."""

from __future__ import annotations

import math
from typing import Any

from auditor.reference.config import Fields

# Fields that only initialisation, training and faster kernels look at.
UNUSED = (
    *("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "rescale_prenorm_residual"),
    *("chunk_size", "mamba_chunk_size", "use_mamba_kernels", "z_loss_coefficient"),
)


def head_dim(fields: Fields, width: int, heads: int, field: str) -> int:
    """A head's size, which the width and the number of heads decide; the field may say it again."""
    size, rest = divmod(width, heads)
    if rest:
        fields.corrupt(f"a mixer of width {width} is not a multiple of {heads} heads")
    if fields.raw.get(field, "auto") not in (size, "auto"):
        fields.corrupt(f"{field} must be {size}, found {fields.raw[field]!r}")
    return size


def groups(fields: Fields, heads: int, field: str, default: int) -> int:
    """How many groups the heads form."""
    count = fields.integer(field, default)
    if heads % count:
        fields.corrupt(f"{heads} heads cannot form {count} groups evenly")
    return count


def time_steps(fields: Fields) -> tuple[float, float]:
    """Bounds of the time steps; infinity is written as itself or as transformers writes it."""
    bounds = fields.raw.get("time_step_limit", [0.0, math.inf])
    if not isinstance(bounds, list) or len(bounds) != 2:
        fields.corrupt("time_step_limit must list two numbers")
    least, most = (_bound(fields, bound) for bound in bounds)
    if not 0 <= least < most:
        fields.corrupt(f"time_step_limit must rise from 0 or more, found {bounds!r}")
    return least, most


def _bound(fields: Fields, value: Any) -> float:
    if value == {"__float__": "Infinity"}:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        fields.corrupt(f"time_step_limit must list two numbers, found {value!r}")
    return float(value)
