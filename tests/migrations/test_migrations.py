"""Revisions on real SQLite and PostgreSQL, with data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from auditor.errors import StoreError
from auditor.store import Store
from auditor.store_commitments import metadata
from auditor.store_engine import connect_to, find_place, for_writing
from auditor.store_migrations import REVISIONS, downgrade, prepare, read_revision

CHECKOUT = Path(__file__).resolve().parent.parent.parent
INSERT = (
    "INSERT INTO profile"
    " (id, model_digest, provider_recipe, reference_recipe, family, created, honest_tokens, body)"
    " VALUES ('sha256:1', 'm', 'p', 'r', 'race', '2026-11-23T12:00:00.000000Z', 5, 'x')"
)
NEWEST = "0015"
COMING = """
import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{newest}"


def upgrade():
    with op.batch_alter_table("profile") as table:
        table.add_column(sa.Column("note", sa.Text(), nullable=True))
    {after}


def downgrade():
    with op.batch_alter_table("profile") as table:
        table.drop_column("note")
"""


class Database:
    def __init__(self, url):
        self.place = find_place(url)
        self.engine = connect_to(self.place)

    def prepare(self, *, move_older=False, scripts=REVISIONS):
        prepare(self.place, self.engine, move_older=move_older, scripts=scripts)

    def execute(self, sql):
        with for_writing(self.engine.connect()) as connection, connection.begin():
            connection.execute(text(sql))

    def rows(self, sql):
        with self.engine.connect() as connection:
            return connection.execute(text(sql)).all()

    def named_rows(self, table):
        with self.engine.connect() as connection:
            found = connection.execute(text(f"SELECT * FROM {table}")).mappings().all()
        return [{k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items()} for row in found]

    def tables(self):
        with self.engine.connect() as connection:
            return set(inspect(connection).get_table_names())

    def revision(self):
        with self.engine.connect() as connection:
            return read_revision(connection)


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    yield database
    database.engine.dispose()


@pytest.fixture
def next_scripts(tmp_path):
    """What a coming release would ship: our revisions and one more, which ends with `after`."""

    def make(after="pass"):
        folder = tmp_path / "100% next scripts"
        shutil.copytree(REVISIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "9000_note.py").write_text(
            COMING.replace("{after}", after).replace("{newest}", NEWEST)
        )
        return folder

    return make


def test_an_empty_database_is_brought_to_the_newest_revision(database):
    database.prepare()
    assert database.revision().is_newest
    assert database.tables() == metadata.tables.keys() | {"alembic_version"}


def test_tables_are_what_the_program_expects(database):
    database.prepare()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_comparison_notices_a_missing_index(database):
    database.prepare()
    database.execute("DROP INDEX ix_profile_key")
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata)


def test_a_downgrade_with_data_leaves_an_empty_database_that_opens_again(database):
    database.prepare()
    database.execute(INSERT)
    downgrade(database.place, "base")
    assert database.tables() == {"alembic_version"}
    database.prepare()
    assert database.rows("SELECT count(*) FROM profile") == [(0,)]


def test_data_survive_the_next_upgrade_and_downgrade(database, next_scripts):
    scripts = next_scripts()
    database.prepare()
    database.execute(INSERT)
    database.prepare(move_older=True, scripts=scripts)
    assert database.rows("SELECT id, honest_tokens, note FROM profile") == [("sha256:1", 5, None)]
    downgrade(database.place, NEWEST, scripts=scripts)
    assert database.revision().is_newest
    assert database.rows("SELECT id, honest_tokens FROM profile") == [("sha256:1", 5)]
    database.prepare()


def test_an_older_revision_is_refused_and_says_how_to_upgrade(database, next_scripts):
    scripts = next_scripts()
    database.prepare()
    with pytest.raises(StoreError, match=rf"at revision {NEWEST}.*needs 9000.*Store\.upgrade") as caught:
        database.prepare(scripts=scripts)
    assert "\n" not in str(caught.value)
    assert database.revision().found == NEWEST


def test_an_unknown_revision_is_refused_even_by_upgrade(database, database_url, next_scripts):
    database.prepare(move_older=True, scripts=next_scripts())
    for attempt in (Store.open, Store.upgrade):
        with pytest.raises(StoreError, match=rf"9000; the newest this program knows is {NEWEST}.*newer"):
            attempt(database_url)


def test_somebody_elses_database_is_not_touched(database, database_url):
    database.execute("CREATE TABLE theirs (x INTEGER)")
    for attempt in (Store.open, Store.upgrade):
        with pytest.raises(StoreError, match="not a store of this program"):
            attempt(database_url)
    assert database.tables() == {"theirs"}


def test_a_revision_that_fails_changes_nothing(database, next_scripts):
    database.prepare()
    database.execute(INSERT)
    with pytest.raises(StoreError, match="nothing_here"):
        database.prepare(move_older=True, scripts=next_scripts('op.execute("SELECT * FROM nothing_here")'))
    assert database.revision().is_newest
    assert database.rows("SELECT id FROM profile") == [("sha256:1",)]
    with database.engine.connect() as connection:
        assert "note" not in {c["name"] for c in inspect(connection).get_columns("profile")}


def test_a_revision_may_not_leave_broken_references(tmp_path, next_scripts):
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    database.prepare()
    orphan = (
        'op.execute("CREATE TABLE child (of INTEGER REFERENCES profile (number))")\n'
        '    op.execute("INSERT INTO child VALUES (99)")'
    )
    with pytest.raises(StoreError, match="references of table child"):
        database.prepare(move_older=True, scripts=next_scripts(orphan))
    assert "child" not in database.tables()
    database.engine.dispose()


def test_copying_a_parent_table_keeps_its_children(tmp_path, next_scripts):
    """SQLite drops the old copy: with foreign keys on, that would delete the children too."""
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    database.prepare()
    database.execute(INSERT)
    database.execute("CREATE TABLE child (of INTEGER REFERENCES profile (number) ON DELETE CASCADE)")
    database.execute("INSERT INTO child SELECT number FROM profile")
    copying = (
        'with op.batch_alter_table("profile", recreate="always") as t: t.alter_column("note", nullable=True)'
    )
    database.prepare(move_older=True, scripts=next_scripts(copying))
    assert database.rows("SELECT count(*) FROM child") == [(1,)]
    database.engine.dispose()


def test_a_developer_can_generate_a_revision(tmp_path):
    """The commands of migrations/env.py, on a copy of the checkout's folder."""
    shutil.copytree(
        CHECKOUT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = os.environ | {"AUDITOR_DATABASE_URL": f"sqlite:///{tmp_path / 'scratch.sqlite3'}"}
    for arguments in (
        ["upgrade", "head"],
        ["revision", "--autogenerate", "-m", "nothing", "--rev-id", "9999"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-c", "migrations/alembic.ini", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "migrations" / "versions").glob("9999*.py")
    assert "pass" in made.read_text()
    assert "op." not in made.read_text().replace("from alembic import op", "")


SERVICE_ROWS = (
    "INSERT INTO tenant (id, name, created, most_running) VALUES ('ten_1', 'acme', 1, 4)",
    (
        "INSERT INTO api_key"
        " (id, tenant_id, name, secret_sha256, scopes, created, expires, revoked, allowance, allowance_at)"
        " VALUES ('ak_1', 'ten_1', 'first', 'x', 'keys', 1, 9, NULL, 5.5, 1)"
    ),
    "INSERT INTO trace_log (id, tenant_id, digest, name, size, created) VALUES ('log_1', 'ten_1', 'sha256:0', 'a.jsonl', 7, 1)",
    "INSERT INTO audit (id, tenant_id, trace_log_id, created, options) VALUES ('aud_1', 'ten_1', 'log_1', 2, '{}')",
    (
        "INSERT INTO job (audit_id, tenant_id, state, run_at, attempts, lost_leases, token)"
        " VALUES ('aud_1', 'ten_1', 'done', 1, 0, 0, 1)"
    ),
    "INSERT INTO checkpoint VALUES ('aud_1', 0, 1, 'x')",
    "INSERT INTO event VALUES ('aud_1', 1, 'queued', '{}', 2)",
    "INSERT INTO evidence VALUES ('aud_1', 0, '{}')",
    "INSERT INTO verdict VALUES ('aud_1', 'inconclusive', 'sha256:1', 3, '{}')",
    "INSERT INTO log_entry (audit_id, kind, body, position) VALUES ('aud_1', 'verdict', '{}', NULL)",
    "INSERT INTO upload VALUES ('upl_1', 'ten_1', 'a', 'sha256:0', 7, 1, 'log_1')",
    "INSERT INTO idempotency_key VALUES ('ten_1', 'k', 'x', 'aud_1', 2)",
    "INSERT INTO exhibit VALUES ('aud_1', 'ten_1', 'acme', NULL, 'consistent', 7, 0.001, '{}')",
    "INSERT INTO session VALUES ('x', 'ak_1', 1, 9)",
    "INSERT INTO webhook VALUES ('whk_1', 'ten_1', 'https://example.com/', '', 1, NULL)",
    (
        "INSERT INTO delivery VALUES"
        " ('msg_1', 'ten_1', 'whk_1', 'audit.done', '{}', 1, 'pending', 0, 1, 0, NULL, NULL)"
    ),
    "INSERT INTO nonce VALUES ('ak_1', 'n', 9)",
)
LATER = ("upload", "report", "sample", "tenant_salt", "webhook", "delivery")
LATER += ("policy", "schedule", "slot", "taken_log", "taken_request", "likelihood", "mail")
LATER += ("dispute", "dispute_event", "nonce", "exhibit", "session")
LATER += ("provider", "provider_key", "model", "tenant_profile")
LATER += ("trusted_key", "commitment", "streaming_head", "challenge", "opening", "bill", "small_log")
"""Tables that came after the service's first release."""


def rows_before(*tables):
    """Rows of a database in which these tables are not there yet."""
    return [row for row in SERVICE_ROWS if not any(f"INTO {table} " in row for table in tables)]


COMMITMENT_ROWS = (
    "INSERT INTO provider VALUES ('prv_1', 'ten_1', 'acme', 1, 1)",
    "INSERT INTO provider_key VALUES ('ten_1', 'acme+00+AA', 'prv_1')",
    "INSERT INTO model VALUES ('mdl_1', 'ten_1', 'demo', 'sha256:0', 'sha256:1', NULL, 1)",
    "INSERT INTO tenant_profile VALUES ('ten_1', 'sha256:2', 'm', 'p', 'r', 'race', 't', 5, 1, NULL, NULL, 'x')",
    "INSERT INTO trusted_key VALUES ('ten_1', 'auditor+00+AA')",
    "INSERT INTO commitment VALUES ('cmt_1', 'ten_1', 'prv_1', 'req-1', 1, 2)",
    "INSERT INTO streaming_head VALUES ('cmt_1', 0, 'ten_1', 'note', '[]', NULL, 1)",
    "INSERT INTO challenge VALUES ('chl_1', 'ten_1', 'cmt_1', 1, 2, 'open', '{}', 'c', NULL, NULL, NULL)",
    "INSERT INTO opening VALUES ('chl_1', 'ten_1', 2, 'sha256:3', '{}')",
    "INSERT INTO log_entry (subject, kind, body) VALUES ('cmt_1', 'head-0', '{}')",
    "INSERT INTO log_entry (subject, kind, body) VALUES ('chl_1', 'challenge', '{}')",
    (
        "INSERT INTO api_key (id, tenant_id, name, secret_sha256, scopes, created, expires, allowance,"
        " allowance_at, provider_id) VALUES ('ak_2', 'ten_1', 'acme', 'x', 'provider', 1, 9, 5.5, 1, 'prv_1')"
    ),
    "UPDATE audit SET provider_id = 'prv_1'",
)


def test_audits_survive_the_coming_and_going_of_commitments(database):
    database.prepare()
    downgrade(database.place, "0003")
    for row in rows_before(*LATER[1:]):
        database.execute(row)
    database.prepare(move_older=True)
    for row in COMMITMENT_ROWS:
        database.execute(row)
    downgrade(database.place, "0009")
    assert "commitment" not in database.tables()
    for table in metadata.tables.keys() - {"profile", *LATER}:
        assert database.rows(f"SELECT count(*) FROM {table}") == [(1,)], table
    database.prepare(move_older=True)
    assert database.rows("SELECT id, provider_id FROM audit") == [("aud_1", None)]
    assert database.rows("SELECT subject FROM log_entry") == [("aud_1",)]
    for row in COMMITMENT_ROWS:
        database.execute(row)


def test_audits_go_by_the_name_of_their_provider_and_exhibits_with_them(database):
    database.prepare()
    downgrade(database.place, "0011")

    def fill(*tables):
        for row in SERVICE_ROWS:
            if any(f"INTO {table} " in row for table in tables):
                database.execute(row)

    fill("tenant", "trace_log")
    audit = "INSERT INTO audit (id, tenant_id, trace_log_id, created, options, provider, provider_id) VALUES"
    database.execute("INSERT INTO provider VALUES ('prv_1', 'ten_1', 'acme', 1, 1)")
    database.execute("INSERT INTO provider VALUES ('prv_2', 'ten_1', 'renamed', 1, 2)")
    database.execute(f"{audit} ('aud_1', 'ten_1', 'log_1', 2, '{{}}', 'acme', NULL)")
    fill("job")
    database.execute(f"{audit} ('aud_2', 'ten_1', 'log_1', 3, '{{}}', 'was', 'prv_2')")
    database.execute(f"{audit} ('aud_3', 'ten_1', 'log_1', 3, '{{}}', '', NULL)")
    for number, subjects in ((1, ["log's"]), (2, ["a", "b"]), (3, ["log's"])):
        body = json.dumps({"subjects": [{"provider": name} for name in subjects]})
        shown = "NULL" if len(subjects) > 1 else "'log''s'"
        with for_writing(database.engine.connect()) as connection, connection.begin():
            sql = f"INSERT INTO exhibit VALUES ('aud_{number}', 'ten_1', {shown}, NULL, 'consistent', 7, 0.001, :body)"
            connection.execute(text(sql), {"body": body.encode()})
    links = "SELECT id, provider, provider_id FROM audit ORDER BY id"
    shown = "SELECT audit_id, provider FROM exhibit ORDER BY audit_id"
    old = database.rows(shown)
    database.prepare(move_older=True)
    assert database.rows(links) == [("aud_1", "acme", "prv_1"), ("aud_2", "was", None), ("aud_3", "", None)]
    assert database.rows(shown) == [("aud_1", "acme"), ("aud_2", "was"), ("aud_3", "log's")]
    database.execute("UPDATE job SET traceparent = '00-ab'")
    downgrade(database.place, "0011")
    assert database.rows(shown) == old
    database.prepare(move_older=True)
    assert database.rows("SELECT traceparent FROM job") == [(None,)]


def test_the_services_first_database_moves_to_the_newest_with_its_data(database):
    database.prepare()
    downgrade(database.place, "0002")
    for row in rows_before(*LATER):
        database.execute(row)
    tables = metadata.tables.keys() - {"profile", *LATER}
    before = {table: database.named_rows(table) for table in tables}
    assert all(len(rows) == 1 for rows in before.values())
    database.prepare(move_older=True)
    assert database.revision().is_newest
    for table, rows in before.items():
        (old,), (new,) = rows, database.named_rows(table)
        renamed = {"audit_id": "subject"} if table == "log_entry" else {}
        old = {renamed.get(name, name): value for name, value in old.items()}
        assert old.items() <= new.items(), table  # every value, and new columns beside them
    assert database.rows("SELECT provider FROM audit") == [("",)]
    assert database.rows("SELECT subject, kind FROM log_entry") == [("aud_1", "verdict")]


def test_entries_of_reports_leave_with_the_reports(database):
    database.prepare()
    downgrade(database.place, "0003")
    for row in rows_before(*LATER[1:]):
        database.execute(row)
    database.prepare(move_older=True)
    database.execute("INSERT INTO log_entry (subject, kind, body) VALUES ('rep_1', 'report', '{}')")
    downgrade(database.place, "0003")
    assert database.rows("SELECT audit_id, kind FROM log_entry") == [("aud_1", "verdict")]


def test_profiles_survive_the_coming_and_going_of_the_service(database):
    database.prepare()
    database.execute(INSERT)
    downgrade(database.place, "0003")
    for row in rows_before(*LATER[1:]):
        database.execute(row)
    database.prepare(move_older=True)
    downgrade(database.place, "0001")
    assert database.tables() == {"profile", "alembic_version"}
    assert database.rows("SELECT id, honest_tokens FROM profile") == [("sha256:1", 5)]
    database.prepare(move_older=True)
    assert database.rows("SELECT id, honest_tokens FROM profile") == [("sha256:1", 5)]
    assert database.rows("SELECT count(*) FROM audit") == [(0,)]
