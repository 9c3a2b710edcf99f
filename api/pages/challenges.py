"""Challenges: what was drawn of hidden tokens, what was opened, and what came of it.

The tokens themselves are left out on the server until they are asked for, as everywhere on these pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from auditor.api.log import receipt_at
from auditor.api.pages.layout import download, render
from auditor.api.pages.visits import ReadingVisit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.service import Service, TheService
from auditor.hidden_tokens.wire import opening_from_json
from auditor.service import challenges, commitments, log_entries, providers
from auditor.service.errors import NotFinishedError, RequestInvalidError
from auditor.service.exposures import exposures, tokens_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.challenges import KeptChallenge
    from auditor.service.commitments import KeptCommitment

router = APIRouter(include_in_schema=False)
Kind = Literal["challenge", "result"]
_PAGE = 50


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """Neighbouring tokens that were opened: those from `first` up to `after`.

    Attributes:
        text: None where it is left out.
    """

    first: int
    after: int
    text: str | None


@router.get("/challenges")
def listed(
    request: Request,
    service: TheService,
    visit: ReadingVisit,
    state: Annotated[str, Query(max_length=200)] = "",
    provider: Annotated[str, Query(max_length=200)] = "",
    cursor: Cursor = None,
) -> Response:
    """Newest first; an empty choice is any."""
    if state and state not in providers.CHALLENGE_STATES:
        raise RequestInvalidError("not one of the choices", where="state")
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        names = providers.names(connection, tenant)
        if provider and provider not in names.values():
            raise RequestInvalidError("not one of the choices", where="provider")
        found = challenges.listed(
            connection,
            tenant,
            after=decode_cursor(cursor),
            limit=_PAGE + 1,
            provider_id=next((key for key, name in names.items() if name == provider), None),
            state=state or None,
        )
        rows = _with_exposure(connection, tenant, found[:_PAGE])
    chosen = {"state": state, "provider": provider}
    following = cursor_behind(found, _PAGE)
    return render(
        request,
        "challenges",
        visit,
        rows=rows,
        names=names,
        chosen=chosen,
        states=providers.CHALLENGE_STATES,
        further=cursor is not None,
        following=following and {**{k: v for k, v in chosen.items() if v}, "cursor": following},
    )


@router.get("/challenges/{challenge_id}")
def look(
    request: Request,
    service: TheService,
    visit: ReadingVisit,
    challenge_id: str,
    hidden: Literal["shown", "left-out"] = "left-out",
) -> Response:
    """What was asked and what came of it; the opened tokens only when they are asked for."""
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        kept = challenges.find(connection, tenant, challenge_id)
        response = commitments.find(connection, tenant, kept.commitment_id)
        seen = exposures(connection, tenant, [response])[response.id]
        name = providers.find(connection, tenant, kept.provider_id).name
        body = challenges.opening(connection, tenant, challenge_id)[0] if _was_opened(kept) else None
        entries = {kind: log_entries.find(connection, challenge_id, kind) for kind in ("challenge", "result")}
    drawn = json.loads(kept.body)
    return render(
        request,
        "challenge",
        visit,
        kept=kept,
        provider=name,
        head=response.head,
        drawn=drawn,
        asked=tokens_of(response, drawn["blocks"]),
        result=None if kept.result is None else json.loads(kept.result),
        seen=seen,
        strip=list(_strip(response, drawn["blocks"], seen.blocks)),
        runs=[] if body is None else _opened(service, response, body, show=hidden == "shown"),
        hidden_shown=hidden == "shown",
        entries={kind: entry for kind, entry in entries.items() if entry is not None},
    )


@router.get("/challenges/{challenge_id}/result.json")
def result_file(service: TheService, visit: ReadingVisit, challenge_id: str) -> Response:
    """The very bytes whose digest was logged."""
    with service.store.transaction() as connection:
        kept = challenges.find(connection, visit.key.tenant_id, challenge_id)
    if kept.result is None:
        raise NotFinishedError("the challenge is open")
    return Response(kept.result, headers={"Cache-Control": "no-store"}, media_type="application/json")


@router.get("/challenges/{challenge_id}/receipts/{kind}")
def receipt_file(service: TheService, visit: ReadingVisit, challenge_id: str, kind: Kind) -> Response:
    """A C2SP tlog-proof."""
    position, _ = _entry(service, visit.key.tenant_id, challenge_id, kind)
    return download(receipt_at(service, position), f"{kind}.tlog-proof", "text/plain; charset=utf-8")


@router.get("/challenges/{challenge_id}/entries/{kind}")
def entry_file(service: TheService, visit: ReadingVisit, challenge_id: str, kind: Kind) -> Response:
    """The very bytes of the leaf."""
    _, body = _entry(service, visit.key.tenant_id, challenge_id, kind)
    return download(body, f"{kind}.entry.json", "application/json")


def _entry(service: Service, tenant_id: str, challenge_id: str, kind: str) -> tuple[int | None, bytes]:
    with service.store.transaction() as connection:
        kept = challenges.find(connection, tenant_id, challenge_id)
        found = log_entries.find(connection, challenge_id, kind)
    if found is None:
        raise NotFinishedError(f"there is no {kind} entry: the challenge is {kept.state}")
    return found


def _was_opened(kept: KeptChallenge) -> bool:
    return kept.state in ("held", "failed") and kept.erased is None


def _with_exposure(
    connection: Connection, tenant_id: str, page: Sequence[KeptChallenge]
) -> list[dict[str, Any]]:
    """Each challenge with the tokens that it asks for, and what was seen of its response in all."""
    responses: dict[str, KeptCommitment] = {}
    for kept in page:
        if kept.commitment_id not in responses:
            responses[kept.commitment_id] = commitments.find(connection, tenant_id, kept.commitment_id)
    seen = exposures(connection, tenant_id, responses.values())
    return [
        {
            "kept": kept,
            "asked": tokens_of(responses[kept.commitment_id], json.loads(kept.body)["blocks"]),
            "seen": seen[kept.commitment_id],
        }
        for kept in page
    ]


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbours among sorted numbers as (first, after)."""
    first = after = -1
    for number in numbers:
        if number != after:
            if after >= 0:
                yield first, after
            first = number
        after = number + 1
    if after >= 0:
        yield first, after


def _strip(
    response: KeptCommitment, asked: Sequence[int], seen: frozenset[int]
) -> Iterator[tuple[str, float, float]]:
    """(class, left, width) of a response's blocks: those seen, over them those asked for here."""
    whole = 1000 / max(1, response.head.blocks)
    for kind, blocks in (("seen", sorted(seen)), ("asked", sorted(asked))):
        for first, after in _runs(blocks):
            yield kind, round(first * whole, 2), round(max(1.0, (after - first) * whole), 2)


def _opened(service: Service, response: KeptCommitment, body: bytes, *, show: bool) -> list[OpenedRun]:
    """What was opened, neighbours together: as text where the tokenizer is at hand, else as ids."""
    _, opening = opening_from_json(json.loads(body), "opening")
    tokenizer = service.checker.tokenizers.get(response.head.tokenizer)
    found = []
    for first, after in _runs(sorted(opening.leaves)):
        text = None
        if show:
            ids = tuple(opening.leaves[index].token_id for index in range(first, after))
            known = tokenizer is not None and all(token < tokenizer.vocab_size for token in ids)
            text = tokenizer.decode(ids) if known and tokenizer else " ".join(map(str, ids))
        found.append(OpenedRun(first, after, text))
    return found
