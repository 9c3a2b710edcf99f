"""Sample sizes in closed form: what a wanted power costs before anything is measured. Pure.

Symbols: `alpha` false-alarm rate, `power` probability of a conviction. Levels are one-sided: only evidence
of *more* than honest noise convicts. Sources: the normal two-moment formula and its design effect (Kish,
Survey Sampling, 1965, section 5.4), Wald's sequential test (Annals of Mathematical Statistics 16, 1945),
pass@k (Chen et al., arXiv 2107.03374, eq. 1), its mirror image pass^k (Yao et al., arXiv 2406.12045).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from auditor.errors import OptionError
from auditor.noise_model import RequestCounts, bin_centres


@dataclass(frozen=True, slots=True)
class Effect:
    """Size of a deviation per token: mean and standard deviation of a score, honest and dishonest.

    Attributes:
        correlation: intra-request correlation of the score, dishonest traffic.
        request_tokens: tokens of a request as the design effect sees them (sum of squares over sum).
        honest_correlation: the same of honest traffic.
    """

    honest_mean: float
    honest_sd: float
    mean: float
    sd: float
    correlation: float = 0.0
    request_tokens: float = 1.0
    honest_correlation: float = 0.0


def check_rates(alpha: float, power: float) -> None:
    """Refuse levels that mean nothing.

    Raises:
        OptionError: alpha or power outside (0, 1), or power not above alpha.
    """
    if not 0.0 < alpha < 1.0:
        raise OptionError(f"alpha {alpha} is outside (0, 1)", where="--alpha")
    if not alpha < power < 1.0:
        raise OptionError(f"power {power} is outside (alpha, 1)", where="--power")


def design_effect(request_tokens: float, correlation: float) -> float:
    """Factor on the variance of a mean when tokens come in requests: 1 + (L - 1) rho, at least 1/L."""
    return max(1.0 + (request_tokens - 1.0) * correlation, 1.0 / max(request_tokens, 1.0))


def tokens_for_mean(effect: Effect, alpha: float, power: float) -> float:
    """Tokens with which a test of the mean score at `alpha` has `power`; infinite without a larger mean.

    N = ((z_alpha s0 sqrt(d0) + z_power s1 sqrt(d1)) / (m1 - m0))^2, d0 and d1 the two design effects.

    Raises:
        OptionError: see `check_rates`.
    """
    check_rates(alpha, power)
    gap = effect.mean - effect.honest_mean
    if gap <= 0.0:
        return math.inf
    honest = effect.honest_sd * math.sqrt(design_effect(effect.request_tokens, effect.honest_correlation))
    cheating = effect.sd * math.sqrt(design_effect(effect.request_tokens, effect.correlation))
    # A wide dishonest distribution crosses the threshold that often at any size.
    root = max(0.0, float((ndtri(power) * cheating - ndtri(alpha) * honest) / gap))
    return root * root


def power_of_mean(effect: Effect, alpha: float, tokens: float) -> float:
    """Power of that test with so many tokens: the inverse of `tokens_for_mean`."""
    honest = effect.honest_sd * math.sqrt(design_effect(effect.request_tokens, effect.honest_correlation))
    cheating = effect.sd * math.sqrt(design_effect(effect.request_tokens, effect.correlation))
    gap = (effect.mean - effect.honest_mean) * math.sqrt(tokens)
    if cheating == 0.0:
        return float(gap > -ndtri(alpha) * honest)
    return float(ndtr((gap + ndtri(alpha) * honest) / cheating))


def diluted(effect: Effect, fraction: float) -> Effect:
    """The effect on the mean when only a fraction of *requests* is dishonest.

    Whole requests are honest or not, so the mixture adds f (1 - f) (m1 - m0)^2 to the variance between
    requests, which raises the intra-request correlation.
    """
    f, gap = fraction, effect.mean - effect.honest_mean
    between = f * (1 - f) * gap**2
    variance = f * effect.sd**2 + (1 - f) * effect.honest_sd**2 + between
    inside = f * effect.correlation * effect.sd**2
    inside += (1 - f) * effect.honest_correlation * effect.honest_sd**2 + between
    return Effect(
        effect.honest_mean,
        effect.honest_sd,
        effect.honest_mean + f * gap,
        math.sqrt(variance),
        inside / variance if variance > 0 else 0.0,
        effect.request_tokens,
        effect.honest_correlation,
    )


def effect_of(honest: Sequence[RequestCounts], cheating: Sequence[RequestCounts], clip: float) -> Effect:
    """Moments of the winsorised margin (logits) as `audit verify` prints its mean, from reduced requests."""
    m0, s0, rho0, _ = _moments(honest, clip)
    m1, s1, rho1, length = _moments(cheating, clip)
    return Effect(m0, s0, m1, s1, rho1, length, rho0)


def _moments(requests: Sequence[RequestCounts], clip: float) -> tuple[float, float, float, float]:
    """Mean, standard deviation, intra-request correlation and effective request length of the margin.

    The correlation solves var(mean) = sd^2 / N (1 + (L - 1) rho) for the variance of the ratio estimator
    over requests, so that the design effect of the whole sample is right by construction.
    """
    value = np.minimum(bin_centres(), clip)
    size = np.array([r.tokens for r in requests], np.float64)
    total = np.array([sum(n * value[m] for (_, m), n in r.missed.items()) for r in requests])
    squares = sum(float(n * value[m] ** 2) for r in requests for (_, m), n in r.missed.items())
    tokens, count = size.sum(), len(size)
    mean = float(total.sum() / tokens)
    variance = max(squares / tokens - mean**2, 0.0)
    length = float((size**2).sum() / tokens)
    if count < 2 or variance == 0.0 or length <= 1.0:
        return mean, math.sqrt(variance), 0.0, length
    between = float(((total - mean * size) ** 2).sum()) * count / (count - 1)
    effect = between / (tokens * variance)
    return mean, math.sqrt(variance), (effect - 1.0) / (length - 1.0), length


def tokens_for_any_mismatch(rate: float, power: float) -> float:
    """Tokens until one mismatch shows with probability `power`, where honest traffic has none."""
    return math.inf if rate <= 0.0 else math.log1p(-power) / math.log1p(-min(rate, 1.0 - 1e-12))


def bernoulli_divergence(rate: float, honest_rate: float) -> float:
    """Kullback-Leibler divergence of two mismatch rates, nats a token."""
    first = rate * math.log(rate / honest_rate) if rate > 0.0 else 0.0
    return first + (1.0 - rate) * (math.log1p(-rate) - math.log1p(-honest_rate))


@dataclass(frozen=True, slots=True)
class Sequential:
    """Expected tokens of sequential tests of a mismatch rate against the honest one.

    Attributes:
        accuse: Wald's test while the provider cheats. acquit: the same while it is honest.
        e_process: until an e-process that bets on the true rate reaches 1/alpha; it never acquits, so it
            has no bound below, but it stays valid if nobody knew the rate beforehand or stops as planned.
    """

    accuse: float
    acquit: float
    e_process: float


def sequential_tokens(rate: float, honest_rate: float, alpha: float, power: float) -> Sequential:
    """Wald's approximations, overshoot neglected; all infinite when the rate is not above the honest one.

    Raises:
        OptionError: see `check_rates`; rates outside (0, 1).
    """
    check_rates(alpha, power)
    for name, value in (("--rate", rate), ("--honest-rate", honest_rate)):
        if not 0.0 < value < 1.0:
            raise OptionError(f"a mismatch rate of {value} is outside (0, 1)", where=name)
    if rate <= honest_rate:
        return Sequential(math.inf, math.inf, math.inf)
    upper, lower = math.log(power / alpha), math.log((1.0 - power) / (1.0 - alpha))
    accuse = (power * upper + (1.0 - power) * lower) / bernoulli_divergence(rate, honest_rate)
    acquit = -(alpha * upper + (1.0 - alpha) * lower) / bernoulli_divergence(honest_rate, rate)
    return Sequential(accuse, acquit, -math.log(alpha) / bernoulli_divergence(rate, honest_rate))


def requests_to_meet_a_cheat(fraction: float, power_each: float, power: float) -> float:
    """Requests to check until one dishonest one is audited *and* convicted, n = ln(1-power)/ln(1-f p)."""
    hit = fraction * power_each
    if hit <= 0.0:
        return math.inf
    return 1.0 if hit >= 1.0 else max(1.0, math.log1p(-power) / math.log1p(-hit))


def pass_at_k(runs: int, successes: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k runs succeeds, 1 - C(n-c, k) / C(n, k).

    With a success meaning "the audit convicts": the chance that k audits catch a cheat.

    Raises:
        OptionError: not 1 <= k <= runs, or not 0 <= successes <= runs.
    """
    _check_runs(runs, successes, k)
    return 1.0 - math.comb(runs - successes, k) / math.comb(runs, k)


def pass_hat_k(runs: int, successes: int, k: int) -> float:
    """Unbiased estimate of the probability that all k runs succeed, C(c, k) / C(n, k).

    With a success meaning "the request is clean": the reliability over k requests.

    Raises:
        OptionError: see `pass_at_k`.
    """
    _check_runs(runs, successes, k)
    return math.comb(successes, k) / math.comb(runs, k)


def _check_runs(runs: int, successes: int, k: int) -> None:
    if not 1 <= k <= runs or not 0 <= successes <= runs:
        raise OptionError(f"k {k} and {successes} successes of {runs} runs do not fit together")


def runs_for_difference(sd: float, difference: float, alpha: float, power: float) -> float:
    """Runs in each arm to tell two means apart, two-sided: 2 sd^2 (z_{alpha/2} + z_power)^2 / difference^2.

    Raises:
        OptionError: see `check_rates`.
    """
    check_rates(alpha, power)
    if difference == 0.0:
        return math.inf
    return float(2.0 * (sd * (ndtri(power) - ndtri(alpha / 2)) / difference) ** 2)


def clustered_variance(between_sd: float, within_sd: float, runs: int, tasks: int) -> float:
    """Variance of a paired difference over tasks, (omega^2 + 2 s^2 / K) / N: runs cannot mend few tasks."""
    return (between_sd**2 + 2.0 * within_sd**2 / runs) / tasks
