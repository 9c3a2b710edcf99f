"""What is signed of a report: two in-toto Statements (v1), a standard one and one of our own. Pure.

Both name the report by its digest, and the models and logs it speaks of. The standard one, a Simple
Verification Result (`svr/v0.2`), lists what passed: a property that is absent was not shown. Ours says how it
was found: alpha, policy, sample and verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from auditor.reports.canonical import digest
from auditor.reports.grading import GRADES

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SVR = "https://in-toto.io/attestation/svr/v0.2"
AUDIT_REPORT = "https://pypi.org/project/verifiable-inference-auditor/audit-report/v1"
PACK = "https://pypi.org/project/verifiable-inference-auditor/evidence-pack/v1"
VERIFIER = "https://pypi.org/project/verifiable-inference-auditor/reports/v1"


def statements(body: bytes, made: str) -> dict[str, bytes]:
    """Both statements about a report, by the name of their envelope's file.

    Args:
        body: `report.json`.
        made: when, RFC 3339 in UTC.
    """
    document = json.loads(body)
    subjects = _subjects(document, body)
    return {
        "report": _statement(subjects, AUDIT_REPORT, _ours(document, made)),
        "svr": _statement(subjects, SVR, _svr(document, made)),
    }


def pack_statement(members: Mapping[str, bytes], report_id: str, made: str) -> bytes:
    """The statement that names every member of an evidence pack by its digest."""
    subjects = [_subject(name, digest(members[name])) for name in sorted(members)]
    return _statement(subjects, PACK, {"report": report_id, "timeCreated": made})


def _statement(subjects: list[dict[str, Any]], kind: str, predicate: dict[str, Any]) -> bytes:
    value = {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": kind, "predicate": predicate}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _subjects(document: Mapping[str, Any], body: bytes) -> list[dict[str, Any]]:
    models = {model["digest"] for p in document["providers"] for model in p["systems"]["models"]}
    logs = {audit["log"] for p in document["providers"] for audit in p["audits"]}
    named = [("report.json", digest(body))]
    named += [(f"model/{n}", model) for n, model in enumerate(sorted(models), 1)]
    named += [(f"log/{n}", log) for n, log in enumerate(sorted(logs), 1)]
    return [_subject(name, value) for name, value in named]


def _subject(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": _hex(value)}}


def _hex(value: str) -> str:
    return value.removeprefix("sha256:")


def _svr(document: Mapping[str, Any], made: str) -> dict[str, Any]:
    policy = document["policy"]
    name = f"{policy['name']}@{policy['version']}"
    return {
        "verifier": {
            "id": VERIFIER,
            "policies": [{"name": name, "digest": {"sha256": _hex(policy["digest"])}}],
        },
        "timeCreated": made,
        "properties": properties(document),
    }


def properties(document: Mapping[str, Any]) -> list[str]:
    """What holds for every provider of a report, as one word each."""
    providers = document["providers"]
    passed = []
    if document["verdict"] == "consistent":
        passed.append("AUDITOR_CONSISTENT")
    if document["verdict"] != "inconsistent":
        passed.append("AUDITOR_NOT_INCONSISTENT")
    letter = document["grade"]["letter"]
    reached = GRADES[GRADES.index(letter) : GRADES.index("D") + 1]
    passed += [f"AUDITOR_GRADE_{grade.replace('+', '_PLUS')}_OR_BETTER" for grade in reached]
    for control in providers[0]["controls"] if providers else ():
        statuses = [c["status"] for p in providers for c in p["controls"] if c["id"] == control["id"]]
        if all(status == "satisfied" for status in statuses):
            passed.append(f"AUDITOR_{control['id'].replace('-', '_')}")
    return passed


def _ours(document: Mapping[str, Any], made: str) -> dict[str, Any]:
    return {
        "schema": document["schema"],
        "report": document["id"],
        "timeCreated": made,
        "tool": document["tool"],
        "period": document["period"],
        "policy": document["policy"],
        "method": "teacher-forced replay; e-values; mean over the period",
        "falseAlarmRate": document["policy"]["alpha"],
        "verdict": document["verdict"],
        "grade": document["grade"]["letter"],
        "totals": document["totals"],
        "providers": [
            {
                "name": p["name"],
                "verdict": p["verdict"],
                "grade": p["grade"],
                "log10_e": p["log10_e"],
                "sampling": p["sampling"],
            }
            for p in document["providers"]
        ],
    }
