"""Reports, what they need to know of audits, and a log that tells of more than audits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("audit") as table:
        table.add_column(sa.Column("provider", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("audit") as table:
        table.alter_column("provider", server_default=None)
    with op.batch_alter_table("log_entry") as table:
        table.drop_constraint("fk_log_entry_audit_id", type_="foreignkey")
        table.drop_constraint("uq_log_entry_audit_id", type_="unique")
        table.alter_column("audit_id", new_column_name="subject")
    with op.batch_alter_table("log_entry") as table:
        table.create_unique_constraint("uq_log_entry_subject", ["subject", "kind"])
    op.create_table(
        "sample",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("population_requests", sa.BigInteger(), nullable=False),
        sa.Column("sampled_requests", sa.BigInteger(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("seed", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_sample_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", name="pk_sample"),
    )
    op.create_table(
        "tenant_salt",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_tenant_salt_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_salt"),
    )
    op.create_table(
        "report",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("period_start", sa.BigInteger(), nullable=False),
        sa.Column("period_end", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.LargeBinary(), nullable=False),
        sa.Column("previous_id", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["previous_id"], ["report.id"], name="fk_report_previous_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_report_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_report"),
    )
    op.create_index("ix_report_tenant", "report", ["tenant_id", "created", "id"])
    op.create_index("ix_report_series", "report", ["tenant_id", "provider", "period_end"])


def downgrade() -> None:
    op.drop_table("report")
    op.drop_table("tenant_salt")
    op.drop_table("sample")
    op.execute("DELETE FROM log_entry WHERE subject NOT IN (SELECT id FROM audit)")
    with op.batch_alter_table("log_entry") as table:
        table.drop_constraint("uq_log_entry_subject", type_="unique")
        table.alter_column("subject", new_column_name="audit_id")
    with op.batch_alter_table("log_entry") as table:
        table.create_foreign_key("fk_log_entry_audit_id", "audit", ["audit_id"], ["id"])
        table.create_unique_constraint("uq_log_entry_audit_id", ["audit_id", "kind"])
    with op.batch_alter_table("audit") as table:
        table.drop_column("provider")
