"""Tables of schedules and disputes, in the store's one schema (`store_schema.py`)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from auditor.store_schema import metadata, reference, text_column

__all__ = [
    "bill",
    "dispute",
    "dispute_event",
    "likelihood",
    "mail",
    "metadata",
    "policy",
    "schedule",
    "slot",
    "taken_log",
    "taken_request",
]

# Audits on a timetable: `schedules/`. A policy is kept as what it says, by the digest of that.
policy = Table(
    "policy",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("digest", Text, primary_key=True),
    text_column("name"),
    text_column("version"),
    text_column("body"),
    Column("created", BigInteger, nullable=False),
)

schedule = Table(
    "schedule",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("provider"),
    text_column("cron"),
    text_column("zone"),
    text_column("policy_digest"),
    text_column("state"),
    Column("created", BigInteger, nullable=False),
    Column("next_at", BigInteger, nullable=True),
    Index("ix_schedule_due", "state", "next_at"),
    Index("ix_schedule_tenant", "tenant_id", "created", "id"),
)

# One firing of a schedule and the period that it ends. The columns from `state` to `finished` are a job's.
slot = Table(
    "slot",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    reference("schedule_id", "schedule"),
    text_column("provider"),
    Column("slot_at", BigInteger, nullable=False),
    Column("missed", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
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
    # Set when the population is fixed: before any of it was looked at.
    Column("number", BigInteger, nullable=True),
    text_column("seed", null=True),
    Column("budget_tokens", BigInteger, nullable=True),
    # Set when the sample is drawn; without an audit there was nothing to sample from.
    Column("audit_id", Text, ForeignKey("audit.id"), nullable=True),
    text_column("drawn", null=True),
    # Set when the period is judged.
    Column("period_start", BigInteger, nullable=True),
    Column("period_end", BigInteger, nullable=True),
    text_column("verdict", null=True),
    Column("log_e", Double, nullable=True),
    Column("suspicion", Double, nullable=True),
    text_column("findings", null=True),
    text_column("report_id", null=True),
    UniqueConstraint("schedule_id", "slot_at"),
    UniqueConstraint("tenant_id", "provider", "number"),
    Index("ix_slot_due", "state", "run_at"),
    Index("ix_slot_provider", "tenant_id", "provider", "slot_at"),
    Index("ix_slot_audit", "audit_id"),
)

# Which logs a provider's periods have looked into, and which requests (by content) they have audited.
taken_log = Table(
    "taken_log",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("provider", Text, primary_key=True),
    reference("trace_log_id", "trace_log", primary_key=True),
    reference("slot_id", "slot"),
    Index("ix_taken_log_slot", "slot_id"),
)

taken_request = Table(
    "taken_request",
    metadata,
    reference("tenant_id", "tenant", primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("content", LargeBinary, primary_key=True),
    reference("slot_id", "slot"),
)

# What a scheduled audit's margins said, and against which calibration: float64 grids, little-endian.
likelihood = Table(
    "likelihood",
    metadata,
    reference("audit_id", "audit", primary_key=True),
    Column("number", Integer, primary_key=True),
    text_column("profile_id"),
    Column("prior", LargeBinary, nullable=False),
    Column("calibration", LargeBinary, nullable=False),
    Column("audited", LargeBinary, nullable=False),
)

# What its responses were billed beyond ids and text: a JSON list of tokens, null for hidden ones.
bill = Table(
    "bill",
    metadata,
    reference("audit_id", "audit", primary_key=True),
    text_column("excesses"),
)

mail = Table(
    "mail",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    text_column("recipient"),
    text_column("subject"),
    text_column("body"),
    Column("created", BigInteger, nullable=False),
    text_column("state"),
    Column("attempts", Integer, nullable=False),
    # When it is due, or until when a sender holds it.
    Column("next_at", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
    text_column("error", null=True),
    Index("ix_mail_due", "state", "next_at"),
)

dispute = Table(
    "dispute",
    metadata,
    Column("id", Text, primary_key=True),
    reference("tenant_id", "tenant"),
    reference("audit_id", "audit"),
    text_column("provider"),
    text_column("state"),
    text_column("outcome", null=True),
    Column("created", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Index("ix_dispute_tenant", "tenant_id", "created", "id"),
    Index("ix_dispute_audit", "audit_id"),
)

dispute_event = Table(
    "dispute_event",
    metadata,
    reference("dispute_id", "dispute", primary_key=True),
    Column("sequence", Integer, primary_key=True),
    text_column("kind"),
    text_column("actor"),
    text_column("statement"),
    text_column("evidence"),
    Column("created", BigInteger, nullable=False),
)
