"""Diagnosis of rows that a dishonest provider decoded by itself: their outputs are their own.

All logs of a kind of traffic are replayed under a hypothesis together, so that its model is made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from auditor.diagnosis.causes import FEW, OTHER, is_explained, rank_causes, shortlisted
from auditor.diagnosis.hypotheses import candidates, further_candidates
from auditor.diagnosis.replaying import (
    Asked,
    Drafted,
    Supposed,
    Told,
    beside_guesses,
    replayed_under,
    within_reach,
)
from auditor.matrix.naming import Claims, looked_at
from auditor.matrix.provider import HonestProvider
from auditor.reference.deviations import CATALOGUE, Deviation
from auditor.reference.request import Request
from auditor.replay import Reference

Logs = Mapping[int, Sequence[Asked]]
"""Requests of each log, by its number."""


def named_served(
    provider: HonestProvider, traffic: str, rows: Mapping[str, Claims]
) -> dict[str, dict[str, Any]]:
    """As `Naming.named` of rows whose claims are whole outputs.

    `unlisted` is without the other model, where the provider guessed with one; there is no other entry.
    """
    owners = [name for name in rows for _ in looked_at(provider.requests)]
    logs = [
        _asked(provider, traffic, name, {n: outputs[n] for n in numbers})
        for name, outputs in rows.items()
        for numbers in looked_at(provider.requests)
    ]
    found: dict[str, dict[str, Any]] = {name: {"named": [], "unlisted": []} for name in rows}
    for name, ways in zip(owners, _ranked(provider, traffic, dict(enumerate(logs))), strict=True):
        for way, ranked in ways.items():
            found[name][way].append(list(ranked[0]) if ranked else [OTHER, 0.0])
    return found


def _asked(provider: HonestProvider, traffic: str, name: str, outputs: Claims) -> list[Asked]:
    """One log's requests as its provider declares them, scored."""
    pool = provider.pool(traffic)
    requests: list[Request] = []
    for number, output in outputs.items():
        request, prompt = pool.asked[number]
        spec = CATALOGUE[name].declares(request.spec)
        requests.append(replace(request, spec=spec, tokenizer=prompt.tokenizer, output=tuple(output)))
    requests = requests[: within_reach(requests)]
    scored = provider.reference.runner.score(requests)
    return [
        Asked(request, pool.asked[number][1], Told(traffic, stats))
        for number, request, stats in zip(outputs, requests, scored, strict=False)
    ]


def _ranked(provider: HonestProvider, traffic: str, logs: Logs) -> list[dict[str, Any]]:
    """Causes of each log, `named` and `unlisted`."""
    reference = replace(provider.reference, draft=provider.other)
    first = _together(logs, candidates(), reference)
    calibrated = provider.profile(traffic)
    told = {n: [a.told for a in asked] for n, asked in logs.items()}
    known: dict[tuple[int, str], tuple[dict[str, Supposed], Drafted]] = {}
    for n, asked in logs.items():
        substituted, drafted = beside_guesses(asked, reference)
        known[n, "named"] = (first[n] | substituted, drafted)
        known[n, "unlisted"] = (first[n], {})
    unclear = {(n, way) for (n, way), (one, _) in known.items() if not is_explained(told[n], one, calibrated)}
    further = _further(provider, traffic, {n: logs[n] for n in sorted({n for n, _ in unclear})})
    ranked: list[dict[str, Any]] = [{} for _ in logs]
    for (n, way), (replayed, guesses) in known.items():
        more = further[n] if (n, way) in unclear else {}
        ranked[n][way] = rank_causes(told[n], replayed | more, guesses, provider.shadowed)
    return ranked


def _further(provider: HonestProvider, traffic: str, logs: Logs) -> dict[int, dict[str, Supposed]]:
    """The likeliest of the rest of the catalogue, for logs that nothing else explains."""
    reference, calibration = provider.reference, provider.profile(traffic).calibration
    hypotheses = further_candidates()
    ahead = _together({n: asked[:FEW] for n, asked in logs.items()}, hypotheses, reference)
    likeliest = {
        n: shortlisted([a.told for a in logs[n][:FEW]], replayed, calibration)
        for n, replayed in ahead.items()
    }
    found: dict[int, dict[str, Supposed]] = {n: {} for n in logs}
    for hypothesis in hypotheses:
        wanting = {n: asked for n, asked in logs.items() if hypothesis.name in likeliest[n]}
        for n, replayed in _together(wanting, [hypothesis], reference).items():
            found[n] |= replayed
    return found


def _together(
    logs: Logs, hypotheses: Sequence[Deviation], reference: Reference
) -> dict[int, dict[str, Supposed]]:
    """Every log under each hypothesis, replayed as one."""
    if not logs:
        return {}
    replayed = replayed_under([a for asked in logs.values() for a in asked], hypotheses, reference)
    places = pairwise(accumulate((len(asked) for asked in logs.values()), initial=0))
    return {
        n: {name: one.part(start, end) for name, one in replayed.items()}
        for n, (start, end) in zip(logs, places, strict=True)
    }
