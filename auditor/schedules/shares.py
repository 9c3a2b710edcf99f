"""How one alpha is dealt out over numbered things that may go on for ever. Pure."""

from __future__ import annotations

import math


def share(number: int) -> float:
    """w_j = 6 / (pi^2 j^2) of the thing with this number, 1, 2, ...: all of them together are 1."""
    return 6.0 / (math.pi * number) ** 2


def level(alpha: float, number: int) -> float:
    """The alpha at which the period's own audit is judged: what an alpha ledger gives its entry `number`."""
    return alpha * share(number)
