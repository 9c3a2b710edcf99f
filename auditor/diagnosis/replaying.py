"""Requests replayed as if a cause had been at work: what their tokens and fingerprints then look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from auditor.diagnosis.drafted import POSITION, SUBSTITUTED, guessing, slips_to
from auditor.diagnosis.hypotheses import can_be_replayed, other_schemes
from auditor.diagnosis.states import Far, distance, readable
from auditor.errors import AuditError
from auditor.fingerprint_scores import read
from auditor.fingerprints.activation_difr import Fingerprint
from auditor.noise_model import F64, RequestCounts, Slips, count_request
from auditor.preparation import prepare
from auditor.reference.deviations import HONEST, Deviation, Prompt
from auditor.reference.head import RowStats
from auditor.reference.request import Request
from auditor.replay import prompt_of

if TYPE_CHECKING:
    import torch

    from auditor.replay import Reference, Scored

# Simulated causes are only alike, not equal, to real ones: more requests would be sure of the wrong one.
_REQUESTS = 12
_TOKENS = 2_000
_SLOW_TOKENS = 150  # where every hypothesis scores its rows one by one

Drafted = Mapping[str, Sequence[Slips]]
"""Each request beside a draft model's guesses, by how it draws them."""


@dataclass(frozen=True, slots=True)
class Told:
    """One request as declared.

    Attributes:
        mode: as `replay.mode_of` has it. stats: as the reference scores it.
        far: its fingerprints' distances from the reference's states; None without.
    """

    mode: str
    stats: RowStats
    far: F64 | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, with what rebuilds its prompt.

    Attributes:
        given: fingerprints of its final states, if it has any.
    """

    request: Request
    prompt: Prompt
    told: Told
    given: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class Supposed:
    """Requests under one hypothesis.

    Attributes:
        counts: what their tokens then are. far: how far their fingerprints then are.
    """

    counts: Sequence[RequestCounts]
    far: Far

    def part(self, start: int, end: int) -> Supposed:
        """Some of the requests."""
        return Supposed(self.counts[start:end], self.far[start:end])


def chosen(usable: Sequence[Scored], reference: Reference) -> list[Asked]:
    """A dozen requests spread over the log, as many as are within reach."""
    step = max(1, len(usable) // _REQUESTS)
    spread = [(scored, prepare(scored.trace, reference)) for scored in usable[::step][:_REQUESTS]]
    spread = spread[: within_reach([request for _, request in spread])]
    requests = [request for _, request in spread]
    given = [_fingerprint(scored, request, reference) for scored, request in spread]
    states: list[torch.Tensor] = []
    rows = reference.runner.score(requests, on_hidden=lambda _request, hidden: states.append(hidden))
    found: list[Asked] = []
    for (scored, request), one, stats in zip(spread, given, rows, strict=True):
        told = Told(scored.mode, stats, distance(one, states.pop()))
        found.append(Asked(request, prompt_of(scored.trace, request, reference), told, one))
    return found


def _fingerprint(scored: Scored, request: Request, reference: Reference) -> Fingerprint | None:
    """What causes can be held against; nothing where it was refused, which the verdict says."""
    if scored.fingerprint_problem is not None:
        return None
    return readable(read(scored.trace, request, reference.model.config))


def within_reach(requests: Sequence[Request]) -> int:
    """How many of the first are at most `_TOKENS` output tokens, at least one; fewer where rows are slow."""
    slow = any(r.spec.shaped or r.speculated is not None for r in requests)
    tokens = np.cumsum([len(r.output) for r in requests])
    return max(1, int(np.searchsorted(tokens, _SLOW_TOKENS if slow else _TOKENS, side="right")))


def beside_guesses(
    asked: Sequence[Asked], reference: Reference
) -> tuple[dict[str, Supposed], dict[str, list[Slips]]]:
    """Requests as if the draft model had been served, and beside its guesses.

    Both are empty without a draft model, and where drafts were declared: then they are judged as declared.
    """
    draft = reference.draft
    if draft is None or any(a.request.speculated is not None for a in asked):
        return {}, {}
    guessed = reference.runner.under(((guessing(a.request), a.request.prompt) for a in asked), draft)
    served: list[RequestCounts] = []
    far: list[F64 | None] = []
    ways: dict[str, list[Slips]] = {}
    for one, (guesses, states) in zip(asked, guessed, strict=True):
        served.append(counted(guesses[POSITION]))
        far.append(distance(one.given, states))
        for way, own in guesses.items():
            ways.setdefault(way, []).append(slips_to(one.told.stats, own.winner))
    whole = {way: slips for way, slips in ways.items() if len(slips) == len(asked)}
    return {SUBSTITUTED: Supposed(served, far)}, whole


def replayed_under(
    asked: Sequence[Asked], hypotheses: Sequence[Deviation], reference: Reference
) -> dict[str, Supposed]:
    """Requests under each hypothesis that could be replayed."""
    found: dict[str, Supposed] = {}
    for together in by_pass(hypotheses):
        found.update(_scored_under(asked, together, reference))
    return found


def by_pass(hypotheses: Sequence[Deviation]) -> list[list[Deviation]]:
    """Hypotheses that share a forward pass, together."""
    passes: dict[tuple[object, object], list[Deviation]] = {}
    for hypothesis in hypotheses:
        passes.setdefault((hypothesis.model, hypothesis.prompt), []).append(hypothesis)
    return list(passes.values())


def _scored_under(
    asked: Sequence[Asked], together: Sequence[Deviation], reference: Reference
) -> dict[str, Supposed]:
    """Each request under hypotheses that share a forward pass; empty where it cannot be made."""
    first = together[0]
    counts: dict[str, list[RequestCounts]] = {}
    far: list[F64 | None] = []
    same = serves_declared_states(first)
    try:
        deviant = first.model(reference.model, None)
        fed = [tuple(first.prompt(a.prompt)) for a in asked]
        variants = [dict(variants_of(a.request, together, reference)) for a in asked]
        replays = reference.runner.under(zip(variants, fed, strict=True), deviant)
        for one, (rows, states) in zip(asked, replays, strict=True):
            far.append(one.told.far if same else distance(one.given, states))
            for name, stats in rows.items():
                counts.setdefault(name, []).append(counted(stats))
    except AuditError:  # a prompt beyond the context, a model that cannot be changed: not this hypothesis
        return {}
    return {name: Supposed(found, far) for name, found in counts.items() if len(found) == len(asked)}


def serves_declared_states(hypothesis: Deviation) -> bool:
    """Whether it is the declared model on the declared prompt: only tokens can tell it."""
    return (hypothesis.model, hypothesis.prompt) == (HONEST.model, HONEST.prompt)


def variants_of(
    request: Request, together: Sequence[Deviation], reference: Reference
) -> Iterator[tuple[str, Request]]:
    """The request under each hypothesis' sampler; those that change nothing here stand as declared."""
    vocabulary = reference.model.config.vocab_size
    for hypothesis in together:
        seed = None if request.seed is None else hypothesis.seed(request.seed)
        supposed = replace(request, spec=hypothesis.sampling(request.spec), seed=seed)
        if can_be_replayed(supposed, vocabulary):
            yield hypothesis.name, supposed
    if serves_declared_states(together[0]):
        yield from other_schemes(request, vocabulary)


def counted(rows: RowStats) -> RequestCounts:
    """A request's rows, reduced."""
    evidence = rows.evidence
    return count_request(rows.slack[evidence], rows.margin[evidence], rows.matched[evidence])
