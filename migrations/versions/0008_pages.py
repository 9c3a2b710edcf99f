"""What the pages show of finished audits, and who is signed in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exhibit",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("alpha", sa.Double(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audit.id"], name="fk_exhibit_audit_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_exhibit_tenant_id"),
        sa.PrimaryKeyConstraint("audit_id", name="pk_exhibit"),
    )
    summed = ["tenant_id", "provider", "model", "outcome", "tokens", "alpha", "audit_id"]
    op.create_index("ix_exhibit_subject", "exhibit", summed)
    op.create_table(
        "session",
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_key.id"], name="fk_session_api_key_id"),
        sa.PrimaryKeyConstraint("secret_sha256", name="pk_session"),
    )
    op.create_index("ix_session_expires", "session", ["expires"])


def downgrade() -> None:
    op.drop_table("session")
    op.drop_table("exhibit")
