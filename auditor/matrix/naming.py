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

from auditor.diagnosis.causes import (
    FEW,
    OTHER,
    Drafted,
    by_pass,
    counted,
    is_explained,
    rank_causes,
    shortlisted,
    variants_of,
)
from auditor.diagnosis.drafted import POSITION, SUBSTITUTED, guessing, slips_to
from auditor.diagnosis.hypotheses import candidates, further_candidates
from auditor.errors import AuditError
from auditor.matrix.provider import HonestProvider
from auditor.noise_model import RequestCounts, Slips
from auditor.reference.deviations import CATALOGUE, HONEST, Deviation
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

        `named`, and `unlisted`: without the row's own entry among the hypotheses; for a provider that runs
        another model that is the model.
        """
        found: dict[str, dict[str, Any]] = {name: {"named": [], "unlisted": []} for name in rows}
        for log in looked_at(self.provider.requests):
            for name, ways in self._log(log, rows).items():
                for way, ranked in ways.items():
                    found[name][way].append(list(ranked[0]) if ranked else [OTHER, 0.0])
        return found

    def _log(self, log: list[int], rows: Mapping[str, Claims]) -> dict[str, dict[str, Any]]:
        profile = self.provider.shadowed
        declared = self._replayed(log, rows, [[HONEST]])
        seen = {name: [(self.traffic, counts) for counts in declared[name][HONEST.name]] for name in rows}
        first = self._replayed(log, rows, by_pass(candidates()))
        drafted: dict[str, Drafted] = {}
        for name, (substituted, ways) in self._beside_guesses(log, rows).items():
            first[name][SUBSTITUTED] = substituted
            drafted[name] = ways
        known = {
            (name, way): _left(first[name], drafted[name], without)
            for name in rows
            for way, without in (("named", ""), ("unlisted", name))
        }
        calibrated = self.provider.profile(self.traffic)
        unclear = {key for key, (replayed, _) in known.items() if not is_explained(replayed, calibrated)}
        asked = {name: rows[name] for name in rows if {(name, "named"), (name, "unlisted")} & unclear}
        further = self._replayed(log, asked, by_pass(further_candidates())) if asked else {}
        found: dict[str, dict[str, Any]] = {name: {} for name in rows}
        for (name, way), (replayed, guesses) in known.items():
            without = name if way == "unlisted" else ""
            if (name, way) in unclear:
                others, _ = _left(further[name], {}, without)
                ahead = {hypothesis: counts[:FEW] for hypothesis, counts in others.items()}
                replayed |= {h: others[h] for h in shortlisted(ahead, calibrated.calibration)}
            ranked = rank_causes(seen[name], replayed, guesses, profile)
            found[name][way] = [pair for pair in ranked if pair[0] != without]
        return found

    def _beside_guesses(
        self, log: list[int], rows: Mapping[str, Claims]
    ) -> dict[str, tuple[list[RequestCounts], dict[str, list[Slips]]]]:
        """Of every row: counts as if the other model had been served, and its requests beside its guesses."""
        found: dict[str, tuple[list[RequestCounts], dict[str, list[Slips]]]] = {n: ([], {}) for n in rows}
        pool = self.provider.pool(self.traffic)
        asked = [pool.asked[n] for n in log]
        own = self.provider.states(asked, HONEST, self.provider.reference.model)
        other = self.provider.states(asked, HONEST, self.provider.other)
        for number, (request, _), state, guess_state in zip(log, asked, own, other, strict=True):
            claims = np.array([rows[name][number] for name in rows], np.int64)
            guess_logits = self.provider.other.logits(guess_state)
            logged = np.asarray(request.output, np.int64)
            supposed = guessing(request)
            guesses = {way: _alone(one, guess_logits, logged).winner for way, one in supposed.items()}
            served = _rows(supposed[POSITION], guess_logits, claims)
            declared = _rows(request, self.provider.reference.model.logits(state), claims)
            for name, stats, as_served in zip(rows, declared, served, strict=True):
                found[name][0].append(counted(as_served))
                for way, guess in guesses.items():
                    found[name][1].setdefault(way, []).append(slips_to(stats, guess))
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
                    for name, stats in zip(rows, _rows(supposed, logits, claims), strict=True):
                        found[name].setdefault(hypothesis, []).append(counted(stats))
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


def _left(counts: Counts, drafted: Drafted, without: str) -> tuple[Counts, Drafted]:
    """Hypotheses without one of them; a provider's other model takes its guesses along."""
    no_draft = bool(without) and CATALOGUE[without].needs_other_model
    gone = {without, *((SUBSTITUTED,) if no_draft else ())}
    return {name: each for name, each in counts.items() if name not in gone}, {} if no_draft else drafted


def _rows(supposed: Request, logits: torch.Tensor, claims: I64) -> list[RowStats]:
    """One request's scores under a hypothesis for every row's claims [rows, n]."""
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
    return [_picked(stats, own) for own in which.reshape(claims.shape)]


def _alone(supposed: Request, logits: torch.Tensor, own: I64) -> RowStats:
    sampler = Replayed(supposed, logits.shape[1], own)
    sampler.score(logits, slice(0, len(logits)))
    return sampler.stats


def _picked(stats: RowStats, rows: I64) -> RowStats:
    return RowStats(*(getattr(stats, name)[rows] for name in RowStats.__slots__))
