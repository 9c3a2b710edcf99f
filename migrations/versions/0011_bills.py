"""What scheduled audits found billed beyond ids and text, for a provider's standing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bill",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("excesses", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_bill_audit_id"),
        sa.PrimaryKeyConstraint("audit_id", name="pk_bill"),
    )


def downgrade() -> None:
    op.drop_table("bill")
