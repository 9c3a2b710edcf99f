"""`audit commit | challenge | open | check --kind activations`: hidden states, by files."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.commitment_options import traces_of
from auditor.errors import AuditError, FingerprintError, FingerprintUncalibratedError, OptionError
from auditor.strict_json import load_object

if TYPE_CHECKING:
    from auditor.activation_challenges import CheckedActivations

SCHEMA = "auditor.activation-check/v1"


def commit(
    log: Path, directory: Path | None, dtype: str, layers: tuple[int, ...], *, out: Path, kept: Path
) -> None:
    """Commit to the states of a log, computed again on the provider's own model by prefill."""
    from auditor.activation_challenges import commit_activations  # noqa: PLC0415
    from auditor.generation import Provider  # noqa: PLC0415
    from auditor.preparation import prompt_ids  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415

    place = directory or options.demo_model()
    provider, reference = Provider.load(place, dtype=dtype, batch_size=1), Reference.load(place)
    count = commit_activations(
        traces_of(log),
        provider.model,
        layers,
        prompt_of=lambda trace: prompt_ids(trace, reference),
        out=out,
        kept=kept,
    )
    click.echo(f"{out}: {count} responses, {len(layers)} layers committed to", err=True)


def challenge(commitments: Path, positions: int, kind: str, *, out: Path) -> None:
    """Draw a layer and positions of every commitment, by a secret each."""
    from auditor.activation_challenges import draw_challenges  # noqa: PLC0415
    from auditor.fingerprints.activation_difr import FingerprintKind  # noqa: PLC0415

    try:
        parsed = FingerprintKind.parse(kind)
    except ValueError as error:
        raise OptionError(f"--fingerprint: {error}") from error
    count = draw_challenges(commitments, count=positions, kind=parsed, randomness=os.urandom, out=out)
    click.echo(f"{count} responses challenged: {positions} positions of each", err=True)


def open_states(commitments: Path, challenges: Path, kept: Path, *, out: Path) -> None:
    """Answer challenges from what was kept."""
    from auditor.activation_challenges import answer_challenges  # noqa: PLC0415

    click.echo(f"{answer_challenges(commitments, challenges, kept, out=out)} responses opened", err=True)


@dataclass(frozen=True, slots=True)
class Answered:
    """The files of one round of challenges, and the log they are about."""

    commitments: Path
    challenges: Path
    answers: Path
    log: Path


def check(
    files: Answered, directory: Path | None, honest: Path | None, alpha: float, output_format: str
) -> bool:
    """Print how far each response's states are from the reference's; whether all is well.

    Args:
        honest: the JSON output of an earlier check of responses known to be honest, challenged alike.

    Raises:
        FingerprintUncalibratedError: `honest` has none of a kind that was drawn.
    """
    from auditor.activation_challenges import challenge_log_e, check_activations  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415

    reference = Reference.load(directory or options.demo_model())
    found = list(
        check_activations(files.commitments, files.challenges, files.answers, traces_of(files.log), reference)
    )
    log_e = None
    if honest is not None:
        known = _earlier(honest)
        if missing := {one.kind for one in found if one.problem is None} - {one.kind for one in known}:
            raise FingerprintUncalibratedError(
                f"no honest response with {min(missing)}", where=str(honest), fix="check more honest ones"
            )
        log_e = challenge_log_e(known, found)
    _show(found, log_e, alpha, output_format)
    return all(one.problem is None for one in found) and (log_e is None or log_e < -math.log(alpha))


def _earlier(path: Path) -> list[CheckedActivations]:
    from auditor.activation_challenges import CheckedActivations  # noqa: PLC0415

    try:
        value = load_object(path.read_bytes(), where=str(path))
    except (OSError, AuditError) as error:
        raise FingerprintError(f"no earlier check can be read: {error}", where=str(path)) from error
    if value.get("schema") != SCHEMA:
        raise FingerprintError(
            "not the output of an earlier check", where=str(path), fix="write it with --format json"
        )
    try:
        return [
            CheckedActivations(one["request"], None, one["kind"], math.nan, float(one["output"]))
            for one in value["responses"]
            if one["problem"] is None
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise FingerprintError(f"malformed: {error!r}", where=str(path)) from error


def _show(found: list[CheckedActivations], log_e: float | None, alpha: float, output_format: str) -> None:
    from auditor.result import e_value  # noqa: PLC0415

    if output_format == "json":
        body = {"schema": SCHEMA, "alpha": alpha, "e_value": None if log_e is None else e_value(log_e)}
        click.echo(json.dumps({**body, "responses": [_entry(one) for one in found]}))
        return
    for one in found:
        if one.problem is not None:
            click.echo(f"{one.request}: {one.problem.message} [{one.problem.code}]")
        else:
            places = f"{one.prompt:.4f} in the prompt, {one.output:.4f} in the output"
            click.echo(f"{one.request}: {one.kind}, distance {places}")
    failed = sum(one.problem is not None for one in found)
    click.echo(f"{len(found)} responses challenged, {failed} failed")
    if log_e is not None:
        said = "inconsistent" if log_e >= -math.log(alpha) else "nothing beyond honest numeric noise"
        click.echo(f"e-value {e_value(log_e):.3g} at alpha {alpha:g}: {said}")


def _entry(one: CheckedActivations) -> dict[str, Any]:
    problem = None if one.problem is None else {"code": one.problem.code, "message": one.problem.message}
    prompt, output = (None if math.isnan(d) else d for d in (one.prompt, one.output))
    return {"request": one.request, "kind": one.kind, "prompt": prompt, "output": output, "problem": problem}
