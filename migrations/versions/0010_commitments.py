"""Providers, models, a tenant's profiles, commitments with their streamed heads, challenges and openings.

A downgrade forgets commitments and challenges, their log entries too. A tree that holds such entries is then
longer than the database, which the placing of entries refuses to continue.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=False),
        sa.Column("tokenizer_digest", sa.Text(), nullable=False),
        sa.Column("template_digest", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_model_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_model_tenant_id"),
    )
    op.create_index("ix_model_digests", "model", ["tenant_id", "model_digest", "tokenizer_digest"])
    op.create_index("ix_model_tenant", "model", ["tenant_id", "created", "id"])

    op.create_table(
        "provider",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_provider_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_provider"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_provider_tenant_id"),
    )
    op.create_index("ix_provider_tenant", "provider", ["tenant_id", "created", "id"])

    op.create_table(
        "tenant_profile",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=False),
        sa.Column("provider_recipe", sa.Text(), nullable=False),
        sa.Column("reference_recipe", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("made", sa.Text(), nullable=False),
        sa.Column("honest_tokens", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_tenant_profile_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_tenant_profile"),
    )
    op.create_index("ix_tenant_profile_created", "tenant_profile", ["tenant_id", "created", "id"])

    op.create_table(
        "trusted_key",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("vkey", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_trusted_key_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "vkey", name="pk_trusted_key"),
    )
    op.create_table(
        "commitment",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("finished", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["provider_id"], ["provider.id"], name="fk_commitment_provider_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_commitment_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_commitment"),
        sa.UniqueConstraint("tenant_id", "provider_id", "request", name="uq_commitment_tenant_id"),
    )
    op.create_index("ix_commitment_tenant", "commitment", ["tenant_id", "created", "id"])

    op.create_table(
        "provider_key",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("vkey", sa.Text(), nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["provider_id"], ["provider.id"], name="fk_provider_key_provider_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_provider_key_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "vkey", name="pk_provider_key"),
    )
    op.create_index("ix_provider_key_provider", "provider_key", ["provider_id"])

    op.create_table(
        "challenge",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("commitment_id", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("finished", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["commitment_id"], ["commitment.id"], name="fk_challenge_commitment_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_challenge_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_challenge"),
    )
    op.create_index("ix_challenge_commitment", "challenge", ["commitment_id"])
    op.create_index("ix_challenge_due", "challenge", ["state", "deadline"])
    op.create_index("ix_challenge_tenant", "challenge", ["tenant_id", "created", "id"])

    op.create_table(
        "streaming_head",
        sa.Column("commitment_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("proof", sa.Text(), nullable=False),
        sa.Column("received", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["commitment_id"], ["commitment.id"], name="fk_streaming_head_commitment_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_streaming_head_tenant_id"),
        sa.PrimaryKeyConstraint("commitment_id", "sequence", name="pk_streaming_head"),
    )
    op.create_table(
        "opening",
        sa.Column("challenge_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["challenge_id"], ["challenge.id"], name="fk_opening_challenge_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_opening_tenant_id"),
        sa.PrimaryKeyConstraint("challenge_id", name="pk_opening"),
    )
    with op.batch_alter_table("api_key") as table:
        table.add_column(sa.Column("provider_id", sa.Text(), nullable=True))
        table.create_foreign_key("fk_api_key_provider_id", "provider", ["provider_id"], ["id"])

    with op.batch_alter_table("audit") as table:
        table.add_column(sa.Column("provider_id", sa.Text(), nullable=True))
        table.create_index("ix_audit_provider", ["provider_id"], unique=False)
        table.create_foreign_key("fk_audit_provider_id", "provider", ["provider_id"], ["id"])


def downgrade() -> None:
    op.execute(
        "DELETE FROM log_entry WHERE subject LIKE 'cmt\\_%' ESCAPE '\\' OR subject LIKE 'chl\\_%' ESCAPE '\\'"
    )
    op.execute("DELETE FROM api_key WHERE provider_id IS NOT NULL")
    with op.batch_alter_table("audit") as table:
        table.drop_constraint("fk_audit_provider_id", type_="foreignkey")
        table.drop_index("ix_audit_provider")
        table.drop_column("provider_id")

    with op.batch_alter_table("api_key") as table:
        table.drop_constraint("fk_api_key_provider_id", type_="foreignkey")
        table.drop_column("provider_id")

    op.drop_table("opening")
    op.drop_table("streaming_head")
    op.drop_index("ix_challenge_tenant", table_name="challenge")
    op.drop_index("ix_challenge_due", table_name="challenge")
    op.drop_index("ix_challenge_commitment", table_name="challenge")

    op.drop_table("challenge")
    op.drop_index("ix_provider_key_provider", table_name="provider_key")

    op.drop_table("provider_key")
    op.drop_index("ix_commitment_tenant", table_name="commitment")

    op.drop_table("commitment")
    op.drop_table("trusted_key")
    op.drop_index("ix_tenant_profile_created", table_name="tenant_profile")

    op.drop_table("tenant_profile")
    op.drop_index("ix_provider_tenant", table_name="provider")

    op.drop_table("provider")
    op.drop_index("ix_model_tenant", table_name="model")
    op.drop_index("ix_model_digests", table_name="model")

    op.drop_table("model")
