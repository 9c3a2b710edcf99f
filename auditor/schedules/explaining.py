"""Which cause explains periods best that convict only together: their samples as one log, replayed again.

Each period's audit was far from a conviction, so it named no cause; and what a dozen of its requests say is
too little. The dozen is taken from all periods since the evidence is strongest (`diagnosis/`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from auditor.service import tenant_profiles
from auditor.service.audit_work import traces_of
from auditor.service.clock import SECOND
from auditor.verification import explained, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from auditor.errors import AuditError
    from auditor.replay import Reference
    from auditor.service.audits import Audit
    from auditor.service.blobs import Blobs
    from auditor.store import Store
    from auditor.trace import Trace
    from auditor.verification import FindProfile


def causes_together(
    audits: Sequence[Audit],
    store: Store,
    blobs: Blobs,
    reference: Reference,
    find_profile: FindProfile,
    check: Callable[[], None],
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) by falling weight; empty where no request of theirs can be replayed beside a profile.

    Args:
        audits: of one provider, in order, their logs still there.
        check: called for each trace; raises to stop.

    Raises:
        TraceFileError: a log is no log.
    """
    if not audits:
        return ()
    newest = audits[-1]

    def source() -> Iterator[Trace | AuditError]:
        for audit in audits:
            try:
                for item in traces_of(blobs.path(audit.log.digest), audit):
                    check()
                    yield item
            finally:
                blobs.release(audit.log.digest)

    result = verify(
        source,
        reference,
        find_profile=tenant_profiles.finder(store, newest.tenant_id, newest.created, find_profile),
        alpha=newest.options.alpha,
        served_model=newest.options.served_model,
        explain=False,
        now=datetime.fromtimestamp(newest.created / SECOND, UTC),
    )
    lead = max(result.verdicts, key=lambda verdict: verdict.log_e, default=None)
    return () if lead is None else explained(lead, reference).diagnosis
