"""The default policy's list of deviations, and how surely each must have been caught."""

from __future__ import annotations

MUST_DETECT = (
    "model/substituted",
    "seed/wrong",
    "weights/int4",
    "temperature/+0.1",
    "prompt/system",
    "depth/skip-layer",
)
"""The default policy: what a sample must have been able to catch before it may be called consistent."""

REQUIRED_POWER = 0.9
