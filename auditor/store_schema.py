"""Tables of the store. Every change needs a revision in `migrations/versions/`; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

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

_NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null)


def _of(name: str, table: str, *, primary_key: bool = False) -> Column[str]:
    """A reference to another table's id."""
    return Column(name, Text, ForeignKey(f"{table}.id"), nullable=False, primary_key=primary_key)


def _maybe_of(name: str, table: str) -> Column[str]:
    """A reference that may be missing."""
    return Column(name, Text, ForeignKey(f"{table}.id"), nullable=True)


# The service. Times are whole microseconds since 1970 (UTC) of the database's host: `service/clock.py`.

tenant = Table(
    "tenant",
    metadata,
    Column("id", Text, primary_key=True),
    _text("name"),
    Column("created", BigInteger, nullable=False),
    Column("most_running", Integer, nullable=False),
    UniqueConstraint("name"),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _text("name"),
    Column("secret_sha256", LargeBinary, nullable=False),
    _text("scopes"),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("revoked", BigInteger, nullable=True),
    # A token bucket: what is left of the allowance for submissions, and when that was reckoned.
    Column("allowance", Double, nullable=False),
    Column("allowance_at", BigInteger, nullable=False),
    # The provider whose key it is; None for the tenant's own.
    _maybe_of("provider_id", "provider"),
    Index("ix_api_key_tenant", "tenant_id", "created", "id"),
)

trace_log = Table(
    "trace_log",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _text("digest"),
    _text("name"),
    Column("size", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "digest"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _of("trace_log_id", "trace_log"),
    Column("created", BigInteger, nullable=False),
    _text("options"),
    _maybe_of("provider_id", "provider"),
    Index("ix_audit_tenant", "tenant_id", "created", "id"),
    Index("ix_audit_trace_log", "trace_log_id"),
    Index("ix_audit_provider", "provider_id"),
)

job = Table(
    "job",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    _of("audit_id", "audit"),
    _of("tenant_id", "tenant"),
    _text("state"),
    Column("run_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lost_leases", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=True),
    _text("worker", null=True),
    _text("error_code", null=True),
    _text("error", null=True),
    Column("finished", BigInteger, nullable=True),
    UniqueConstraint("audit_id"),
    Index("ix_job_due", "state", "run_at"),
    Index("ix_job_tenant", "tenant_id", "state"),
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("audit_id", Text, ForeignKey("job.audit_id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("output", LargeBinary, nullable=False),
)

event = Table(
    "event",
    metadata,
    _of("audit_id", "audit", primary_key=True),
    Column("sequence", Integer, primary_key=True),
    _text("kind"),
    _text("data"),
    Column("created", BigInteger, nullable=False),
)

evidence = Table(
    "evidence",
    metadata,
    _of("audit_id", "audit", primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

verdict = Table(
    "verdict",
    metadata,
    _of("audit_id", "audit", primary_key=True),
    _text("outcome"),
    _text("digest"),
    Column("created", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# What goes into the transparency log, written with what it tells of; it gets its place there afterwards.
# It tells of one thing: an audit, a commitment or a challenge.
log_entry = Table(
    "log_entry",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    _maybe_of("audit_id", "audit"),
    _text("kind"),
    Column("body", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=True),
    _maybe_of("commitment_id", "commitment"),
    _maybe_of("challenge_id", "challenge"),
    UniqueConstraint("audit_id", "kind"),
    UniqueConstraint("commitment_id", "kind"),
    UniqueConstraint("challenge_id", "kind"),
    UniqueConstraint("position"),
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    _of("tenant_id", "tenant", primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    _text("resource_id"),
    Column("created", BigInteger, nullable=False),
)

# A log that comes in parts; the parts are files until it is whole.
upload = Table(
    "upload",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _text("name"),
    _text("digest"),
    Column("size", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("trace_log_id", Text, ForeignKey("trace_log.id"), nullable=True),
)

# Whom a tenant buys from, and what it buys. A signature names a key, and a key one provider.

provider = Table(
    "provider",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _text("name"),
    Column("created", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    Index("ix_provider_tenant", "tenant_id", "created", "id"),
)

provider_key = Table(
    "provider_key",
    metadata,
    _of("tenant_id", "tenant", primary_key=True),
    Column("vkey", Text, primary_key=True),
    _of("provider_id", "provider"),
    Index("ix_provider_key_provider", "provider_id"),
)

model = Table(
    "model",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _text("name"),
    _text("model_digest"),
    _text("tokenizer_digest"),
    _text("template_digest", null=True),
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
    _of("tenant_id", "tenant", primary_key=True),
    Column("id", Text, primary_key=True),
    _text("model_digest"),
    _text("provider_recipe"),
    _text("reference_recipe"),
    _text("family"),
    _text("made"),
    Column("honest_tokens", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger, nullable=True),
    _text("reason", null=True),
    Column("body", LargeBinary, nullable=False),
    Index("ix_tenant_profile_created", "tenant_id", "created", "id"),
)

trusted_key = Table(
    "trusted_key",
    metadata,
    _of("tenant_id", "tenant", primary_key=True),
    Column("vkey", Text, primary_key=True),
)

# What a provider signed about the hidden tokens of one response, and what it was asked to open.

commitment = Table(
    "commitment",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _of("provider_id", "provider"),
    _text("request"),
    Column("created", BigInteger, nullable=False),
    Column("finished", BigInteger, nullable=True),
    UniqueConstraint("tenant_id", "provider_id", "request"),
    Index("ix_commitment_tenant", "tenant_id", "created", "id"),
)

streaming_head = Table(
    "streaming_head",
    metadata,
    _of("commitment_id", "commitment", primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    _of("tenant_id", "tenant"),
    _text("note"),
    _text("proof"),
    _text("received", null=True),
    Column("created", BigInteger, nullable=False),
)

challenge = Table(
    "challenge",
    metadata,
    Column("id", Text, primary_key=True),
    _of("tenant_id", "tenant"),
    _of("commitment_id", "commitment"),
    Column("created", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    _text("state"),
    Column("body", LargeBinary, nullable=False),
    _text("checkpoint"),
    Column("finished", BigInteger, nullable=True),
    Column("result", LargeBinary, nullable=True),
    Index("ix_challenge_tenant", "tenant_id", "created", "id"),
    Index("ix_challenge_commitment", "commitment_id"),
    Index("ix_challenge_due", "state", "deadline"),
)

opening = Table(
    "opening",
    metadata,
    Column("challenge_id", Text, ForeignKey("challenge.id"), primary_key=True),
    _of("tenant_id", "tenant"),
    Column("created", BigInteger, nullable=False),
    _text("digest"),
    Column("body", LargeBinary, nullable=False),
)
