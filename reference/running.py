"""A request while it is decoded: what was asked, what came so far, when it ends."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import torch

from auditor.reference.block_replay import BlockSampler, refuse_grammar
from auditor.reference.head import NoiseRows, effective_sampling
from auditor.reference.noise import Draws, NoiseScheme
from auditor.reference.prefix_rules import RuledRequest, resolve_for
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import check_shape
from auditor.reference.speculation import NO_DRAFT, SpeculationRule
from auditor.reference.stop_strings import stop_string_place
from auditor.reference.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation to run.

    Attributes:
        prompt: ids fed to the model.
        noise_prompt_tokens: prompt length as far as the noise is concerned. A provider that feeds hidden text
            can keep the noise of the prompt it declares; the simulated one does, which is the harder case.
        max_tokens: most output tokens.
        stop_ids: the model's own ids that end the output, unless the request ignores them; those of the
            request always do. The one sampled is kept.
        tokenizer: what stop strings, and rules about texts and end ids, need.
        speculation: judges a drafter's tokens, `draft_tokens` a step; None draws every token plainly.
        emit: told every token as it is drawn.
    """

    prompt: tuple[int, ...]
    noise_prompt_tokens: int
    spec: SamplingSpec
    seed: int
    scheme: NoiseScheme
    max_tokens: int
    stop_ids: frozenset[int]
    tokenizer: Tokenizer | None = None
    speculation: SpeculationRule | None = None
    draft_tokens: int = 4
    emit: Callable[[int], None] = field(default=lambda _token: None, compare=False)


Steps = tuple[tuple[int, ...], ...]


class Running:
    """A request while it is decoded.

    Attributes:
        spec: as the scheme's engine takes it. output: ids so far. states: hidden states of them, if kept.
    """

    def __init__(self, ask: Ask, vocabulary: int) -> None:
        self.ask = ask
        self.spec = effective_sampling(ask.spec, ask.scheme)
        self.output: list[int] = []
        self._steps: list[list[int]] = [[]]  # the first token comes of the prompt, without a draft
        self._step_ended = False
        self.states: list[torch.Tensor] = []
        check_shape(ask.spec, ask.scheme, speculated=ask.speculation is not None)
        self._draws = Draws(ask.scheme, ask.seed, ask.noise_prompt_tokens, vocabulary, self.spec)
        rules = resolve_for(self.spec, ask.scheme, ask.tokenizer, vocabulary)
        self._rules = None if rules is None else RuledRequest(rules, ask.prompt)

    @property
    def by_step(self) -> bool:
        """Whether a step's drafts are judged together."""
        rule = self.ask.speculation
        return rule is not None and rule.needs_drafts and not self.spec.greedy

    def draw(self) -> NoiseRows:
        """The next token's noise."""
        return self._draws.take(1)

    def judged(self, proposed: int) -> int:
        """The draft judged at the next position: the proposed token, unless this step has had all of its."""
        if self._step_ended:
            self._steps.append([])
        return NO_DRAFT if self._is_bonus else proposed

    @property
    def _is_bonus(self) -> bool:
        return len(self._steps) == 1 or len(self._steps[-1]) == self.ask.draft_tokens

    def append(self, token: int, draft: int = NO_DRAFT) -> None:
        """Take the next token, and the draft it was judged by."""
        self.output.append(token)
        if draft != NO_DRAFT:
            self._steps[-1].append(draft)
        self._step_ended = token != draft
        self.ask.emit(token)

    def append_step(
        self, tokens: SequenceOf[int], drafts: SequenceOf[int], states: torch.Tensor | None
    ) -> None:
        """Take what a step made, up to the token that ends the output, and the drafts it judged.

        `states` are the hidden states of its tokens, None where nobody keeps them.
        """
        self._steps = [*self._steps, list(drafts)] if self.output else [list(drafts)]
        for number, token in enumerate(tokens):
            self.output.append(token)
            if states is not None:
                self.states.append(states[number])
            self.ask.emit(token)
            if self.finished:
                return

    @property
    def steps(self) -> Steps:
        """The drafts that each step judged."""
        return tuple(map(tuple, self._steps))

    def ruled(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token's logits [V] under the request's rules: the very code that audits it."""
        if self._rules is None:
            return logits
        return self._rules.apply(logits[None], np.asarray(self.output, np.int64), len(self.output)).logits[0]

    def block_sampler(self) -> BlockSampler:
        """What judges steps of drafts: the very code that audits them.

        Raises:
            SamplingUnsupportedError: under a grammar.
        """
        rule = self.ask.speculation
        assert rule is not None, "drafts are judged"
        refuse_grammar(self.spec)
        prompt = self.ask.noise_prompt_tokens
        return BlockSampler(rule, self.spec, self.ask.scheme, self.ask.seed, prompt, self._rules)

    @property
    def finished(self) -> bool:
        """Whether its last token ended it."""
        if not self.output or len(self.output) >= self.ask.max_tokens:
            return len(self.output) >= self.ask.max_tokens
        last, spec, tokenizer = self.output[-1], self.spec, self.ask.tokenizer
        if last in spec.stop_token_ids or (last in self.ask.stop_ids and not spec.ignore_eos):
            return True
        if not spec.stop or tokenizer is None:
            return False
        return stop_string_place(tokenizer, self.output, spec.stop, min_tokens=spec.min_tokens) is not None
