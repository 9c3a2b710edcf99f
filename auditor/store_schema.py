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


def text_column(name: str, *, null: bool = False) -> Column[str]:
    """A column of text."""
    return Column(name, Text, nullable=null)


def reference(name: str, table: str, *, primary_key: bool = False) -> Column[str]:
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
    text_column("name"),
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
    reference("tenant_id", "tenant"),
    text_column("name"),
    Column("secret_sha256", LargeBinary, nullable=False),
    text_column("scopes"),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("revoked", BigInteger, nullable=True),
    # A token bucket: what is left of the allowance for submissions, and when that was reckoned.
    Column("allowance", Double, nullable=False),
    Column("allowance_at", BigInteger, nullable=False),
    # Of a key that signs instead: then there is no secret, and its digest is empty.
    text_column("public_key", null=True),
    # The provider whose key it is; None for the tenant's own.
    _maybe_of("provider_id", "provider"),
    Index("ix_api_key_tenant", "tenant_id", "created", "id"),
)

trace_log = Table(
    "trace_log",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("digest"),
    text_column("name"),
    Column("size", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("erased", BigInteger, nullable=True),
    UniqueConstraint("tenant_id", "digest"),
    Index("ix_trace_log_digest", "digest"),
)

# Bytes of small logs (`service/small_logs.py`), of all tenants; larger ones are blobs.
small_log = Table(
    "small_log",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    reference("trace_log_id", "trace_log"),
    Column("created", BigInteger, nullable=False),
    text_column("options"),
    # Whom the log is of, in the submitter's words; empty when nobody said. And who that is, if registered.
    text_column("provider"),
    _maybe_of("provider_id", "provider"),
    Index("ix_audit_tenant", "tenant_id", "created", "id"),
    Index("ix_audit_trace_log", "trace_log_id"),
    Index("ix_audit_provider", "provider_id"),
)

job = Table(
    "job",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    reference("audit_id", "audit"),
    reference("tenant_id", "tenant"),
    text_column("state"),
    Column("run_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lost_leases", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=True),
    text_column("worker", null=True),
    text_column("error_code", null=True),
    text_column("error", null=True),
    Column("finished", BigInteger, nullable=True),
    # W3C trace context of the submission; null where nobody traces.
    text_column("traceparent", null=True),
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
    reference("audit_id", "audit", primary_key=True),
    Column("sequence", Integer, primary_key=True),
    text_column("kind"),
    text_column("data"),
    Column("created", BigInteger, nullable=False),
)

evidence = Table(
    "evidence",
    metadata,
    reference("audit_id", "audit", primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

verdict = Table(
    "verdict",
    metadata,
    reference("audit_id", "audit", primary_key=True),
    text_column("outcome"),
    text_column("digest"),
    Column("created", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# What goes into the transparency log, written with what it tells of; it gets its place there afterwards.
# The subject is an id of another table: `aud_...`, `rep_...`, `cmt_...`, `chl_...`.
log_entry = Table(
    "log_entry",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    text_column("subject"),
    text_column("kind"),
    Column("body", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=True),
    UniqueConstraint("subject", "kind"),
    UniqueConstraint("position"),
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    text_column("resource_id"),
    Column("created", BigInteger, nullable=False),
)

# A log that comes in parts; the parts are files until it is whole.
upload = Table(
    "upload",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("name"),
    text_column("digest"),
    Column("size", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("trace_log_id", Text, ForeignKey("trace_log.id"), nullable=True),
)

# Whom a tenant buys from, and what it buys. A signature names a key, and a key one provider.

provider = Table(
    "provider",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("name"),
    Column("created", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    Index("ix_provider_tenant", "tenant_id", "created", "id"),
)

# What the pages show of a finished audit besides verdict and evidence. Provider and model stand here when the
# log names exactly one, so that a verdict on a log of several is counted against none of them.
exhibit = Table(
    "exhibit",
    metadata,
    reference("audit_id", "audit", primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("provider", null=True),
    text_column("model", null=True),
    text_column("outcome"),
    Column("tokens", BigInteger, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # All that the standing of providers adds up, so that it is read from the index alone.
    Index("ix_exhibit_subject", "tenant_id", "provider", "model", "outcome", "tokens", "alpha", "audit_id"),
)

# Who is signed in with a browser: the cookie's SHA-256, and the key it stands for.
session = Table(
    "session",
    metadata,
    Column("secret_sha256", LargeBinary, primary_key=True),
    reference("api_key_id", "api_key"),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Index("ix_session_expires", "expires"),
)

# How an audit's requests were picked from what the provider served; without a row its log was all there is.
sample = Table(
    "sample",
    metadata,
    reference("audit_id", "audit", primary_key=True),
    Column("population_requests", BigInteger, nullable=False),
    Column("sampled_requests", BigInteger, nullable=False),
    text_column("method"),
    text_column("seed"),
)

# What a tenant's commitments to prompts and outputs are salted with; never leaves the service.
tenant_salt = Table(
    "tenant_salt",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("salt", LargeBinary, nullable=False),
)

report = Table(
    "report",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("provider"),
    Column("period_start", BigInteger, nullable=False),
    Column("period_end", BigInteger, nullable=False),
    Column("policy", LargeBinary, nullable=False),
    Column("previous_id", Text, ForeignKey("report.id"), nullable=True),
    Column("created", BigInteger, nullable=False),
    text_column("digest"),
    Column("body", LargeBinary, nullable=False),
    Index("ix_report_tenant", "tenant_id", "created", "id"),
    Index("ix_report_series", "tenant_id", "provider", "period_end"),
)

webhook = Table(
    "webhook",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("url"),
    text_column("types"),
    Column("created", BigInteger, nullable=False),
    Column("disabled", BigInteger, nullable=True),
    Index("ix_webhook_tenant", "tenant_id", "created", "id"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    reference("webhook_id", "webhook"),
    text_column("type"),
    Column("body", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
    text_column("state"),
    Column("attempts", Integer, nullable=False),
    # When it is due, or until when a sender holds it.
    Column("next_at", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("status", Integer, nullable=True),
    text_column("error", null=True),
    Index("ix_delivery_due", "state", "next_at"),
    Index("ix_delivery_webhook", "webhook_id", "created", "id"),
)

# Of signed submissions, for as long as the signature could be sent again.
nonce = Table(
    "nonce",
    metadata,
    Column("key_id", Text, ForeignKey("api_key.id"), primary_key=True),
    Column("nonce", Text, primary_key=True),
    Column("expires", BigInteger, nullable=False),
    Index("ix_nonce_expires", "expires"),
)
