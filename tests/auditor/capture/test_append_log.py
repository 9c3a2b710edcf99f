"""A recorder's file: whole lines whoever else writes, and a lock that says whether anybody records."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from auditor.capture.append_log import AppendLog, is_recorded
from auditor.errors import CaptureError


def write_many(path, mark, count):
    with AppendLog(path) as log:
        for _ in range(count):
            log.write(mark * 5000 + b"\n")


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "traces.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, mark, 40)) for mark in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == [b"a" * 5000] * 40 + [b"b" * 5000] * 40 + [b"c" * 5000] * 40


def test_what_is_there_already_is_kept(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"before\n")
    write_many(path, b"x", 1)
    assert path.read_bytes() == b"before\n" + b"x" * 5000 + b"\n"


def test_a_file_is_recorded_exactly_while_a_log_is_open(tmp_path):
    path = tmp_path / "traces.jsonl"
    assert not is_recorded(path)
    log = AppendLog(path)
    assert is_recorded(path)
    second = AppendLog(path)
    log.close()
    assert is_recorded(path)
    second.close()
    assert not is_recorded(path)
    log.close()  # a second time does nothing


def test_a_recorder_that_dies_lets_go_of_the_lock(tmp_path):
    path = tmp_path / "traces.jsonl"
    child = os.fork()
    if child == 0:
        AppendLog(path)
        os._exit(0)
    os.waitpid(child, 0)
    assert path.exists()
    assert not is_recorded(path)


def test_a_full_disk_leaves_whole_lines_and_ends_the_recording():
    # /dev/full accepts no byte; it cannot be cut back either, so the error must still come out as ours.
    log = AppendLog.__new__(AppendLog)
    log.path = __import__("pathlib").Path("/dev/full")
    log._file = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(CaptureError, match="cannot be written"):
        log.write(b"line\n")
    with pytest.raises(CaptureError):
        log.write(b"line\n")


def test_a_half_written_line_is_cut_back(tmp_path):
    """A child whose file size is limited: the system writes what fits, and the log takes it back."""
    path = tmp_path / "traces.jsonl"
    child = os.fork()
    if child == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        log = AppendLog(path)
        log.write(b"a" * 599 + b"\n")
        try:
            log.write(b"b" * 599 + b"\n")
        except CaptureError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert path.read_bytes() == b"a" * 599 + b"\n"


@pytest.mark.parametrize("name", ["traces.json", "traces.jsonl.gz", "traces"])
def test_names_that_would_be_read_otherwise_are_refused(tmp_path, name):
    with pytest.raises(CaptureError, match=r"\.jsonl"):
        AppendLog(tmp_path / name)


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(CaptureError, match="cannot be opened"):
        AppendLog(tmp_path / "missing" / "traces.jsonl")


def test_prompts_are_readable_by_their_owner_only(tmp_path):
    AppendLog(tmp_path / "traces.jsonl").close()
    assert (tmp_path / "traces.jsonl").stat().st_mode & 0o077 == 0
