"""Calibration profiles."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "profile",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=False),
        sa.Column("provider_recipe", sa.Text(), nullable=False),
        sa.Column("reference_recipe", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("created", sa.Text(), nullable=False),
        sa.Column("honest_tokens", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_profile"),
        sa.UniqueConstraint("id", name="uq_profile_id"),
    )
    op.create_index(
        "ix_profile_key",
        "profile",
        ["model_digest", "provider_recipe", "reference_recipe", "family", "created"],
    )


def downgrade() -> None:
    op.drop_index("ix_profile_key", table_name="profile")
    op.drop_table("profile")
