"""Diagnosis: which cause does the product name for a row, and is it of the right family?

The product's own ranking (`diagnosis.rank_causes`) of the product's own hypotheses. Since prefixes stay the
honest ones, what a hypothesis expects does not depend on the row. So all rows are scored together: each
hypothesis once, at each position every token once that some row claims there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from auditor.diagnosis import (
    FEW,
    OTHER,
    by_pass,
    counted,
    is_explained,
    rank_causes,
    shortlisted,
    variants_of,
)
from auditor.errors import AuditError
from auditor.hypotheses import candidates, further_candidates
from auditor.matrix.provider import HonestProvider
from auditor.noise_model import RequestCounts
from auditor.reference.deviations import HONEST, Deviation
from auditor.reference.head import RowStats, effective_sampling, score_rows
from auditor.reference.noise import Draws
from auditor.reference.request import Replayed, Request

LOGS, REQUESTS = 2, 12
"""Disjoint logs of a row, and the requests of each that a diagnosis looks at: as many as the product does."""

ACTS_AS = {
    "partly/int4-in-half": "weights",
    "partly/int4-in-a-tenth": "weights",
    "partly/int4-from-token-64": "weights",
    "partly/int4-from-token-128": "weights",
    "partly/int4-in-close-calls": "weights",
    "partly/int4-at-peak-hours": "weights",
    "partly/int4-cooled": "weights",
    "partly/seed-in-a-tenth": "seed",
    "partly/draft-when-certain": "model",
}
"""The family of what a provider does that does it now and then: there is no other name for it."""

I64 = npt.NDArray[np.int64]
Claims = Mapping[int, Sequence[int]]
"""Number of a request in the pool -> the tokens that a row claims there."""
Counts = dict[str, list[RequestCounts]]
"""Hypothesis -> counts of each request of a log."""


def true_family(name: str) -> str:
    """The family that a diagnosis should name."""
    return ACTS_AS.get(name, name.partition("/")[0])


def looked_at(requests: int) -> list[list[int]]:
    """Numbers of the requests of each log, spread over a pool of so many."""
    spread = list(range(0, requests, max(1, requests // (LOGS * REQUESTS))))
    return [log for n in range(LOGS) if (log := spread[n::LOGS][:REQUESTS])]


@dataclass(frozen=True, slots=True)
class Naming:
    """Diagnoses of rows on one kind of traffic."""

    provider: HonestProvider
    traffic: str

    def named(self, rows: Mapping[str, Claims]) -> dict[str, dict[str, Any]]:
        """For each row the likeliest cause of each log with its weight.

        `named`, and `unlisted`: without the row's own entry among the hypotheses.
        """
        found: dict[str, dict[str, Any]] = {name: {"named": [], "unlisted": []} for name in rows}
        for log in looked_at(self.provider.requests):
            for name, ways in self._log(log, rows).items():
                for way, ranked in ways.items():
                    found[name][way].append(list(ranked[0]) if ranked else [OTHER, 0.0])
        return found

    def _log(self, log: list[int], rows: Mapping[str, Claims]) -> dict[str, dict[str, Any]]:
        calibration = self.provider.profile(self.traffic).calibration
        declared = self._replayed(log, rows, [[HONEST]])
        first = self._replayed(log, rows, by_pass(candidates()))
        unclear = {
            name
            for name in rows
            for without in ("", name)
            if not is_explained(_left(first[name], without), calibration)
        }
        asked = {name: rows[name] for name in rows if name in unclear}
        further = self._replayed(log, asked, by_pass(further_candidates())) if asked else {}
        found: dict[str, dict[str, Any]] = {}
        for name in rows:
            seen = [(self.traffic, counts) for counts in declared[name][HONEST.name]]
            found[name] = {}
            for way, without in (("named", ""), ("unlisted", name)):
                replayed = _left(first[name], without)
                if not is_explained(replayed, calibration):
                    others = _left(further[name], without)
                    ahead = {hypothesis: counts[:FEW] for hypothesis, counts in others.items()}
                    replayed |= {h: others[h] for h in shortlisted(ahead, calibration)}
                ranked = rank_causes(seen, replayed, self.provider.shadowed)
                found[name][way] = [pair for pair in ranked if pair[0] != without]
        return found

    def _replayed(
        self, log: list[int], rows: Mapping[str, Claims], passes: Sequence[list[Deviation]]
    ) -> dict[str, Counts]:
        """Counts of every row's requests under the hypotheses of every pass."""
        found: dict[str, Counts] = {name: {} for name in rows}
        for together in passes:
            for number, (model, states) in zip(log, self._states(log, together), strict=False):
                claims = np.array([rows[name][number] for name in rows], np.int64)
                request = self.provider.pool(self.traffic).asked[number][0]
                logits = model.logits(states)
                for hypothesis, supposed in variants_of(request, together, self.provider.reference):
                    counts = _counted_rows(supposed, logits, claims)
                    for name, each in zip(rows, counts, strict=True):
                        found[name].setdefault(hypothesis, []).append(each)
        return {name: {h: c for h, c in each.items() if len(c) == len(log)} for name, each in found.items()}

    def _states(self, log: list[int], together: list[Deviation]) -> Iterator[tuple[Any, torch.Tensor]]:
        """The model of a pass and its states of each request; none where the pass cannot be made."""
        asked = [self.provider.pool(self.traffic).asked[n] for n in log]
        try:
            model = together[0].model(self.provider.reference.model, None)
            states = list(self.provider.states(asked, together[0], model))
        except AuditError:  # a prompt beyond the context, a model that cannot be changed: not this hypothesis
            return
        for one in states:
            yield model, one


def _left(counts: Counts, without: str) -> Counts:
    return {name: each for name, each in counts.items() if name != without}


def _counted_rows(supposed: Request, logits: torch.Tensor, claims: I64) -> list[RequestCounts]:
    """One request's counts under a hypothesis for every row's claims [rows, n]."""
    vocabulary = logits.shape[1]
    spec = effective_sampling(supposed.spec, supposed.scheme)
    if supposed.rules(spec, vocabulary) is not None:
        return [_alone(supposed, logits, own) for own in claims]
    noise = Draws(supposed.scheme, supposed.seed, len(supposed.prompt), vocabulary, spec).take(len(logits))
    places = np.arange(len(logits)) * vocabulary
    pairs, which = np.unique(claims + places, return_inverse=True)
    where = pairs // vocabulary
    draws = None if noise is None else noise[where]
    stats = score_rows(logits[where], pairs % vocabulary, spec, supposed.scheme, draws)
    return [counted(_picked(stats, own)) for own in which.reshape(claims.shape)]


def _alone(supposed: Request, logits: torch.Tensor, own: I64) -> RequestCounts:
    sampler = Replayed(supposed, logits.shape[1], own)
    sampler.score(logits, slice(0, len(logits)))
    return counted(sampler.stats)


def _picked(stats: RowStats, rows: I64) -> RowStats:
    return RowStats(*(getattr(stats, name)[rows] for name in RowStats.__slots__))
