"""Every dishonest provider we can imagine, as small values on the seams of the reference runner."""

from __future__ import annotations

from auditor.errors import OptionError
from auditor.reference.deviations import inputs, key_value, model, sampler, weights
from auditor.reference.deviations.adapter import undeclared_adapter
from auditor.reference.deviations.base import Deviation, Prompt

HONEST = Deviation(name="honest", gain="a good name", source="the contract")

DEVIATIONS: dict[str, Deviation] = {
    deviation.name: deviation
    for family in (model, weights, key_value, sampler, inputs)
    for deviation in family.DEVIATIONS
}


def deviation(name: str) -> Deviation:
    """Look one up by name; `honest` is the absence of any.

    Raises:
        OptionError: for an unknown name.
    """
    if name == HONEST.name:
        return HONEST
    if name not in DEVIATIONS:
        raise OptionError(f"deviation {name!r} is unknown", fix=f"known: {', '.join(sorted(DEVIATIONS))}")
    return DEVIATIONS[name]


__all__ = ["DEVIATIONS", "HONEST", "Deviation", "Prompt", "deviation", "undeclared_adapter"]
