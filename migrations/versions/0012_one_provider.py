"""A provider is its name: audits are linked to who is registered under it, exhibits go by the audits' names.

An audit whose submitter named nobody keeps the name that its log gave, on the pages only: reports that were
made of it must come out again as they are. A downgrade has the exhibits go by what their logs name again.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "UPDATE audit SET provider_id = (SELECT provider.id FROM provider"
        " WHERE provider.tenant_id = audit.tenant_id AND provider.name = audit.provider)"
    )
    op.execute(
        "UPDATE exhibit SET provider = (SELECT audit.provider FROM audit WHERE audit.id = exhibit.audit_id)"
        " WHERE audit_id IN (SELECT audit.id FROM audit WHERE audit.provider <> '')"
    )


def downgrade() -> None:
    connection = op.get_bind()
    named = sa.text(
        "SELECT exhibit.audit_id, exhibit.body FROM exhibit"
        " JOIN audit ON audit.id = exhibit.audit_id WHERE audit.provider <> ''"
    )
    change = sa.text("UPDATE exhibit SET provider = :provider WHERE audit_id = :audit_id")
    for audit_id, body in connection.execute(named).all():
        found = {subject["provider"] for subject in json.loads(bytes(body)).get("subjects", [])}
        only = found.pop() if len(found) == 1 else None
        connection.execute(change, {"provider": only, "audit_id": audit_id})
