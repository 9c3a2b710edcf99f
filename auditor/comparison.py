"""A log beside a trusted deployment's completions of the same requests: did one model write both? Pure.

For logs that cannot be replayed: text only, no seed. It is the two-sample test of `model_equality.py`, and
needs no calibration: the null is that the provider answers each request as the trusted deployment does. So
the trusted one must serve the declared model in the declared precision.

What is compared, fixed before the answers are looked at:

1. Requests are the same when prompt and all sampling parameters are. Greedy ones are left out: they have
   one answer, and rounding may turn it into another for good, on an honest provider too.
2. A request that is logged twice (its seed, or without one its id) counts once: copies are no independent
   draws.
3. Answers are compared by token ids where every one of both sides has them, else by the characters of their
   text.
4. Seeds must not be shared: an answer and its replay are one draw.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from auditor.errors import AuditError, NoiseUnknownError, OptionError, TraceIncompleteError
from auditor.gathering import Evidence
from auditor.model_equality import I32, Completions, Equality, code_points, model_equality, padded
from auditor.preparation import prompt_ids
from auditor.replay import Reference, Scored
from auditor.trace import Trace

MODEL_EQUALITY = "model-equality"
"""Name of this evidence; its statistic is the unbiased squared discrepancy of the two sides' answers."""

_MOST_TOKENS = 1000
_PERMUTATIONS_EACH = 30  # times the e-value that convicts
_FEWEST_PERMUTATIONS = 2_000
_MOST_PERMUTATIONS = 200_000


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of one request; `request` is equal for equal prompts and parameters."""

    request: Hashable
    draw: Hashable
    ids: tuple[int, ...] | None
    text: str | None


def answers(traces: Iterable[Trace], reference: Reference) -> list[Answer]:
    """Completions that can be compared, each draw once."""
    found: dict[Hashable, Answer] = {}
    for trace in traces:
        if trace.sampling.greedy or (trace.output_token_ids is None and trace.text is None):
            continue
        if trace.model_digest not in (None, reference.model.digest):
            continue
        try:
            prompt = prompt_ids(trace, reference)
        except AuditError:  # the prompt is not there: nothing to pair it by
            continue
        # What the trace asks for beyond `SamplingSpec` is part of the request, whatever it means.
        unmodelled = repr(sorted((trace.extra.get("sampling") or {}).items()))
        request = (prompt, repr(trace.sampling), unmodelled, repr(trace.policy))
        draw = ("id", trace.id, trace.created) if trace.seed is None else ("seed", trace.seed, trace.noise)
        found.setdefault((request, draw), Answer(request, draw, trace.output_token_ids, trace.text))
    return list(found.values())


def compare(
    provider: Sequence[Answer], trusted: Sequence[Answer], *, alpha: float, generator: np.random.Generator
) -> Equality:
    """The two-sample test of all requests that both sides answered.

    Args:
        alpha: at which it is to convict; sets the number of permutations. Below 1/200,000 it cannot.
        generator: of the permutations.

    Raises:
        OptionError: nothing in common, too few answers, or answers of the same seeds.
    """
    shared = {a.request for a in provider} & {a.request for a in trusted}
    own = [a for a in provider if a.request in shared]
    other = [a for a in trusted if a.request in shared]
    if not shared:
        raise OptionError("no sampled request of the log was answered by the trusted deployment too")
    replayed = {(a.request, a.draw) for a in own} & {(a.request, a.draw) for a in other}
    if replayed:
        raise OptionError(
            f"{len(replayed)} answers of both sides have one seed or id: they are the same draws",
            fix="draw the trusted answers with seeds of their own",
        )
    numbers = {request: n for n, request in enumerate(sorted(shared, key=repr))}
    permutations = int(np.clip(_PERMUTATIONS_EACH / alpha, _FEWEST_PERMUTATIONS, _MOST_PERMUTATIONS))
    sides = _rows(own, other)
    first, second = (
        Completions(np.array([numbers[a.request] for a in side]), rows)
        for side, rows in zip((own, other), sides, strict=True)
    )
    return model_equality(first, second, permutations=permutations, generator=generator)


def _rows(own: Sequence[Answer], other: Sequence[Answer]) -> tuple[I32, I32]:
    """Both sides' answers as padded rows, int32 [N, L]."""
    ids = [[a.ids for a in side if a.ids is not None] for side in (own, other)]
    if len(ids[0]) == len(own) and len(ids[1]) == len(other):
        return padded(ids[0], _MOST_TOKENS), padded(ids[1], _MOST_TOKENS)
    texts = [[a.text for a in side if a.text is not None] for side in (own, other)]
    if len(texts[0]) == len(own) and len(texts[1]) == len(other):
        # Servers differ in whether they trim an answer.
        return code_points([t.strip() for t in texts[0]]), code_points([t.strip() for t in texts[1]])
    raise OptionError(
        "some answers have token ids only and others text only", fix="log both, or the same on both sides"
    )


@dataclass(frozen=True, slots=True)
class Trusted:
    """A trusted deployment's answers, to hold a group of a log against."""

    answers: Sequence[Answer]
    reference: Reference
    generator: np.random.Generator

    def beside(self, members: Iterable[Scored], alpha: float) -> tuple[tuple[Evidence, ...], tuple[str, ...]]:
        """The evidence of a group, or none and the reason why."""
        # A trace of another model, or with features nobody knows, is no answer to the same request.
        comparable = (
            s.trace
            for s in members
            if s.problem is None or isinstance(s.problem, TraceIncompleteError | NoiseUnknownError)
        )
        try:
            found = compare(
                answers(comparable, self.reference), self.answers, alpha=alpha, generator=self.generator
            )
        except OptionError as refusal:
            return (), (f"answers were not compared: {refusal.message}",)
        return (Evidence(MODEL_EQUALITY, found.statistic, found.log_e),), ()
