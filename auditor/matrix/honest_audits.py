"""How often honest providers are convicted: audits of fresh requests each, none drawn twice.

Blocks of audits share a calibration, which is drawn anew, too, for each block: what the promise speaks of is
calibration and audit together. Everything is the product's own: logs are decoded, calibrated on and judged as
`audit calibrate` and `audit verify` do it, with fingerprints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scipy.stats import beta

from auditor.calibration import calibrate
from auditor.matrix.memory import Memory
from auditor.matrix.provider import HonestProvider
from auditor.reference.sampling import SamplingSpec
from auditor.replay import replay
from auditor.verdict import judge

BLOCK = 100
"""Audits that share a calibration."""
REQUESTS, TOKENS, CALIBRATION = 8, 24, 192
"""Requests of an audit, output tokens of each at most, and requests that calibrate a block."""
ALPHAS = (0.05, 0.01, 0.001)

_SEED = 45_000_000
_SEEDS_APART = 10_000


def honest_audits(
    provider: HonestProvider, audits: int, memory: Memory, done: Callable[[int], None] = lambda _audits: None
) -> dict[str, Any]:
    """Convictions of so many disjoint honest audits, a one-sided 95 % bound of their rate, at each alpha.

    Args:
        done: called with audits as they are finished.
    """
    log_es: list[float] = []
    for block, first in enumerate(range(0, audits, BLOCK)):
        count = min(BLOCK, audits - first)
        name = f"honest audits {block} of {count}"
        found = memory.find(name)
        if found is None:
            found = {"log_e": _block(provider, block, count)}
            memory.add(name, found)
        log_es.extend(found["log_e"])
        done(count)
    return {
        "audits": len(log_es),
        "requests": REQUESTS,
        "tokens": TOKENS,
        "calibration": CALIBRATION,
        "calibrations": -(-audits // BLOCK),
        "most_log_e": max(log_es, default=None),
        "convicted": {str(alpha): _rate(log_es, alpha) for alpha in ALPHAS},
    }


def _rate(log_es: list[float], alpha: float) -> dict[str, float]:
    hits, total = sum(e >= -math.log(alpha) for e in log_es), len(log_es)
    return {"audits": hits, "bound": 1.0 if hits == total else float(beta.ppf(0.95, hits + 1, total - hits))}


def _block(provider: HonestProvider, block: int, audits: int) -> list[float]:
    """Log e-value of each audit of a block."""
    seed = _SEED + _SEEDS_APART * block
    spec = SamplingSpec(max_tokens=TOKENS)
    profile = calibrate(
        provider.serve(CALIBRATION, seed, spec), provider.reference, keep_suspects=True, shadow_tokens=0
    )
    fresh = provider.serve(audits * REQUESTS, seed + _SEEDS_APART // 2, spec)
    scored = list(replay(fresh, provider.reference))
    return [
        judge(scored[first : first + REQUESTS], profile, alpha=ALPHAS[0]).log_e
        for first in range(0, len(scored), REQUESTS)
    ]
