"""Options and files shared by `audit commit`, `challenge`, `open` and `check`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from auditor.commands import options
from auditor.commitment_errors import OpeningSyntaxError
from auditor.errors import AuditError, OptionError

if TYPE_CHECKING:
    from auditor.merkle.keys import PublicKey
    from auditor.merkle.token_openings import Challenge
    from auditor.trace import Trace

REFUSED = 1

kind_option = click.option(
    "--kind",
    type=click.Choice(["tokens", "activations"]),
    default="tokens",
    show_default=True,
    help="What is committed to: hidden tokens, or hidden states (`activations`).",
)
session_key_option = click.option(
    "--session-key",
    "session_key_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Tokens: the provider's key of `audit keys session`; salts come from it.",
)
vkey_option = click.option(
    "--vkey", "vkeys", multiple=True, help="Tokens: the provider's public key; may be repeated."
)
max_share_option = click.option(
    "--max-share",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Tokens: largest share of a response's hidden tokens that may be seen, earlier challenges included.",
)
service_option = click.option(
    "--service",
    is_flag=True,
    help="Tokens: with the other side through the service of AUDITOR_URL and AUDITOR_API_KEY.",
)
committed_argument = click.argument("committed", type=click.Path(path_type=Path))


def file_option(name: str, description: str, *, required: bool = True) -> Callable[[options.F], options.F]:
    """A file."""
    return click.option(
        name,
        type=click.Path(path_type=Path),
        required=required,
        default=None,
        metavar="FILE",
        help=description,
    )


def traces_of(path: Path) -> Iterator[Trace]:
    """Traces of a log; a bad line ends it."""
    from auditor.trace_files import read_traces  # noqa: PLC0415

    for item in read_traces(str(path)):
        if isinstance(item, AuditError):
            raise item
        yield item


def by_request(pairs: Iterable[tuple[str, Any]], where: Path) -> dict[str, Any]:
    """Values by the response they are of.

    Raises:
        OpeningSyntaxError: two of one response.
    """
    found: dict[str, Any] = {}
    for request, value in pairs:
        if request in found:
            raise OpeningSyntaxError(f"response {request} stands there twice", where=str(where))
        found[request] = value
    return found


def challenges_of(path: Path) -> dict[str, Challenge]:
    """Challenges of hidden tokens, by response."""
    from auditor.hidden_tokens.wire import challenge_from_json, read_lines  # noqa: PLC0415

    return by_request((challenge_from_json(value, where) for value, where in read_lines(path)), path)


def public_keys(vkeys: tuple[str, ...]) -> tuple[PublicKey, ...]:
    """Keys as `--vkey` gives them.

    Raises:
        OptionError: none was given.
    """
    from auditor.merkle.keys import parse_vkey  # noqa: PLC0415

    if not vkeys:
        raise OptionError("no key to check signatures with", fix="give --vkey")
    return tuple(parse_vkey(vkey) for vkey in vkeys)


T = TypeVar("T")


def needed(value: T | None, option: str, kind: str) -> T:
    """The value of an option that a kind of commitment cannot do without.

    Raises:
        OptionError: it was not given.
    """
    if value is None:
        raise OptionError(f"--kind {kind} needs {option}", fix=f"give {option}")
    return value
