"""Who else has a log is asked at every erasure, of all tenants: by an index."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_trace_log_digest", "trace_log", ["digest"])


def downgrade() -> None:
    op.drop_index("ix_trace_log_digest", "trace_log")
