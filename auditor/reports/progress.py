"""What changed since the last report, and how the periods before went. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_HISTORY = 52


def history(previous: tuple[str, Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The earlier periods, oldest first; this report's own is not among them."""
    if previous is None:
        return []
    digest, document = previous
    line = {
        "report": document["id"],
        "digest": digest,
        "start": document["period"]["start"],
        "end": document["period"]["end"],
        "grade": document["grade"]["letter"],
        "verdict": document["verdict"],
        "providers": [
            {
                "name": p["name"],
                "verdict": p["verdict"],
                "grade": p["grade"],
                "log10_e": p["log10_e"],
                "requests": p["requests"]["audited"],
                "tokens": p["requests"]["tokens"],
            }
            for p in document["providers"]
        ],
    }
    return [*document["history"], line][-MOST_HISTORY:]


def changes(document: Mapping[str, Any], previous: tuple[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """What differs from the report before, in words."""
    if previous is None:
        return {"since": None, "items": []}
    digest, before = previous
    items = []
    if document["policy"]["digest"] != before["policy"]["digest"]:
        items.append(_item("", "policy", before["policy"]["digest"], document["policy"]["digest"]))
    if document["tool"] != before["tool"]:
        items.append(_item("", "tool", before["tool"]["version"], document["tool"]["version"]))
    old = {p["name"]: p for p in before["providers"]}
    new = {p["name"]: p for p in document["providers"]}
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            items.append(_item(name, "provider", _there(name in old), _there(name in new)))
        else:
            items += _changed(old[name], new[name])
    return {"since": {"report": before["id"], "digest": digest}, "items": items}


def _there(present: bool) -> str:
    return "reported" if present else "absent"


def _item(provider: str, what: str, before: str, after: str) -> dict[str, Any]:
    return {"provider": provider or None, "what": what, "before": before, "after": after}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for what in ("verdict", "grade"):
        if old[what] != new[what]:
            yield _item(new["name"], what, old[what], new[what])
    for what, key in (("models", "digest"), ("profiles", "id")):
        before, after = (_joined(side["systems"][what], key) for side in (old, new))
        if before != after:
            yield _item(new["name"], what, before, after)
    before, after = (", ".join(side["systems"]["provider_recipes"]) for side in (old, new))
    if before != after:
        yield _item(new["name"], "provider recipes", before, after)
    was, now = ({c["id"]: c["status"] for c in side["controls"]} for side in (old, new))
    moved = [name for name in now if was.get(name) != now[name]]
    if moved:
        before, after = (", ".join(f"{n} {side.get(n, 'absent')}" for n in moved) for side in (was, now))
        yield _item(new["name"], "controls", before, after)


def _joined(values: list[Mapping[str, Any]], key: str) -> str:
    return ", ".join(str(value[key]) for value in values)
