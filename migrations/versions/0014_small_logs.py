"""Small logs in the database, committed with what they came with; and when what was opened was erased."""

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
        sa.PrimaryKeyConstraint("digest", name="pk_small_log"),
    )
    op.add_column("challenge", sa.Column("erased", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Bytes that nothing else holds: whoever goes back keeps a backup, as for every table that goes."""
    op.drop_column("challenge", "erased")
    op.drop_table("small_log")
