"""The log over HTTP: what was acknowledged is provably in it, once, whatever broke off in between."""

from __future__ import annotations

import json
import shutil

import pytest

from auditor.errors import LogForkError
from auditor.merkle.policy import parse_policy
from auditor.service.log_placing import open_log, place
from auditor.standalone_verifier import main as verify_standalone
from auditor.store_engine import connect_to, find_place, for_writing
from auditor.transparency_log import TransparencyLog, verify_log
from tests.api.conftest import LINE, refused


@pytest.fixture
def log(world, tmp_path):
    return open_log(world.service.log, tmp_path / "log.key")


def policy_of(log):
    return f"log {log.signer.public.vkey}\nquorum none\n".encode()


def checked(log):
    """The log's size, after walking all of it."""
    return verify_log(log.folder, parse_policy(policy_of(log))).size


def test_a_verdict_is_in_the_signed_log_and_its_receipt_verifies_offline(world, log, tmp_path, capsys):
    path = f"/v1/audits/{world.alice.submit().json()['id']}"
    refused(world.alice.get(f"{path}/receipts/submission"), 409, "not-finished")
    refused(world.alice.get(f"{path}/receipts/verdict"), 409, "not-finished")
    world.work()
    assert place(world.service.store, log) == 2
    (tmp_path / "policy").write_bytes(policy_of(log))
    for kind in ("submission", "verdict"):
        entry = world.alice.get(f"{path}/entries/{kind}").content
        receipt = world.alice.get(f"{path}/receipts/{kind}").content
        assert json.loads(entry)["tenant"] == world.alice.tenant.id
        (tmp_path / "entry").write_bytes(entry)
        (tmp_path / "proof").write_bytes(receipt)
        arguments = [str(tmp_path / name) for name in ("proof", "entry", "policy")]
        assert verify_standalone(arguments) == 0, capsys.readouterr()
    digest = world.alice.get(path).json()["verdict_digest"]
    assert json.loads(entry)["verdict"] == digest
    assert world.client.get("/log/checkpoint").content == (log.folder / "checkpoint").read_bytes()
    assert world.client.get("/log/tile/entries/000.p/2").status_code == 200
    assert checked(log) == 2


def test_places_are_given_once_in_order_and_a_crash_before_the_append_is_made_good(world, log, monkeypatch):
    for number in range(3):
        world.alice.submit(LINE % number)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransparencyLog, "append", crash)
    with pytest.raises(KeyboardInterrupt):
        place(world.service.store, log)
    monkeypatch.undo()
    world.alice.submit(LINE % 9)
    assert [place(world.service.store, log) for _ in range(2)] == [4, 4]
    assert checked(log) == 4


def test_an_old_copy_of_the_database_cannot_fork_the_log(world, log, database_url):
    for number in range(3):
        world.alice.submit(LINE % number)
    assert place(world.service.store, log) == 3
    engine = connect_to(find_place(database_url))
    with for_writing(engine.connect()) as connection, connection.begin():
        connection.exec_driver_sql("DELETE FROM log_entry WHERE position = 2")
    engine.dispose()
    before = (log.folder / "checkpoint").read_bytes()
    with pytest.raises(LogForkError, match="old copy of the database"):
        place(world.service.store, log)
    assert (log.folder / "checkpoint").read_bytes() == before


def test_nothing_but_tiles_is_served(world, log):
    (log.folder.parent / "secret").write_text("x")
    for path in (
        "../.log",
        "0/../../.log",
        "%2e%2e/%2e%2e/secret",
        "0//000",
        "64/000",
        "0/000.p/0",
        "0/%2Fetc%2Fpasswd",
    ):
        assert world.client.get(f"/log/tile/{path}").status_code == 404
    shutil.rmtree(log.folder)
    refused(world.client.get("/log/checkpoint"), 404, "not-found")
