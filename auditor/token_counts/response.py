"""One logged response: what its bill may honestly be, from its text and the claimed model.

1. The text is encoded canonically; the tokens must spell it byte for byte.
2. One teacher-forced pass over the canonical ids gives the model's word on every other tokenization.
3. The honest excess over the canonical number is estimated without bias (`expected_length`).
4. A text that the claimed model would hardly write is refused: most likely something was taken out of it.
   Whether a response counts depends on its text alone, so leaving it out costs no validity.
5. A bill far beyond the text is one for hidden tokens, whatever they were: a finding, not evidence.
6. What a text does not show is forgiven, in the provider's favour: the end token, a leading space that a
   server stripped, and as many special tokens and unfinished characters as the model would have put there.

Fail closed: a text that does not hold everything that was generated (stop strings, tool calls, replacement
characters, a chat message whose reasoning was taken out) is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from auditor.errors import CannotScoreError, TraceIncompleteError
from auditor.preparation import without_seed
from auditor.reference.prefix_rows import PrefixRows
from auditor.reference.request import Request
from auditor.reference.token_bytes import TokenBytes
from auditor.token_counts.bill import bill_of, token_bytes
from auditor.token_counts.expected_length import unbiased_mean
from auditor.token_counts.lattice import F64, Ids, Lattice, WeightedLattice
from auditor.token_counts.martingale import CountedResponse

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer
    from auditor.replay import Reference
    from auditor.trace import Trace

_HELD_BACK = 3  # tokens of an unfinished character, at most
_SLACK = 0.25  # tokens: the ceiling of an estimate on a text whose tokenization is beyond doubt
_CAUTION = 4.0  # ... and how far above the lattice's own estimate it lies elsewhere
_SURPRISE = 3.0  # standard deviations, and nats


@dataclass(frozen=True, slots=True)
class ResponseCount:
    """A response that could be counted.

    Attributes:
        counted: for the sequential test. characters: of the text.
        computed: token positions forwarded. one_pass: those of prompt and canonical text.
    """

    counted: CountedResponse
    characters: int
    computed: int
    one_pass: int


def is_doubtful(trace: Trace, tokenizer: Tokenizer) -> bool:
    """Whether a bill and a text are logged, and no ids that account for both."""
    if trace.text is None or trace.usage.completion_tokens is None:
        return False
    ids = trace.output_token_ids
    if not ids or len(ids) != trace.usage.completion_tokens:
        return True
    # A stop string or a reasoning parser leaves a part of what the ids spell: they account for it still.
    spelled = (tokenizer.decode(ids), tokenizer.decode(ids, skip_special=True))
    return not any(trace.text.strip() in whole for whole in spelled)


def count_response(trace: Trace, reference: Reference) -> ResponseCount:
    """Count one response whose ids are missing or in doubt.

    The estimate's randomness is keyed by the raw bytes of the trace: whoever repeats the audit gets the same.

    Raises:
        TraceIncompleteError: no text, bill or prompt.
        CannotScoreError: the text does not hold all that was generated, or its distribution is not known.
        ModelUnsupportedError: tokens that do not spell bytes out.
    """
    tokenizer, model = reference.tokenizer, reference.model
    vocabulary = token_bytes(tokenizer, model.config.vocab_size)
    bill = bill_of(trace, tokenizer, vocabulary)
    if trace.sampling.greedy:
        raise CannotScoreError(
            "a greedy request draws nothing, so its tokenization has no distribution", where=trace.where
        )
    canonical = bill.canonical
    request = _request(trace, canonical, reference)
    scheme = request.scheme if trace.sampling.filtered else None
    rows = PrefixRows(model, request.prompt, trace.sampling, scheme)
    lattice = Lattice.of(canonical, vocabulary)
    ends = () if trace.sampling.ignore_eos else tokenizer.eos_ids
    invisible = sorted(tokenizer.special_ids - set(ends))
    cut = trace.finish_reason == "length"
    reading = _read(lattice, rows, invisible, _unfinished(vocabulary) if cut else ())
    _refuse_foreign(reading, trace.where)
    weighted = _weighted(lattice, reading, rows)
    one_pass = len(request.prompt) + len(canonical)
    generator = _generator(trace)
    estimate = unbiased_mean(
        lambda ids: float(max(0, len(ids) - len(canonical))),
        lambda count: weighted.draw(count, generator),
        lambda paths: path_scores(paths, rows, {canonical: reading.own}),
        generator,
    )
    ceiling = _SLACK + _CAUTION * weighted.departures() + reading.hidden
    counted = CountedResponse(bill.billed, bill.allowed, estimate.value + reading.hidden, ceiling)
    return ResponseCount(counted, len(trace.text or ""), rows.computed, one_pass)


def _request(trace: Trace, canonical: Ids, reference: Reference) -> Request:
    why = TraceIncompleteError("only the text is logged", where=trace.where)
    request = without_seed(replace(trace, output_token_ids=canonical), why, reference)
    if request is None:
        raise CannotScoreError(
            "its tokens cannot be counted from the text: the distribution of this request is not known",
            where=trace.where,
            fix="log token ids",
        )
    return request


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one pass over the canonical ids shows.

    Attributes:
        rows: for each token, log probabilities of the edges of its place. own: of the whole path.
        surprise: nats by which the path is less likely than the model's own texts; variance: of that.
        hidden: expected tokens that a server may leave out of the text: special ones, unfinished characters.
    """

    rows: tuple[F64, ...]
    own: float
    surprise: float
    variance: float
    hidden: float


def _read(
    lattice: Lattice, rows: PrefixRows, invisible: Sequence[int], unfinished: Sequence[int]
) -> _Reading:
    """The one pass; `unfinished` tokens may be held back behind the last, none where the model ended it."""
    canonical = lattice.canonical
    wanted = dict(lattice.wanted())
    values: dict[int, F64] = {}
    own = entropy = variance = hidden = 0.0
    for context, law in rows([canonical[:n] for n in range(len(canonical) + 1)]):
        n = len(context)
        if n == len(canonical):
            hidden += _HELD_BACK * float(np.exp(law[list(unfinished)]).sum())
            continue
        values[n] = law[list(wanted[n])]
        own += float(law[canonical[n]])
        mean, spread = _spread(law)
        entropy, variance = entropy + mean, variance + spread
        if canonical[n] not in invisible:
            hidden += float(np.exp(law[list(invisible)]).sum())
    by_token = tuple(values[n] for n in range(len(canonical)))
    return _Reading(by_token, own, -own - entropy, variance, hidden)


def _weighted(lattice: Lattice, reading: _Reading, rows: PrefixRows) -> WeightedLattice:
    """The lattice with the model's weights, likely departures asked about."""
    places = {context: place for place, context in lattice.likely_departures(reading.rows).items()}
    inner = {}
    if places:
        for context, law in rows(list(places)):
            place = places[context]
            inner[place] = law[[token for token, _ in lattice.edges[place]]]
    return lattice.weighted(reading.rows, inner)


def _refuse_foreign(reading: _Reading, where: str) -> None:
    if reading.surprise > _SURPRISE * np.sqrt(reading.variance) + _SURPRISE:
        raise CannotScoreError(
            f"the text is {reading.surprise:.0f} nats less likely than the claimed model's own: something "
            "was taken out of it (reasoning, say), or another model wrote it",
            where=where,
        )


def _spread(law: F64) -> tuple[float, float]:
    """Mean and variance of -log p of a row's own tokens, nats."""
    law = law[np.isfinite(law)]
    p = np.exp(law)
    entropy = -float((p * law).sum())
    return entropy, max(0.0, float((p * law * law).sum()) - entropy**2)


def _unfinished(vocabulary: TokenBytes) -> Ids:
    """Ids whose bytes are no whole characters."""
    return tuple(i for i, b in enumerate(vocabulary.spelled) if b and not _whole(b))


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def path_scores(paths: Sequence[Ids], rows: PrefixRows, known: Mapping[Ids, float]) -> list[float]:
    """Log probability of each path, contexts in common forwarded once."""
    following: dict[Ids, set[int]] = {}
    for ids in paths:
        for n, token in enumerate(ids if ids not in known else ()):
            following.setdefault(ids[:n], set()).add(token)
    steps: dict[tuple[Ids, int], float] = {}
    if following:
        for context, law in rows(sorted(following)):
            steps.update({(context, token): float(law[token]) for token in following[context]})
    return [
        known[ids] if ids in known else sum(steps[ids[:n], token] for n, token in enumerate(ids))
        for ids in paths
    ]


def _generator(trace: Trace) -> np.random.Generator:
    key = trace.raw_digest or repr((trace.id, trace.text, trace.usage.completion_tokens))
    return np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
