"""A growing log: read as it is written, stopped at the first request that convicts, at a level of the ledger."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.errors import OptionError, TraceFileError
from auditor.following import Watch
from auditor.ledger_files import level_for
from auditor.profiles import shipped_profiles
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"
HONEST, CHEAT = "vllm-cpu-bf16-topp95", "vllm-cpu-seed-plus-1"


def lines_of(name):
    with gzip.open(TRACES / f"{name}.jsonl.gz", "rt") as stream:
        return stream.readlines()


def verify(*arguments):
    command = [str(Path(sys.executable).parent / "audit"), "verify", *map(str, arguments), "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_lines_written_later_are_read_and_a_half_written_one_waits_for_its_end(tmp_path):
    path = tmp_path / "log.jsonl"
    first, second, third = lines_of(HONEST)[:3]
    path.write_text(first + second[:40])
    steps = iter([second[40:], third, None])

    def more(_came):
        step = next(steps)
        if step is not None:
            with path.open("a") as stream:
                stream.write(step)
        return step is not None

    found = list(read_traces(path, more=more))
    assert [trace.id for trace in found] == [json.loads(line)["id"] for line in (first, second, third)]


def test_following_stops_at_the_request_that_convicts_while_the_log_still_grows(tmp_path):
    path = tmp_path / "live.jsonl"
    path.write_text("".join(lines_of(CHEAT)[:1]))
    written = threading.Event()

    def write():
        for line in lines_of(CHEAT)[1:]:
            if written.is_set():
                return
            with path.open("a") as stream:
                stream.write(line)
            time.sleep(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    run = verify(path, "--follow", "--format", "json")
    printed, told = run.communicate(timeout=300)
    written.set()
    writer.join()
    result = json.loads(printed)
    assert run.returncode == 1
    assert len(result["traces"]) < len(lines_of(CHEAT)), "stopped before the log ended"
    assert "convicts" in told


def test_an_honest_log_ends_when_nothing_comes_and_is_judged_as_a_whole(tmp_path):
    path = tmp_path / "live.jsonl"
    path.write_text("".join(lines_of(HONEST)[:6]))
    run = verify(path, "--follow", "--follow-idle", 1, "--format", "json")
    printed, _ = run.communicate(timeout=300)
    result = json.loads(printed)
    assert run.returncode == 3, "too few tokens to acquit"
    assert len(result["traces"]) == 6
    assert result["groups"][0]["alpha"] == pytest.approx(0.001 * 6 / math.pi**2)


def test_tests_that_may_join_a_growing_log_share_its_alpha():
    profile = next(iter(shipped_profiles().values()))
    filtered = replace(profile, filtered=10)
    graded = replace(filtered, fingerprints={"int8:16": (0.1, 0.2)})
    shares = {1: replace(profile, filtered=0), 2: filtered, 3: graded}
    for parts, null in shares.items():
        watch = Watch(0.01, lambda _group, null=null: null, lambda *_: None)
        assert watch.level(("recipe", "race")) == pytest.approx(0.01 * 6 / math.pi**2 / parts)
        assert watch.level(("other", "race")) == pytest.approx(0.01 * 6 / math.pi**2 / 4 / parts)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--follow-idle", "3"], "--follow"),
        (["--follow", "--budget", "100"], "a budget"),
        (["--subject", "acme"], "--ledger"),
        (["--ledger", "ledger.jsonl"], "--subject"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, says):
    run = verify(TRACES / f"{HONEST}.jsonl.gz", *arguments)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 2
    assert len(told.strip().splitlines()) == 1
    assert says in told


def test_a_subject_keeps_its_level_and_the_next_one_gets_less(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = level_for(path, "acme", 0.01)
    assert first.alpha == pytest.approx(0.01 * 6 / math.pi**2)
    assert level_for(path, "globex", None).alpha == pytest.approx(first.alpha / 4)
    before = path.read_bytes()
    assert level_for(path, "acme", 0.01) == first
    assert path.read_bytes() == before


def test_levels_given_out_at_once_are_never_given_twice(tmp_path):
    path = tmp_path / "ledger.jsonl"
    level_for(path, "first", 0.01)
    threads = [threading.Thread(target=level_for, args=(path, f"{n}", None)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [json.loads(line)["number"] for line in path.read_text().splitlines()[1:]]
    assert numbers == list(range(1, 18))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('"alpha": 0.0015', '"alpha": 0.0095'),
        lambda text: text + "{",
        lambda text: "[]\n" + text,
        lambda text: text.replace('"ledger": 1', '"ledger": 2'),
    ],
)
def test_a_ledger_that_was_edited_is_refused(tmp_path, spoil):
    path = tmp_path / "ledger.jsonl"
    level_for(path, "acme", 0.01)
    level_for(path, "globex", None)
    spoilt = spoil(path.read_text())
    assert spoilt != path.read_text()
    path.write_text(spoilt)
    with pytest.raises(OptionError):
        level_for(path, "initech", None)


def test_a_new_ledger_needs_an_alpha_and_an_old_one_keeps_its_own(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(OptionError, match="needs its alpha"):
        level_for(path, "acme", None)
    level_for(path, "acme", 0.01)
    with pytest.raises(OptionError, match=r"0\.01"):
        level_for(path, "globex", 0.05)
    with pytest.raises(OptionError, match="empty"):
        level_for(path, " ", None)
    with pytest.raises(TraceFileError):
        level_for(tmp_path, "acme", 0.01)
