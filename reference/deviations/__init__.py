"""Every dishonest provider we can imagine, as small values on the seams of the reference runner.

A new one is an entry in the `DEVIATIONS` of one of these files, or a file of its own named in `_FAMILIES`.
"""

from __future__ import annotations

from auditor.errors import OptionError
from auditor.reference.deviations import (
    attending,
    cache_rounding,
    caches,
    contexts,
    depth,
    drawing,
    formats,
    inflating,
    inputs,
    key_value,
    model,
    partly,
    rounding,
    sampler,
    searching,
    speculating,
    weights,
)
from auditor.reference.deviations.adapter import undeclared_adapter
from auditor.reference.deviations.base import Deviation, Prompt, Served, Serving

HONEST = Deviation(name="honest", gain="a good name", source="the contract")

DEVIATIONS: dict[str, Deviation] = {
    deviation.name: deviation
    for family in (model, weights, key_value, sampler, inputs)
    for deviation in family.DEVIATIONS
}
"""Those that every calibration simulates, and diagnoses name."""

_FAMILIES = (
    rounding,
    formats,
    cache_rounding,
    caches,
    attending,
    depth,
    drawing,
    contexts,
    partly,
    speculating,
    searching,
    inflating,
)
CATALOGUE: dict[str, Deviation] = DEVIATIONS | {
    deviation.name: deviation for family in _FAMILIES for deviation in family.DEVIATIONS
}
"""All of them: the rows of `audit matrix`."""


def deviation(name: str) -> Deviation:
    """Look one up by name; `honest` is the absence of any.

    Raises:
        OptionError: for an unknown name.
    """
    if name == HONEST.name:
        return HONEST
    if name not in CATALOGUE:
        raise OptionError(f"deviation {name!r} is unknown", fix="`audit matrix --list` names them all")
    return CATALOGUE[name]


__all__ = [
    "CATALOGUE",
    "DEVIATIONS",
    "HONEST",
    "Deviation",
    "Prompt",
    "Served",
    "Serving",
    "deviation",
    "undeclared_adapter",
]
