"""Scoring on other processes: what goes out, what comes back, and who writes it down. No Ray in here.

The worker that holds a job's lease sends traces out in shards, keeps renewing its lease, and alone commits
what comes back, under its fencing token. A shard is a pure function of its bytes: run twice it gives the
same lines, so a lost process costs time and nothing else. Lines are those of a journal (`auditor.journal`),
so a job may change hands between a crew and a worker that works alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from auditor.errors import AuditError
from auditor.journal import Entry, entry_to_json
from auditor.replay import replay
from auditor.trace import Trace
from auditor.trace_format import parse_trace, trace_to_line

if TYPE_CHECKING:
    from auditor.replay import Reference

SHARD_TRACES = 16


class FanOutError(AuditError):
    """Processes that score shards and keep dying, or are not there."""

    code = "fan-out"


@dataclass(frozen=True, slots=True)
class Shard:
    """Traces as bytes: (digest of the raw bytes, line of `auditor.trace/v1`)."""

    traces: tuple[tuple[str, bytes], ...]


class Crew(Protocol):
    """Processes that score, wherever they are."""

    def score(self, shards: Iterator[Shard], waiting: Callable[[], None]) -> Iterator[list[bytes]]:
        """Journal lines of each shard, in any order.

        Args:
            shards: read as the crew gets free.
            waiting: called at least once a second; what it raises ends the work.

        Raises:
            FanOutError: a shard ended several processes, one after the other.
        """

    def score_parquet(
        self,
        path: Path,
        recipe: tuple[str, str | None] | None,
        known: Collection[str],
        waiting: Callable[[], None],
    ) -> Iterator[list[bytes]]:
        """The same for a Parquet file that every process can read; what cannot be read is left out.

        Args:
            path: the file.
            recipe: engine recipe and noise scheme to assert, as `assert_recipe` takes them.
            known: raw digests of traces that need no scores.
            waiting: as for `score`.
        """


def shards_of(
    traces: Iterable[Trace | AuditError], known: Collection[str], *, size: int = SHARD_TRACES
) -> Iterator[Shard]:
    """Traces that need scores, each once, in shards.

    Left out is what the lease holder must look at itself: bad lines, grade C (nothing is scored), and
    traces with a commitment, whose tokens may be other than they stand there.
    """
    seen = set(known)

    def wanted() -> Iterator[tuple[str, bytes]]:
        for item in traces:
            if isinstance(item, Trace) and needs_scores(item, seen):
                seen.add(item.raw_digest)
                yield item.raw_digest, trace_to_line(item)

    stream = wanted()
    while held := tuple(islice(stream, size)):
        yield Shard(held)


def needs_scores(trace: Trace, known: Collection[str]) -> bool:
    """Whether a crew scores this trace."""
    return trace.commitment is None and trace.grade != "C" and trace.raw_digest not in known


class _Lines:
    """A `Remembered` that keeps what is added as journal lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def find(self, raw_digest: str) -> Entry | None:
        """Nothing is known beforehand."""

    def add(self, raw_digest: str, entry: Entry) -> None:
        """Keep a result."""
        self.lines.append(json.dumps(entry_to_json(raw_digest, entry)).encode())


def score_traces(traces: Iterable[Trace], reference: Reference) -> list[bytes]:
    """Journal lines of traces; those that cannot be scored have none."""
    kept = _Lines()
    for _scored in replay(traces, reference, kept):
        pass
    return kept.lines


def score_shard(shard: Shard, reference: Reference) -> list[bytes]:
    """What a process of the crew does."""
    read = (replace(parse_trace(line, file="", line=0), raw_digest=digest) for digest, line in shard.traces)
    return score_traces(read, reference)
