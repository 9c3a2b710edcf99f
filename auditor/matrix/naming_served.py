"""Diagnosis of rows that a dishonest provider decoded by itself: their outputs are their own.

All logs of a kind of traffic are replayed under a hypothesis together, so that its model is made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from auditor.diagnosis import (
    FEW,
    OTHER,
    Asked,
    Drafted,
    beside_guesses,
    counted,
    is_explained,
    rank_causes,
    replayed_under,
    shortlisted,
    within_reach,
)
from auditor.hypotheses import candidates, further_candidates
from auditor.matrix.naming import Claims, looked_at
from auditor.matrix.provider import HonestProvider
from auditor.noise_model import RequestCounts
from auditor.reference.deviations import CATALOGUE, Deviation
from auditor.reference.request import Request

Found = dict[str, list[RequestCounts]]
"""Hypothesis -> counts of each request."""


@dataclass(frozen=True, slots=True)
class _Log:
    """One log of a row, and where its requests stand among all that are replayed."""

    row: str
    place: slice


def named_served(
    provider: HonestProvider, traffic: str, rows: Mapping[str, Claims]
) -> dict[str, dict[str, Any]]:
    """As `Naming.named` of rows whose claims are whole outputs.

    `unlisted` is without the other model, where the provider guessed with one; there is no other entry.
    """
    asked: list[Asked] = []
    logs: list[_Log] = []
    for name, outputs in rows.items():
        for numbers in looked_at(provider.requests):
            own = within_reach(_asked(provider, traffic, name, {n: outputs[n] for n in numbers}))
            logs.append(_Log(name, slice(len(asked), len(asked) + len(own))))
            asked += own
    found: dict[str, dict[str, Any]] = {name: {"named": [], "unlisted": []} for name in rows}
    for log, ways in zip(logs, _ranked(provider, traffic, asked, logs), strict=True):
        for way, ranked in ways.items():
            found[log.row][way].append(list(ranked[0]) if ranked else [OTHER, 0.0])
    return found


def _asked(provider: HonestProvider, traffic: str, name: str, outputs: Claims) -> list[Asked]:
    """One log's requests as its provider declares them, scored."""
    pool = provider.pool(traffic)
    requests: list[Request] = []
    for number, output in outputs.items():
        request, prompt = pool.asked[number]
        spec = CATALOGUE[name].declares(request.spec)
        requests.append(replace(request, spec=spec, tokenizer=prompt.tokenizer, output=tuple(output)))
    scored = provider.reference.runner.score(requests)
    return [
        Asked(request, pool.asked[number][1], traffic, counted(stats))
        for number, request, stats in zip(outputs, requests, scored, strict=True)
    ]


def _ranked(
    provider: HonestProvider, traffic: str, asked: Sequence[Asked], logs: Sequence[_Log]
) -> list[dict[str, Any]]:
    """Causes of each log, `named` and `unlisted`."""
    reference = replace(provider.reference, draft=provider.other)
    substituted, drafted = beside_guesses(asked, reference)
    first = replayed_under(asked, candidates(), reference)
    calibrated = provider.profile(traffic)
    known: list[dict[str, tuple[Found, Drafted]]] = []
    for log in logs:
        guesses: Drafted = {way: slips[log.place] for way, slips in drafted.items()}
        alone = _of(first, log.place)
        known.append({"named": (alone | _of(substituted, log.place), guesses), "unlisted": (alone, {})})
    seen = [[(a.mode, a.counts) for a in asked[log.place]] for log in logs]
    unclear = [
        n
        for n, ways in enumerate(known)
        if not all(is_explained(seen[n], *one, calibrated) for one in ways.values())
    ]
    further = _further(provider, asked, {n: logs[n].place for n in unclear}, traffic)
    ranked: list[dict[str, Any]] = []
    for n, ways in enumerate(known):
        ranked.append({})
        for way, (replayed, guesses) in ways.items():
            more = {} if is_explained(seen[n], replayed, guesses, calibrated) else further[n]
            ranked[n][way] = rank_causes(seen[n], replayed | more, guesses, provider.shadowed)
    return ranked


def _further(
    provider: HonestProvider, asked: Sequence[Asked], places: Mapping[int, slice], traffic: str
) -> dict[int, Found]:
    """The likeliest of the rest of the catalogue, for logs that nothing else explains."""
    reference, calibration = provider.reference, provider.profile(traffic).calibration
    few = [a for place in places.values() for a in asked[place][:FEW]]
    starts: dict[int, slice] = {}
    for number, place in places.items():
        before = max((one.stop for one in starts.values()), default=0)
        starts[number] = slice(before, before + len(asked[place][:FEW]))
    hypotheses = further_candidates() if few else ()
    ahead = replayed_under(few, hypotheses, reference)
    chosen = {n: set(shortlisted(_of(ahead, place), calibration)) for n, place in starts.items()}
    found: dict[int, Found] = {n: {} for n in places}
    for hypothesis in hypotheses:
        wanting = [n for n, names in chosen.items() if hypothesis.name in names]
        _add(found, wanting, hypothesis, {n: asked[places[n]] for n in wanting}, provider)
    return found


def _add(
    found: dict[int, Found],
    wanting: Sequence[int],
    hypothesis: Deviation,
    asked: Mapping[int, Sequence[Asked]],
    provider: HonestProvider,
) -> None:
    """Replay whole logs under one hypothesis."""
    together = [a for n in wanting for a in asked[n]]
    counts = replayed_under(together, [hypothesis] if together else [], provider.reference)
    before = 0
    for n in wanting:
        place = slice(before, before + len(asked[n]))
        found[n] |= _of(counts, place)
        before = place.stop


def _of(found: Mapping[str, Sequence[RequestCounts]], place: slice) -> Found:
    return {name: list(counts[place]) for name, counts in found.items()}
