"""Run rows of the matrix, remembering each in a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from auditor.durable_files import append_whole, locked
from auditor.errors import OptionError, TraceFileError
from auditor.matrix.power import AUDITS, HONEST_AUDITS, SIZES, Honest, bound, detection_curve
from auditor.matrix.provider import HonestProvider, traffic_of
from auditor.matrix.rows import BUCKETS, Reduced, Row, measure_row
from auditor.reference.deviations import CATALOGUE, HONEST, Deviation, deviation

SCHEMA = "auditor.matrix/v1"
WANTED = (0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a row's figures depend on, beside the deviation.

    Attributes:
        model_digest: of the model. recipe: of the honest provider. requests: of each log.
        alpha: the false-alarm rate of every figure.
    """

    model_digest: str
    recipe: str
    reference_recipe: str
    requests: int
    alpha: float

    @property
    def id(self) -> str:
        """A digest that keeps rows of other settings apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def run_matrix(
    provider: HonestProvider, names: Sequence[str], *, alpha: float, memory: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Measure deviations in order, the honest provider first; finished rows are read from `memory`.

    Yields:
        One JSON object a row (`_figures`).

    Raises:
        OptionError: an unknown name.
        TraceFileError: the memory cannot be written.
    """
    settings = Settings(
        provider.provider.model.digest,
        provider.provider.recipe,
        provider.reference.recipe,
        provider.requests,
        alpha,
    )
    known, honest = _remembered(memory, settings), dict[str, Honest]()
    for row in [HONEST, *(deviation(name) for name in names)]:
        figures = known.get(row.name)
        if figures is None:
            figures = _figures(provider, row, alpha, honest)
            if memory is not None:
                _remember(memory, {"settings": settings.id, **figures})
        yield figures


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names that begin with one of `patterns` (a family or a name); all of them without any.

    Raises:
        OptionError: a pattern that fits none.
    """
    for pattern in patterns:
        if not any(name.startswith(pattern) for name in CATALOGUE):
            raise OptionError(
                f"no deviation begins with {pattern!r}", fix="`audit matrix --list` names them all"
            )
    return [n for n in CATALOGUE if not patterns or any(n.startswith(p) for p in patterns)]


def _figures(
    provider: HonestProvider, cause: Deviation, alpha: float, honest: dict[str, Honest]
) -> dict[str, Any]:
    traffic = traffic_of(cause)
    if traffic not in honest:  # for all rows of that traffic
        honest[traffic] = Honest.of(_honest(provider, "calibration", traffic))
    if cause is HONEST:  # real logs, decoded and not simulated
        row = Row(cause.name, "sampled", tuple(_honest(provider, "report", "sampled")))
    else:
        row = measure_row(provider, cause)
    audits = HONEST_AUDITS if cause is HONEST else AUDITS
    curve = detection_curve(honest[traffic], row.requests, alpha, audits=audits)
    needed = {str(w): curve.needed(w) for w in WANTED}
    return {
        "name": cause.name,
        "family": cause.family,
        "gain": cause.gain,
        "source": cause.source,
        "timing": cause.timing,
        "traffic": row.traffic,
        "requests": len(row.requests),
        "tokens": row.tokens,
        "mismatches": row.mismatches,
        "by_position": row.by_position(),
        "needed": needed,
        "interval": curve.interval(max(WANTED)),
        "published": {str(w): curve.needed(w, "published") for w in WANTED},
        "curve": asdict(curve),
    }


def _honest(provider: HonestProvider, use: str, traffic: str) -> list[Reduced]:
    return [Reduced.of_scored(scored) for scored in provider.scored(use, traffic)]


def _remembered(memory: Path | None, settings: Settings) -> dict[str, dict[str, Any]]:
    if memory is None or not memory.exists():
        return {}
    found = {}
    for line in memory.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that an interruption cut short is measured again
        if entry.pop("settings", None) == settings.id:
            found[entry["name"]] = entry
    return found


def _remember(memory: Path, entry: dict[str, Any]) -> None:
    try:
        with locked(memory), memory.open("ab") as stream:
            # A line that an interruption cut short ends here, and the next one begins on its own.
            whole = not stream.tell() or memory.read_bytes().endswith(b"\n")
            append_whole(stream.fileno(), (b"" if whole else b"\n") + json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise TraceFileError(f"cannot be written: {error.strerror}", where=str(memory)) from error


def report(rows: Sequence[dict[str, Any]], provider: HonestProvider, alpha: float) -> dict[str, Any]:
    """The whole run as one JSON object, `auditor.matrix/v1`."""
    honest, others = rows[0], rows[1:]
    shares = honest["curve"]["fused"]
    worst = max(shares)
    caught = [r for r in others if r["needed"]["0.99"] is not None]
    both = [r for r in caught if r["published"]["0.99"] is not None]
    ratios = [r["needed"]["0.99"] / r["published"]["0.99"] for r in both]
    mean = geometric_mean(ratios) if ratios else None
    return {
        "schema": SCHEMA,
        "model_digest": provider.provider.model.digest,
        "recipe": provider.provider.recipe,
        "alpha": alpha,
        "audits": AUDITS,
        "sizes": list(SIZES),
        "buckets": list(BUCKETS),
        "false_alarms": {
            "most": worst,
            "interval": bound(worst, HONEST_AUDITS),
            "audits": HONEST_AUDITS,
            "requests": honest["requests"],
        },
        "caught": len(caught),
        "rows_measured": len(others),
        "published_ratio": {"rows": len(both), "geometric_mean": mean},
        "rows": list(rows),
    }
