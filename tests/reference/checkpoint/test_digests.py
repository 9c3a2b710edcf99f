"""The digests' values, and a cache of them that must never answer for other bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from auditor.errors import ModelNotFoundError
from auditor.reference.checkpoint import digest_cache
from auditor.reference.checkpoint.digest_cache import DigestCache
from auditor.reference.checkpoint.digests import (
    file_digests,
    template_digest,
    tokenizer_digest,
    weights_digest,
)

ROOT = Path(__file__).parents[3]
TARGET = ROOT / "reference" / "demo" / "target"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, folder / FIRST)
    save_file({"c": torch.full((2, 2), 7.0)}, folder / SECOND)
    write_index(folder, {"a": FIRST, "b": FIRST, "c": SECOND})
    return folder


def test_digests_are_those_of_the_recorded_traces():
    with gzip.open(ROOT / "tests" / "traces" / "vllm-cpu-bf16-plain.jsonl.gz", "rt") as file:
        trace = json.loads(file.readline())
    assert weights_digest(TARGET) == trace["model_digest"]
    assert tokenizer_digest(TARGET) == trace["tokenizer_digest"]
    assert template_digest(TARGET) == trace["template_digest"]


def test_shard_digest_is_the_digest_of_sorted_lines(sharded):
    lines = "".join(
        f"{n} {hashlib.sha256((sharded / n).read_bytes()).hexdigest()}\n" for n in (FIRST, SECOND)
    )
    expected = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert weights_digest(sharded) == expected
    write_index(sharded, {"c": SECOND, "b": FIRST, "a": FIRST})
    assert weights_digest(sharded) == expected
    save_file({"c": torch.full((2, 2), 7.5)}, sharded / SECOND)
    assert weights_digest(sharded) != expected


def test_template_digest_is_the_same_from_file_and_field(tmp_path):
    assert template_digest(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "Grüße {{ x }}"}))
    from_field = template_digest(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("Grüße {{ x }}", encoding="utf-8")
    assert from_field == template_digest(tmp_path)
    assert from_field == f"sha256:{hashlib.sha256('Grüße {{ x }}'.encode()).hexdigest()}"


@pytest.fixture
def cache(tmp_path):
    return DigestCache(tmp_path / "cache" / "digests.json", least_bytes=0)


@pytest.fixture
def settled(tmp_path, monkeypatch):
    """A file that has been left alone for longer than `SETTLED_SECONDS`."""
    path = tmp_path / "weights"
    path.write_bytes(b"honest")
    monkeypatch.setattr(digest_cache, "SETTLED_SECONDS", 0.01)
    time.sleep(0.05)
    return path


def sha(content):
    return hashlib.sha256(content).hexdigest()


def forge(cache):
    """Make the cache claim another digest, so that an answer from it shows."""
    value = json.loads(cache.file.read_text())
    for row in value["entries"].values():
        row[5] = "0" * 64
    cache.file.write_text(json.dumps(value))


def test_a_file_that_did_not_change_is_not_hashed_again(settled, cache):
    assert file_digests([settled], cache=cache) == [sha(b"honest")]
    forge(cache)
    assert file_digests([settled], cache=cache) == ["0" * 64]


def test_the_cache_is_private_and_replaced_as_a_whole(settled, cache):
    file_digests([settled], cache=cache)
    assert cache.file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in cache.file.parent.iterdir()] == ["digests.json"]


def test_a_file_written_anew_is_hashed_again_even_with_its_old_time_and_size(settled, cache):
    status = settled.stat()
    file_digests([settled], cache=cache)
    forge(cache)
    settled.write_bytes(b"cheats")
    os.utime(settled, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert settled.stat().st_mtime_ns == status.st_mtime_ns
    assert settled.stat().st_ino == status.st_ino
    assert file_digests([settled], cache=cache) == [sha(b"cheats")]


def test_another_file_under_the_same_name_is_hashed_again(settled, cache, tmp_path):
    file_digests([settled], cache=cache)
    forge(cache)
    other = tmp_path / "other"
    other.write_bytes(b"cheats")
    other.replace(settled)
    assert file_digests([settled], cache=cache) == [sha(b"cheats")]


def test_a_file_changed_just_now_is_not_remembered(tmp_path, cache):
    path = tmp_path / "fresh"
    path.write_bytes(b"fresh")
    assert file_digests([path], cache=cache) == [sha(b"fresh")]
    assert not cache.file.exists()
    os.utime(path, (0, 0))  # an old modification time does not hide a recent change
    file_digests([path], cache=cache)
    assert not cache.file.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(settled, cache, monkeypatch):
    whole = hashlib.file_digest

    def slow(file, name):
        settled.write_bytes(b"longer than before")
        return whole(file, name)

    monkeypatch.setattr(hashlib, "file_digest", slow)
    monkeypatch.setattr(digest_cache, "SETTLED_SECONDS", -60.0)
    file_digests([settled], cache=cache)
    assert not cache.file.exists()


def test_small_files_leave_no_trace_in_the_users_directory(settled, cache):
    file_digests([settled], cache=DigestCache(cache.file))
    assert not cache.file.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"version": 2, "entries": {}}',
        b'{"version": 1}',
        b'{"version": 1, "entries": {"PATH": ["STATE"]}}',
        b'{"version": 1, "entries": {"PATH": [1, 2, 3, 4, true, "00"]}}',
        b'{"version": 1, "entries": {"PATH": [1, 2, 3, 4, 5, "nonsense"]}}',
        b'{"version": 1, "entries": {"PATH": [1, 2, 3, 4, 5, 6]}}',
    ],
)
def test_a_cache_that_makes_no_sense_is_ignored_and_mended(settled, cache, content):
    cache.file.parent.mkdir()
    cache.file.write_bytes(content.replace(b"PATH", os.fsencode(settled)))
    assert file_digests([settled], cache=cache) == [sha(b"honest")]
    assert str(settled) in json.loads(cache.file.read_text())["entries"]


def test_a_cache_that_others_can_write_is_ignored(settled, cache):
    file_digests([settled], cache=cache)
    forge(cache)
    cache.file.chmod(0o666)
    assert file_digests([settled], cache=cache) == [sha(b"honest")]


def test_a_cache_of_another_owner_is_ignored(settled, cache, monkeypatch):
    file_digests([settled], cache=cache)
    forge(cache)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert file_digests([settled], cache=cache) == [sha(b"honest")]


def test_a_cache_that_is_too_large_is_not_read(settled, cache, monkeypatch):
    file_digests([settled], cache=cache)
    forge(cache)
    monkeypatch.setattr(digest_cache, "MOST_BYTES", 10)
    assert file_digests([settled], cache=cache) == [sha(b"honest")]


def test_a_directory_that_cannot_be_written_is_no_error(settled, tmp_path):
    (tmp_path / "file").write_text("")
    cache = DigestCache(tmp_path / "file" / "digests.json", least_bytes=0)
    assert file_digests([settled], cache=cache) == [sha(b"honest")]


def test_entries_of_other_runs_are_kept_and_the_oldest_dropped(settled, cache, tmp_path, monkeypatch):
    paths = [tmp_path / f"shard-{number}" for number in range(5)]
    for path in paths:
        path.write_bytes(path.name.encode())
    time.sleep(0.05)
    monkeypatch.setattr(digest_cache, "MOST_ENTRIES", 3)
    for path in paths:
        file_digests([path], cache=cache)
    assert list(json.loads(cache.file.read_text())["entries"]) == [str(path) for path in paths[-3:]]


def test_many_files_are_hashed_at_once_in_their_order(cache, tmp_path, monkeypatch):
    paths = [tmp_path / f"shard-{number}" for number in range(4)]
    for path in paths:
        path.write_bytes(path.name.encode())
    both, whole = threading.Barrier(2, timeout=10), hashlib.file_digest

    def meeting(file, name):
        both.wait()  # passes only when two are under way together
        return whole(file, name)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(hashlib, "file_digest", meeting)
    assert file_digests(paths, cache=cache) == [sha(path.name.encode()) for path in paths]


def test_an_unreadable_file_is_named(cache, tmp_path):
    with pytest.raises(ModelNotFoundError, match="absent: unreadable"):
        file_digests([tmp_path / "absent"], cache=cache)
