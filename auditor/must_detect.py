"""Names of what calibrations simulate, the default policy's among them, and how surely each must be caught.

Plain values: who plans or reads a policy needs no reference runner (nor torch).
A test holds them to `reference.deviations`.
"""

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

SHOWS_WITH = {
    "depth/skip-layer": "anything",
    "model/substituted": "anything",
    "weights/int8": "anything",
    "weights/int4": "anything",
    "weights/fp8": "anything",
    "kv/fp8": "anything",
    "kv/int4": "anything",
    "seed/wrong": "noise",
    "temperature/+0.1": "anything",
    "filter/top-p-ignored": "filter",
    "penalty/ignored": "penalty",
    "prompt/system": "anything",
    "prompt/template": "anything",
}
"""Each deviation that calibrations simulate, and what a request must be sampled with to show it."""

REQUIRED_POWER = 0.9
