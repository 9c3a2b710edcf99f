"""A committed trace before its replay: checked, with the opened hidden tokens put in their place.

Fail closed. Without trusted keys, without an opening from the first token on, or where a check fails,
nothing is replayed: visible tokens after the wrong prefix would accuse an honest provider. An opening that
is complete lets the whole output be replayed by its seed; a prefix, the tokens up to its end, and what
comes after is said to be left out.

`refuted` is kept apart from `problem`: what the provider signed contradicts itself or the bill, which no
numeric noise and no damaged file explains. Damaged or missing openings are problems: ask again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from auditor.commitment_errors import (
    CommittedLateError,
    CountMismatchError,
    EmbeddingForgedError,
)
from auditor.errors import AuditError, KeyUnknownError, TraceIncompleteError
from auditor.hidden_tokens.checking import Committed, Opened, check_commitment, check_opened
from auditor.hidden_tokens.clock import ClockBound, clock_bound
from auditor.hidden_tokens.embedders import Embedder, embedder_of_digest
from auditor.merkle.keys import PublicKey
from auditor.trace import Trace

if TYPE_CHECKING:
    from auditor.replay import Reference


@dataclass(frozen=True, slots=True)
class Revealed:
    """`commitment` of a trace that was looked at.

    Attributes:
        committed: None where steps 1 to 5 of `checking.py` fail.
        opened: None where nothing was opened, or steps 6 and 7 fail.
        problem: why (part of) the trace cannot be replayed.
        refuted: what the provider's own signature contradicts.
        clock: None without client times.
    """

    committed: Committed | None = None
    opened: Opened | None = None
    problem: AuditError | None = None
    refuted: AuditError | None = None
    clock: ClockBound | None = None

    @property
    def replayable(self) -> bool:
        """Whether tokens were opened from the first one on."""
        return self.opened is not None and bool(self.opened.prefix)


class Revealer:
    """Checks committed traces for one audit.

    Args:
        keys: the provider's, as the auditing side knows them.
    """

    def __init__(self, keys: Sequence[PublicKey], reference: Reference) -> None:
        self._keys, self._reference = keys, reference
        self._embedders: dict[str, Embedder | None] = {}

    def reveal(self, trace: Trace) -> Trace:
        """The trace as it can be replayed, its commitment a `Revealed`; one without commitment as it is."""
        if trace.commitment is None:
            return trace
        found = self._look(trace)
        revealed = replace(trace, commitment=found)
        if found.opened is None or not found.replayable:
            return revealed
        if not found.opened.complete:
            return replace(revealed, output_token_ids=found.opened.prefix, text=None, finish_reason=None)
        whole = found.opened.prefix + (trace.output_token_ids or ())
        return replace(revealed, output_token_ids=whole, text=None)

    def _look(self, trace: Trace) -> Revealed:
        if not self._keys:
            said = "no key to check the commitment with"
            return Revealed(problem=KeyUnknownError(said, where=trace.where, fix="give --vkey"))
        try:
            committed, clock = check_commitment(trace, self._keys), clock_bound(trace)
        except AuditError as problem:
            return Revealed(problem=problem, refuted=problem if _is_signed(problem) else None)
        return self._look_inside(trace, committed, clock)

    def _look_inside(self, trace: Trace, committed: Committed, clock: ClockBound | None) -> Revealed:
        challenge, opening = committed.commitment.challenge, committed.commitment.opening
        if challenge is None:
            waiting = TraceIncompleteError(
                "hidden tokens were committed to and not opened",
                where=trace.where,
                fix="`audit challenge` them",
            )
            return Revealed(committed, problem=waiting, clock=clock)
        try:
            embedder = self._embedder(committed.head.embedder)
            opened = check_opened(
                committed,
                challenge,
                opening,
                self._reference.tokenizer,
                embedder,
                tokenizer_digest=self._reference.tokenizer_digest,
                vocabulary=self._reference.model.config.vocab_size,
            )
        except AuditError as problem:
            refuted = problem if _is_signed(problem) else None
            return Revealed(committed, problem=problem, refuted=refuted, clock=clock)
        return Revealed(committed, opened, _left_out(trace, opened), clock=clock)

    def _embedder(self, digest: str) -> Embedder | None:
        if digest not in self._embedders:
            self._embedders[digest] = embedder_of_digest(digest)
        return self._embedders[digest]


def _is_signed(problem: AuditError) -> bool:
    """Whether it is the provider's own signature that contradicts, and not a file that was damaged.

    A log that lost its counts, or bills less, is no contradiction, and clocks may err.
    """
    if isinstance(problem, CountMismatchError):
        return problem.billed is not None and problem.billed > problem.signed
    if isinstance(problem, CommittedLateError):
        return not problem.by_clock
    return isinstance(problem, EmbeddingForgedError)


def _left_out(trace: Trace, opened: Opened) -> AuditError | None:
    if opened.complete:
        return None
    hidden, visible = opened.head.hidden - len(opened.prefix), len(trace.output_token_ids or ())
    return TraceIncompleteError(
        f"{hidden + visible} tokens come after hidden ones that were not opened", where=trace.where
    )


def refuse_unrevealed(trace: Trace) -> None:
    """Refuse to replay a committed trace whose hidden tokens are not there.

    Raises:
        TraceIncompleteError: it was not looked at, or nothing was opened from the first token on.
    """
    found = trace.commitment
    if found is None or (isinstance(found, Revealed) and found.replayable):
        return
    why = found.problem if isinstance(found, Revealed) else None
    message = "its hidden tokens are not there" if why is None else f"{why.message} [{why.code}]"
    raise TraceIncompleteError(
        f"commitment: {message}", where=trace.where, fix="" if why is None else why.fix
    )


def revealed_of(traces: Sequence[Trace]) -> list[Revealed]:
    """What was found about the committed ones of some traces."""
    return [trace.commitment for trace in traces if isinstance(trace.commitment, Revealed)]


def refutations(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Reasons that convict without any error rate, one line for each kind."""
    found = [item.refuted for item in revealed_of(traces) if item.refuted is not None]
    by_code = {problem.code: problem for problem in reversed(found)}
    return tuple(
        f"{sum(p.code == code for p in found)} of {len(traces)} traces contradict what their provider "
        f"signed; the first, {problem.where}: {problem.message} [{code}]"
        for code, problem in sorted(by_code.items())
    )


def doubts(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Reasons not to acquit: tokens that were replayed in part only, and clocks that do not fit."""
    found = revealed_of(traces)
    said: list[str] = []
    partial = [item for item in found if item.replayable and item.opened and not item.opened.complete]
    if partial:
        hidden = sum(i.opened.head.hidden for i in partial if i.opened)
        seen = sum(len(i.opened.prefix) for i in partial if i.opened)
        said.append(
            f"{len(partial)} traces were opened in part: {seen:,} of {hidden:,} hidden tokens could be "
            "replayed, and none of the visible ones after them"
        )
    late = [item.clock for item in found if item.clock is not None and item.clock.exceeded]
    if late:
        said.append(
            f"{len(late)} traces bill more hidden tokens than fit before their first visible one; the first "
            f"has room for {late[0].most_hidden:,} in {late[0].seconds:.2f} s"
        )
    return tuple(said)
