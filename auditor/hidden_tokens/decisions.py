"""From scores of responses to decisions at a stated false-alarm rate. Pure.

Scores of honest responses are exchangeable with the calibration's, and nothing else is assumed.

* One response: the conformal p-value, (1 + honest scores at least as large) / (n + 1), is at most u with
  probability at most u (Vovk, Gammerman, Shafer 2005).
* Several tests of one response: `worst_of` places each test's score among honest ones and takes the most
  extreme; calibrated again on other honest responses it is one score like any other.
* Many responses: a bet on each. Responses judged against one calibration share its luck, so their p-values
  are not independent; therefore a threshold's rate is not taken at its nominal value but at an upper
  confidence limit (Clopper and Pearson 1934), which holds with probability 1 - alpha / 2. Then a bet of

      e = 1 - l + l * [score beyond threshold] / rate,   0 <= l <= 1

  has mean at most 1, and products of bets reach 2 / alpha with probability at most alpha / 2 (Ville 1939).
  The mean over several thresholds and stakes l is such a product's mixture, so neither has to be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from scipy.stats import beta

from auditor.errors import OptionError

F64 = npt.NDArray[np.float64]

RATES = (0.01, 0.05, 0.2)
"""Nominal rates of the thresholds that are bet on."""
STAKES = (0.05, 0.2, 0.5, 0.9)


def p_values(calibration: F64, scores: F64) -> F64:
    """Conformal p-values of scores against honest ones, float64 [n]; ties count against suspicion.

    Raises:
        OptionError: no calibration.
    """
    honest = np.sort(np.asarray(calibration, np.float64))
    if not len(honest):
        raise OptionError("conformal p-values need honest responses")
    at_least = len(honest) - np.searchsorted(honest, scores, side="left")
    return np.asarray((1.0 + at_least) / (len(honest) + 1.0))


def tail_log_p(honest: F64, scores: F64) -> F64:
    """Log tail probability of scores under honest ones, with an exponential tail beyond their largest tenth.

    Ranks alone give every score beyond the largest honest one the same p-value, and several tests fused by
    rank tie so often that small rates are out of reach. The tail is that of excesses over a high threshold
    (Pickands 1975, shape 0); it orders scores and is no p-value: what is made of it has to be calibrated.
    """
    ordered = np.sort(np.asarray(honest, np.float64))
    inside = np.log(p_values(ordered, scores))
    n = len(ordered)
    threshold = ordered[max(0, n - 1 - max(1, n // 10))]
    # Only what lies above: of a score that most honest responses share, fewer than a tenth are larger.
    above = ordered[ordered > threshold] - threshold
    spread = float(above.mean()) if len(above) else float(ordered.std()) or 1.0
    tail = math.log((len(above) + 1) / (n + 1)) - (np.asarray(scores, np.float64) - threshold) / spread
    return np.where(scores > threshold, tail, inside)


def worst_of(tests: Sequence[tuple[F64, F64]]) -> F64:
    """One score for several tests: minus the least log tail probability of any.

    Args:
        tests: (honest scores, scores [n]) of each; the honest ones are not used for anything else.
    """
    least = np.min([tail_log_p(honest, scores) for honest, scores in tests], axis=0)
    return np.asarray(-least, np.float64)


class ResponseTest:
    """Accumulates evidence over responses; may be looked at after each.

    Args:
        calibration: scores of honest responses, of the same kind as those to come.
        alpha: false-alarm rate of the whole sequence, the calibration's luck included.

    Raises:
        OptionError: alpha out of range, or fewer than 20 honest responses.
    """

    def __init__(self, calibration: F64, alpha: float) -> None:
        if not 0.0 < alpha < 1.0:
            raise OptionError(f"alpha {alpha} is outside (0, 1)", where="--alpha")
        honest = np.sort(np.asarray(calibration, np.float64))
        if len(honest) < 20:
            raise OptionError(f"{len(honest)} honest responses; at least 20 are needed")
        self.alpha = alpha
        n = len(honest)
        allowed = [min(n - 1, max(0, math.floor(rate * n))) for rate in RATES]
        self._thresholds = np.array([honest[n - 1 - k] for k in allowed])
        level = 1.0 - alpha / (2 * len(RATES))
        # Of n honest scores k lie beyond this one: the share of all honest ones that do is at most this.
        self.rates = np.array([beta.ppf(level, k + 1, n - k) for k in allowed])
        self._log_wealth = np.zeros((len(RATES), len(STAKES)))
        self.responses = 0

    def update(self, score: float) -> float:
        """Take one response; returns the log e-value so far. Evidence of 2 / alpha convicts."""
        beyond = (score > self._thresholds).astype(np.float64) / self.rates
        stakes = np.array(STAKES)
        self._log_wealth += np.log(1.0 - stakes[None, :] + stakes[None, :] * beyond[:, None])
        self.responses += 1
        return self.log_e

    def log_e_along(self, scores: F64) -> F64:
        """Log e-value after each response of fresh sequences, [..., n] to [..., n]: `update` in one go."""
        beyond = (scores[..., None] > self._thresholds) / self.rates
        stakes = np.array(STAKES)
        steps = np.log(1.0 - stakes + stakes * beyond[..., None])
        wealth = np.cumsum(steps, axis=-3)
        return np.asarray(logsumexp(wealth, axis=(-2, -1)) - math.log(self._log_wealth.size))

    @property
    def log_e(self) -> float:
        """Log e-value of the responses so far, given a calibration that is not unlucky."""
        return float(logsumexp(self._log_wealth) - math.log(self._log_wealth.size))

    @property
    def convicts(self) -> bool:
        """Whether the evidence suffices at alpha."""
        return self.log_e >= math.log(2.0 / self.alpha)


def responses_needed(
    calibration: F64, scores: F64, alpha: float, *, limit: int, draws: int, seed: int
) -> float:
    """Median number of responses to convict, of sequences drawn from `scores`; infinite beyond `limit`."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(np.asarray(scores, np.float64), size=(draws, limit))
    wealth = ResponseTest(calibration, alpha).log_e_along(drawn)
    reached = wealth >= math.log(2.0 / alpha)
    first = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, math.inf)
    return float(np.median(first))
