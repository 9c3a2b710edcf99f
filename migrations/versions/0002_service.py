"""Tenants, keys, logs to audit, audits with their jobs, evidence and verdicts, and what is to be logged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("most_running", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenant"),
        sa.UniqueConstraint("name", name="uq_tenant_name"),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger(), nullable=True),
        sa.Column("allowance", sa.Double(), nullable=False),
        sa.Column("allowance_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_api_key_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_api_key"),
    )
    op.create_index("ix_api_key_tenant", "api_key", ["tenant_id", "created", "id"])

    op.create_table(
        "idempotency_key",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_idempotency_key_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_idempotency_key"),
    )
    op.create_table(
        "trace_log",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_trace_log_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_trace_log"),
        sa.UniqueConstraint("tenant_id", "digest", name="uq_trace_log_tenant_id"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("trace_log_id", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_audit_tenant_id"),
        sa.ForeignKeyConstraint(["trace_log_id"], ["trace_log.id"], name="fk_audit_trace_log_id"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_tenant", "audit", ["tenant_id", "created", "id"])
    op.create_index("ix_audit_trace_log", "audit", ["trace_log_id"])

    op.create_table(
        "event",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_event_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", "sequence", name="pk_event"),
    )
    op.create_table(
        "evidence",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_evidence_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", "number", name="pk_evidence"),
    )
    op.create_table(
        "job",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("run_at", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lost_leases", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("finished", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_job_audit_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_job_tenant_id"),
        sa.PrimaryKeyConstraint("number", name="pk_job"),
        sa.UniqueConstraint("audit_id", name="uq_job_audit_id"),
    )
    op.create_index("ix_job_due", "job", ["state", "run_at"])
    op.create_index("ix_job_tenant", "job", ["tenant_id", "state"])

    op.create_table(
        "log_entry",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_log_entry_audit_id"),
        sa.PrimaryKeyConstraint("number", name="pk_log_entry"),
        sa.UniqueConstraint("audit_id", "kind", name="uq_log_entry_audit_id"),
        sa.UniqueConstraint("position", name="uq_log_entry_position"),
    )
    op.create_table(
        "verdict",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_verdict_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", name="pk_verdict"),
    )
    op.create_table(
        "checkpoint",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["job.audit_id"], name="fk_checkpoint_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", "step", name="pk_checkpoint"),
    )


def downgrade() -> None:
    op.drop_table("checkpoint")
    op.drop_table("verdict")
    op.drop_table("log_entry")
    op.drop_index("ix_job_tenant", table_name="job")
    op.drop_index("ix_job_due", table_name="job")

    op.drop_table("job")
    op.drop_table("evidence")
    op.drop_table("event")
    op.drop_index("ix_audit_trace_log", table_name="audit")
    op.drop_index("ix_audit_tenant", table_name="audit")

    op.drop_table("audit")
    op.drop_table("trace_log")
    op.drop_table("idempotency_key")
    op.drop_index("ix_api_key_tenant", table_name="api_key")

    op.drop_table("api_key")
    op.drop_table("tenant")
