"""Tables of the store. Every change needs a revision in `migrations/versions/`; a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

profile = Table(
    "profile",
    metadata,
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("model_digest", Text, nullable=False),
    Column("provider_recipe", Text, nullable=False),
    Column("reference_recipe", Text, nullable=False),
    Column("family", Text, nullable=False),
    # Always YYYY-MM-DDTHH:MM:SS.ffffffZ, so that text order is time order under any collation.
    Column("created", Text, nullable=False),
    Column("honest_tokens", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_profile_key", "model_digest", "provider_recipe", "reference_recipe", "family", "created"),
)
