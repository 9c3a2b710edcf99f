"""Keys of providers who sign what they submit, and the nonces they used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("public_key", sa.Text(), nullable=True))
    op.create_table(
        "nonce",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name="fk_nonce_key_id"),
        sa.PrimaryKeyConstraint("key_id", "nonce", name="pk_nonce"),
    )
    op.create_index("ix_nonce_expires", "nonce", ["expires"])


def downgrade() -> None:
    op.drop_table("nonce")
    # Without the column a signing key would look like one with an unknown secret.
    op.execute("DELETE FROM api_key WHERE public_key IS NOT NULL")
    with op.batch_alter_table("api_key") as table:
        table.drop_column("public_key")
