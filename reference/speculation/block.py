"""Block verification: how many drafts of a step are kept together, and how far a claimed end is from that.

With one-hot drafts d_1..d_k, w_i = p(d_1) ... p(d_i) and coins u_1..u_k, the step keeps as many drafts as the
last i with u_i <= h_i, where h_k = w_k and, before the last,

    h_i = r / (r + 1 - w_i),  r = w_i (1 - p(d_{i+1})),

none if there is no such i; then the noise of that row chooses among the tokens other than the draft turned
down (all of them, when none was). So p of drafts that were turned down decides what was kept before them.
With one-hot drafts this keeps as many on average as `standard`: P(at least i kept) = w_i in both.

*Costs* are movements of logits, as in `head.py`: under a movement of x the gap of any two logits of a row
changes by at most x, which carries log-odds of a draft by x / T at most; filters may let in or cut off every
token whose edge is nearer than x, whichever serves better. Rows move independently, so the least x at which
u_i <= h_i can hold (`accepting`), or can fail (`turning`), is found with every row at its extreme: it is
never more than what rounding would really need. Keeping exactly a needs `accepting[a]` and `turning[i]` for
all i > a; the largest counts (`ending`), though one movement may not do them all: again never more.

*Margins*: a step makes one claim on its length and one on its own token. A wrong length shows in one token,
the first at which the reference's step differs: a draft that was kept though the reference turns it down, or
the token that stands where the reference keeps a draft. That token's margin is `ending` of the claimed
length. Kept drafts behind it follow from the claimed length, say nothing more, and are `forced`. The step's
own token is judged by its race at the row of the claimed length. A kept draft's slack is the cost of ending
just before it; the own token's, of keeping more or of another winner.

An engine that computes h in float32 is given its rounding (`doubt`): where 1 - w is as small as that, h is
any number, and either decision is admitted.

Sources: arXiv 2403.10444; vLLM 0.28.0, 0.31.0 and 0.32.0, `v1/worker/gpu/spec_decode/
rejection_sampler_utils.py` (`_rejection_kernel`, `_resample_kernel`), `rejection_sample_method="block"`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, log1p

import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64
from auditor.reference.speculation.race_rows import RaceRow
from auditor.reference.speculation.steps import NO_DRAFT, Step

FARTHEST = 100.0
"""Cost in logits of what no movement brings about: beyond any margin of a real row."""

_HALVINGS = 34  # of FARTHEST: 6e-9 logits

_OfMovement = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class DraftOdds:
    """How likely a draft is at its row, and how far a movement of logits may carry that.

    Attributes:
        own: logit / T. edge: signed cost of the filter's edge, negative outside.
        leaving: edges of the other tokens inside, rising; left: log of the others' mass (in the units of
            `own`) when the first n of those have left.
        entering: costs of the tokens outside, rising; crowded: log of the others' mass with the first n.
    """

    own: float
    edge: float
    temperature: float
    leaving: Sequence[float]
    left: Sequence[float]
    entering: Sequence[float]
    crowded: Sequence[float]

    @classmethod
    def at(cls, row: RaceRow, draft: int) -> DraftOdds:
        """The odds of a draft that is in view of its row."""
        place = int(np.flatnonzero(row.ids == draft)[0])
        others = np.arange(len(row.ids)) != place
        scaled, edge = row.scaled[others], row.edge[others]
        shift = float(scaled.max(initial=-np.inf)) if len(scaled) else 0.0
        mass = np.exp(scaled - shift)
        fixed = float(mass[np.isposinf(edge)].sum())
        near = (edge >= 0) & np.isfinite(edge)
        leaving, staying = _sorted(edge[near], mass[near])
        entering, coming = _sorted(-edge[edge < 0], mass[edge < 0])
        left = fixed + np.append(np.cumsum(staying[::-1])[::-1], 0.0)
        crowded = left[0] + np.append(0.0, np.cumsum(coming))
        with np.errstate(divide="ignore"):
            logs = np.log(left).tolist(), np.log(crowded).tolist()
        own = float(row.scaled[place]) - shift
        return cls(
            own,
            float(row.edge[place]),
            row.temperature,
            leaving.tolist(),
            logs[0],
            entering.tolist(),
            logs[1],
        )

    def highest(self, movement: float) -> float:
        """Log-odds at most, under a movement of logits; minus infinity while the draft is not let in."""
        if self.edge < 0 and movement <= -self.edge:
            return -inf
        others = self.left[bisect_left(self.leaving, movement)]
        return self.own + movement / self.temperature - others

    def lowest(self, movement: float) -> float:
        """Log-odds at least; minus infinity once the draft may be cut off."""
        if self.edge < 0 or self.edge < movement:
            return -inf
        others = self.crowded[bisect_left(self.entering, movement)]
        return self.own - movement / self.temperature - others


def _sorted(keys: F64, values: F64) -> tuple[F64, F64]:
    order = np.argsort(keys, kind="stable")
    return keys[order], values[order]


def _softplus(value: float) -> float:
    return max(value, 0.0) + log1p(exp(-abs(value)))


def threshold(kept: Sequence[float], following: float | None, doubt: float = 0.0) -> float:
    """h_i, from the log-odds of drafts 1..i and of draft i + 1 (None after the last).

    Args:
        doubt: by how much log-likelihoods may be rounded, in the direction of its sign: the largest h that an
            engine may compute, or the smallest.
    """
    log_weight = min(len(kept) * doubt - sum(_softplus(-odds) for odds in kept), 0.0)
    weight = exp(log_weight)
    if following is None:
        return weight
    rounding = 2.0 * doubt
    residue = min(max(weight * exp(-_softplus(following)) + rounding, 0.0), 1.0)
    rest = max(-expm1(log_weight) - rounding, 0.0)
    return residue / (residue + rest) if residue + rest > 0.0 else 1.0


@dataclass(frozen=True, slots=True)
class Ends:
    """How many of k drafts a step keeps, and what other numbers would cost, in logits.

    Attributes:
        legal: how many the reference keeps.
        accepting: float64 [k + 1], of u_i <= h_i (0 for i = 0, which needs nothing).
        turning: float64 [k + 1], of u_i > h_i (unused for i = 0).
    """

    legal: int
    accepting: F64
    turning: F64

    def ending(self, kept: int, *, ended: bool = True) -> float:
        """Cost of keeping just so many; if the output ends amid the drafts, of at least so many."""
        if not ended:
            return self.reaching(kept)
        return max(float(self.accepting[kept]), float(self.turning[kept + 1 :].max(initial=0.0)))

    def reaching(self, kept: int) -> float:
        """Cost of keeping at least so many; infinite if there are fewer."""
        return float(self.accepting[kept:].min(initial=inf))


def ends_of(drafts: Sequence[DraftOdds], coins: Sequence[float], doubt: float = 0.0) -> Ends:
    """Judge the drafts of one step, the coin of keeping i of them being `coins[i - 1]`."""
    accepting, turning = [0.0], [0.0]
    for i, u in enumerate(coins, start=1):
        kept, following = drafts[:i], drafts[i] if i < len(drafts) else None
        largest, smallest = _largest(kept, following, doubt), _smallest(kept, following, doubt)
        accepting.append(_least_movement(_not_below(largest, u)))
        turning.append(_least_movement(_below(smallest, u)))
    return Ends(kept_of(drafts, coins), np.array(accepting), np.array(turning))


def kept_of(drafts: Sequence[DraftOdds], coins: Sequence[float]) -> int:
    """How many drafts of a step are kept."""
    kept = 0
    for i, u in enumerate(coins, start=1):
        if u <= _largest(drafts[:i], drafts[i] if i < len(drafts) else None, 0.0)(0.0):
            kept = i
    return kept


def _largest(kept: Sequence[DraftOdds], following: DraftOdds | None, doubt: float) -> _OfMovement:
    """The largest h under a movement."""
    return lambda x: threshold(
        [draft.highest(x) for draft in kept], None if following is None else following.lowest(x), doubt
    )


def _smallest(kept: Sequence[DraftOdds], following: DraftOdds | None, doubt: float) -> _OfMovement:
    return lambda x: threshold(
        [draft.lowest(x) for draft in kept], None if following is None else following.highest(x), -doubt
    )


def _not_below(h: _OfMovement, coin: float) -> Callable[[float], bool]:
    return lambda x: coin <= h(x)


def _below(h: _OfMovement, coin: float) -> Callable[[float], bool]:
    return lambda x: coin > h(x)


def _least_movement(holds: Callable[[float], bool]) -> float:
    """The least movement under which something that more movement only makes easier can hold."""
    if holds(0.0):
        return 0.0
    low, high = 0.0, FARTHEST
    if not holds(high):
        return high
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class StepScores:
    """The tokens of one step: arrays [tokens], as `head.RowStats` has them."""

    winner: npt.NDArray[np.int64]
    margin: F64
    slack: F64
    edge: F64
    outside: npt.NDArray[np.bool_]
    forced: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """The rows of one step, and how many of its drafts they keep.

    Attributes:
        rows: at least one for each draft, in its view.
        noise_doubt: movement that the engine's rounding of two noises may explain.
    """

    rows: Sequence[RaceRow]
    drafts: tuple[int, ...]
    ends: Ends
    noise_doubt: float = 0.0

    def score(self, step: Step, own: int, own_row: RaceRow) -> StepScores:
        """Score a claimed length and own token.

        Args:
            step: what is claimed; of its drafts the ones judged here.
            own: the step's own token, if it has one. own_row: its row, with that token in view.
        """
        legal, cost = self.ends.legal, self.ends.ending(step.kept, ended=step.ended)
        apart = step.tokens if cost == 0.0 else min(legal, step.kept)
        out = StepScores(
            np.array((*step.drafts[: step.kept], own)[: step.tokens], np.int64),
            np.zeros(step.tokens),
            np.full(step.tokens, inf),
            np.zeros(step.tokens),
            np.zeros(step.tokens, np.bool_),
            np.zeros(step.tokens, np.bool_),
        )
        for j in range(step.kept):
            self._score_draft(out, j, step, apart)
        if step.ended:
            self._score_own(out, step.kept, own, own_row)
        if apart < step.tokens:
            out.margin[apart] = max(out.margin[apart], cost)
            out.slack[apart] = cost if apart == step.kept else min(out.slack[apart], cost)
            if apart < step.kept:
                out.winner[apart] = _winner(self.rows[apart], step.drafts[apart])
            else:
                out.winner[apart] = step.drafts[apart]
        return out

    def _score_draft(self, out: StepScores, j: int, step: Step, apart: int) -> None:
        """A kept draft: outside the filters, it is a miss by itself."""
        row, draft = self.rows[j], step.drafts[j]
        edge = float(row.edge[np.flatnonzero(row.ids == draft)[0]])
        out.outside[j], out.edge[j] = edge < 0, max(-edge, 0.0)
        if edge < 0:
            out.margin[j], out.winner[j] = -edge, _winner(row, draft)
        out.forced[j] = j > apart and edge >= 0
        if j < apart:
            out.slack[j] = self.ends.ending(j)
        elif j == apart:
            out.slack[j] = min(self.ends.reaching(j + 1), self._race_slack(row, draft))

    def _score_own(self, out: StepScores, kept: int, own: int, row: RaceRow) -> None:
        rejected = _rejected(self.drafts, kept)
        place = int(np.flatnonzero(row.ids == own)[0])
        out.outside[kept], out.edge[kept] = row.edge[place] < 0, row.entrance[place]
        margin = max(float(row.overtaking(rejected)[place]) - self.noise_doubt, float(row.entrance[place]))
        out.margin[kept] = margin
        if margin > 0:
            out.winner[kept] = _winner(row, rejected)
        out.slack[kept] = min(self.ends.reaching(kept + 1), self._race_slack(row, rejected))

    def _race_slack(self, row: RaceRow, rejected: int) -> float:
        cost = row.overtaking(rejected)
        return max(float(cost[(cost > 0) & (row.ids != rejected)].min(initial=inf)), self.noise_doubt)


def judge_step(
    rows: Sequence[RaceRow],
    drafts: tuple[int, ...],
    coins: Sequence[float],
    *,
    doubt: float = 0.0,
    noise_doubt: float = 0.0,
) -> JudgedStep:
    """Judge one step.

    Args:
        rows: of the positions of its drafts, each with its draft in view, and maybe of the bonus token.
        coins: one for each draft. doubt: of the engine's log-likelihoods, nats.
    """
    odds = [DraftOdds.at(row, draft) for row, draft in zip(rows, drafts, strict=False)]
    return JudgedStep(rows, drafts, ends_of(odds, coins, doubt), noise_doubt)


def draw_step(
    rows: Sequence[RaceRow], drafts: tuple[int, ...], coins: Sequence[float]
) -> tuple[int, int | None]:
    """How many drafts a step keeps, and its own token; None where no row says it.

    Arguments as `judge_step` has them.
    """
    kept = kept_of([DraftOdds.at(row, draft) for row, draft in zip(rows, drafts, strict=False)], coins)
    return kept, _winner(rows[kept], _rejected(drafts, kept)) if kept < len(rows) else None


def _rejected(drafts: tuple[int, ...], kept: int) -> int:
    """The draft turned down by a step that keeps so many; `NO_DRAFT` if it keeps all."""
    return drafts[kept] if kept < len(drafts) else NO_DRAFT


def _winner(row: RaceRow, without: int) -> int:
    return int(row.ids[row.winner(without)])
