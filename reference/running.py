"""A request while it is decoded: what was asked, what came so far, when it ends."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import torch

from auditor.reference.block_replay import BlockSampler, refuse_grammar
from auditor.reference.future_noise import FutureNoise
from auditor.reference.grammar_masks import CompiledGrammar
from auditor.reference.head import effective_sampling
from auditor.reference.noise import Draws, NoiseScheme
from auditor.reference.prefix_rules import RuledRequest, resolve_for
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import check_shape
from auditor.reference.speculation import SpeculationRule
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
        speculation: judges a drafter's tokens, `draft_tokens` a step, as a provider would; None draws every
            token plainly, whatever a drafter guesses.
        tenant: whose request it is; drafters learn nothing from one for another.
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
    tenant: str = ""
    emit: Callable[[int], None] = field(default=lambda _token: None, compare=False)


Steps = tuple[tuple[int, ...], ...]


class Running:
    """A request while it is decoded.

    Attributes:
        spec: as the scheme's engine takes it. output: ids so far. states: hidden states of them, if kept.
        noise: of the output tokens to come.
    """

    def __init__(self, ask: Ask, vocabulary: int) -> None:
        self.ask = ask
        self.spec = effective_sampling(ask.spec, ask.scheme)
        self.output: list[int] = []
        self._steps: list[list[int]] = []
        self.states: list[torch.Tensor] = []
        check_shape(ask.spec, ask.scheme, speculated=ask.speculation is not None)
        draws = Draws(ask.scheme, ask.seed, ask.noise_prompt_tokens, vocabulary, self.spec)
        self.noise = FutureNoise(draws, ask.scheme, self.spec)
        rules = resolve_for(self.spec, ask.scheme, ask.tokenizer, vocabulary)
        self._rules = None if rules is None else RuledRequest(rules, ask.prompt)

    @property
    def by_step(self) -> bool:
        """Whether a step's drafts are judged together."""
        rule = self.ask.speculation
        return rule is not None and rule.by_step is not None and not self.spec.greedy

    def append(
        self, tokens: SequenceOf[int], states: torch.Tensor | None, drafts: SequenceOf[int] = ()
    ) -> int:
        """Take what a step made, up to the token that ends the output; how many tokens that were.

        Args:
            states: hidden states of its tokens, None where nobody keeps them.
            drafts: ids that a rule of speculation judged.
        """
        self._steps.append(list(drafts))
        taken = 0
        for number, token in enumerate(tokens):
            self.output.append(token)
            if states is not None:
                self.states.append(states[number])
            self.ask.emit(token)
            taken += 1
            if self.finished:
                break
        self.noise.advance(taken)
        return taken

    @property
    def steps(self) -> Steps:
        """The drafts that each step judged."""
        return tuple(map(tuple, self._steps))

    def ruled(self, logits: torch.Tensor, guessed: SequenceOf[int] = ()) -> torch.Tensor:
        """The logits [V] of the token after the output and some guesses, under the request's rules.

        By the very code that audits it; asked in the order of positions it does each work once.
        """
        if self._rules is None:
            return logits
        before = np.asarray([*self.output, *guessed], np.int64)
        return self._rules.apply(logits[None], before, len(before)).logits[0]

    @property
    def grammar(self) -> CompiledGrammar | None:
        """The grammar that its output follows."""
        return None if self._rules is None else self._rules.grammar

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
