"""Detection against tokens seen, by requests drawn with replacement; the published mean margin beside it.

A log grows as a server writes it that has eight requests in flight: the first token of one, two, ... eight
requests, then the second of each, and so on, whole requests after that. Every way of judging is measured on
the same logs of the same sizes.

* *tokens*: the fused e-value of a log without fingerprints.
* *fingerprints*: the log's mean distance stands above the 1 - alpha quantile of honest calibration logs of
  that size, times the factor that verdicts forgive. No verdict rests on that bar; it shows what is in them.
* *fused*: the e-value that `auditor verify` would give the log with fingerprints.
* *published*: the mean margin clipped at 0.5. Its threshold is the lowest that convicts a share alpha at most
  both of logs drawn from calibration requests and of logs drawn from the report's honest requests: the
  calibration's alone lets it convict many times alpha of other honest requests, which no verdict may.
* *one look*: the e-value of *tokens* above a threshold found as the published one's. It is no verdict, for it
  promises nothing of another look, or of requests that the threshold was not found on: what it needs fewer
  tokens than *tokens* is what that promise costs.
* *same promise*: what `auditor verify` looks at (tokens and fingerprints, as *fused*) and the published mean
  margin, promising no more than the published one does: a tenth of alpha is the e-value's, and the margin
  has the lowest threshold with which both together convict a share alpha at most of either pool's logs. No
  verdict either, for the same reasons.
* *differs*: the log holds a token that the honest provider would not have returned. Whatever looks at tokens
  only convicts at most alpha of the logs that do not (there the two providers cannot be told apart), so
  its power is at most alpha more than this share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from scipy.stats import binomtest

from auditor.evidence import STOP_PRIOR, margin_log_e, outside_log_e
from auditor.gathering import STOP_DECISIONS, fused_log_es
from auditor.matrix.seen import F64, Bools, Cut, Seen
from auditor.noise_model import I64
from auditor.profile import Profile
from auditor.rank_evidence import TOLERANCE, rank_log_es

WHOLE = 1 << 30
IN_FLIGHT = 8
SIZES: tuple[tuple[int, int], ...] = (
    *((requests, 1) for requests in (1, 2, 3, 4, 6)),
    *((IN_FLIGHT, tokens) for tokens in (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128, WHOLE)),
    *((requests, WHOLE) for requests in (11, 16, 23, 32, 45, 64, 90, 128, 180, 256, 362, 512)),
)
"""(requests, most output tokens of each) of the logs that are judged."""

AUDITS, HONEST_AUDITS = 400, 2_000
HONEST_DRAWS = 2_000
E_VALUE_SHARE = 0.1
"""Of alpha, at *same promise*, to the fused e-value. It sees tokens no better than the mean margin does and
is there for states: those that differ are so far off that a tenth is plenty. From development seeds."""
SETTLED = 4
"""A row's answer is known when every way of judging convicted all logs of so many sizes in a row."""

_SEED = 43_000_000


@dataclass(frozen=True, slots=True)
class Curve:
    """Power against sample size: shares of `AUDITS` logs at each size, by way of judging.

    Attributes:
        tokens: mean tokens at each size.
        fingerprints: None where the provider's states do not differ.
    """

    tokens: tuple[int, ...]
    tokens_alone: tuple[float, ...]
    fingerprints: tuple[float, ...] | None
    fused: tuple[float, ...]
    one_look: tuple[float, ...]
    same_promise: tuple[float, ...]
    published: tuple[float, ...]
    differs: tuple[float, ...]

    def needed(self, wanted: float, which: str = "fused") -> int | None:
        """Tokens of the smallest size from which on the share stays at `wanted`; None if there is none."""
        shares = getattr(self, which)
        if shares is None:
            return None
        short = [n for n, share in enumerate(shares) if share < wanted]
        first = short[-1] + 1 if short else 0
        return None if first == len(shares) else self.tokens[first]

    def interval(self, wanted: float, which: str = "fused") -> tuple[int | None, int | None]:
        """Tokens at which the upper, then the lower, 95 % bound of the share reaches `wanted`."""
        bounds = [bound(share) for share in getattr(self, which)]
        first, last = (
            next((t for t, b in zip(self.tokens, bounds, strict=True) if b[side] >= wanted), None)
            for side in (1, 0)
        )
        return first, last


def bound(share: float, total: int = AUDITS, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share of `total` audits."""
    low, high = binomtest(round(share * total), total).proportion_ci(confidence)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Bars:
    """What at most a share alpha of honest logs of a size stands above.

    Attributes:
        margin: clipped mean margin. log_e: of the tests of tokens. distance: mean, of fingerprints.
        shared_margin, shared_log_e: above one of them; the latter is of all tests, as a verdict fuses them.
    """

    margin: float
    log_e: float
    distance: float
    shared_margin: float
    shared_log_e: float


@dataclass(frozen=True, slots=True)
class Honest:
    """What honest requests of one kind of traffic say, for every row that is held against them.

    Attributes:
        profile: calibrated on them. cuts: the same requests after each number of tokens.
        report: the report's honest requests after each number of tokens.
    """

    profile: Profile
    cuts: dict[int, Cut]
    report: dict[int, Cut]
    _bars: dict[tuple[tuple[int, int], float], Bars] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, requests: Sequence[Seen], report: Sequence[Seen]) -> Honest:
        """From a profile, the requests it was calibrated on, and honest ones of the report."""
        cuts, others = ({most: Cut.of(some, most) for most in lengths()} for some in (requests, report))
        return cls(profile, cuts, others)

    def bars(self, size: tuple[int, int], alpha: float) -> Bars:
        """For logs of a size; what looks at tokens is held to logs of both pools."""
        if (size, alpha) not in self._bars:
            self._bars[size, alpha] = self._drawn(size, alpha)
        return self._bars[size, alpha]

    def _drawn(self, size: tuple[int, int], alpha: float) -> Bars:
        requests, most = size

        def drawn(cut: Cut) -> I64:
            generator = np.random.default_rng([_SEED, requests])
            return generator.integers(len(cut.tokens), size=(HONEST_DRAWS, requests))

        own = self.cuts[most]
        draws = [(cut, drawn(cut)) for cut in (own, self.report[most])]
        pools = []
        for cut, draw in draws:
            margins, evidence = _of_tokens(self.profile, cut, draw)
            pools.append((margins, _fused(evidence), _fused(evidence | _of_states(own, cut, draw))))
        margin, log_e = (max(float(np.quantile(p[n], 1 - alpha)) for p in pools) for n in (0, 1))
        shared_log_e = max(float(np.quantile(fused, 1 - E_VALUE_SHARE * alpha)) for *_, fused in pools)
        # What the e-value convicts by itself is convicted whatever the bar of margins is.
        left = (np.where(fused > shared_log_e, np.inf, margins) for margins, _, fused in pools)
        shared_margin = max(float(np.quantile(each, 1 - alpha, method="lower")) for each in left)
        distances = own.distance[draws[0][1]].mean(axis=1)
        distance = float(np.quantile(distances, 1 - alpha, method="higher"))
        return Bars(margin, log_e, distance, shared_margin, shared_log_e)


def lengths() -> list[int]:
    """Numbers of tokens after which requests are cut."""
    return sorted({most for _, most in SIZES})


def detection_curve(
    honest: Honest,
    audited: Sequence[Seen],
    alpha: float,
    *,
    has_states: bool = True,
    audits: int = AUDITS,
) -> Curve:
    """Shares of simulated logs of each size that are convicted at `alpha`.

    Args:
        honest: requests of the same traffic. audited: requests of one provider.
        has_states: whether its forward differs from the honest one.
        audits: simulated logs of each size.
    """
    found: dict[str, list[float]] = {name: [] for name in _WAYS}
    tokens, settled, cut, cut_at = [], 0, None, 0
    for size in SIZES:
        requests, most = size
        if cut is None or most != cut_at:
            cut, cut_at = Cut.of(audited, most), most
        tokens.append(max(1, round(requests * float(cut.tokens.mean()))))
        if settled < SETTLED:
            draw = np.random.default_rng([_SEED + 1, *size]).integers(len(audited), size=(audits, requests))
            shares = _judged(honest, cut, draw, size, alpha, has_states=has_states)
            settled = settled + 1 if min(shares.values()) == 1.0 else 0
        for name in _WAYS:
            found[name].append(shares.get(name, 0.0))
    curves = {name: tuple(each) for name, each in found.items()}
    return Curve(tuple(tokens), **(curves if has_states else curves | {"fingerprints": None}))


_WAYS = tuple(way.name for way in fields(Curve) if way.name != "tokens")


def _judged(
    honest: Honest, cut: Cut, draw: I64, size: tuple[int, int], alpha: float, *, has_states: bool
) -> dict[str, float]:
    """Shares of logs, each a row of `draw`, that every way of judging convicts."""
    margins, evidence = _of_tokens(honest.profile, cut, draw)
    alone = _fused(evidence)
    fused = _fused(evidence | _of_states(honest.cuts[size[1]], cut, draw))
    bars = honest.bars(size, alpha)
    shares = {
        "tokens_alone": alone >= -math.log(alpha),
        "fused": fused >= -math.log(alpha),
        "one_look": alone > bars.log_e,
        "same_promise": (margins > bars.shared_margin) | (fused > bars.shared_log_e),
        "published": margins > bars.margin,
        "differs": _any(cut.differs, draw),
    }
    if has_states:
        shares["fingerprints"] = cut.distance[draw].mean(axis=1) > TOLERANCE * bars.distance
    return {name: float(each.mean()) for name, each in shares.items()}


def _any(differs: Bools, draw: I64) -> Bools:
    return np.asarray(differs[draw].any(axis=1))


def _fused(evidence: dict[str, F64]) -> F64:
    return fused_log_es(list(evidence), np.stack(list(evidence.values())))


def _of_states(calibrated: Cut, cut: Cut, draw: I64) -> dict[str, F64]:
    """The test of fingerprints of logs, each a row of `draw`."""
    return {"fingerprints": rank_log_es(calibrated.distance, cut.distance[draw])}


def _of_tokens(profile: Profile, cut: Cut, draw: I64) -> tuple[F64, dict[str, F64]]:
    """Clipped mean margins of logs, each a row of `draw`, and the tests of their tokens.

    Tests are those of `gather_evidence`; simulated outputs end where honest ones do.
    """
    weights = np.zeros((len(draw), len(cut.tokens)))
    np.add.at(weights, (np.arange(len(draw))[:, None], draw), 1.0)
    sums = (weights @ cut.grids.reshape(len(cut.grids), -1)).reshape(len(draw), *cut.grids.shape[1:])
    outside, filtered, clipped, tokens = (
        weights @ each for each in (cut.outside, cut.filtered, cut.clipped, cut.tokens)
    )
    evidence = {"token-difr": margin_log_e(profile.calibration, sums)}
    if profile.filtered and filtered.any():
        null = profile.outside, profile.filtered
        edges = zip(outside.tolist(), filtered.tolist(), strict=True)
        evidence["outside-support"] = np.array([outside_log_e(*null, int(o), int(f)) for o, f in edges])
    ends = outside_log_e(profile.contradicted, len(profile.honest), 0, draw.shape[1], STOP_PRIOR)
    return clipped / tokens.clip(1), {**evidence, STOP_DECISIONS: np.full(len(draw), ends)}
