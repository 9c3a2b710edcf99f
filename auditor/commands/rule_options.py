"""Options for what a request asks of its sampler: rarer filters, penalties, bias, masks, stops, grammars."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_SHARE = click.FloatRange(min=0, max=1)
_OPTIONS = (
    click.option(
        "--typical-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True
    ),
    click.option("--top-n-sigma", type=click.FloatRange(min=0), default=0.0, show_default=True),
    click.option("--xtc-probability", type=_SHARE, default=0.0, show_default=True),
    click.option("--xtc-threshold", type=_SHARE, default=0.1, show_default=True),
    click.option(
        "--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True
    ),
    click.option("--presence-penalty", type=float, default=0.0, show_default=True),
    click.option("--frequency-penalty", type=float, default=0.0, show_default=True),
    click.option(
        "--logit-bias", multiple=True, metavar="ID=LOGITS", help="Add to a token's logit; may be repeated."
    ),
    click.option(
        "--allowed-token", "allowed_tokens", type=int, multiple=True, metavar="ID", help="Sample only these."
    ),
    click.option(
        "--bad-word", "bad_words", multiple=True, metavar="TEXT", help="Never write it; may be repeated."
    ),
    click.option(
        "--min-tokens", type=click.IntRange(min=0), default=0, show_default=True, help="No end before."
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="End where it is complete; may be repeated."),
    click.option("--stop-token", "stop_tokens", type=int, multiple=True, metavar="ID", help="End after it."),
    click.option("--ignore-eos", is_flag=True, help="The model's end token does not end the output."),
    click.option(
        "--json-schema", type=click.Path(path_type=Path), metavar="FILE", help="JSON of this schema only."
    ),
    click.option("--regex", metavar="PATTERN", help="Only text that matches."),
    click.option(
        "--grammar-library",
        type=click.Choice(["xgrammar", "llguidance"]),
        default="xgrammar",
        show_default=True,
        help="What computes the masks of --json-schema and --regex.",
    ),
    click.option("--compact", is_flag=True, help="No free white space in JSON."),
)


def rule_options(command: F) -> F:
    """Add them all to a command; `rules_of` takes what they give."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def rules_of(
    *,
    logit_bias: tuple[str, ...],
    allowed_tokens: tuple[int, ...],
    bad_words: tuple[str, ...],
    stop: tuple[str, ...],
    stop_tokens: tuple[int, ...],
    json_schema: Path | None,
    regex: str | None,
    grammar_library: str,
    compact: bool,
    **same: Any,
) -> dict[str, Any]:
    """Give the options as fields of `SamplingSpec`.

    Raises:
        OptionError: a bias that is not ID=LOGITS, two constraints, or a library that is not installed.
        TraceFileError, TraceSyntaxError: a schema that cannot be read.
    """
    return {
        **same,
        "logit_bias": dict(_bias(text) for text in logit_bias),
        "allowed_token_ids": allowed_tokens or None,
        "bad_words": bad_words,
        "stop": stop,
        "stop_token_ids": stop_tokens,
        "grammar": _grammar(json_schema, regex, grammar_library, compact=compact),
    }


def _bias(text: str) -> tuple[int, float]:
    from auditor.errors import OptionError  # noqa: PLC0415

    token, equals, logits = text.partition("=")
    try:
        if equals:
            return int(token), float(logits)
    except ValueError:
        pass
    raise OptionError(f"{text!r} is not ID=LOGITS", where="--logit-bias", fix="say 300=-1.5")


def _grammar(
    json_schema: Path | None, regex: str | None, library: str, *, compact: bool
) -> dict[str, Any] | None:
    from auditor.errors import OptionError, TraceFileError  # noqa: PLC0415
    from auditor.reference.grammar import grammar_digest  # noqa: PLC0415
    from auditor.strict_json import load_json  # noqa: PLC0415

    if json_schema is None and regex is None:
        return None
    if json_schema is not None and regex is not None:
        raise OptionError("two constraints at once", where="--regex", fix="drop --json-schema or --regex")
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        raise OptionError(
            f"{library} is not installed",
            where="--grammar-library",
            fix="pip install 'verifiable-inference-auditor[grammar]'",
        ) from None
    grammar: dict[str, Any] = {"kind": "regex", "pattern": regex}
    if json_schema is not None:
        try:
            raw = json_schema.read_bytes()
        except OSError as error:
            raise TraceFileError(f"cannot be read: {error.strerror}", where=str(json_schema)) from error
        grammar = {"kind": "json_schema", "schema": load_json(raw, where=str(json_schema))}
        grammar["any_whitespace"] = not compact
    grammar |= {"library": library, "version": version}
    return {**grammar, "digest": grammar_digest(grammar)}
