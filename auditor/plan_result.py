"""A plan as JSON, `auditor.plan/v1`: what `audit plan --format json` prints and the service answers."""

from __future__ import annotations

import math
from typing import Any

from auditor.planning import Plan, Row


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def plan_to_json(made: Plan) -> dict[str, Any]:
    """The plan as one `auditor.plan/v1` object; what is out of reach or unknown is null."""
    return {
        "schema": "auditor.plan/v1",
        "alpha": made.alpha,
        "power": made.power,
        "fraction": made.fraction,
        "speed": made.speed,
        "mode": made.mode,
        "profile": None
        if made.profile is None
        else {"id": made.profile.id, "provider_recipe": made.profile.key.provider_recipe},
        "rows": [_row(row) for row in made.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    names = (
        "tokens",
        "requests",
        "seconds",
        "expected_tokens",
        "power_each",
        "spot_checks",
        "tokens_by_mean",
    )
    figures = {name: _finite(getattr(row, name)) for name in names}
    parts = {
        name: None if value is None else {n: _finite(getattr(value, n)) for n in type(value).__slots__}
        for name, value in (("effect", row.effect), ("sequential", row.sequential))
    }
    curve = None
    if row.curve is not None:
        columns = (row.curve.tokens, row.curve.power, row.curve.stopped)
        curve = [
            {"tokens": round(tokens, 1), "power": round(power, 4), "stopped": round(stopped, 4)}
            for tokens, power, stopped in zip(*(c.tolist() for c in columns), strict=True)
        ]
    between = None if row.power_between is None else [round(end, 4) for end in row.power_between]
    return {
        "cause": row.cause,
        "required": row.required,
        **figures,
        "power_between": between,
        **parts,
        "curve": curve,
    }
