"""The demo's page: one HTML file that needs nothing else, no script, no network, light or dark or on paper.

Whatever came from traces (text, ids, model names) reaches the page only through the template's autoescape;
the only markup passed in whole is the SVG that `page_figures` draws.
"""

from __future__ import annotations

import secrets
import shlex
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from auditor.demonstration import (
    POWER_TOKENS,
    Audit,
    Demonstration,
    Exhibit,
    conclusion,
    evidence_text,
)
from auditor.errors import OutputExistsError, TraceFileError
from auditor.html_templates import html_template
from auditor.must_detect import MUST_DETECT
from auditor.page_figures import colours, css_colour, evidence_figure, margin_figure
from auditor.profile import SCHEMA, Profile
from auditor.profiles import write_profile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GENERATOR = "audit demo"
_MARK = f'<meta name="generator" content="{GENERATOR}">'


def next_steps(profile_file: str) -> tuple[tuple[str, str], ...]:
    """Return what to do after the demo: (command, why)."""
    return (
        (
            "audit generate --out cheat.jsonl.gz --deviation weights/int4",
            "play a dishonest provider; --list names the cheats",
        ),
        (
            f"audit verify cheat.jsonl.gz --profile {shlex.quote(profile_file)}",
            "audit its log; exit status 1 is a conviction",
        ),
        (
            "audit calibrate honest.jsonl.gz --model DIR --out honest.json",
            "begin with your own model and an honest log of it",
        ),
    )


def profile_place(page: Path) -> Path:
    """Return where the demo's profile goes: beside its page."""
    return page.with_suffix(".profile.json")


def check_place(path: Path) -> None:
    """Make sure, before the work, that the page may go there: a new file, or an earlier page of ours.

    Raises:
        OutputExistsError: the file exists and is something else.
        TraceFileError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise TraceFileError("its folder does not exist", where=str(path), fix="name another with --out")
    beside = profile_place(path)
    for place, mark in ((path, _MARK), (beside, f'"schema":"{SCHEMA}"')):
        if place.is_dir() or (place.exists() and mark.encode() not in place.read_bytes()[:4096]):
            raise OutputExistsError(
                "exists and is not from an earlier demo", where=str(place), fix="name another with --out"
            )


def write_page(path: Path, demonstration: Demonstration) -> None:
    """Write the page, and the demo's profile beside it, each whole or not at all.

    Raises:
        OutputExistsError, TraceFileError: see `check_place`.
    """
    check_place(path)
    write_profile(profile_place(path), demonstration.profile, overwrite=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(render_page(demonstration, str(profile_place(path))), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TraceFileError(f"cannot be written: {error.strerror}", where=str(path)) from error


def render_page(demonstration: Demonstration, profile_file: str) -> str:
    """Render the page as HTML text; its commands name the profile's file."""
    marker = colours(demonstration)
    profile = demonstration.profile
    return html_template("demo.html.jinja").render(
        mark=Markup(_MARK),  # noqa: S704  our own constant
        demo=demonstration,
        profile=profile,
        tally=_tally(demonstration),
        rows=[_row(audit, css_colour(marker[audit.cause])) for audit in demonstration.audits],
        evidence=_svg(evidence_figure(demonstration)),
        panels=[_panel(audit, profile, marker[audit.cause]) for audit in demonstration.dishonest],
        exhibit=_exhibit(demonstration.exhibit, profile),
        power_tokens=POWER_TOKENS,
        power=[_power_row(cause, powers) for cause, powers in demonstration.power.items()],
        next_steps=next_steps(profile_file),
    )


def _svg(drawing: str) -> Markup:
    return Markup(drawing)  # noqa: S704  drawn by page_figures, whose labels matplotlib escapes


def _tally(demonstration: Demonstration) -> dict[str, Any]:
    """Who was convicted, who was not, and whether justice was done."""
    honest = [a for a in demonstration.audits if a not in demonstration.dishonest]
    convicted = [a for a in demonstration.dishonest if a.result.outcome == "inconsistent"]
    return {
        "audits": len(demonstration.audits),
        "tokens": sum(a.result.tokens for a in demonstration.audits),
        "dishonest": len(demonstration.dishonest),
        "convicted": len(convicted),
        "missed": [a for a in demonstration.dishonest if a not in convicted],
        "honest": honest[0] if honest else None,
        "bar": f"{1 / demonstration.alpha:,.0f}",
    }


def _row(audit: Audit, colour: str) -> dict[str, Any]:
    return {
        "cause": audit.cause,
        "colour": colour,
        "really_ran": audit.really_ran,
        "tokens": audit.result.tokens,
        "match": f"{audit.match_rate:.2%}",
        "evidence": evidence_text(audit.result.log_e).replace("^-", "^\N{MINUS SIGN}").partition("^"),
        "outcome": audit.result.outcome,
        "convicted": audit.result.outcome == "inconsistent",
        "conclusion": conclusion(audit),
    }


def _panel(audit: Audit, profile: Profile, marker: str) -> dict[str, Any]:
    misses, honest = audit.result.tokens - audit.result.matched, sum(r.mismatches for r in profile.honest)
    often = misses / audit.result.tokens / max(honest / profile.honest_tokens, 1e-9)
    return {
        "cause": audit.cause,
        "really_ran": audit.really_ran,
        "colour": css_colour(marker),
        "svg": _svg(margin_figure(profile.honest, audit, marker)),
        "misses": misses,
        "tokens": audit.result.tokens,
        "often": f"{often:.0f}" if often >= 10 else f"{often:.1f}",
    }


def _power_row(cause: str, powers: tuple[float | None, ...]) -> dict[str, Any]:
    return {
        "cause": cause,
        "required": cause in MUST_DETECT,
        "cells": [(None if p is None else f"{p:.2f}", round(100 * (p or 0.0))) for p in powers],
    }


def _exhibit(exhibit: Exhibit | None, profile: Profile) -> Mapping[str, Any] | None:
    """Tokens with how much each one weighs: 0 a match, 1 could be honest noise, 2 too far for that."""
    if exhibit is None:
        return None
    far = 4 * profile.noise_scale[2]
    return {
        "cause": exhibit.audit.cause,
        "really_ran": exhibit.audit.really_ran,
        "trace_id": exhibit.trace_id,
        "question": exhibit.question,
        "pieces": [
            (
                text,
                0 if margin is None else 2 if margin > far else 1,
                "" if margin is None else f"{margin:.2g}",
            )
            for text, margin in exhibit.pieces
        ],
        "misses": sum(margin is not None for _, margin in exhibit.pieces),
        "tokens": len(exhibit.pieces),
        "evidence": evidence_text(exhibit.log_e).partition("^"),
    }
