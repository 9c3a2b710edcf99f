"""A report as OSCAL 1.2 assessment results (NIST), for tools that collect those. Pure.

One result for each provider; an observation for each audit (method TEST), a finding for each control, a risk
for a conviction. OSCAL knows only satisfied and not-satisfied: what could not be determined is
`not-satisfied` with the reason `other`, and says so. Identifiers derive from the report's digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

VERSION = "1.2.3"
NAMESPACE = "https://pypi.org/project/verifiable-inference-auditor/oscal"
_SPACE = UUID("3f6b1d3e-6f3f-5c1a-9a0e-6f7f0a5c2b11")
_STATES = {
    "satisfied": ("satisfied", "pass"),
    "not-satisfied": ("not-satisfied", "fail"),
    "not-determined": ("not-satisfied", "other"),
}


def report_to_oscal(document: Mapping[str, Any], digest: str) -> str:
    """The export of a report with this digest, as JSON text."""
    return json.dumps(_Export(document, digest).value(), indent=1, sort_keys=True) + "\n"


class _Export:
    """One export; knows the report and how to name its parts."""

    def __init__(self, document: Mapping[str, Any], digest: str) -> None:
        self.document, self.digest = document, digest

    def uuid(self, *names: str) -> str:
        return str(uuid5(_SPACE, "\n".join((self.digest, *names))))

    def value(self) -> dict[str, Any]:
        document = self.document
        period = document["period"]
        return {
            "assessment-results": {
                "uuid": self.uuid("results"),
                "metadata": {
                    "title": f"Audit of LLM providers, {period['start'][:10]} to {period['end'][:10]}",
                    "last-modified": period["end"],  # what it says was settled then
                    "version": document["id"],
                    "oscal-version": VERSION,
                    "props": [
                        _property("grade", document["grade"]["letter"]),
                        _property("report-digest", self.digest),
                    ],
                },
                "import-ap": {
                    "href": f"#{self.uuid('policy')}",
                    "remarks": "The plan is the policy that the report was made by.",
                },
                "results": [self._result(provider) for provider in document["providers"]] or [self._empty()],
                "back-matter": {"resources": [self._report_resource(), self._policy_resource()]},
            }
        }

    def _report_resource(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid("report"),
            "title": "report.json, which is what is signed",
            "rlinks": [_link("report.json", "application/json", self.digest)],
        }

    def _policy_resource(self) -> dict[str, Any]:
        policy = self.document["policy"]
        return {
            "uuid": self.uuid("policy"),
            "title": f"Policy {policy['name']}, version {policy['version']}",
            "rlinks": [_link("policy.toml", "application/toml", policy["digest"])],
        }

    def _frame(self, title: str, said: str) -> dict[str, Any]:
        return {
            "uuid": self.uuid("result", title),
            "title": title,
            "description": said,
            "start": self.document["period"]["start"],
            "end": self.document["period"]["end"],
            "reviewed-controls": {"control-selections": [{"include-all": {}}]},
        }

    def _empty(self) -> dict[str, Any]:
        return self._frame("nobody", "Nothing was audited in this period.")

    def _result(self, provider: Mapping[str, Any]) -> dict[str, Any]:
        name, sampling = provider["name"], provider["sampling"]
        said = (
            f"{sampling['sampled_requests']} of {sampling['population_requests']} requests audited; "
            f"verdict {provider['verdict']}, grade {provider['grade']}, "
            f"false-alarm rate {self.document['policy']['alpha']}."
        )
        result = self._frame(name, said)
        chosen = [{"control-id": _token(control["id"])} for control in provider["controls"]]
        result["reviewed-controls"] = {"control-selections": [{"include-controls": chosen}]}
        result["props"] = [
            _property("verdict", provider["verdict"]),
            _property("grade", provider["grade"]),
            _property("log10-e-value", provider["log10_e"]),
        ]
        judged = [audit for audit in provider["audits"] if audit["verdict"] is not None]
        if judged:
            result["observations"] = [self._observation(audit) for audit in judged]
        result["findings"] = [self._finding(provider, control, judged) for control in provider["controls"]]
        if provider["verdict"] == "inconsistent":
            result["risks"] = [self._risk(provider)]
        return result

    def _observation(self, audit: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "uuid": self.uuid("observation", audit["id"]),
            "title": audit["id"],
            "description": f"Replay of {audit['requests']} requests ({audit['tokens']} output tokens): "
            f"{audit['verdict']}.",
            "methods": ["TEST"],
            "props": [_property("log10-e-value", audit["log10_e"]), _property("log-digest", audit["log"])],
            "relevant-evidence": [
                {
                    "href": f"#{self.uuid('report')}",
                    "description": f"Audit {audit['id']} in report.json; verdict {audit['verdict_digest']}.",
                }
            ],
            "collected": audit["judged"],
        }

    def _finding(
        self, provider: Mapping[str, Any], control: Mapping[str, Any], judged: list[Mapping[str, Any]]
    ) -> dict[str, Any]:
        state, reason = _STATES[control["status"]]
        finding: dict[str, Any] = {
            "uuid": self.uuid("finding", provider["name"], control["id"]),
            "title": f"{control['id']} {control['title']}",
            "description": control["question"],
            "target": {
                "type": "objective-id",
                "target-id": _token(control["id"]),
                "status": {"state": state, "reason": reason, "remarks": control["reason"]},
            },
            "props": [_property("status", control["status"])],
        }
        if judged:
            finding["related-observations"] = [
                {"observation-uuid": self.uuid("observation", audit["id"])} for audit in judged
            ]
        if provider["verdict"] == "inconsistent" and control["status"] == "not-satisfied":
            finding["related-risks"] = [{"risk-uuid": self.uuid("risk", provider["name"])}]
        return finding

    def _risk(self, provider: Mapping[str, Any]) -> dict[str, Any]:
        causes = ", ".join(cause["cause"] for cause in provider["causes"][:3]) or "no cause that is known"
        return {
            "uuid": self.uuid("risk", provider["name"]),
            "title": "Not the declared system",
            "description": f"The outputs of {provider['name']} contradict the declared system.",
            "statement": f"Outputs may be of lower quality than was paid for. Explained best by: {causes}.",
            "status": "open",
        }


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": name, "ns": NAMESPACE, "value": value}


def _link(href: str, media_type: str, digest: str) -> dict[str, Any]:
    value = digest.removeprefix("sha256:")
    return {"href": href, "media-type": media_type, "hashes": [{"algorithm": "SHA-256", "value": value}]}


def _token(name: str) -> str:
    return name.lower()
