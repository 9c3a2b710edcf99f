"""A provider that speculates by a rule of `rules.py`: what it returns, and how often not the seeded token.

The draft model proposes chains drawn with noise of its own, and both models are read afresh at each step, so
this is for evidence, not for speed. Bugs of batch speculation are simulated at the same place: they change
what is read, not the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from auditor.kernels.keyed_noise import keyed_noise
from auditor.kernels.splitmix import F64
from auditor.reference.batch import Span
from auditor.reference.deviations.acceptance.rules import Acceptance, At, sampled
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import GumbelPosition
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import find_rule
from auditor.reference.support import find_support

Bug = Literal["position-after-rejection", "stale-keys", "bonus-keys-missing", "pad-attended"]
"""B1, B2, B3 and B5: invariants I1, I3, I4 and I6 broken."""

_SCHEME = GumbelPosition()
_SALT = 1 << 30  # noise of drafts is that of positions from here on, as in vLLM


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


@dataclass(slots=True)
class _Provider:
    """One request in the making."""

    target: ReferenceModel
    draft: ReferenceModel
    ask: Ask
    rule: Acceptance
    bug: Bug | None
    output: list[int] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    replaced: int = 0

    def noise(self, at: int) -> F64:
        """Gumbel noise of output token `at`, float64 [V]."""
        keys = _SCHEME.row_keys(self.ask.seed, self.ask.noise_prompt_tokens, at, at + 1)
        vocabulary = np.arange(self.target.config.vocab_size)[None]
        return np.asarray(keyed_noise(_SCHEME.noise, keys, vocabulary)[0])

    def propose(self, most: int) -> tuple[list[int], list[F64]]:
        """A chain of drafts, and q of each."""
        drafts: list[int] = []
        q: list[F64] = []
        for _ in range(most):
            text = [*self.ask.prompt, *self.output, *drafts]
            q.append(distribution(_rows(self.draft, text, 1)[0], self.ask.spec))
            drafts.append(sampled(q[-1], self.noise(_SALT + len(self.output) + len(drafts))))
        return drafts, q

    def step(self) -> tuple[tuple[int, ...], int]:
        """Add a step's tokens; its drafts, and how many of them stood."""
        left = self.ask.max_tokens - len(self.output) - 1
        drafts, q = self.propose(min(self.ask.draft_tokens, left) if self.output else 0)
        seen = _seen(self.ask, self.output, self.stale, self.bug)
        rows = _rows(self.target, [*seen, *drafts], len(drafts) + 1)
        p = [distribution(row, self.ask.spec) for row in rows]
        kept, token = self.judge(p, q, drafts, seen)
        tokens = [*drafts[:kept], token]
        start = len(self.output)
        self.replaced += sum(
            own != sampled(row, self.noise(start + n))
            for n, (own, row) in enumerate(zip(tokens, p, strict=False))
        )
        self.output += tokens
        self.stale = drafts[kept:]
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
    provider = _Provider(target, draft, ask, rule, bug)
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


def _rows(model: ReferenceModel, text: Sequence[int], count: int) -> torch.Tensor:
    """Logits of the last rows."""
    hidden = model.forward([Span(torch.tensor(text), wanted=len(text) - count)])
    return model.logits(hidden)
