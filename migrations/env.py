"""How Alembic runs our revisions; `auditor.store_migrations` calls it with an open transaction.

After changing `auditor/store_schema.py`, make a revision from the checkout, on a scratch database:

    export AUDITOR_DATABASE_URL=sqlite:////tmp/scratch.sqlite3
    alembic -c migrations/alembic.ini upgrade head
    alembic -c migrations/alembic.ini revision --autogenerate -m "add jobs"

Then name it NNNN_what.py with that revision id, read every line (batch mode copies tables on SQLite), give it
a downgrade, and run tests/migrations on both databases.
"""

from __future__ import annotations

import os
import pkgutil

from alembic import context
from sqlalchemy import Connection, create_engine


def _run(connection: Connection) -> None:
    metadata = context.config.attributes.get("metadata")
    if metadata is None:
        metadata = pkgutil.resolve_name(context.config.get_main_option("metadata", ""))
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


_connection = context.config.attributes.get("connection")
if _connection is not None:
    _run(_connection)
else:
    with create_engine(os.environ["AUDITOR_DATABASE_URL"]).begin() as _scratch:
        _run(_scratch)
