"""What a tenant buys: a name for the digests of weights, tokenizer and chat template.

A commitment is accepted for registered digests only: what is promised has to be something that was sold.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select, tuple_

from auditor.service.clock import now as time_now
from auditor.service.errors import ConflictError, NotFoundError
from auditor.service.identifiers import new_id
from auditor.store_commitments import model as model_table
from auditor.store_engine import insert_if_absent

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is sold; digests as `auditor.trace/v1` declares them. It never changes."""

    id: str
    tenant_id: str
    name: str
    model_digest: str
    tokenizer_digest: str
    template_digest: str | None
    created: int


def create(
    connection: Connection,
    tenant_id: str,
    name: str,
    *,
    model_digest: str,
    tokenizer_digest: str,
    template_digest: str | None,
) -> str:
    """A new model; returns its id.

    Raises:
        ConflictError: the name is taken.
    """
    digests = (model_digest, tokenizer_digest, template_digest)
    made = Model(new_id("mdl"), tenant_id, name, *digests, time_now(connection))
    if not insert_if_absent(connection, model_table, asdict(made)):
        raise ConflictError("there is a model of that name", where="name")
    return made.id


def find(connection: Connection, tenant_id: str, model_id: str) -> Model:
    """One model.

    Raises:
        NotFoundError: the tenant has no such model.
    """
    column = model_table.c
    wanted = select(model_table).where(column.tenant_id == tenant_id, column.id == model_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such model")
    return Model(*row)


def listed(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Model]:
    """A tenant's models in order of making, after the (created, id) of another."""
    column = model_table.c
    wanted = select(model_table).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    return [
        Model(*row) for row in connection.execute(wanted.order_by(column.created, column.id).limit(limit))
    ]


def is_sold(connection: Connection, tenant_id: str, model_digest: str, tokenizer_digest: str) -> bool:
    """Whether some model of the tenant has these digests."""
    column = model_table.c
    wanted = select(column.id).where(
        column.tenant_id == tenant_id,
        column.model_digest == model_digest,
        column.tokenizer_digest == tokenizer_digest,
    )
    return connection.execute(wanted.limit(1)).first() is not None
