"""The log on disk, its signer's memory, its witnesses, its keys and its commands."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest

from auditor import standalone_verifier
from auditor.errors import (
    AuditError,
    EntrySizeError,
    KeyFileError,
    LeafIndexError,
    LogForkError,
    LogShrinkError,
    LogStateError,
    OriginUnknownError,
    OutputExistsError,
    SignatureInvalidError,
    TileError,
)
from auditor.key_files import generate, read_key, read_public_key, write_key
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.policy import Policy
from auditor.merkle.proofs import verify_consistency
from auditor.merkle.receipts import verify_receipt
from auditor.merkle.tiles import ENTRIES, Tile, levels_of, parse_tile_path, tiles_of
from auditor.merkle.tree import Tree
from auditor.transparency_log import TransparencyLog, attach_cosignatures, verify_log
from auditor.witness import Witness, witness_server

ORIGIN = "example.com/log"
KEY = SeedSigner(ORIGIN, Algorithm.ED25519, b"\x01" * 32)
WITNESS = SeedSigner("witness.example", Algorithm.ED25519_COSIGNATURE, b"\x02" * 32)
TRUST = Policy((KEY.public,))
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch):
    """Tests make hundreds of small files; that they survive a power cut is not what is tested here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def log(tmp_path):
    return TransparencyLog.create(tmp_path / "log", ORIGIN)


def sign(log, tmp_path, time=1_700_000_000):
    return log.sign([KEY], tmp_path / "key.head", time)


def test_a_log_grown_in_any_steps_verifies_and_proves_every_entry(log, tmp_path):
    entries = [b"%d" % i * (i % 5) for i in range(700)]
    grown = 0
    for step in (0, 1, 2, 252, 1, 1, 255, 1, 187):
        assert log.append(entries[grown : grown + step]) == range(grown, grown + step)
        grown += step
        sign(log, tmp_path)
        head = verify_log(log.folder, TRUST)
        assert (head.size, head.root) == (grown, Tree.of_entries(entries[:grown]).root())
    assert grown == 700
    for index in (0, 255, 256, 511, 512, 699):
        assert log.entry(index) == entries[index]
        verify_receipt(log.prove(index), entries[index], TRUST)
    for old in (1, 255, 256, 600, 700):
        request = log.witness_request(old)
        old_root = Tree.of_entries(entries[:old]).root()
        verify_consistency(old, 700, request.proof, old_root, request.checkpoint.root)
    with pytest.raises(LeafIndexError):
        log.prove(700)
    with pytest.raises(LeafIndexError):
        log.entry(700)


def test_an_old_copy_of_the_log_is_not_signed(log, tmp_path):
    log.append([b"a", b"b"])
    sign(log, tmp_path)
    shutil.copytree(log.folder, tmp_path / "backup")
    log.append([b"c"])
    sign(log, tmp_path)
    restored = TransparencyLog(tmp_path / "backup")
    with pytest.raises(LogShrinkError):
        sign(restored, tmp_path)
    restored.append([b"another c"])
    with pytest.raises(LogForkError):
        sign(restored, tmp_path)
    restored.append([b"d"])
    with pytest.raises(LogForkError):
        sign(restored, tmp_path)
    assert restored.checkpoint()[1].size == 2


def test_a_head_file_that_cannot_be_read_is_not_taken_for_a_new_log(log, tmp_path):
    log.append([b"a"])
    for content in (
        b"",
        b"{}",
        b'{"size": 1, "root": "00"}',
        b'{"size": true, "root": "' + b"0" * 64 + b'"}',
    ):
        (tmp_path / "key.head").write_bytes(content)
        with pytest.raises(LogStateError):
            sign(log, tmp_path)


def test_every_changed_file_of_a_log_is_noticed(log, tmp_path):
    log.append([b"entry %d" % i for i in range(300)])
    sign(log, tmp_path)
    shown = [t for level in (ENTRIES, *levels_of(300)) for t in tiles_of(300, level)]
    assert len(shown) == 2 + 2 + 1
    for name in [*(t.path() for t in shown), "checkpoint"]:
        path = log.folder / name
        good = path.read_bytes()
        for bad in (
            good[:-1],
            bytes([good[0] ^ 1]) + good[1:],
            good[:-3] + bytes([good[-3] ^ 1]) + good[-2:],
            b"",
        ):
            path.write_bytes(bad)
            with pytest.raises(AuditError):
                verify_log(log.folder, TRUST)
        path.unlink()
        with pytest.raises((TileError, LogStateError)):
            verify_log(log.folder, TRUST)
        path.write_bytes(good)
    verify_log(log.folder, TRUST)


def test_appending_from_many_sides_loses_nothing(log):
    with ThreadPoolExecutor(4) as pool:
        spans = list(pool.map(lambda i: TransparencyLog(log.folder).append([b"%d" % i] * 3), range(20)))
    assert sorted(i for span in spans for i in span) == list(range(60))
    assert TransparencyLog(log.folder).size == 60


def test_refusals_of_the_log(log, tmp_path):
    with pytest.raises(LogStateError, match="no log"):
        TransparencyLog(tmp_path / "nowhere")
    with pytest.raises(LogStateError, match="already"):
        TransparencyLog.create(log.folder, ORIGIN)
    with pytest.raises(LogStateError, match="checkpoint"):
        log.checkpoint()
    with pytest.raises(EntrySizeError):
        log.append([b"fine", b"x" * 65_536])
    assert TransparencyLog(log.folder).size == 0
    with pytest.raises(OriginUnknownError):
        log.sign([WITNESS], tmp_path / "key.head", 0)


def test_keys_overlap_while_one_replaces_another(log, tmp_path):
    new = SeedSigner(ORIGIN, Algorithm.ED25519, b"\x03" * 32)
    log.append([b"a"])
    log.sign([KEY, new], tmp_path / "key.head", 0)
    for trusted in (KEY, new):
        verify_log(log.folder, Policy((trusted.public,)))


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(1, 1234067), "tile/1/x001/x234/067"),
        (Tile(ENTRIES, 1000, 7), "tile/entries/x001/000.p/7"),
    ],
)
def test_tile_names(tile, path):
    assert tile.path() == path
    assert parse_tile_path(path) == tile


@pytest.mark.parametrize(
    "path", ["tile/0/0", "tile/00/000", "tile/64/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/x000/001",
             "tile/0/../../x", "tile/0/000.p/07", "/tile/0/000"],
)  # fmt: skip
def test_what_is_no_tile_name(path):
    with pytest.raises(TileError):
        parse_tile_path(path)


def test_a_tree_of_70000_has_the_tiles_the_specification_names():
    widths = {level: [t.width for t in tiles_of(70_000, level)] for level in levels_of(70_000)}
    assert widths == {0: [256] * 273 + [112], 1: [256, 17], 2: [1]}
    assert [t.width for t in tiles_of(256, 1)] == [1]


class TestWitness:
    @pytest.fixture
    def witness(self, tmp_path):
        return Witness(tmp_path / "witness", [WITNESS], [KEY.public], lambda: 1_700_000_000.5)

    def test_cosigns_what_extends_and_nothing_else(self, log, tmp_path, witness):
        log.append([b"a", b"b", b"c"])
        sign(log, tmp_path)
        answer = witness.cosign(log.witness_request(0).serialize())
        assert attach_cosignatures(log, answer, [WITNESS.public]) == 1
        policy = Policy((KEY.public,), {"w": WITNESS.public}, {}, "w")
        verify_log(log.folder, policy)
        verify_receipt(log.prove(1), b"b", policy)
        assert witness.answer(log.witness_request(0).serialize())[::2] == (HTTPStatus.CONFLICT, b"3\n")
        log.append([b"d"] * 5)
        sign(log, tmp_path)
        request = log.witness_request(3)
        forged = request.serialize().replace(b"old 3\n", b"old 3\n" + b"A" * 43 + b"=\n")
        assert witness.answer(forged)[0] == HTTPStatus.UNPROCESSABLE_ENTITY
        assert witness.answer(request.serialize())[0] == HTTPStatus.OK

    def test_a_fork_is_not_cosigned(self, log, tmp_path, witness):
        log.append([b"a", b"b"])
        sign(log, tmp_path)
        witness.cosign(log.witness_request(0).serialize())
        fork = TransparencyLog.create(tmp_path / "fork", ORIGIN)
        fork.append([b"a", b"x"])
        fork.sign([KEY], tmp_path / "another.head", 0)
        assert witness.answer(fork.witness_request(2).serialize())[0] == HTTPStatus.CONFLICT
        fork.append([b"c"])
        fork.sign([KEY], tmp_path / "another.head", 0)
        assert witness.answer(fork.witness_request(2).serialize())[0] == HTTPStatus.UNPROCESSABLE_ENTITY

    def test_statuses_of_other_refusals(self, log, tmp_path, witness):
        log.append([b"a"])
        sign(log, tmp_path)
        raw = log.witness_request(0).serialize()
        stranger = Witness(tmp_path / "w2", [WITNESS], [WITNESS.public], lambda: 0)
        assert stranger.answer(raw)[0] == HTTPStatus.NOT_FOUND
        impostor = SeedSigner(ORIGIN, Algorithm.ED25519, b"\x09" * 32)
        assert (
            Witness(tmp_path / "w3", [WITNESS], [impostor.public], lambda: 0).answer(raw)[0]
            == HTTPStatus.FORBIDDEN
        )
        for bad in (b"", b"old x\n\n", raw.replace(b"old 0", b"old 2"), raw.replace(b"old 0", b"old 0\nAA")):
            assert witness.answer(bad)[0] == HTTPStatus.BAD_REQUEST

    def test_over_http(self, log, tmp_path, witness):
        log.append([b"a"])
        sign(log, tmp_path)
        with witness_server(witness, "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}/add-checkpoint"
            with urllib.request.urlopen(url, data=log.witness_request(0).serialize(), timeout=20) as answer:
                attach_cosignatures(log, answer.read(), [WITNESS.public])
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(url, data=log.witness_request(0).serialize(), timeout=20)
            assert (error.value.code, error.value.read()) == (409, b"1\n")
            assert error.value.headers["Content-Type"] == "text/x.tlog.size"
            server.shutdown()

    def test_an_answer_that_does_not_verify_is_not_published(self, log, tmp_path, witness):
        log.append([b"a"])
        sign(log, tmp_path)
        answer = witness.cosign(log.witness_request(0).serialize())
        log.append([b"b"])
        before = sign(log, tmp_path)
        with pytest.raises(SignatureInvalidError):
            attach_cosignatures(log, answer, [WITNESS.public])
        assert log.checkpoint()[0] == before


@pytest.mark.parametrize("kind", list(Algorithm))
def test_key_files(tmp_path, kind):
    signer = generate("example.com/log", kind)
    for name, passphrase in (("plain", None), ("sealed", "correct horse")):
        path = tmp_path / name
        write_key(path, signer, passphrase)
        assert path.stat().st_mode & 0o777 == 0o600
        assert read_public_key(path) == signer.public
        assert read_key(path, passphrase).public == signer.public
        with pytest.raises(OutputExistsError):
            write_key(path, signer, passphrase)
        with pytest.raises(KeyFileError, match="opened"):
            read_key(path, "wrong" if passphrase else "any")
    assert signer.seed not in (tmp_path / "sealed").read_bytes()
    assert signer.seed.hex() not in repr(signer)
    (tmp_path / "plain").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod"):
        read_key(tmp_path / "plain", None)
    other = tmp_path / "other"
    write_key(other, generate("example.com/log", kind), None)
    vkey = (tmp_path / "sealed").read_bytes().split(b"\n")[0]
    other.write_bytes(vkey + b"\n" + other.read_bytes().partition(b"\n")[2])
    with pytest.raises(KeyFileError, match="not that of"):
        read_key(other, None)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_key(tmp_path / "missing", None)


def test_the_commands_tell_the_whole_story(tmp_path):
    """From keys to a receipt that plain Python verifies, without this project on its path."""

    def audit(*arguments, code=0):
        done = subprocess.run(
            [Path(sys.executable).parent / "audit", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    vkey = audit("keys", "generate", ORIGIN, "--out", "log.key").strip()
    audit("log", "init", "log", "--origin", ORIGIN)
    (tmp_path / "verdict").write_bytes(b"inconsistent")
    assert audit("log", "append", "log", "verdict", "verdict") == "0\n1\n"
    audit("log", "checkpoint", "log", "--key", "log.key")
    audit("log", "prove", "log", "1", "--out", "verdict.tlog-proof")
    (tmp_path / "policy").write_text(f"log {vkey}\nquorum none\n")
    (tmp_path / "other").write_bytes(b"consistent")
    audit("log", "verify", "verdict.tlog-proof", "--entry", "verdict", "--policy", "policy")
    error = audit("log", "verify", "verdict.tlog-proof", "--entry", "other", "--policy", "policy", code=1)
    assert error.startswith("audit: error[proof-root]")
    alone = [sys.executable, "-I", "-S", standalone_verifier.__file__, "verdict.tlog-proof"]
    for entry, code in (("verdict", 0), ("other", 1), ("missing", 2)):
        done = subprocess.run(
            [*alone, entry, "policy"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr


def test_go_reads_our_notes_and_tiles(log, tmp_path):
    """golang.org/x/mod/sumdb of Debian's package: another implementation of notes, trees and tiles."""
    source = Path("/usr/share/gocode/src/golang.org/x/mod")
    if shutil.which("go") is None or not source.is_dir():
        pytest.skip("needs Go and golang.org/x/mod (Debian: golang-go golang-golang-x-mod-dev)")
    generator = random.Random(8)
    log.append([generator.randbytes(generator.randrange(40)) for _ in range(700)])
    sign(log, tmp_path)
    program = tmp_path / "go" / "src" / "check"
    program.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "sumdb_check.go", program / "main.go")
    environment = os.environ | {
        "GOPATH": f"{tmp_path / 'go'}:/usr/share/gocode",
        "GO111MODULE": "off",
        "GOCACHE": str(tmp_path / "cache"),
        "GOFLAGS": "",
    }
    done = subprocess.run(
        ["go", "run", "check", log.folder, KEY.public.vkey, "5", "256", "699"],
        cwd=program, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "700",
        *(Tree.of_entries([log.entry(i)]).root().hex() for i in (5, 256, 699)),
    ]
