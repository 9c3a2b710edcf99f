"""What a sample of this size would have caught: detection power by resampling simulated requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from auditor.evidence import margin_log_e
from auditor.must_detect import MUST_DETECT, REQUIRED_POWER, SHOWS_WITH
from auditor.noise_model import F64, RequestCounts, log_likelihoods
from auditor.profile import Deviated, Profile

DRAWS = 100
"""Simulated audits for each power figure: its standard error is at most 0.05, and 0.03 near 0.9."""

_MOST_TIMES = 1000


@dataclass(frozen=True, slots=True)
class Detectable:
    """Power against one cause; None when the log's sampling cannot show it (a seed under greedy)."""

    cause: str
    power: float | None
    required: bool


def detection_power(
    profile: Profile,
    tokens_by_mode: Mapping[str, int],
    alpha: float,
    *,
    causes: Collection[str] | None = None,
) -> list[Detectable]:
    """Share of simulated audits of each deviation that end in a conviction at `alpha`.

    A simulated audit draws whole requests of the profile's shadow providers, with replacement, until each
    sampling mode has as many tokens as the audited log: requests, not tokens, are the unit.

    Args:
        tokens_by_mode: audited tokens by mode (`replay.mode_of`).
        causes: of those simulated, all when None.
    """
    calibration, generator = profile.calibration, np.random.default_rng(0)
    found = []
    for cause, deviated in profile.deviations.items():
        if causes is not None and cause not in causes:
            continue
        measured = {mode: _measured(mode, deviated) for mode in tokens_by_mode}
        shows = [m for m, found in measured.items() if found is not None and can_show(cause, m)]
        power = None
        if shows:
            total = np.zeros((DRAWS, *calibration.grid.shape))
            for mode, tokens in tokens_by_mode.items():
                requests = measured[mode] or ()
                if requests:
                    total += _resampled(
                        log_likelihoods(requests), [r.tokens for r in requests], tokens, generator
                    )
            power = float((margin_log_e(calibration, total) >= -np.log(alpha)).mean())
        found.append(Detectable(cause, power, cause in MUST_DETECT))
    return found


FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
"""Shares of requests on which a provider may cheat, at which power is read."""

FACTORS = (1, 10, 100, 1000)
"""How many times alpha's bar is raised: one audit of so many must carry a verdict on all of them."""


def power_by_fraction(
    profile: Profile, tokens_by_mode: Mapping[str, int], alpha: float
) -> dict[str, list[tuple[float, list[float]]]]:
    """Power against providers that cheat on a share of their requests only.

    As `detection_power`, but a simulated audit's requests are the dishonest provider's with that probability,
    and honest ones of the calibration otherwise.

    Returns:
        For each cause that can show, (fraction, power at alpha divided by each of `FACTORS`) by fraction.
    """
    calibration, honest = profile.calibration, log_likelihoods(profile.honest)
    lengths = [r.tokens for r in profile.honest]
    bars = [-np.log(alpha) + np.log(factor) for factor in FACTORS]
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for number, (cause, deviated) in enumerate(profile.deviations.items()):
        measured = {mode: _measured(mode, deviated) for mode in tokens_by_mode}
        shows = {m: requests for m, requests in measured.items() if requests and can_show(cause, m)}
        if not shows:
            continue
        grids = {mode: log_likelihoods(requests) for mode, requests in shows.items()}
        for fraction in FRACTIONS:
            generator = np.random.default_rng([number, round(1000 * fraction)])
            total = np.zeros((DRAWS, *calibration.grid.shape))
            for mode, requests in shows.items():
                cheating = [r.tokens for r in requests]
                mixed = np.concatenate([grids[mode], honest])
                shares = np.concatenate(
                    [
                        np.full(len(cheating), fraction / len(cheating)),
                        np.full(len(lengths), (1.0 - fraction) / len(lengths)),
                    ]
                )
                total += _resampled(
                    mixed, [*cheating, *lengths], tokens_by_mode[mode], generator, shares=shares
                )
            log_e = margin_log_e(calibration, total)
            found.setdefault(cause, []).append((fraction, [float((log_e >= bar).mean()) for bar in bars]))
    return found


def _measured(mode: str, deviated: Deviated) -> tuple[RequestCounts, ...] | None:
    """What was simulated in a mode.

    A profile older than the mode answers with plain sampling: penalties shift logits that both sides know, so
    a token shows as much with them as without.
    """
    requests = deviated.requests.get(mode)
    return deviated.requests.get("sampled") if requests is None and mode == "penalised" else requests


def more_tokens(profile: Profile, tokens_by_mode: Mapping[str, int], alpha: float) -> int | None:
    """About how many more output tokens of the same traffic would let every required cause be excluded.

    None when a thousand times as many would not, or nothing was simulated.
    """
    present = sum(tokens_by_mode.values())
    if not present or not profile.deviations:
        return None
    factor = 1.0
    while factor < _MOST_TIMES:
        factor *= 1.5
        scaled = {mode: round(tokens * factor) for mode, tokens in tokens_by_mode.items()}
        if enough(detection_power(profile, scaled, alpha, causes=MUST_DETECT)):
            return round(present * (factor - 1))
    return None


def can_show(cause: str, mode: str) -> bool:
    """Whether a deviation leaves anything to see in requests sampled that way (`replay.mode_of`)."""
    needs = SHOWS_WITH.get(cause, "anything")
    return not (
        (needs == "noise" and mode == "greedy")
        or (needs == "filter" and mode != "nucleus")
        or (needs == "penalty" and mode != "penalised")
    )


def _resampled(
    grids: F64,
    lengths: Sequence[int],
    tokens: int,
    generator: np.random.Generator,
    *,
    shares: F64 | None = None,
) -> F64:
    """Summed grids of `DRAWS` bootstrap logs of about `tokens` tokens each, [DRAWS, S, PI].

    Args:
        shares: chance of each request, [R]; all alike when None.
    """
    mean = float(np.mean(lengths) if shares is None else shares @ np.asarray(lengths, np.float64))
    count = max(1, round(tokens / mean))
    shares = np.full(len(lengths), 1 / len(lengths)) if shares is None else shares
    weights = generator.multinomial(count, shares, size=DRAWS).astype(np.float64)
    # Requests differ in length: bring every simulated log to the audited size in expectation.
    weights *= tokens / np.maximum(weights @ np.asarray(lengths, np.float64), 1.0)[:, None]
    return np.asarray(np.tensordot(weights, grids, axes=1))


def enough(detectable: Sequence[Detectable]) -> bool:
    """Whether every required cause that could have shown would have been caught with power 0.9."""
    required = [d for d in detectable if d.required]
    return (
        {d.cause for d in required} == set(MUST_DETECT)
        and any(d.power is not None for d in required)
        and all(d.power is None or d.power >= REQUIRED_POWER for d in required)
    )
