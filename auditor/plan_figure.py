"""Power curves of a plan as a figure, SVG or PNG by the file's name."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from auditor.errors import OptionError, OutputExistsError
from auditor.planning import Plan

FORMATS = (".svg", ".png")


def check_figure_place(path: Path, *, overwrite: bool) -> None:
    """Make sure, before the work, that a figure may go there.

    Raises:
        OptionError: another ending than .svg or .png, or the folder does not exist.
        OutputExistsError: it exists and `overwrite` is off.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"{path.name} does not end in .svg or .png", where="--plot")
    if not path.parent.is_dir():
        raise OptionError("its folder does not exist", where=str(path), fix="name another with --plot")
    if path.exists() and not overwrite:
        raise OutputExistsError("exists already", where=str(path), fix="name another file or pass --force")


def power_figure(plan: Plan, suffix: str) -> bytes:
    """Power against audited output tokens, one line a cause; `suffix` is one of `FORMATS`.

    Causes that no size looked at detects half the time are named in the legend and not drawn in front.
    """
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "auditor", "text.parse_math": False}
    with rc_context(style):
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        axes = figure.add_subplot()
        for row in plan.rows:
            if row.curve is None:
                continue
            faint = row.curve.power.max() < 0.5
            axes.plot(
                row.curve.tokens,
                row.curve.power,
                label=row.cause,
                marker=".",
                linestyle=":" if faint else "-",
                linewidth=1.0 if faint else 1.6,
            )
        axes.axhline(plan.power, color="0.5", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("output tokens audited")
        share = "" if plan.fraction == 1.0 else f", cheating on {plan.fraction:.3g} of requests"
        axes.set_ylabel(f"power at alpha {plan.alpha:g}{share}")
        axes.grid(visible=True, linewidth=0.4, alpha=0.5)
        if axes.lines:
            axes.legend(fontsize=8, loc="lower right")
        out = io.BytesIO()
        kind = suffix.removeprefix(".").lower()
        figure.savefig(out, format=kind, dpi=140, metadata={"Date": None} if kind == "svg" else {})
    return out.getvalue()


def write_figure(path: Path, plan: Plan, *, overwrite: bool = False) -> None:
    """Write the figure whole or not at all.

    Raises:
        OptionError, OutputExistsError: see `check_figure_place`; the file cannot be written.
    """
    check_figure_place(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(power_figure(plan, path.suffix))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OptionError(f"cannot be written: {error.strerror}", where=str(path)) from error
