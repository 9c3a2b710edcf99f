"""What a request's own rules do to logits before temperature and filters: a function of the logged prefix.

Engines agree on the outcome where they offer a rule at all, since a mask is final whatever comes after it:

1. masks: grammar, allowed ids, bad words, stop ids before `min_tokens`;
2. logit bias, added in float32;
3. penalties (`penalties.py`), each engine with its own arithmetic and scope.

Then temperature, min-p, top-k, top-p and the draw (`head.py`). A masked token gets a logit no noise can lift,
`MASKED`, finite so that differences stay numbers. Sources: vLLM 0.32 `v1/sample/sampler.py` (its steps 3 to
6), transformers 5.19 `_get_logits_processor`, llama-cpp-python 0.3 `_init_sampler`.

What an engine does not offer, or does in a way that is not known here, is refused by `resolve`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from auditor.errors import SamplingUnsupportedError, TokenOutOfRangeError
from auditor.reference.grammar import parse_grammar
from auditor.reference.grammar_masks import CompiledGrammar, GrammarWalk, compile_grammar
from auditor.reference.noise import FilterOrder, NoiseScheme
from auditor.reference.penalties import Penalties, penalise
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MASKED = -1e30
"""Logit of a token that a rule excludes: finite in float32 under any temperature and penalty."""

_VLLM_LARGEST_BIAS = 100.0

# Schemes of engines whose rules were read; others share only the order of filters.
_READ: dict[FilterOrder, tuple[str, ...]] = {
    "vllm": ("vllm-", "gumbel-pos-", "greedy"),
    "transformers": ("torch-",),
    "llama.cpp": ("llama.cpp/",),
}


@dataclass(frozen=True, slots=True)
class PrefixRules:
    """The rules of one request, checked against engine and vocabulary.

    Attributes:
        penalties: None when off.
        bias_ids: int64 [B]; bias: float32 [B].
        allowed: bool [V], None when everything is.
        bad_sequences: the last id of each is excluded right after the others.
        bad_in_prompt: whether those others may begin in the prompt.
        stop_ids: int64, excluded before `min_tokens`.
        restores_stops: whether stop ids come back where masks would leave nothing else.
    """

    vocabulary: int
    penalties: Penalties | None
    bias_ids: I64
    bias: npt.NDArray[np.float32]
    allowed: Bools | None
    bad_sequences: tuple[tuple[int, ...], ...]
    bad_in_prompt: bool
    min_tokens: int
    stop_ids: I64
    restores_stops: bool
    grammar: CompiledGrammar | None


@dataclass(frozen=True, slots=True)
class Ruled:
    """A tile after the rules.

    Attributes:
        logits: float32 [R, V], masked ones at `MASKED`.
        masked: bool [R, V], None when no mask was on.
        forced: bool [R], where one token alone was left.
        unmodelled: bool [R], where the rules leave nothing, or what they do is not known.
    """

    logits: Tensor
    masked: Bools | None
    forced: Bools
    unmodelled: Bools


def resolve(
    spec: SamplingSpec, order: FilterOrder, tokenizer: Tokenizer | None, vocabulary: int
) -> PrefixRules | None:
    """The rules of a request, None when it has none.

    Args:
        order: whose rules: the engine's.
        tokenizer: gives end ids, and ids for texts; needed by min tokens, bad words and grammars.

    Raises:
        SamplingUnsupportedError: the engine offers no such rule, or it cannot be replayed.
        TokenOutOfRangeError: a rule names an id that the model does not have.
    """
    if not spec.ruled:
        return None
    _refuse_unoffered(spec, order, tokenizer)
    penalties = None
    if spec.penalised:
        penalties = Penalties(spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty, order)
        penalties.check()
    ends = () if tokenizer is None else tokenizer.eos_ids
    # transformers knows no stop ids besides the model's own.
    stops = frozenset(ends) | (frozenset() if order == "transformers" else frozenset(spec.stop_token_ids))
    _check_ids(spec, stops, vocabulary)
    allowed = None
    if spec.allowed_token_ids is not None:
        allowed = np.zeros(vocabulary, np.bool_)
        allowed[list(spec.allowed_token_ids)] = True
    biases = dict(sorted(spec.logit_bias.items()))
    largest = _VLLM_LARGEST_BIAS if order == "vllm" else np.inf
    grammar = None
    if spec.grammar is not None:
        assert tokenizer is not None, "checked above"
        grammar = compile_grammar(parse_grammar(spec.grammar), tokenizer, vocabulary, stops)
    return PrefixRules(
        vocabulary=vocabulary,
        penalties=penalties,
        bias_ids=np.fromiter(biases, np.int64, len(biases)),
        bias=np.clip(np.fromiter(biases.values(), np.float64, len(biases)), -largest, largest).astype(
            np.float32
        ),
        allowed=allowed,
        bad_sequences=_bad_sequences(spec, order, tokenizer),
        bad_in_prompt=order == "transformers",
        min_tokens=spec.min_tokens,
        stop_ids=np.array(sorted(stops), np.int64),
        restores_stops=order == "vllm" and grammar is not None,
        grammar=grammar,
    )


def resolve_for(
    spec: SamplingSpec, scheme: NoiseScheme, tokenizer: Tokenizer | None, vocabulary: int
) -> PrefixRules | None:
    """As `resolve`, for the engine that a noise scheme belongs to.

    Raises:
        SamplingUnsupportedError: besides, the rules of that engine were never read (SGLang, OpenVINO, TGI).
    """
    if not spec.ruled:
        return None
    if not scheme.name.startswith(_READ[scheme.filters]):
        raise SamplingUnsupportedError(f"penalties and masks of {scheme.name} cannot be replayed")
    return resolve(spec, scheme.filters, tokenizer, vocabulary)


def _refuse_unoffered(spec: SamplingSpec, order: FilterOrder, tokenizer: Tokenizer | None) -> None:
    rules = {
        "allowed_token_ids": spec.allowed_token_ids is not None,
        "bad_words": bool(spec.bad_words),
        "bad_words_ids": bool(spec.bad_words_ids),
        "min_tokens": spec.min_tokens > 0,
        "grammar": spec.grammar is not None,
        "logit_bias": bool(spec.logit_bias),
    }
    offered = {
        "vllm": {"allowed_token_ids", "bad_words", "min_tokens", "grammar", "logit_bias"},
        "transformers": {"bad_words_ids", "min_tokens", "grammar", "logit_bias"},
        "llama.cpp": {"logit_bias"},
    }
    for name, is_on in rules.items():
        if is_on and name not in offered.get(order, ()):
            raise SamplingUnsupportedError(f"{name} of a {order} sampler cannot be replayed")
        if is_on and tokenizer is None and name in ("bad_words", "min_tokens", "grammar"):
            raise SamplingUnsupportedError(f"{name} cannot be replayed without the model's tokenizer")


def _check_ids(spec: SamplingSpec, stops: frozenset[int], vocabulary: int) -> None:
    named = {
        "logit_bias": spec.logit_bias,
        "allowed_token_ids": spec.allowed_token_ids or (),
        "bad_words_ids": [token for sequence in spec.bad_words_ids for token in sequence],
        "stop_token_ids": stops if spec.min_tokens else (),
    }
    for name, ids in named.items():
        worst = max(ids, default=0)
        if worst >= vocabulary or min(ids, default=0) < 0:
            raise TokenOutOfRangeError(
                f"field sampling.{name}: token id {worst} is outside the vocabulary of {vocabulary}"
            )


def _bad_sequences(
    spec: SamplingSpec, order: FilterOrder, tokenizer: Tokenizer | None
) -> tuple[tuple[int, ...], ...]:
    """Bad words as ids.

    vLLM encodes each bare and after a space, and keeps the second form if it begins otherwise and is as long;
    transformers never forbids an end id by itself.
    """
    if order == "transformers":
        ends = () if tokenizer is None else tokenizer.eos_ids
        return tuple(sequence for sequence in spec.bad_words_ids if sequence not in {(end,) for end in ends})
    found: list[tuple[int, ...]] = []
    for word in dict.fromkeys(spec.bad_words):
        assert tokenizer is not None, "checked before"
        bare, spaced = (tuple(tokenizer.encode(prefix + word.lstrip())) for prefix in ("", " "))
        if not bare:
            raise SamplingUnsupportedError(f"bad word {word!r} has no tokens")
        found.append(bare)
        if spaced and spaced[0] != bare[0] and len(spaced) == len(bare):
            found.append(spaced)
    return tuple(found)


class RuledRequest:
    """One request's walk through its rules; ask in order of its output, it remembers where its grammar is."""

    def __init__(self, rules: PrefixRules, prompt: tuple[int, ...]) -> None:
        self._rules = rules
        self._prompt = np.asarray(prompt, np.int64)
        self._walk = None if rules.grammar is None else GrammarWalk(rules.grammar)

    @property
    def grammar(self) -> CompiledGrammar | None:
        """The grammar that the output follows."""
        return self._rules.grammar

    def apply(self, logits: Tensor, output: I64, start: int) -> Ruled:
        """Apply the rules to the logits of output tokens start, start + 1, ...

        Args:
            logits: float32 [R, V] on the CPU, as the model gave them; not changed.
            output: int64, the logged output, at least `start + R - 1` tokens of it.
        """
        rules = self._rules
        masked, unmodelled = self._masked(output, start, len(logits))
        z = logits
        if len(rules.bias_ids):
            columns = torch.from_numpy(rules.bias_ids)
            z = z.clone()
            z[:, columns] += torch.from_numpy(rules.bias)
        if rules.penalties is not None:
            z = penalise(z, rules.penalties, self._prompt, output, start)
        if masked is None:
            none = np.zeros(len(logits), np.bool_)
            return Ruled(z, None, none, unmodelled)
        left = rules.vocabulary - masked.sum(axis=1)
        # Nothing left: engines return whatever their argmax makes of a row of -inf.
        masked[left == 0] = False
        z = z.masked_fill(torch.from_numpy(masked), MASKED)
        return Ruled(z, masked, left == 1, unmodelled | (left == 0))

    def _masked(self, output: I64, start: int, rows: int) -> tuple[Bools | None, Bools]:
        rules, lost = self._rules, np.zeros(rows, np.bool_)
        early = np.arange(start, start + rows) < rules.min_tokens
        if self._walk is None and rules.allowed is None and not rules.bad_sequences and not early.any():
            return None, lost
        masked = np.zeros((rows, rules.vocabulary), np.bool_)
        if self._walk is not None:
            allowed, lost = self._walk.allowed(output, start, rows)
            masked |= ~allowed
        if rules.allowed is not None:
            masked |= ~rules.allowed
        for row, token in self._bad(output, start, rows):
            masked[row, token] = True
        before = masked[:, rules.stop_ids]
        masked[np.ix_(early, rules.stop_ids)] = True
        if rules.restores_stops:
            nothing = np.flatnonzero(early & masked.all(axis=1))
            masked[np.ix_(nothing, rules.stop_ids)] = before[nothing]
        return masked, lost

    def _bad(self, output: I64, start: int, rows: int) -> Iterator[tuple[slice | I64, int]]:
        """(rows, token) where a bad sequence would be completed."""
        head = self._prompt if self._rules.bad_in_prompt else self._prompt[:0]
        text = np.concatenate([head, output[: start + rows - 1]])
        first = len(head) + start  # place of the first row's token
        for sequence in self._rules.bad_sequences:
            *others, last = sequence
            if not others:
                yield slice(None), last
                continue
            place = np.arange(first, first + rows)
            fits = place >= len(others)
            for back, token in enumerate(reversed(others), start=1):
                before = np.maximum(place - back, 0)
                fits &= text[before] == token if len(text) else False
            yield np.flatnonzero(fits), last
