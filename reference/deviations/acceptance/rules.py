"""Rules by which providers decide whether a drafted token stands: exact ones, lossy ones, and honest bugs.

Each is `accept(p, q, draft, coin, at)` and, where it is not the usual one, `instead(p, q, draft, at)`.
Nothing here is used to decode honestly: `engine.py` keeps a guess only where the sampler returns it.

p, q: float64 [V], what target and draft model say after temperature and filters (q None for drafts that are
certain, such as an n-gram's). coin: uniform in (0, 1). `at`: the position, and what else a rule may look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from auditor.kernels.splitmix import F64


@dataclass(frozen=True, slots=True)
class At:
    """Where a draft is judged.

    Attributes:
        noise: float64 [V], Gumbel noise of the position.
        text: ids before the position.
        ahead: (p, draft) of the drafts of the step behind this one, as far as they were proposed.
        number: of the draft in its step, from 0.
    """

    noise: F64
    text: Sequence[int] = ()
    ahead: Sequence[tuple[F64, int]] = ()
    number: int = 0


class Acceptance(Protocol):
    """One rule."""

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """Whether the draft stands."""
        ...

    def instead(self, p: F64, q: F64 | None, draft: int, at: At) -> int:
        """The token that takes its place."""
        ...


def sampled(p: F64, noise: F64) -> int:
    """The winner of the race of p: what plain sampling returns."""
    with np.errstate(divide="ignore"):
        return int((np.log(p) + noise).argmax())


def chance(q: F64 | None, draft: int) -> float:
    """Q of the draft; 1 for a draft that was certain."""
    return 1.0 if q is None else float(q[draft])


def entropy(p: F64) -> float:
    """In nats."""
    inside = p[p > 0]
    return float(-(inside * np.log(inside)).sum())


class _Plain:
    """Rules that put the seeded token in the place of what they turn down."""

    def instead(self, p: F64, q: F64 | None, draft: int, at: At) -> int:
        """As `Acceptance`."""
        del q, draft
        return sampled(p, at.noise)


@dataclass(frozen=True, slots=True)
class Exact(_Plain):
    """The draft stands if the sampler returns it: what the engine does."""

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, coin
        return sampled(p, at.noise) == draft


@dataclass(frozen=True, slots=True)
class Ratio:
    """Lossless: u q(d) < p(d), else the residual (p - q)+. With `lenience` < 1 lossy, with `extra` too.

    Source: Leviathan, Kalman, Matias, arXiv 2211.17192 and its appendix on lenience; `extra` is `r_atol` of
    the any-subset code of arXiv 2504.20456. Lossless only if draft and residual are drawn independently.
    """

    lenience: float = 1.0
    extra: float = 0.0

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del at
        return coin < float(p[draft]) / (self.lenience * chance(q, draft)) + self.extra

    def instead(self, p: F64, q: F64 | None, draft: int, at: At) -> int:
        """As `Acceptance`."""
        taken = np.zeros_like(p) if q is None else q
        if q is None:
            taken[draft] = 1.0
        residual = np.maximum(p - taken, 0.0)
        return sampled(residual if residual.any() else p, at.noise)


@dataclass(frozen=True, slots=True)
class TargetThresholds:
    """SGLang's tree verification of one draft: coin <= p(d) / t_acc or p(d) >= t_single; lossless at 1, 1."""

    accept_all: float = 0.5
    accept_single: float = 0.5

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, at
        return coin <= p[draft] / self.accept_all or bool(p[draft] >= self.accept_single)

    def instead(self, p: F64, q: F64 | None, draft: int, at: At) -> int:
        """As `Acceptance`: p without the draft."""
        del q
        rest = p.copy()
        rest[draft] = 0.0
        return sampled(rest if rest.any() else p, at.noise)


@dataclass(frozen=True, slots=True)
class RelaxedTop(_Plain):
    """TensorRT-LLM's relaxed acceptance while it thinks: among the top n of p, and p(d) >= p_max - delta."""

    top: int = 10
    delta: float = 0.6
    think: int | None = None
    answer: int | None = None

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`; outside the thinking section as `Exact`."""
        del q, coin
        if sampled(p, at.noise) == draft:
            return True
        if self.think is not None and not self._thinks(at.text):
            return False
        return int((p > p[draft]).sum()) < self.top and bool(p[draft] >= p.max() - self.delta)

    def _thinks(self, text: Sequence[int]) -> bool:
        for token in reversed(text):
            if token in (self.think, self.answer):
                return token == self.think
        return False


@dataclass(frozen=True, slots=True)
class Typical(_Plain):
    """Medusa's typical acceptance: p(d) > min(epsilon, delta * exp(-entropy)); arXiv 2401.10774."""

    epsilon: float = 0.09
    delta: float = 0.3

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, coin, at
        return bool(p[draft] > min(self.epsilon, self.delta * np.exp(-entropy(p))))


@dataclass(frozen=True, slots=True)
class Deferred(_Plain):
    """FLy: a mismatch stays if p is undecided and the next drafts all agree with p; arXiv 2511.22972.

    Undecided: entropy of the three likeliest tokens, renormalised, at least `least_entropy` nats.
    """

    least_entropy: float = 0.3
    window: int = 2

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, coin
        if sampled(p, at.noise) == draft:
            return True
        three = np.sort(p)[-3:]
        behind = at.ahead[: self.window]
        agrees = len(behind) == self.window and all(int(own.argmax()) == token for own, token in behind)
        return agrees and entropy(three / three.sum()) >= self.least_entropy


@dataclass(frozen=True, slots=True)
class Synthetic(_Plain):
    """Accept at preset rates whatever the model says: a benchmark switch of vLLM and SGLang left on."""

    rates: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6)

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del p, q, draft
        return coin < self.rates[min(at.number, len(self.rates) - 1)]


@dataclass(frozen=True, slots=True)
class BlindTrust(_Plain):
    """HAMburger's micro steps: drafts stand unverified while the draft model is sure; arXiv 2505.20438.

    Its other half, one fused cache entry for the tokens of a step, is another model, and not simulated here.
    """

    confidence: float = 0.9
    most: int = 4

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del p, draft, coin
        return q is not None and at.number < self.most - 1 and bool(q.max() >= self.confidence)


@dataclass(frozen=True, slots=True)
class TokenRouting(_Plain):
    """R2R: the small model's token stands unless it was unsure; entropy at least 0.45 asks the large one.

    Source: arXiv 2505.21600, the entropy variant of its code.
    """

    entropy: float = 0.45

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del p, draft, coin, at
        return q is not None and entropy(q) < self.entropy


@dataclass(frozen=True, slots=True)
class StepRouting(_Plain):
    """RSD and Arbitrage: a drafted step stands whole if it scores well; arXiv 2512.05033.

    In place of a process reward model: the mean log-likelihood, in nats, that the target gives to the drafts
    from here on.
    """

    least: float = -1.0

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, coin
        likely = [p[draft], *(own[token] for own, token in at.ahead)]
        return float(np.mean(np.log(np.maximum(likely, 1e-12)))) >= self.least


@dataclass(frozen=True, slots=True)
class Reflective(_Plain):
    """Reflective verification: the draft's own logit is raised before the race; arXiv 2505.18629.

    The reflective pass over a second copy of the draft is stood for by a bonus in logits / T on the draft.
    """

    bonus: float = 1.0

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, coin
        raised = p.copy()
        raised[draft] *= np.exp(self.bonus)
        return sampled(raised, at.noise) == draft


@dataclass(frozen=True, slots=True)
class Mixture:
    """CoRE: tokens are drawn from a mixture of target and draft; arXiv 2510.13855.

    Agreement of a token is exp(-sharpness |p - mean|), a model's weight its agreement by its entropy, the
    target's at least a half.
    """

    sharpness: float = 2.0

    def mixed(self, p: F64, q: F64 | None) -> F64:
        """The mixture."""
        if q is None:
            return p
        mean = (p + q) / 2
        agreement = [np.exp(-self.sharpness * np.abs(own - mean)) for own in (p, q)]
        weights = [a.mean() / max(entropy(own), 1e-6) for a, own in zip(agreement, (p, q), strict=True)]
        share = max(weights[0] / sum(weights), 0.5)
        mixed = share * agreement[0] * p + (1 - share) * agreement[1] * q
        return np.asarray(mixed / mixed.sum())

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del coin
        return sampled(self.mixed(p, q), at.noise) == draft

    def instead(self, p: F64, q: F64 | None, draft: int, at: At) -> int:
        """As `Acceptance`."""
        del draft
        return sampled(self.mixed(p, q), at.noise)


@dataclass(frozen=True, slots=True)
class Cascade(_Plain):
    """Fuzzy speculation: the draft stands where the two models nearly agree, by Jensen-Shannon divergence."""

    divergence: float = 0.05

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del coin
        if sampled(p, at.noise) == draft:
            return True
        if q is None:
            return False
        return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2 <= self.divergence


@dataclass(frozen=True, slots=True)
class InsideClip(_Plain):
    """Any draft within `clip` logits / T of the winner of the race, below where margins are clipped.

    A provider that knows the seed knows every margin before it answers.
    """

    clip: float = 0.5

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`."""
        del q, coin
        with np.errstate(divide="ignore"):
            raced = np.log(p) + at.noise
        return bool(raced.max() - raced[draft] <= self.clip)


RULES: dict[str, Acceptance] = {
    "exact": Exact(),
    "ratio": Ratio(),
    "lenience": Ratio(lenience=0.5),
    "target-thresholds": TargetThresholds(),
    "relaxed-top-n": RelaxedTop(),
    "typical": Typical(),
    "deferred": Deferred(),
    "synthetic": Synthetic(),
    "blind-trust": BlindTrust(),
    "token-routing": TokenRouting(),
    "step-routing": StepRouting(),
    "reflective": Reflective(),
    "mixture": Mixture(),
    "cascade": Cascade(),
    "inside-clip": InsideClip(),
}
"""By name, with published or default parameters. `exact` and `ratio` are lossless, the others are not."""

__all__ = [
    "RULES",
    "Acceptance",
    "At",
    "BlindTrust",
    "Cascade",
    "Deferred",
    "Exact",
    "InsideClip",
    "Mixture",
    "Ratio",
    "Reflective",
    "RelaxedTop",
    "StepRouting",
    "Synthetic",
    "TargetThresholds",
    "TokenRouting",
    "Typical",
    "chance",
    "entropy",
    "sampled",
]
