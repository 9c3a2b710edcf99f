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


# The service. Times are whole microseconds since 1970 (UTC) of the database's host: `service/clock.py`.

tenant = Table(
    "tenant",
    metadata,
    Column("id", Text, primary_key=True),
    _text("name"),
    Column("created", BigInteger, nullable=False),
    Column("most_running", Integer, nullable=False),
    # Days after which a log's bytes are erased; null: never.
    Column("retention_days", Integer, nullable=True),
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
    Column("erased", BigInteger, nullable=True),
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
    Index("ix_audit_tenant", "tenant_id", "created", "id"),
    Index("ix_audit_trace_log", "trace_log_id"),
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
log_entry = Table(
    "log_entry",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    _of("audit_id", "audit"),
    _text("kind"),
    Column("body", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=True),
    UniqueConstraint("audit_id", "kind"),
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
