"""Diagnosis: which cause does the product name for a row, and is it of the right family?

The product's own ranking (`diagnosis.rank_causes`) of the product's own hypotheses. Since prefixes stay the
honest ones, what a hypothesis expects does not depend on the row. So all rows are scored together: each
hypothesis once, at each position every token once that some row claims there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from auditor.diagnosis.causes import FEW, OTHER, rank_causes, shortlisted
from auditor.diagnosis.drafted import POSITION, SUBSTITUTED, guessing, slips_to
from auditor.diagnosis.hypotheses import candidates, further_candidates
from auditor.diagnosis.replaying import (
    Drafted,
    Supposed,
    Told,
    by_pass,
    counted,
    serves_declared_states,
    variants_of,
)
from auditor.diagnosis.states import distance
from auditor.errors import AuditError
from auditor.fingerprints.activation_difr import BINDING_BYTES, Fingerprint, fingerprint
from auditor.generation import derived_projection_seed
from auditor.matrix.provider import KIND, SEEDS, HonestProvider
from auditor.noise_model import F64, Bools, RequestCounts, Slips
from auditor.reference.deviations import CATALOGUE, HONEST, Deviation
from auditor.reference.head import RowStats, effective_sampling, score_rows
from auditor.reference.noise import Draws
from auditor.reference.request import Replayed, Request
from auditor.reference.simulated import Views, simulate

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
Replays = dict[str, Supposed]
"""Hypothesis -> the requests of a log under it."""


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
        given = {name: self._fingerprints(log, CATALOGUE[name]) for name in rows}
        told = self._declared(log, rows, given)
        first = self._replayed(log, rows, by_pass(candidates()), told, given)
        drafted: dict[str, Drafted] = {}
        for name, (substituted, ways) in self._beside_guesses(log, rows, told, given).items():
            first[name][SUBSTITUTED] = substituted
            drafted[name] = ways
        # What fingerprints tell apart tokens may not, so the whole catalogue is asked of every row.
        further = self._replayed(log, rows, by_pass(further_candidates()), told, given)
        calibration = self.provider.profile(self.traffic).calibration
        found: dict[str, dict[str, Any]] = {name: {} for name in rows}
        for name, each in found.items():
            for way, without in (("named", ""), ("unlisted", name)):
                replayed, guesses = _left(first[name], drafted[name], without)
                others, _ = _left(further[name], {}, without)
                ahead = {hypothesis: one.part(0, FEW) for hypothesis, one in others.items()}
                likeliest = shortlisted(told[name][:FEW], ahead, calibration)
                replayed |= {hypothesis: others[hypothesis] for hypothesis in likeliest}
                ranked = rank_causes(told[name], replayed, guesses, self.provider.shadowed)
                each[way] = [pair for pair in ranked if pair[0] != without]
        return found

    def _fingerprints(self, log: list[int], cause: Deviation) -> list[Fingerprint]:
        """What a row's provider sends with each request: of the states that it computes there."""
        provider, pool = self.provider, self.provider.pool(self.traffic)
        sent = [self._sent(n, pool.honest[n]) for n in log]
        if serves_declared_states(cause):
            return sent
        model = provider.deviant(cause)
        states = list(provider.states([pool.asked[n] for n in log], cause, model))
        deviant = [self._sent(n, own) for n, own in zip(log, states, strict=True)]
        if cause.applies is None:
            return deviant
        acts = [self._acts(n, cause, model, own) for n, own in zip(log, states, strict=True)]
        return [_mixed(own, right, where) for own, right, where in zip(deviant, sent, acts, strict=True)]

    def _sent(self, number: int, states: torch.Tensor) -> Fingerprint:
        seed = derived_projection_seed(SEEDS[self.provider.use], number)
        return fingerprint(states, KIND, projection_seed=seed, binding=bytes(BINDING_BYTES))

    def _acts(self, number: int, cause: Deviation, model: Any, states: torch.Tensor) -> Bools:
        """Where a provider cheats that does it now and then."""
        provider, pool = self.provider, self.provider.pool(self.traffic)
        views = Views(
            (provider.reference.model, pool.reference[number]),
            (provider.provider.model, pool.honest[number]),
            (model, states),
        )
        return simulate(pool.asked[number][0], number, cause, views).acted

    def _declared(
        self, log: list[int], rows: Mapping[str, Claims], given: Mapping[str, Sequence[Fingerprint]]
    ) -> dict[str, list[Told]]:
        """Every row's requests as the provider declares them."""
        told: dict[str, list[Told]] = {name: [] for name in rows}
        for place, (number, (model, states)) in enumerate(zip(log, self._states(log, [HONEST]), strict=True)):
            request = self.provider.pool(self.traffic).asked[number][0]
            scored = _rows(request, model.logits(states), _claimed(rows, number))
            for name, stats in zip(rows, scored, strict=True):
                told[name].append(Told(self.traffic, stats, distance(given[name][place], states)))
        return told

    def _beside_guesses(
        self,
        log: list[int],
        rows: Mapping[str, Claims],
        told: Mapping[str, Sequence[Told]],
        given: Mapping[str, Sequence[Fingerprint]],
    ) -> dict[str, tuple[Supposed, dict[str, list[Slips]]]]:
        """Every row's requests as if the other model had been served, and beside its guesses."""
        counts: dict[str, list[RequestCounts]] = {name: [] for name in rows}
        far: dict[str, list[F64 | None]] = {name: [] for name in rows}
        slips: dict[str, dict[str, list[Slips]]] = {name: {} for name in rows}
        asked = [self.provider.pool(self.traffic).asked[n] for n in log]
        other = self.provider.states(asked, HONEST, self.provider.other)
        for place, (number, (request, _), state) in enumerate(zip(log, asked, other, strict=True)):
            guess_logits = self.provider.other.logits(state)
            logged = np.asarray(request.output, np.int64)
            supposed = guessing(request)
            guesses = {way: _alone(one, guess_logits, logged).winner for way, one in supposed.items()}
            served = _rows(supposed[POSITION], guess_logits, _claimed(rows, number))
            for name, as_served in zip(rows, served, strict=True):
                counts[name].append(counted(as_served))
                far[name].append(distance(given[name][place], state))
                for way, guess in guesses.items():
                    slips[name].setdefault(way, []).append(slips_to(told[name][place].stats, guess))
        return {name: (Supposed(counts[name], far[name]), slips[name]) for name in rows}

    def _replayed(
        self,
        log: list[int],
        rows: Mapping[str, Claims],
        passes: Sequence[list[Deviation]],
        told: Mapping[str, Sequence[Told]],
        given: Mapping[str, Sequence[Fingerprint]],
    ) -> dict[str, Replays]:
        """Every row's requests under the hypotheses of every pass."""
        found: dict[str, Replays] = {name: {} for name in rows}
        for together in passes:
            counts: dict[tuple[str, str], list[RequestCounts]] = {}
            far: dict[str, list[F64 | None]] = {name: [] for name in rows}
            same = serves_declared_states(together[0])
            for place, (number, (model, states)) in enumerate(
                zip(log, self._states(log, together), strict=False)
            ):
                request = self.provider.pool(self.traffic).asked[number][0]
                logits = model.logits(states)
                for hypothesis, supposed in variants_of(request, together, self.provider.reference):
                    scored = _rows(supposed, logits, _claimed(rows, number))
                    for name, stats in zip(rows, scored, strict=True):
                        counts.setdefault((name, hypothesis), []).append(counted(stats))
                for name, own in far.items():
                    own.append(told[name][place].far if same else distance(given[name][place], states))
            for (name, hypothesis), each in counts.items():
                if len(each) == len(log):
                    found[name][hypothesis] = Supposed(each, far[name])
        return found

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


def _claimed(rows: Mapping[str, Claims], number: int) -> I64:
    """What each row claims in a request, [rows, n]."""
    return np.array([own[number] for own in rows.values()], np.int64)


def _mixed(deviant: Fingerprint, honest: Fingerprint, where: Bools) -> Fingerprint:
    """A fingerprint whose tokens are one provider's or the other's."""
    scale = np.where(where, deviant.coded.scale, honest.coded.scale)
    levels = np.where(where[:, None], deviant.coded.levels, honest.coded.levels)
    return replace(honest, coded=replace(honest.coded, scale=scale, levels=levels))


def _left(replays: Replays, drafted: Drafted, without: str) -> tuple[Replays, Drafted]:
    """Hypotheses without one of them; a provider's other model takes its guesses along."""
    no_draft = bool(without) and CATALOGUE[without].needs_other_model
    gone = {without, *((SUBSTITUTED,) if no_draft else ())}
    return {name: each for name, each in replays.items() if name not in gone}, {} if no_draft else drafted


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
