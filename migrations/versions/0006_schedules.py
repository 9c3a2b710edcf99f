"""Schedules with their policies, slots and standing; mail; disputes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "policy",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_policy_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "digest", name="pk_policy"),
    )
    op.create_table(
        "schedule",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_schedule_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_schedule"),
    )
    op.create_index("ix_schedule_due", "schedule", ["state", "next_at"])
    op.create_index("ix_schedule_tenant", "schedule", ["tenant_id", "created", "id"])
    op.create_table(
        "slot",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("schedule_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("slot_at", sa.BigInteger(), nullable=False),
        sa.Column("missed", sa.Integer(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
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
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("seed", sa.Text(), nullable=True),
        sa.Column("budget_tokens", sa.BigInteger(), nullable=True),
        sa.Column("audit_id", sa.Text(), nullable=True),
        sa.Column("drawn", sa.Text(), nullable=True),
        sa.Column("period_start", sa.BigInteger(), nullable=True),
        sa.Column("period_end", sa.BigInteger(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("log_e", sa.Double(), nullable=True),
        sa.Column("suspicion", sa.Double(), nullable=True),
        sa.Column("findings", sa.Text(), nullable=True),
        sa.Column("report_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_slot_audit_id"),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedule.id"], name="fk_slot_schedule_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_slot_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_slot"),
        sa.UniqueConstraint("schedule_id", "slot_at", name="uq_slot_schedule_id"),
        sa.UniqueConstraint("tenant_id", "provider", "number", name="uq_slot_tenant_id"),
    )
    op.create_index("ix_slot_audit", "slot", ["audit_id"])
    op.create_index("ix_slot_due", "slot", ["state", "run_at"])
    op.create_index("ix_slot_provider", "slot", ["tenant_id", "provider", "slot_at"])
    op.create_table(
        "taken_log",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("trace_log_id", sa.Text(), nullable=False),
        sa.Column("slot_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["slot_id"], ["slot.id"], name="fk_taken_log_slot_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_taken_log_tenant_id"),
        sa.ForeignKeyConstraint(["trace_log_id"], ["trace_log.id"], name="fk_taken_log_trace_log_id"),
        sa.PrimaryKeyConstraint("tenant_id", "provider", "trace_log_id", name="pk_taken_log"),
    )
    op.create_index("ix_taken_log_slot", "taken_log", ["slot_id"])
    op.create_table(
        "taken_request",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("slot_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["slot_id"], ["slot.id"], name="fk_taken_request_slot_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_taken_request_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "provider", "content", name="pk_taken_request"),
    )
    op.create_table(
        "likelihood",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.Text(), nullable=False),
        sa.Column("prior", sa.LargeBinary(), nullable=False),
        sa.Column("calibration", sa.LargeBinary(), nullable=False),
        sa.Column("audited", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_likelihood_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", "number", name="pk_likelihood"),
    )
    op.create_table(
        "mail",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_mail_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_mail"),
    )
    op.create_index("ix_mail_due", "mail", ["state", "next_at"])
    op.create_table(
        "dispute",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_dispute_audit_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_dispute_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_dispute"),
    )
    op.create_index("ix_dispute_audit", "dispute", ["audit_id"])
    op.create_index("ix_dispute_tenant", "dispute", ["tenant_id", "created", "id"])
    op.create_table(
        "dispute_event",
        sa.Column("dispute_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dispute_id"], ["dispute.id"], name="fk_dispute_event_dispute_id"),
        sa.PrimaryKeyConstraint("dispute_id", "sequence", name="pk_dispute_event"),
    )


def downgrade() -> None:
    op.execute("DELETE FROM log_entry WHERE subject LIKE 'dsp_%'")
    op.drop_table("dispute_event")
    op.drop_table("dispute")
    op.drop_table("mail")
    op.drop_table("likelihood")
    op.drop_table("taken_request")
    op.drop_table("taken_log")
    op.drop_table("slot")
    op.drop_table("schedule")
    op.drop_table("policy")
