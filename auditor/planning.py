"""`plan`: what a wanted power costs in tokens, requests and seconds. Pure but for the profile handed in.

Against a profile's simulated deviations the planner runs the very test that `audit verify` will run: whole
requests are drawn, with replacement, from the profile's simulated dishonest provider (from its honest ones
where the provider cheats on a fraction only), their evidence is added up, and the e-value is read at growing
sizes. So intra-request correlation, the calibration's finite size and the margin's skewness are in it by
construction. `sample_size.py` has closed forms for effects given by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import count

import numpy as np
from scipy.special import ndtr, ndtri

from auditor.errors import OptionError
from auditor.evidence import Calibration, margin_log_e
from auditor.must_detect import MUST_DETECT
from auditor.noise_model import F64, I64, RequestCounts, log_likelihoods
from auditor.power import can_show
from auditor.profile import Profile
from auditor.sample_size import (
    Effect,
    Sequential,
    check_rates,
    diluted,
    effect_of,
    power_of_mean,
    requests_to_meet_a_cheat,
    sequential_tokens,
    tokens_for_any_mismatch,
    tokens_for_mean,
)

DRAWS = 200
"""Simulated audits of each curve: a power's standard error is at most 0.035, and 0.021 at 0.9."""

MOST_SCORE = 1e100
"""Of means and deviations given by hand: their squares are still numbers."""
_EDGE = 0.002  # powers are kept this far from 0 and 1 where their normal score is taken
_GROWTH = 1.3  # from one size looked at to the next
_MOST_REQUESTS = 2048
_MOST_TOKENS = 1e15  # beyond it nobody needs a curve


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Power of `audit verify` against one cause at growing sizes.

    Attributes:
        requests, tokens: sizes looked at; tokens are means over the simulated audits.
        power: share of audits whose e-value at that size convicts.
        stopped: share convicted at that size or at an earlier one: power with a look after each size.
        stopping_tokens: tokens at the first conviction of each simulated audit, inf if there was none.
    """

    requests: I64
    tokens: F64
    power: F64
    stopped: F64
    stopping_tokens: F64

    def tokens_for(self, power: float) -> float:
        """Smallest size from which the power stays at least this; infinite if the curve does not get there.

        Between two sizes looked at it is read on the line of the power's normal score over log size.
        """
        short = np.flatnonzero(self.power < power)
        if not len(short):
            return float(self.tokens[0])
        at = int(short[-1])
        if at + 1 == len(self.power):
            return math.inf
        low, high = np.clip(self.power[at : at + 2], _EDGE, 1 - _EDGE)
        share = (ndtri(power) - ndtri(low)) / (ndtri(high) - ndtri(low)) if high > low else 1.0
        start, end = np.log(self.tokens[at : at + 2])
        return float(np.exp(start + min(max(float(share), 0.0), 1.0) * (end - start)))

    def power_at(self, tokens: float) -> float | None:
        """Power at a size, read in the same way.

        None below the smallest size looked at, and above the largest unless the power was 1 there.
        """
        if tokens < self.tokens[0]:
            return None
        if tokens > self.tokens[-1]:
            return 1.0 if self.power[-1] == 1.0 else None
        score = np.interp(np.log(tokens), np.log(self.tokens), ndtri(np.clip(self.power, _EDGE, 1 - _EDGE)))
        return float(ndtr(score))

    @property
    def expected_tokens(self) -> float:
        """Mean tokens until a conviction with a look after each size; infinite if an audit had none."""
        return float(self.stopping_tokens.mean())


@dataclass(frozen=True, slots=True)
class Row:
    """The plan against one cause.

    Attributes:
        required: whether `consistent` must exclude it.
        tokens: for the wanted power, infinite when out of reach. requests: what they come to, None unknown.
        expected_tokens: mean until a conviction when every size is looked at; None where nothing says so.
        power_each: probability that one dishonest request convicts by itself at alpha.
        spot_checks: requests checked one by one, alpha shared among them, until one convicts.
        effect, tokens_by_mean: moments of the winsorised margin (or of the score given by hand), and the
            closed form for a test of its mean.
        curve: simulated audits; by hand the closed form's.
        sequential: expected tokens of sequential tests, for rates given by hand.
    """

    cause: str
    required: bool
    tokens: float
    requests: float | None = None
    seconds: float | None = None
    expected_tokens: float | None = None
    power_each: float | None = None
    spot_checks: float | None = None
    effect: Effect | None = None
    tokens_by_mean: float | None = None
    curve: PowerCurve | None = None
    sequential: Sequential | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked, and one row a cause. `speed` is in output tokens a second."""

    alpha: float
    power: float
    fraction: float
    speed: float | None
    mode: str | None
    profile: Profile | None
    rows: tuple[Row, ...]


def plan(
    profile: Profile | None = None,
    *,
    causes: Sequence[str] = (),
    effect: Effect | None = None,
    rates: tuple[float, float] | None = None,
    shape: Effect | None = None,
    alpha: float = 0.001,
    power: float = 0.9,
    fraction: float = 1.0,
    mode: str = "sampled",
    speed: float | None = None,
    seed: int = 0,
) -> Plan:
    """Plan an audit against deviations of a profile, or against one whose size is given by hand.

    Args:
        causes: deviations of the profile; all of them when empty.
        effect: by hand: moments of a score per token.
        rates: by hand: mismatch rates (honest, dishonest).
        shape: whose correlation and request length hold for `rates`; one token a request when None.
        fraction: share of requests on which the provider cheats.
        mode: how the audited requests are sampled, `sampled`, `nucleus` or `greedy`.
        speed: measured audit speed in output tokens a second.
        seed: of the simulated audits.

    Raises:
        OptionError: a level or fraction out of range, an unknown cause or mode, nothing to plan for.
    """
    check_rates(alpha, power)
    if not 0.0 < fraction <= 1.0:
        raise OptionError(f"a fraction of {fraction} is outside (0, 1]", where="--fraction")
    if effect is not None and min(effect.honest_sd, effect.sd) < 0.0:
        raise OptionError("a standard deviation is negative", where="--effect")
    if effect is not None and not max(map(abs, astuple(effect)[:4])) <= MOST_SCORE:
        raise OptionError(f"no score is beyond {MOST_SCORE:g}", where="--effect")
    if speed is not None and not speed > 0.0:
        raise OptionError(f"a speed of {speed} tokens a second", where="--speed")
    rows: list[Row] = []
    if profile is not None:
        generators = (np.random.default_rng([seed, n]) for n in count())
        rows += _profile_rows(profile, causes, alpha, power, fraction, mode, speed, generators)
    if effect is not None:
        rows.append(_effect_row(diluted(effect, fraction), alpha, power, speed))
    if rates is not None:
        honest, cheating = rates
        mixed = honest + fraction * (cheating - honest)
        row = _rates_row(honest, mixed, shape or Effect(0.0, 0.0, 0.0, 0.0), (alpha, power))
        rows.append(replace(row, seconds=_seconds(row.tokens, speed)))
    if not rows:
        raise OptionError("nothing to plan for", fix="give a profile, an effect or two mismatch rates")
    return Plan(alpha, power, fraction, speed, None if profile is None else mode, profile, tuple(rows))


def _seconds(tokens: float, speed: float | None) -> float | None:
    return None if speed is None else tokens / speed


def _requests(tokens: float, length: float) -> float:
    return math.ceil(tokens / length) if math.isfinite(tokens) else math.inf


def _profile_rows(
    profile: Profile,
    causes: Sequence[str],
    alpha: float,
    power: float,
    fraction: float,
    mode: str,
    speed: float | None,
    generators: Iterator[np.random.Generator],
) -> Iterator[Row]:
    known = {
        cause: deviated.requests[mode]
        for cause, deviated in profile.deviations.items()
        if deviated.requests.get(mode) and can_show(cause, mode)
    }
    if not known:
        raise OptionError(f"the profile holds no deviation that shows in mode {mode!r}", where="--profile")
    for cause in causes:
        if cause not in known:
            choices = ", ".join(known)
            raise OptionError(f"no deviation {cause!r}", where="--cause", fix=f"choose from {choices}")
    calibration = profile.calibration
    # A log under filters has a second test beside this one, and their e-values are averaged.
    bar = -math.log(alpha) + (math.log(2.0) if mode == "nucleus" else 0.0)
    for cause in causes or known:
        requests = known[cause]
        curve = power_curve(requests, profile.honest, calibration, bar, fraction, next(generators))
        tokens = curve.tokens_for(power)
        effect = effect_of(profile.honest, requests, profile.clip)
        yield Row(
            cause,
            cause in MUST_DETECT,
            tokens,
            requests=_requests(tokens, float(curve.tokens[0] / curve.requests[0])),
            seconds=_seconds(tokens, speed),
            expected_tokens=curve.expected_tokens,
            power_each=float((margin_log_e(calibration, log_likelihoods(requests)) >= bar).mean()),
            spot_checks=spot_checks(requests, calibration, bar, fraction, power),
            effect=effect,
            tokens_by_mean=tokens_for_mean(diluted(effect, fraction), alpha, power),
            curve=curve,
        )


def power_curve(
    cheating: Sequence[RequestCounts],
    honest: Sequence[RequestCounts],
    calibration: Calibration,
    bar: float,
    fraction: float,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    most_requests: int = _MOST_REQUESTS,
) -> PowerCurve:
    """Simulate audits of a provider that treats each request dishonestly with probability `fraction`.

    Each simulated audit is one growing log; it ends early once every audit convicts at two sizes running.

    Args:
        calibration: the profile's honest requests.
        bar: log e-value that convicts.
    """
    pool = [*cheating, *(honest if fraction < 1.0 else ())]
    grids = log_likelihoods(pool)
    lengths = np.array([r.tokens for r in pool], np.float64)
    chances = np.full(len(pool), fraction / len(cheating))
    if fraction < 1.0:
        chances[len(cheating) :] = (1.0 - fraction) / len(honest)
    total, tokens = np.zeros((draws, *calibration.grid.shape)), np.zeros(draws)
    first = np.full(draws, np.inf)
    sizes: list[tuple[int, float, float, float]] = []
    size = 0
    while size < most_requests:
        step = max(1, math.ceil(size * (_GROWTH - 1.0)))
        size += step
        drawn = generator.multinomial(step, chances, size=draws).astype(np.float64)
        total += np.tensordot(drawn, grids, axes=1)
        tokens += drawn @ lengths
        convicts = margin_log_e(calibration, total) >= bar
        first = np.where(convicts & np.isinf(first), tokens, first)
        sizes.append((size, float(tokens.mean()), float(convicts.mean()), float(np.isfinite(first).mean())))
        if len(sizes) > 1 and sizes[-1][2] == sizes[-2][2] == 1.0:
            break
    columns = np.array(sizes).T
    return PowerCurve(columns[0].astype(np.int64), columns[1], columns[2], columns[3], first)


def spot_checks(
    requests: Sequence[RequestCounts], calibration: Calibration, bar: float, fraction: float, power: float
) -> float:
    """Requests checked each by itself until one convicts with probability `power`; infinite if none can.

    Alpha is shared among the requests checked (Bonferroni), so the bar rises with their number.
    """
    log_es = margin_log_e(calibration, log_likelihoods(requests))
    checks = 1.0
    while checks < _MOST_REQUESTS:
        each = float((log_es >= bar + math.log(checks)).mean())
        needed = requests_to_meet_a_cheat(fraction, each, power)
        if needed <= checks:
            return math.ceil(checks)
        checks = max(checks + 1.0, min(needed, checks * 1.5))
    return math.inf


def _effect_row(effect: Effect, alpha: float, power: float, speed: float | None) -> Row:
    tokens = max(1.0, tokens_for_mean(effect, alpha, power))
    curve = None
    if tokens < _MOST_TOKENS:
        sizes = np.geomspace(max(1.0, tokens / 30), tokens * 8, 40)
        powers = np.array([power_of_mean(effect, alpha, n) for n in sizes])
        requests = np.ceil(sizes / effect.request_tokens).astype(np.int64)
        curve = PowerCurve(requests, sizes, powers, powers, np.array([np.inf]))
    return Row(
        "effect by hand",
        required=True,
        tokens=tokens,
        requests=_requests(tokens, effect.request_tokens),
        seconds=_seconds(tokens, speed),
        effect=effect,
        tokens_by_mean=tokens,
        curve=curve,
    )


def _rates_row(honest: float, cheating: float, template: Effect, levels: tuple[float, float]) -> Row:
    """Mismatches counted; `template` holds correlation and request length."""
    alpha, power = levels
    if honest == 0.0:  # nothing honest ever mismatches, so the first mismatch convicts
        tokens = tokens_for_any_mismatch(cheating, power)
        expected = 1.0 / cheating if cheating > 0.0 else math.inf
        requests = _requests(tokens, template.request_tokens)
        return Row("any mismatch", required=True, tokens=tokens, requests=requests, expected_tokens=expected)
    sequential = sequential_tokens(cheating, honest, alpha, power)
    effect = replace(
        template,
        honest_mean=honest,
        honest_sd=math.sqrt(honest * (1 - honest)),
        mean=cheating,
        sd=math.sqrt(cheating * (1 - cheating)),
    )
    row = _effect_row(effect, alpha, power, None)
    return replace(
        row, cause="mismatch rate by hand", expected_tokens=sequential.e_process, sequential=sequential
    )
