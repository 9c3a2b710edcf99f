"""The work of an audit job: replay its log in steps, and turn the result into a verdict and evidence.

A step is as many traces as the replay takes together; its output is their scores, so a job that changes hands
goes on with the traces that have none. The verdict is a function of the log's bytes, the options, the model
and the profiles: it says nothing about time or speed, and is the same bytes whoever worked on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auditor.errors import AuditError
from auditor.journal import Entry, entry_from_json, entry_to_json
from auditor.power import FACTORS, power_by_fraction
from auditor.reference.noise import noise_of_recipe
from auditor.replay import Reference, Scored
from auditor.reports.disclosures import text_digests
from auditor.reports.reproduction import reproduction
from auditor.result import result_to_json
from auditor.schedules import bill_rows, likelihoods, slots
from auditor.service import audits, exhibits, providers, tenant_profiles, tracing
from auditor.service.clock import SECOND
from auditor.service.exhibit import exhibit_of
from auditor.service.fan_out import Crew, shards_of
from auditor.service.opened_traces import with_openings
from auditor.trace import Trace
from auditor.trace_files import assert_recipe, read_traces
from auditor.trace_streams import HEAD_BYTES, container_of
from auditor.verdict import Verdict, tokens_by_mode
from auditor.verification import FindProfile, Result, verify

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from auditor.merkle.keys import PublicKey
    from auditor.service.audits import Audit
    from auditor.service.blobs import Blobs
    from auditor.service.queue import Job
    from auditor.service.worker import Effects, Lease

STEP_TRACES = 8
"""Scores are committed after so many traces."""

_OF_ONE_RUN = ("seconds", "tokens_per_second", "shared_prefixes")


class AuditWork:
    """Audits logs against one model, which stays loaded; `find_profile` knows the operator's profiles."""

    def __init__(
        self,
        blobs: Blobs,
        reference: Reference,
        find_profile: FindProfile,
        crew: Crew | None = None,
    ) -> None:
        self._blobs, self._reference, self._find_profile = blobs, reference, find_profile
        self._crew = crew

    def __call__(self, job: Job, lease: Lease) -> Effects:
        """Replay and judge.

        Raises:
            TraceFileError: the log is no log.
            EvidenceErasedError: its bytes were erased.
            LeaseLostError, StopRequestedError: see `Lease`.
        """
        with lease.store.transaction() as connection:
            audit = audits.find(connection, job.tenant_id, job.audit_id)
            keys = providers.signing_keys(connection, audit.tenant_id, audit.provider_id)
        audit.log.require_bytes()
        try:
            with tracing.span("blob read"):
                path = self._blobs.path(audit.log.digest)
            return self._judged(audit, tuple(keys), lease, path)
        except AuditError:
            # Erased under our hands? Then that is what to say.
            with lease.store.transaction() as connection:
                audits.find(connection, job.tenant_id, job.audit_id).log.require_bytes()
            raise
        finally:
            self._blobs.release(audit.log.digest)

    def _judged(self, audit: Audit, keys: tuple[PublicKey, ...], lease: Lease, path: Path) -> Effects:
        steps = Steps(lease)
        with tracing.span("audit replay"):
            result = self._replayed(audit, keys, lease, path, steps)
        body, traces = documents(result)
        exhibit = exhibit_of(result)
        with lease.store.transaction() as connection:
            scheduled = slots.has_ordered(connection, audit.id)
        bills = bill_rows.bills_of(result.verdicts, self._reference.tokenizer) if scheduled else None

        def effects(connection: Connection, now: int) -> None:
            audits.record(connection, audit, body, result.outcome, traces, now)
            exhibits.record(connection, audit, exhibit)
            if bills is not None:
                likelihoods.record(connection, audit.id, result.verdicts)
                bill_rows.record(connection, audit.id, bills)

        return effects

    def _replayed(
        self, audit: Audit, keys: tuple[PublicKey, ...], lease: Lease, path: Path, steps: Steps
    ) -> Result:
        if self._crew is not None:
            for lines in _fanned_out(self._crew, path, audit, steps, lease):
                steps.keep(lines)
        result = verify(
            lambda: with_openings(lease.store, audit, traces_of(path, audit)),
            self._reference,
            find_profile=tenant_profiles.finder(
                lease.store, audit.tenant_id, audit.created, self._find_profile
            ),
            provider_keys=keys,
            alpha=audit.options.alpha,
            journal=steps,
            served_model=audit.options.served_model,
            on_scored=steps.scored,
            # Of its submission, so that a retry after midnight cannot meet an expired profile.
            now=datetime.fromtimestamp(audit.created / SECOND, UTC),
        )
        steps.flush()
        return result


class Steps:
    """Scores of earlier steps, and those of the step under way. A `Remembered`."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        outputs = lease.steps()
        lines = (line for output in outputs for line in output.splitlines())
        self._entries = dict(entry_from_json(json.loads(line)) for line in lines)
        self._next, self._open, self._scored = len(outputs), list[bytes](), 0
        self._began = time.time_ns()

    def find(self, raw_digest: str) -> Entry | None:
        """What a step made of the trace with these bytes."""
        return self._entries.get(raw_digest)

    def add(self, raw_digest: str, entry: Entry) -> None:
        """Remember a result; committed with its step.

        Raises:
            LeaseLostError, StopRequestedError: see `Lease`.
        """
        self._lease.check()
        if raw_digest:
            self._open.append(json.dumps(entry_to_json(raw_digest, entry)).encode())
        if len(self._open) >= STEP_TRACES:
            self.flush()

    def scored(self, _scored: Scored) -> None:
        """Count a trace, remembered or new."""
        self._lease.check()
        self._scored += 1

    @property
    def known(self) -> frozenset[str]:
        """Digests of the traces that have scores."""
        return frozenset(self._entries)

    def keep(self, lines: list[bytes]) -> None:
        """Commit what a crew made of a shard, as a step of its own.

        Raises:
            LeaseLostError, StopRequestedError: see `Lease`.
        """
        self._lease.check()
        if lines:
            self._entries.update(entry_from_json(json.loads(line)) for line in lines)
            self._save(lines, len(self._entries))

    def flush(self) -> None:
        """Commit the step under way."""
        if self._open:
            self._save(self._open, self._scored + 1)
            self._open = []

    def _save(self, lines: list[bytes], traces: int) -> None:
        with tracing.span("audit step", since=self._began, step=self._next, traces=len(lines)):
            self._lease.save(self._next, b"\n".join(lines), {"traces": traces})
        self._next, self._began = self._next + 1, time.time_ns()


def _fanned_out(crew: Crew, path: Path, audit: Audit, steps: Steps, lease: Lease) -> Iterator[list[bytes]]:
    with path.open("rb") as stream:
        bulk = container_of(stream.read(HEAD_BYTES)) == "parquet"
    if bulk:
        options = audit.options
        recipe = None if options.engine_recipe is None else (options.engine_recipe, _scheme(audit))
        return crew.score_parquet(path, recipe, steps.known, lease.waiting)
    return crew.score(shards_of(traces_of(path, audit), steps.known), lease.waiting)


def _scheme(audit: Audit) -> str | None:
    options = audit.options
    if options.noise is None and options.engine_recipe is not None:
        return noise_of_recipe(options.engine_recipe)
    return options.noise


def traces_of(path: Path, audit: Audit) -> Iterator[Trace | AuditError]:
    """An audit's log, read as its options say."""
    options, scheme = audit.options, _scheme(audit)
    label = audit.log.name or audit.log.id
    for item in read_traces(path, input_format=options.input_format, label=label):  # type: ignore[arg-type]
        if isinstance(item, Trace) and options.engine_recipe is not None:
            yield assert_recipe(item, options.engine_recipe, scheme)
        else:
            yield item


def documents(result: Result) -> tuple[bytes, list[bytes]]:
    """The verdict (`auditor.result/v1` less its traces and what differs between two runs), and the traces.

    Added for reports: `digests` of each trace's prompt and output; in each group `fractions`, its power
    against cheating on a share of the requests; `reproductions` of what was convicted, group by group.
    """
    value = result_to_json(result)
    judged = [trace for verdict in result.verdicts for trace in verdict.traces]
    traces = [
        _canonical(shown | {"digests": text_digests(trace.scored.trace)})
        for shown, trace in zip(value.pop("traces"), judged, strict=True)
    ]
    for group, verdict in zip(value["groups"], result.verdicts, strict=True):
        group["fractions"] = _fractions(verdict)
    value["reproductions"] = [reproduction(v, result.reference, result.alpha) for v in result.verdicts]
    for name in _OF_ONE_RUN:
        del value[name]
    return _canonical(value), traces


def _fractions(verdict: Verdict) -> dict[str, Any] | None:
    if verdict.profile is None or verdict.detectable is None:
        return None
    usable = [t.scored for t in verdict.traces if t.scored.counts is not None and t.scored.scores is not None]
    found = power_by_fraction(verdict.profile, tokens_by_mode(usable), verdict.alpha)
    return {
        "factors": list(FACTORS),
        "causes": [{"cause": cause, "points": points} for cause, points in found.items()],
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
