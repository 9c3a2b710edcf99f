"""A dispute bundle: what an accused provider runs alone to see what the auditor saw. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from auditor.reports.texts import template
from auditor.trace import Trace
from auditor.trace_format import trace_to_line


def dispute_members(
    audit_id: str,
    found: Mapping[str, Any],
    traces: Iterable[Trace],
    options: Mapping[str, Any],
    profile: bytes | None,
) -> dict[str, bytes]:
    """The bundle's files by name.

    Args:
        found: the verdict's `auditor.reproduction/v1`.
        traces: the log, at least the requests that `found` names.
        options: the audit's.
        profile: the file of the profile that it was judged by, if any.
    """
    wanted = {(one["id"], one["raw_digest"]) for one in found["requests"]}
    lines = [trace_to_line(trace) for trace in traces if (trace.id, trace.raw_digest) in wanted]
    words = ["audit", "verify", "traces.jsonl", "--model", "DIR", "--alpha", f"{found['alpha']:g}"]
    if profile is not None:
        words += ["--profile", "profile.json"]
    for name in ("engine_recipe", "served_model"):
        if options.get(name):
            words += [f"--{name.replace('_', '-')}", options[name]]
    said = template("dispute.md").format(
        audit=audit_id,
        count=len(lines),
        command=shlex.join(words),
        model=found["model"]["digest"],
        recipe=found["model"]["recipe"],
        provider_recipe=found["provider_recipe"],
        alpha=f"{found['alpha']:g}",
    )
    members = {
        "README.md": said.encode(),
        "reproduction.json": json.dumps(found, sort_keys=True, indent=1).encode() + b"\n",
        "traces.jsonl": b"".join(lines),
    }
    if profile is not None:
        members["profile.json"] = profile
    return members
