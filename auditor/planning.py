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

from auditor.errors import OptionError
from auditor.evidence import Calibration, margin_log_e
from auditor.must_detect import MUST_DETECT
from auditor.noise_model import RequestCounts, log_likelihoods
from auditor.power import can_show
from auditor.power_curves import MOST_REQUESTS, PowerCurve, Simulated, power_curve, power_interval
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

MOST_SCORE = 1e100
"""Of means and deviations given by hand: their squares are still numbers."""
_MOST_TOKENS = 1e15  # beyond it nobody needs a curve


@dataclass(frozen=True, slots=True)
class Row:
    """The plan against one cause.

    Attributes:
        required: whether `consistent` must exclude it.
        tokens: for the wanted power, infinite when out of reach. requests: what they come to, None unknown.
        power_between: 95 % interval of the power at that size; wide where few requests were simulated.
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
    power_between: tuple[float, float] | None = None
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
        requests, generator = known[cause], next(generators)
        provider = Simulated.of(requests, profile.honest, fraction)
        curve = power_curve(provider, calibration, bar, generator)
        tokens = curve.tokens_for(power)
        needed = _requests(tokens, float(curve.tokens[0] / curve.requests[0]))
        effect = effect_of(profile.honest, requests, profile.clip)
        yield Row(
            cause,
            cause in MUST_DETECT,
            tokens,
            requests=needed,
            power_between=power_interval(provider, calibration, bar, needed, generator),
            seconds=_seconds(tokens, speed),
            expected_tokens=curve.expected_tokens,
            power_each=float((margin_log_e(calibration, log_likelihoods(requests)) >= bar).mean()),
            spot_checks=spot_checks(requests, calibration, bar, fraction, power),
            effect=effect,
            tokens_by_mean=tokens_for_mean(diluted(effect, fraction), alpha, power),
            curve=curve,
        )


def spot_checks(
    requests: Sequence[RequestCounts], calibration: Calibration, bar: float, fraction: float, power: float
) -> float:
    """Requests checked each by itself until one convicts with probability `power`; infinite if none can.

    Alpha is shared among the requests checked (Bonferroni), so the bar rises with their number.
    """
    log_es = margin_log_e(calibration, log_likelihoods(requests))
    checks = 1.0
    while checks < MOST_REQUESTS:
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
