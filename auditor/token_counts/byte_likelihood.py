"""How likely are the bytes of a text under two models, whatever their tokenizers? No guess of the ids. Pure.

A text without ids has no token likelihood, and models with different tokenizers have none in common; its
bytes have: P(text, then the end) under each model's canonical generation, exact (`reference/byte_level.py`).
Up to the last special token, and where the model ended the text, the canonical ids are the only tokenization;
where a limit cut it, every token that begins inside the text and reaches beyond it counts, too. One pass over
the text for each model, and a few left contexts.

Each model speaks for itself, at temperature 1 and without filters, and an honest provider does not sample
canonically. So the ratio is a signal of who wrote the texts and no e-value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from auditor.errors import CannotScoreError, TraceIncompleteError
from auditor.preparation import prompt_ids
from auditor.reference.byte_level import F64, Follow, Ids, byte_law, canonical, renormalised
from auditor.reference.canonical_pairs import canonical_pairs
from auditor.reference.prefix_rows import PrefixRows
from auditor.token_counts.bill import canonical_ids, token_bytes

if TYPE_CHECKING:
    from auditor.replay import Reference
    from auditor.trace import Trace


@dataclass(frozen=True, slots=True)
class ByteComparison:
    """Texts under the claimed model and another.

    Attributes:
        responses: that both could score. size: their bytes.
        claimed, other: bits a byte. log_ratio: log P(texts | other) / P(texts | claimed), nats.
    """

    responses: int
    size: int
    claimed: float
    other: float
    log_ratio: float


def compare_bytes(traces: Iterable[Trace], claimed: Reference, other: Reference) -> ByteComparison:
    """Score each text under both; one that either cannot score is left out on both sides.

    Raises:
        ModelUnsupportedError: a tokenizer whose tokens do not spell bytes out, or without canonical pairs.
    """
    scores = []
    size = responses = 0
    for trace in traces:
        try:
            own = claimed.tokenizer_digest == other.tokenizer_digest
            ours = text_log_probability(trace, claimed)
            scores.append((ours, text_log_probability(trace, other, own=own)))
        except (CannotScoreError, TraceIncompleteError):
            continue
        responses, size = responses + 1, size + len((trace.text or "").encode())
    here, there = np.sum(scores, axis=0).tolist() if scores else (0.0, 0.0)
    bits = max(1, size) * float(np.log(2.0))
    return ByteComparison(responses, size, -here / bits, -there / bits, there - here)


def text_log_probability(trace: Trace, reference: Reference, *, own: bool = True) -> float:
    """Log P(text, then its end | prompt) under canonical generation, nats.

    Args:
        own: whether the logged prompt ids are of this model's tokenizer; otherwise they are made anew.

    Raises:
        TraceIncompleteError: no text, or no prompt to make ids of.
        CannotScoreError: the tokenizer does not give the text back, or no canonical sequence spells it.
        ModelUnsupportedError: as `TokenBytes.of` and `CanonicalPairs.of`.
    """
    if not trace.text:
        raise TraceIncompleteError("no text", where=trace.where)
    tokenizer, model = reference.tokenizer, reference.model
    vocabulary = token_bytes(tokenizer, model.config.vocab_size)
    pairs = canonical_pairs(tokenizer)
    ids = canonical_ids(trace.text, tokenizer, vocabulary, trace)
    if pairs.refused(ids):
        raise CannotScoreError("the tokenizer's own pieces are no canonical pairs", where=trace.where)
    prompt = prompt_ids(trace if own else replace(trace, prompt_token_ids=()), reference)
    rows, follow = PrefixRows(model, prompt), canonical(pairs)
    if trace.finish_reason != "length":
        return _along(ids, rows, follow, tokenizer.eos_ids)
    # A limit cut the text: what its last piece would have become is open.
    cut = max((n + 1 for n, token in enumerate(ids) if token in tokenizer.special_ids), default=0)
    data = vocabulary.join(ids[cut:])

    def behind(contexts: Sequence[Ids]) -> Iterator[tuple[Ids, F64]]:
        return ((c[cut:], row) for c, row in rows([ids[:cut] + context for context in contexts]))

    # First, since it asks for the longest context: one pass serves both.
    tail = byte_law(data, vocabulary, behind, follow).log_probability
    return tail + _along(ids[:cut], rows, follow, ()) if cut else tail


def _along(ids: Ids, rows: PrefixRows, follow: Follow, ends: Sequence[int]) -> float:
    """Log probability of the ids, and of some end behind them."""
    total = 0.0
    for context, row in rows([ids[:n] for n in range(len(ids) + bool(ends))]):
        law, shift = renormalised(row, follow(context[-1] if context else None).ids, whole=False)
        n = len(context)
        wanted = [ids[n]] if n < len(ids) else list(ends)
        total += float(logsumexp(law[wanted])) - shift
    return total
