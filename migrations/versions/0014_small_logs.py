"""Small logs in the database: bytes by their digest, committed with the submission that brings them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "small_log",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_small_log")),
    )


def downgrade() -> None:
    """Bytes that nothing else holds: whoever goes back keeps a backup, as for every table that goes."""
    op.drop_table("small_log")
