"""Responses one after another: do their bills exceed what their texts take? Pure.

For response i let X_i >= 0 be the tokens billed beyond the canonical number (and beyond what the audit allows
for), and U_i an unbiased estimate of its expectation under the claimed model given the text. For an honest
provider E[X_i - U_i | past, text] <= 0, so

    W_i = W_(i-1) (1 + bet_i (X_i - min(U_i, c_i) - TOLERANCE)),   0 <= bet_i <= 1 / (c_i + TOLERANCE)

is a supermartingale as long as bet_i and the ceiling c_i depend on the past and the text only, never on U_i
or the bill: X_i is not negative, so no factor is, without any bound on U_i or on bills known beforehand.
The average over several bets is one too, so none has to be chosen, let alone in hindsight. By Ville P(sup W
>= 1/alpha) <= alpha.

TOLERANCE pays for what the identity leaves out: the provider's rounding, which moves expectations a little,
and the part of U_i above its ceiling, which `min` cuts off. Source of the test: "Auditing Pay-Per-Token",
arXiv 2510.05181, whose bets were scaled by the audited data itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

F64 = npt.NDArray[np.float64]

TOLERANCE = 0.05
"""Tokens a response that an honest provider may bill too much on average."""

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Bets, as shares of the largest one that no honest bill can ruin."""


@dataclass(frozen=True, slots=True)
class CountedResponse:
    """One response's bill beside its text.

    Attributes:
        billed: tokens. canonical: tokens of the canonical tokenization, the end token that is allowed for
            included, and whatever else the audit forgives.
        expected: unbiased estimate of the honest excess beyond `canonical`.
        ceiling: where `expected` is cut off; known from the text alone.
    """

    billed: int
    canonical: int
    expected: float
    ceiling: float

    @property
    def excess(self) -> int:
        """Tokens billed beyond what is allowed for."""
        return max(0, self.billed - self.canonical)


def wealth(responses: Sequence[CountedResponse], *, tolerance: float = TOLERANCE) -> F64:
    """Log of the e-process after each response, float64 [n]."""
    excess = np.array([r.excess for r in responses], np.float64)
    ceiling = np.array([r.ceiling for r in responses], np.float64)
    expected = np.minimum([r.expected for r in responses], ceiling)
    bets = np.array(SHARES)[:, None] / (ceiling + tolerance)
    factors = np.log1p(bets * (excess - expected - tolerance))
    return np.asarray(logsumexp(np.cumsum(factors, axis=1), axis=0) - np.log(len(SHARES)))


def responses_to_flag(log_wealth: F64, alpha: float) -> int | None:
    """How many responses it took to reach 1/alpha; None if they never did."""
    reached = np.flatnonzero(log_wealth >= -np.log(alpha))
    return int(reached[0]) + 1 if len(reached) else None
