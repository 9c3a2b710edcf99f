"""What a request asked of the sampler, as pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """The sampling parameters of one request; every default means "off" or "as the model says".

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k largest logits; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches it; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        typical_p: keep tokens of a surprise near the entropy, until their mass reaches it; 1 keeps all.
        top_n_sigma: keep logits within so many standard deviations of the largest; 0 keeps all.
        xtc_probability: how often a position drops, of the tokens at least as likely as `xtc_threshold`,
            all but the least likely; 0 never does, nor does a threshold above 1/2.
        repetition_penalty: 1 is off. presence_penalty, frequency_penalty: 0 is off.
        logit_bias: token id -> logits added.
        allowed_token_ids: the only ids that may be sampled, None for all.
        bad_words: texts that must not appear, as the client sent them; bad_words_ids: sequences of ids whose
            last one must not be sampled after the others.
        min_tokens: stop tokens are forbidden before this many output tokens.
        max_tokens: most output tokens, None when the log does not say.
        stop: stop strings. stop_token_ids: ids that end the output besides the model's own.
        ignore_eos: the end-of-sequence id does not end the output.
        grammar: a structured-output request as logged, None when there is none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def greedy(self) -> bool:
        """Whether the request takes the likeliest token and draws no noise."""
        return self.temperature == 0.0

    @property
    def filtered(self) -> bool:
        """Whether top-k, top-p or min-p cut the support."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def crossed(self) -> bool:
        """Whether XTC, which draws a coin a token, is on."""
        return self.xtc_probability > 0.0 and self.xtc_threshold <= 0.5

    @property
    def shaped(self) -> bool:
        """Whether a filter is on that keeps no prefix of the row by falling logit (`shape_filters.py`)."""
        return self.typical_p < 1.0 or self.top_n_sigma > 0.0 or self.crossed

    @property
    def penalised(self) -> bool:
        """Whether tokens that appeared before are made less (or more) likely."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def ruled(self) -> bool:
        """Whether logits depend on the tokens before them by anything but the model (`prefix_rules.py`)."""
        return (
            self.penalised
            or bool(self.logit_bias or self.bad_words or self.bad_words_ids)
            or self.allowed_token_ids is not None
            or self.min_tokens > 0
            or self.grammar is not None
        )
