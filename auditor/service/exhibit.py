"""What pages show of a finished audit beyond its verdict: whom it is about, evidence over tokens, excerpts.

`auditor.exhibit/v1`, a function of the result alone. The verdict's bytes and digest do not depend on it. It
holds text of convicted requests: whoever erases a log erases its exhibits too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from auditor.gathering import evidence_curve

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer
    from auditor.trace import Trace
    from auditor.verdict import TraceVerdict, Verdict
    from auditor.verification import Result

SCHEMA = "auditor.exhibit/v1"
MOST_POINTS = 200
MOST_EXCERPTS = 12
MOST_TOKENS = 600
"""Of an excerpt; a longer output is cut around what it is shown for."""
_MOST_SUBJECTS = 50
_MOST_LABEL = 200
_MOST_QUESTION = 2000
_MOST_BYTES_A_CHARACTER = 4

MATCH, NEAR, FAR = 0, 1, 2
"""Weights of a piece: what the reference returns too; off by what rounding may do; further off."""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An exhibit and what it is found by.

    Attributes:
        provider, model: what the log names; None where it names none, or several.
        tokens: output tokens that were scored.
        body: canonical JSON.
    """

    provider: str | None
    model: str | None
    outcome: str
    tokens: int
    alpha: float
    body: bytes


def exhibit_of(result: Result) -> Exhibit:
    """Make the exhibit of a result."""
    traces = [t.scored.trace for v in result.verdicts for t in v.traces]
    providers = {_label(trace.provider) for trace in traces}
    models = {_label(trace.model) for trace in traces}
    counted = Counter((_label(t.provider), _label(t.model)) for t in traces)
    value = {
        "schema": SCHEMA,
        "subjects": [
            {"provider": provider, "model": model, "requests": count}
            for (provider, model), count in counted.most_common(_MOST_SUBJECTS)
        ],
        "curves": [_curve(v) for v in result.verdicts if v.profile is not None],
        "excerpts": _excerpts(result),
    }
    return Exhibit(
        provider=next(iter(providers)) if len(providers) == 1 else None,
        model=next(iter(models)) if len(models) == 1 else None,
        outcome=result.outcome,
        tokens=result.tokens,
        alpha=result.alpha,
        body=json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode(),
    )


def _label(text: str | None, most: int = _MOST_LABEL) -> str | None:
    """Text that a database can hold and a page can show: without NUL and lone surrogates."""
    if text is None:
        return None
    return text[:most].replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _curve(verdict: Verdict) -> dict[str, Any]:
    """(output tokens, log10 of the e-value) of one group, from the first request to the last."""
    assert verdict.profile is not None
    usable = [t.scored for t in verdict.traces if t.scored.counts is not None]
    every = max(1, math.ceil(len(usable) / MOST_POINTS))
    tokens = np.cumsum([s.counts.tokens for s in usable if s.counts is not None]).tolist()
    shown = [n for n in range(len(usable)) if (n + 1) % every == 0 or n + 1 == len(usable)]
    log_e = evidence_curve(usable, verdict.profile, every=every) / math.log(10.0)
    return {
        "recipe": _label(verdict.recipe),
        "points": [[tokens[n], round(e, 4)] for n, e in zip(shown, log_e.tolist(), strict=True)],
    }


def _excerpts(result: Result) -> list[dict[str, Any]]:
    """The requests that weigh most in what was convicted, heaviest first."""
    everything = enumerate((t, v) for v in result.verdicts for t in v.traces)
    telling = [
        (number, trace, verdict)
        for number, (trace, verdict) in everything
        if verdict.outcome == "inconsistent" and verdict.profile is not None
        if trace.log_e > 0.0 and trace.scored.scores is not None
    ]
    telling.sort(key=lambda item: -item[1].log_e)
    return [_excerpt(n, t, v, result.reference.tokenizer) for n, t, v in telling[:MOST_EXCERPTS]]


def _excerpt(number: int, shown: TraceVerdict, verdict: Verdict, tokenizer: Tokenizer) -> dict[str, Any]:
    scores, trace = shown.scored.scores, shown.scored.trace
    assert scores is not None
    assert verdict.profile is not None
    far = 4.0 * verdict.profile.noise_scale[2]
    weights = {t: FAR if margin > far else NEAR for t, margin, _ in scores.misses}
    ids = trace.output_token_ids or ()
    start, end = _window(len(ids), shown.spans or tuple((t, t + 1) for t, _, _ in scores.misses))
    hidden = min(len(ids), trace.usage.reasoning_tokens or 0)
    return {
        "number": number,
        "id": _label(trace.id),
        "alone": shown.outcome == "inconsistent",
        "log10_e": round(shown.log_e / math.log(10.0), 4),
        "tokens": len(ids),
        "misses": len(scores.misses),
        "hidden": hidden,
        "window": [start, end],
        "spans": [list(span) for span in shown.spans],
        "question": _question(trace),
        "pieces": [
            [first, text, max(weights.get(t, MATCH) for t in range(first, after))]
            for first, after, text in _pieces(ids, start, end, {hidden}, tokenizer)
        ],
    }


def _window(tokens: int, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """At most `MOST_TOKENS`, with the first span in their middle."""
    if tokens <= MOST_TOKENS:
        return 0, tokens
    middle = (spans[0][0] + spans[0][1]) // 2 if spans else 0
    start = max(0, min(middle - MOST_TOKENS // 2, tokens - MOST_TOKENS))
    return start, start + MOST_TOKENS


def _pieces(
    ids: Sequence[int], start: int, end: int, cuts: set[int], tokenizer: Tokenizer
) -> Iterator[tuple[int, int, str]]:
    """(first, after, text): tokens one by one, or together where they make up one character.

    A token is decoded behind the one before it: some tokenizers drop the blank that a text begins with.
    """
    first = start
    while first < end:
        before = ids[max(0, first - 1) : first]
        context = tokenizer.decode(before)
        for after in range(first + 1, min(end, first + _MOST_BYTES_A_CHARACTER) + 1):
            text = tokenizer.decode(tuple(ids[first:after]))
            joined = tokenizer.decode((*before, *ids[first:after]))
            if joined.startswith(context):
                text = joined[len(context) :]
            if after in cuts or not text.endswith("\N{REPLACEMENT CHARACTER}"):
                break
        yield first, after, text
        first = after


def _question(trace: Trace) -> str | None:
    """What was asked last, as far as it is text."""
    if not trace.messages:
        return None
    content = trace.messages[-1].get("content")
    return _label(content, _MOST_QUESTION) if isinstance(content, str) else None
