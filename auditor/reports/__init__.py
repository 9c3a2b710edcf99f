"""Compliance reports: the signed truth is `report.json`, made from database rows alone.

**The seam.** Who wants a report of a period that is over calls

    make_report(store, tenant_id, provider, start, end, policy) -> bytes

* `store`: an open `auditor.store.Store`.
* `tenant_id`: whose audits. Nothing of another tenant is read.
* `provider`: the text that audits were submitted with (`audits.submit(..., provider=...)`), or `""` for
  all.
* `start`, `end`: the period [start, end), microseconds since 1970 (UTC), as `service.clock.now` has them.
  It must be over by the database's clock, or `RequestInvalidError` says so.
* `policy`: a `Policy` (`parse_policy(toml_bytes)`); its file is stored with the report.

It returns the bytes of `report.json`. The first call stores them in table `report` together with their
digest and the entry for the transparency log, in one transaction; later calls, from whatever process,
return the stored bytes. The id is a function of the arguments (`report_id`), so a schedule that fires twice
makes one report. An audit is in the period in which its verdict was committed; one that was submitted but
not judged by the end is reported as unfinished, and again when it is judged. `remake_report` builds a
stored report again and compares.

How requests were sampled from what the provider served is a row of table `sample` (audit_id,
population_requests, sampled_requests, method, seed), written with the audit; methods are `all`,
`uniform/v1` (each request alike, without replacement) or another rule's name, for which no bound of the
share that was met is claimed.

`build_report(scope, audits, policy, salt=..., previous=...)` is the pure part: (`AuditRow`, `TraceTally`)
pairs in, a `Report` with `.document`, `.body` and `.digest` out.
"""

from __future__ import annotations

from auditor.reports.building import SCHEMA, Report, build_report
from auditor.reports.errors import ReportDiffersError
from auditor.reports.making import (
    StoredReport,
    find_report,
    listed_reports,
    make_report,
    remake_report,
    report_entry,
    report_id,
)
from auditor.reports.policy import Policy, parse_policy
from auditor.reports.rows import AuditRow, Sample, Scope, TraceTally, tally

__all__ = [
    "SCHEMA",
    "AuditRow",
    "Policy",
    "Report",
    "ReportDiffersError",
    "Sample",
    "Scope",
    "StoredReport",
    "TraceTally",
    "build_report",
    "find_report",
    "listed_reports",
    "make_report",
    "parse_policy",
    "remake_report",
    "report_entry",
    "report_id",
    "tally",
]
