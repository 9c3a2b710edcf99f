"""A provider that speculates by a rule of `rules.py`: what it returns, and how often not the seeded token.

The draft model proposes chains drawn with noise of its own. One request is served at a time, so this is for
evidence, not for speed. Bugs of batch speculation are simulated at the same place: they change what is read,
or counted, and not the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.keyed_noise import keyed_noise
from auditor.kernels.splitmix import F64
from auditor.reference.batch import extend
from auditor.reference.deviations.acceptance.rules import Acceptance, At, sampled
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import DRAFTS_AHEAD, GumbelPosition
from auditor.reference.penalties import Penalties, penalise_reference
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence as Slots
from auditor.reference.speculation import find_rule
from auditor.reference.support import find_support

Bug = Literal[
    "position-after-rejection", "stale-keys", "bonus-keys-missing", "penalised-drafts", "pad-attended"
]
"""B1 to B5: invariants I1, I3, I4, I5 and I6 broken."""

I64 = npt.NDArray[np.int64]

_SCHEME = GumbelPosition()
_DRAFTS = GumbelPosition(ahead=DRAFTS_AHEAD)


@dataclass(frozen=True, slots=True)
class Played:
    """One request as such a provider served it.

    Attributes:
        drafts: those that each step judged. kept: of all steps together.
        replaced: tokens that are not those of plain sampling after the same prefix.
    """

    output: tuple[int, ...]
    drafts: tuple[tuple[int, ...], ...]
    kept: int
    replaced: int


def distribution(logits: torch.Tensor, spec: SamplingSpec) -> F64:
    """P of one row [V], after temperature and filters; a greedy request's is taken at temperature 1."""
    wide = logits.double().numpy() / (spec.temperature or 1.0)
    p = np.exp(wide - wide.max())
    if spec.filtered and not spec.greedy:
        support = find_support(logits[None], np.zeros(1, np.int64), spec, _SCHEME.filters)
        kept = support.ids[0, : int(support.kept[0])]
        inside = np.zeros(len(p), bool)
        inside[kept] = True
        p = np.where(inside, p, 0.0)
    return np.asarray(p / p.sum())


def penalised(
    logits: torch.Tensor, spec: SamplingSpec, prompt: Sequence[int], output: Sequence[int]
) -> torch.Tensor:
    """Logits [V] after the penalties of what was written so far."""
    if not spec.penalised:
        return logits
    own = Penalties(spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty, _SCHEME.filters)
    before, written = (np.asarray(part, np.int64) for part in (prompt, output))
    return penalise_reference(logits.float()[None], own, before, written, len(output))[0]


class _Reader:
    """A model that reads one text after another, and again only what differs from the last one."""

    def __init__(self, model: ReferenceModel) -> None:
        self._model, self._cache = model, model.new_cache()
        self._slots, self._text = Slots(), list[int]()

    def rows(self, text: Sequence[int], count: int) -> torch.Tensor:
        """Logits of the last `count` rows of a text, float [count, V]."""
        most = min(len(self._text), len(text) - count)
        same = next((n for n in range(most) if self._text[n] != text[n]), most)
        self._slots.length = same
        new = torch.tensor(text[same:])
        span = extend(self._cache, self._slots, new, wanted=len(text) - count - same)
        hidden = self._model.forward([span], self._cache)
        self._slots.length, self._text = len(text), list(text)
        return self._model.logits(hidden)


@dataclass(slots=True)
class _Provider:
    """One request in the making."""

    target: _Reader
    draft: _Reader
    vocabulary: I64
    ask: Ask
    rule: Acceptance
    bug: Bug | None
    output: list[int] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    turned_down: list[int] = field(default_factory=list)
    replaced: int = 0

    def noise(self, at: int, scheme: GumbelPosition = _SCHEME) -> F64:
        """Gumbel noise of output token `at`, float64 [V]."""
        keys = scheme.row_keys(self.ask.seed, self.ask.noise_prompt_tokens, at, at + 1)
        return np.asarray(keyed_noise(scheme.noise, keys, self.vocabulary)[0])

    def law(self, logits: torch.Tensor, drafts: Sequence[int], extra: Sequence[int] = ()) -> F64:
        """P after the output and some drafts, `extra` ids counted as if they had been written."""
        written = [*extra, *self.output, *drafts]
        return distribution(penalised(logits, self.ask.spec, self.ask.prompt, written), self.ask.spec)

    def propose(self, most: int) -> tuple[list[int], list[F64]]:
        """A chain of drafts, and q of each."""
        drafts: list[int] = []
        q: list[F64] = []
        for _ in range(most):
            text = [*self.ask.prompt, *self.output, *drafts]
            q.append(self.law(self.draft.rows(text, 1)[0], drafts))
            drafts.append(sampled(q[-1], self.noise(len(self.output) + len(drafts), _DRAFTS)))
        return drafts, q

    def step(self) -> tuple[tuple[int, ...], int]:
        """Add a step's tokens; its drafts, and how many of them stood."""
        left = self.ask.max_tokens - len(self.output) - 1
        drafts, q = self.propose(min(self.ask.draft_tokens, left) if self.output else 0)
        seen = _seen(self.ask, self.output, self.stale, self.bug)
        rows = self.target.rows([*seen, *drafts], len(drafts) + 1)
        counted = self.turned_down if self.bug == "penalised-drafts" else []
        p = [self.law(row, drafts[:n], counted) for n, row in enumerate(rows)]
        kept, token = self.judge(p, q, drafts, seen)
        tokens = [*drafts[:kept], token]
        start = len(self.output)
        self.replaced += sum(
            own != sampled(row, self.noise(start + n))
            for n, (own, row) in enumerate(zip(tokens, p, strict=False))
        )
        self.output += tokens
        self.stale = drafts[kept:]
        self.turned_down += self.stale
        return tuple(drafts), kept

    def judge(self, p: list[F64], q: list[F64], drafts: list[int], seen: list[int]) -> tuple[int, int]:
        """How many drafts stand, and the token behind them."""
        coins = find_rule("standard", _SCHEME, None)
        shifted = int(self.bug == "position-after-rejection" and bool(self.stale))
        for n, guess in enumerate(drafts):
            at = len(self.output) + n
            coin = float(coins.row_coins(self.ask.seed, self.ask.noise_prompt_tokens, at, at + 1)[0])
            ahead = list(zip(p[n + 1 :], drafts[n + 1 :], strict=False))
            place = At(self.noise(at + shifted), [*seen, *drafts[:n]], ahead, n)
            if not self.rule.accept(p[n], q[n], guess, coin, place):
                return n, self.rule.instead(p[n], q[n], guess, place)
        count = len(drafts)
        return count, sampled(p[count], self.noise(len(self.output) + count + shifted))


def play(
    target: ReferenceModel, draft: ReferenceModel, ask: Ask, rule: Acceptance, *, bug: Bug | None = None
) -> Played:
    """Serve one request under `gumbel-pos-v1`, `ask.draft_tokens` drafts a step.

    Raises:
        TokenOutOfRangeError, ContextLengthError: as `ReferenceModel.forward`.
    """
    vocabulary = np.arange(target.config.vocab_size)[None]
    provider = _Provider(_Reader(target), _Reader(draft), vocabulary, ask, rule, bug)
    steps: list[tuple[int, ...]] = []
    kept = 0
    while len(provider.output) < ask.max_tokens and not ask.stop_ids & set(provider.output):
        drafts, stood = provider.step()
        steps.append(drafts)
        kept += stood
    output = provider.output
    end = next((n for n, token in enumerate(output) if token in ask.stop_ids), len(output) - 1)
    return Played(tuple(output[: end + 1]), tuple(steps), kept, provider.replaced)


def _seen(ask: Ask, output: Sequence[int], stale: Sequence[int], bug: Bug | None) -> list[int]:
    """What the target reads in place of prompt and output."""
    text = [*ask.prompt, *output]
    if bug == "stale-keys" and stale and output:
        return [*text[:-1], stale[0], text[-1]]
    if bug == "bonus-keys-missing" and len(output) > 1:
        return [*text[:-2], text[-1]]
    if bug == "pad-attended":
        return [0, *text]
    return text
