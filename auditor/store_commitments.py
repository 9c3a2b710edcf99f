"""Tables of what is sold and promised: models, providers' keys, tenants' profiles, commitments, challenges.

In the store's one schema (`store_schema.py`); `provider` is there, because keys and audits refer to it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from auditor.store_schedules import metadata  # with every other table of the schema
from auditor.store_schema import reference, text_column

__all__ = [
    "challenge",
    "commitment",
    "metadata",
    "model",
    "opening",
    "provider_key",
    "streaming_head",
    "tenant_profile",
    "trusted_key",
]

# A signature names a key, and a key one provider.
provider_key = Table(
    "provider_key",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("vkey", Text, primary_key=True),
    reference("provider_id", "provider"),
    Index("ix_provider_key_provider", "provider_id"),
)

model = Table(
    "model",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("name"),
    text_column("model_digest"),
    text_column("tokenizer_digest"),
    text_column("template_digest", null=True),
    Column("created", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    Index("ix_model_tenant", "tenant_id", "created", "id"),
    Index("ix_model_digests", "tenant_id", "model_digest", "tokenizer_digest"),
)

# A tenant's own calibration profiles, and the keys that may vouch for them. `made` is `created` of the
# profile, as in `profile` above; `created` is when it was handed in.

tenant_profile = Table(
    "tenant_profile",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("id", Text, primary_key=True),
    text_column("model_digest"),
    text_column("provider_recipe"),
    text_column("reference_recipe"),
    text_column("family"),
    text_column("made"),
    Column("honest_tokens", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger, nullable=True),
    text_column("reason", null=True),
    Column("body", LargeBinary, nullable=False),
    Index("ix_tenant_profile_created", "tenant_id", "created", "id"),
)

trusted_key = Table(
    "trusted_key",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("vkey", Text, primary_key=True),
)

# What a provider signed about the hidden tokens of one response, and what it was asked to open.

commitment = Table(
    "commitment",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    reference("provider_id", "provider"),
    text_column("request"),
    Column("created", BigInteger, nullable=False),
    Column("finished", BigInteger, nullable=True),
    UniqueConstraint("tenant_id", "provider_id", "request"),
    Index("ix_commitment_tenant", "tenant_id", "created", "id"),
)

streaming_head = Table(
    "streaming_head",
    metadata,
    reference("commitment_id", "commitment", primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    reference("tenant_id", "tenant"),
    text_column("note"),
    text_column("proof"),
    text_column("received", null=True),
    Column("created", BigInteger, nullable=False),
)

challenge = Table(
    "challenge",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    reference("commitment_id", "commitment"),
    Column("created", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    text_column("state"),
    Column("body", LargeBinary, nullable=False),
    text_column("checkpoint"),
    Column("finished", BigInteger, nullable=True),
    Column("result", LargeBinary, nullable=True),
    # When the log of its response was erased: what was opened is gone, what is opened later is not kept.
    Column("erased", BigInteger, nullable=True),
    Index("ix_challenge_tenant", "tenant_id", "created", "id"),
    Index("ix_challenge_commitment", "commitment_id"),
    Index("ix_challenge_due", "state", "deadline"),
)

opening = Table(
    "opening",
    metadata,
    Column("challenge_id", Text, ForeignKey("challenge.id"), primary_key=True),
    reference("tenant_id", "tenant"),
    Column("created", BigInteger, nullable=False),
    text_column("digest"),
    Column("body", LargeBinary, nullable=False),  # empty once it is erased
)
