"""What only a whole log can show: requests that are there twice, and several models under one roof. Pure.

1. A request logged twice, word for word, is evidence once. Counted each time, an honest provider's rounding
   would be multiplied until it convicts, and a small sample until it acquits.
2. A log without digests that names several models cannot all be of the reference. Which one is, only the
   auditing side can say; until it does, none is scored, for another model's tokens would accuse its provider.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from auditor.errors import CannotScoreError
from auditor.replay import Scored
from auditor.trace import Trace


def counted_once(scored: Iterable[Scored]) -> Iterator[Scored]:
    """The same traces, in order; of equal ones all but the first without scores, and with a note.

    Equal are prompt, output, sampling, seed and noise. Ids do not matter: they may repeat, and may differ.
    Without a seed equal outputs may be two draws, and leaving them out would be a choice by outcome: there a
    request is known by its id, time, prompt and sampling, whatever it returned.
    """
    seen: dict[bytes, str] = {}
    for item in scored:
        if item.scores is None and item.seed_free is None:
            yield item
            continue
        content = content_digest(item.trace) if item.scores is not None else request_digest(item.trace)
        if content not in seen:
            seen[content] = item.trace.where
            yield item
        else:
            what = "word for word" if item.scores is not None else "under the same id"
            note = f"repeats the request at {seen[content]} {what}: counted once"
            yield replace(item, scores=None, counts=None, seed_free=None, notes=(*item.notes, note))


def request_digest(trace: Trace) -> bytes:
    """What makes a request without a seed the same one as another, 32 bytes."""
    return _digest((trace.id, trace.created, _prompt(trace), trace.sampling))


def _prompt(trace: Trace) -> object:
    return trace.prompt_token_ids or trace.messages or trace.prompt_text


def content_digest(trace: Trace) -> bytes:
    """What makes a seeded request and its output the same as another, 32 bytes."""
    parts = (
        _prompt(trace),
        trace.output_token_ids,
        trace.sampling,
        trace.seed,
        trace.noise,
        trace.recipe,
        trace.speculation,
    )
    return _digest(parts)


def _digest(parts: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()


def of_one_model(scored: Sequence[Scored], served_model: str | None) -> list[Scored]:
    """The same traces; those that may be of another model than the reference are not scored.

    Args:
        served_model: the name under which the log calls the reference; None when nobody said.
    """
    unproved = {item.trace.model for item in scored if item.trace.model_digest is None}
    if served_model is None and len(unproved) < 2:
        return list(scored)
    return [_judged(item, served_model, sorted(unproved)) for item in scored]


def _judged(item: Scored, served_model: str | None, names: list[str]) -> Scored:
    trace = item.trace
    if trace.model_digest is not None or trace.model == served_model:
        return item
    if item.problem is not None and item.seed_free is None:
        return item
    if served_model is None:
        shown = ", ".join(repr(name[:40]) for name in names[:4])
        problem = CannotScoreError(
            f"the log names several models ({shown}) and no digest tells which is the reference",
            where=trace.where,
            fix="say which with --served-model",
        )
    else:
        problem = CannotScoreError(
            f"the trace is of model {trace.model[:40]!r}, not {served_model!r}", where=trace.where
        )
    return replace(item, scores=None, counts=None, seed_free=None, problem=problem)
