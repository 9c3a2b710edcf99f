"""Content test of opened responses against honest ones: what `audit check --honest` does.

Honest responses are split three ways: half trains the verifier, beside inflated versions of themselves, a
quarter ranks the verifier's and the rules' scores, a quarter calibrates the fused score. All are opened as
the audited ones were, by draws of the same size, for a test of two blocks is not one of twenty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from auditor.errors import OptionError
from auditor.hidden_tokens.checking import Opened, canonical_excess
from auditor.hidden_tokens.decisions import F64, ResponseTest, p_values, worst_of
from auditor.hidden_tokens.embedders import Embedder
from auditor.hidden_tokens.features import OpenedResponse, Vectoriser, rules
from auditor.hidden_tokens.verifiers import CrossFitted, Example
from auditor.reference.deviations.accounting import INFLATIONS, Served
from auditor.reference.tokenizer import Tokenizer
from auditor.trace import Trace

LEAST_HONEST = 80
Likelihood = Callable[[OpenedResponse], float]
_RATES = (0.1, 0.5, 1.0, 2.0)
_WITHOUT_MODEL = tuple(
    attack
    for attack in INFLATIONS.values()
    if not (attack.counts_only or attack.forges_embeddings or attack.late)
    and attack.name != "accounting/small-model"
)


@dataclass(frozen=True, slots=True)
class Draw:
    """How blocks are drawn: as in `merkle.token_openings.Challenge`."""

    block: int
    count: int
    prefix: bool


def opened_response(opened: Opened, answer: str, prompt: tuple[int, ...]) -> OpenedResponse:
    """What `check_opened` found, as features see it."""
    places = tuple(sorted(opened.blocks))
    return OpenedResponse(
        tuple(opened.blocks[place] for place in places),
        places,
        tuple(opened.texts[place] for place in places),
        answer,
        opened.excess,
        prompt,
    )


class ContentTest:
    """A calibrated test.

    Args:
        honest: full traces of honest responses; `usage.reasoning_tokens` says how many output tokens are
            hidden.
        draw: how the audited responses were opened.
        likelihood: mean log-probability of a response's unlikeliest opened block under the claimed model
            (`reexecution.least_log_probability`); None without weights.
        seed: of the draws and of what is trained.

    Raises:
        OptionError: fewer than 80 usable traces, or the `content` extra is not installed.
    """

    def __init__(
        self,
        honest: Sequence[Trace],
        draw: Draw,
        tokenizer: Tokenizer,
        embedder: Embedder,
        *,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        self._likelihood = likelihood
        self._draw, self._tokenizer, self._source = draw, tokenizer, random.Random(seed)  # noqa: S311
        served = [self._served(trace) for trace in honest if _hides(trace)]
        if len(served) < LEAST_HONEST:
            raise OptionError(
                f"{len(served)} honest traces with hidden tokens; at least {LEAST_HONEST} are needed",
                where="--honest",
            )
        half, quarter = len(served) // 2, len(served) // 4
        self._model = CrossFitted(
            self._examples(served[:half]), Vectoriser(embedder, tokenizer.decode), tokenizer.vocab_size, seed
        )
        self._ranks = self._columns([self._opened(s, s.hidden) for s in served[half : half + quarter]])
        self.calibration = self.scores([self._opened(s, s.hidden) for s in served[half + quarter :]])

    def scores(self, responses: Sequence[OpenedResponse]) -> F64:
        """Fused suspicion of each response, float64 [n]."""
        return worst_of(list(zip(self._ranks, self._columns(responses), strict=True)))

    def p_values(self, responses: Sequence[OpenedResponse]) -> F64:
        """Conformal p-value of each response, float64 [n]."""
        return p_values(self.calibration, self.scores(responses))

    def accumulated(self, responses: Sequence[OpenedResponse], alpha: float) -> ResponseTest:
        """The evidence of all responses together."""
        test = ResponseTest(self.calibration, alpha)
        for score in self.scores(responses):
            test.update(float(score))
        return test

    def _columns(self, responses: Sequence[OpenedResponse]) -> list[F64]:
        by_rule = [rules(response, self._model.lexicons) for response in responses]
        columns = [
            self._model.score(responses),
            *(np.array([found[name] for found in by_rule]) for name in by_rule[0]),
        ]
        if self._likelihood is not None:
            columns.append(-np.array([self._likelihood(response) for response in responses]))
        return columns

    def _served(self, trace: Trace) -> Served:
        output, hidden = trace.output_token_ids or (), trace.usage.reasoning_tokens or 0
        prompt = trace.prompt_token_ids or ()
        return Served(prompt, output[:hidden], output[hidden:], self._tokenizer, self._draw.block)

    def _examples(self, served: Sequence[Served]) -> list[Example]:
        others = [(s.prompt, s.hidden) for s in served]
        found = []
        for origin, own in enumerate(served):
            found.append(Example(origin, self._opened(own, own.hidden), inflated=False))
            rest = others[:origin] + others[origin + 1 :]
            dishonest = Served(own.prompt, own.hidden, own.visible, own.tokenizer, own.block, rest)
            for attack in _WITHOUT_MODEL:
                seed = self._source.getrandbits(32)
                hidden = attack.inflate(dishonest, self._source.choice(_RATES), seed)
                found.append(Example(origin, self._opened(own, hidden), inflated=True))
        return found

    def _opened(self, served: Served, hidden: tuple[int, ...]) -> OpenedResponse:
        size = self._draw.block
        total = -(-len(hidden) // size)
        drawn = self._source.sample(range(total), min(self._draw.count, total))
        places = range(max(drawn) + 1) if self._draw.prefix else sorted(drawn)
        blocks = tuple(hidden[place * size : (place + 1) * size] for place in places)
        texts = tuple(self._tokenizer.decode(list(block)) for block in blocks)
        answer = self._tokenizer.decode(list(served.visible))
        found = OpenedResponse(blocks, tuple(places), texts, answer, prompt=served.prompt)
        return replace(found, excess=sum(canonical_excess(run, self._tokenizer) for run in found.runs))


def _hides(trace: Trace) -> bool:
    hidden = trace.usage.reasoning_tokens or 0
    return 0 < hidden < len(trace.output_token_ids or ())
