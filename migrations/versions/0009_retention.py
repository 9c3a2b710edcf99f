"""How long a tenant's logs are kept, and when one was erased."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenant", sa.Column("retention_days", sa.Integer(), nullable=True))
    op.add_column("trace_log", sa.Column("erased", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("trace_log", "erased")
    op.drop_column("tenant", "retention_days")
