"""`--service` of `audit commit`, `challenge`, `open` and `check`, and `audit register`.

The service takes the place of the files that the two sides would send each other; what each keeps to itself
stays in its files.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.commitment_options import REFUSED, challenges_of, traces_of
from auditor.commands.extras import service_extra
from auditor.errors import OptionError

if TYPE_CHECKING:
    from auditor.merkle.token_openings import Challenge
    from auditor.service.client import Client

UNDECIDED = 3
_HEADS_AT_ONCE = 100
_SIGNING_SECONDS = 30.0
"""How long is waited for the log to be signed over heads that were just posted."""


def _client() -> Client:
    with service_extra("--service"):
        from auditor.service.client import Client  # noqa: PLC0415

    return Client()


@click.command()
@click.argument("name")
@click.option("--vkey", "vkeys", multiple=True, help="A key that the provider signs with; may be repeated.")
@options.model_option
@click.option("--model-name", default=None, metavar="TEXT", help="[default: the folder's name]")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=90.0, show_default=True)
def register(
    name: str, vkeys: tuple[str, ...], model_directory: Path | None, model_name: str | None, days: float
) -> None:
    """Tell a service that the provider NAME sells a model, and print an API key for it.

    The key lasts --days, is shown this once, and can only commit, and open what is challenged. A model that
    is registered already stays as it is.

    \b
    audit register acme --vkey "$(audit keys show provider.key)"
    """
    from auditor.reference.checkpoint import digests  # noqa: PLC0415

    place = model_directory or options.demo_model()
    model = {
        "name": model_name or place.name,
        "model_digest": digests.weights_digest(place),
        "tokenizer_digest": digests.tokenizer_digest(place),
        "template_digest": digests.template_digest(place),
    }
    with _client() as client:
        if not any(model.items() <= known.items() for known in client.listed("models")):
            client.create("models", model)
        provider = client.create("providers", {"name": name, "vkeys": list(vkeys)})["id"]
        body = {"name": name, "scopes": ["provider"], "provider": provider, "days": days}
        click.echo(client.create("keys", body)["key"])
    click.echo(f"{name} is {provider}; its key is shown this once", err=True)


def post_heads(committed: Sequence[tuple[str, Any]]) -> None:
    """Post the heads of (response, `commitment` of its trace)."""
    from auditor.hidden_tokens.wire import commitment_from_json  # noqa: PLC0415
    from auditor.merkle.encoding import encode_base64  # noqa: PLC0415

    with _client() as client:
        for request, value in committed:
            found = commitment_from_json(value, request, request)
            heads = [
                {"note": head.note, "proof": [encode_base64(each) for each in proof]}
                for head, proof in zip(found.heads, ((), *found.proofs), strict=True)
            ]
            for start in range(0, len(heads), _HEADS_AT_ONCE):
                client.post_heads(heads[start : start + _HEADS_AT_ONCE])
    click.echo(f"heads of {len(committed)} responses posted", err=True)


def challenge(committed: Path, *, blocks: int, prefix: bool, max_share: float, out: Path | None) -> None:
    """Have the service draw of every response of a log; write its challenges."""
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.hidden_tokens.wire import lines_of  # noqa: PLC0415

    with _client() as client:
        drawn = [
            _drawn(client, {"commitment": found, "blocks": blocks, "prefix": prefix, "max_share": max_share})
            for found in _commitments(client, committed)
        ]
    data = lines_of(one["challenge"] for one in drawn)
    if out is None:
        click.echo(data, nl=False)
    else:
        write_durably(out, data)
    click.echo(f"{len(drawn)} responses challenged", err=True)


def _commitments(client: Client, committed: Path) -> Iterator[str]:
    for trace in traces_of(committed):
        found = list(client.listed("commitments", request=trace.id))
        if len(found) != 1:
            said = "nobody" if not found else f"{len(found)} providers"
            raise OptionError(f"{said} posted heads of response {trace.id}", where=str(committed))
        yield found[0]["id"]


def _drawn(client: Client, order: dict[str, Any]) -> dict[str, Any]:
    from auditor.service.client import ServiceRefusedError  # noqa: PLC0415

    deadline = time.monotonic() + _SIGNING_SECONDS
    while True:
        try:
            return client.create("challenges", order)
        except ServiceRefusedError as refusal:
            # Heads that were just posted are in a signed tree a moment later.
            if refusal.code != "not-finished" or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def listed(path: Path) -> list[tuple[str, str, Challenge]]:
    """Challenges of a file: no id, response, challenge."""
    return [("", request, one) for request, one in challenges_of(path).items()]


def asked() -> list[tuple[str, str, Challenge]]:
    """Open challenges of the service: id, response, challenge; the oldest first."""
    from auditor.hidden_tokens.wire import challenge_from_json  # noqa: PLC0415

    with _client() as client:
        found = list(client.listed("challenges", state="open"))
    return [(one["id"], *challenge_from_json(one["challenge"], one["id"])) for one in reversed(found)]


def post_openings(
    challenges: Sequence[tuple[str, str, Challenge]], openings: Sequence[dict[str, Any]]
) -> None:
    """Answer challenges, in their order; each answer's end goes to standard error."""
    with _client() as client:
        for (challenge_id, request, _), opening in zip(challenges, openings, strict=True):
            state = client.open_challenge(challenge_id, opening)["state"]
            click.echo(f"{request}: {challenge_id} {state}", err=True)


def check(committed: Path, output_format: str) -> int:
    """Print what challenges of a log's responses came to; returns the exit status."""
    with _client() as client:
        found = [
            one
            for commitment in _commitments(client, committed)
            for one in client.listed("challenges", commitment=commitment)
        ]
    if output_format == "json":
        click.echo(json.dumps(found))
    else:
        for one in found:
            error = one["error"]
            said = f": {error['detail']} [{error['code']}]" if error else ""
            click.echo(f"{one['id']}  {one['state']:<8}  {one['request']}{said}")
    states = Counter(one["state"] for one in found)
    click.echo(", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none", err=True)
    if states["failed"] or states["withheld"]:
        return REFUSED
    return UNDECIDED if states["open"] or not found else 0
