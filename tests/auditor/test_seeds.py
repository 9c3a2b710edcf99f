"""Seeds from a committed key: a permutation, reproducible, never handed out twice, checkable afterwards."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import OptionError, OutputExistsError
from auditor.reference.sampling import SamplingSpec
from auditor.seed_files import SeedDispenser, read_key, write_key
from auditor.seeds import WIDTHS, KeyedPermutation, SeedKey, check_seeds, key_from_json, key_to_json
from auditor.trace import Trace

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "seed-key-v1.json").read_text())["vectors"]
KEY = SeedKey(bytes(range(32)), 32, "run-1")


def seed_by_hand(secret, bits, run, counter):
    """The construction again, as its description reads, with recursion in place of loops."""
    name = run.encode()
    context = b"auditor/seed/v1" + bytes([0, bits]) + len(name).to_bytes(8, "big") + name
    subkey = hmac.new(secret, context, hashlib.sha256).digest()
    half = -(-bits // 2)

    def rounds(left, right, number):
        if number == 10:
            return left * 2**half + right
        digest = hmac.new(subkey, bytes([number]) + right.to_bytes(8, "big"), hashlib.sha256).digest()
        return rounds(right, left ^ int.from_bytes(digest[:8], "big") % 2**half, number + 1)

    value = rounds(*divmod(counter + 1, 2**half), 0)
    while value == 0 or value >= 2**bits - 1:
        value = rounds(*divmod(value, 2**half), 0)
    return value


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['bits']}-{v['run']}")
def test_frozen_vectors_and_a_second_implementation_agree(vector):
    secret = bytes.fromhex(vector["secret"])
    key = SeedKey(secret, vector["bits"], vector["run"])
    assert key.commitment == vector["commitment"]
    for counter, seed in vector["seeds"].items():
        assert key.seed(int(counter)) == seed
        assert seed_by_hand(secret, vector["bits"], vector["run"], int(counter)) == seed
        assert key.counter(seed) == int(counter)


@pytest.mark.parametrize("bits", range(2, 11))
def test_every_small_width_is_permuted_onto_itself_without_the_special_values(bits):
    permutation = KeyedPermutation(b"key", bits)
    image = [permutation.forward(counter) for counter in range(permutation.size)]
    assert sorted(image) == list(range(1, 2**bits - 1))
    assert [permutation.backward(value) for value in image] == list(range(permutation.size))


@settings(max_examples=40, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    bits=st.sampled_from(WIDTHS),
    run=st.text(max_size=8),
    data=st.data(),
)
def test_two_requests_never_share_a_seed_and_the_counter_comes_back(secret, bits, run, data):
    key = SeedKey(secret, bits, run)
    counters = data.draw(
        st.lists(st.integers(0, key.permutation.size - 1), min_size=2, max_size=6, unique=True)
    )
    seeds = [key.seed(counter) for counter in counters]
    assert len(set(seeds)) == len(seeds)
    assert all(0 < seed < 2**bits - 1 for seed in seeds)
    assert [key.counter(seed) for seed in seeds] == counters


def test_seeds_look_uniform():
    """Chi-square of the top byte of 2,560 consecutive 63-bit seeds; 330.5 is its 0.999 quantile."""
    key = SeedKey(bytes(range(32)), 63)
    counts = [0] * 256
    for counter in range(2_560):
        counts[key.seed(counter) >> 55] += 1
    assert sum((count - 10) ** 2 / 10 for count in counts) < 330.5


def test_commitment_binds_secret_width_and_run():
    variants = [
        KEY,
        SeedKey(bytes(32), 32, "run-1"),
        SeedKey(bytes(range(32)), 31, "run-1"),
        SeedKey(bytes(range(32)), 32, "run-2"),
    ]
    assert len({key.commitment for key in variants}) == 4
    assert len({key.seed(0) for key in variants}) == 4


@pytest.mark.parametrize("counter", [-1, 2**32 - 2, 2**70])
def test_counter_beyond_the_width_is_refused(counter):
    with pytest.raises(OptionError, match="outside"):
        KEY.seed(counter)


@pytest.mark.parametrize("seed", [-1, 0, 2**32 - 1, 2**32, 2**63])
def test_special_and_foreign_seeds_have_no_counter(seed):
    assert KEY.counter(seed) is None


@pytest.mark.parametrize(
    "change",
    [
        {"secret": "00"},
        {"secret": "zz" * 32},
        {"secret": 7},
        {"bits": 33},
        {"bits": True},
        {"bits": "32"},
        {"schema": "x"},
        {"run": 1},
        {"commitment": "sha256:00"},
        {"run": "another"},
    ],
)
def test_altered_key_file_is_refused(change):
    value = json.loads(key_to_json(KEY)) | change
    with pytest.raises(OptionError) as caught:
        key_from_json(json.dumps(value).encode(), where="run.key")
    assert str(caught.value).startswith("run.key: ")


def test_key_file_is_private_and_never_overwritten(tmp_path):
    path = tmp_path / "run.key"
    write_key(path, KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == KEY
    with pytest.raises(OutputExistsError):
        write_key(path, KEY)


def test_seeds_are_handed_out_once_across_processes_and_crashes(tmp_path):
    path = tmp_path / "run.key"
    write_key(path, KEY)
    with SeedDispenser(path) as dispenser:
        first = [dispenser.take() for _ in range(100)]
        with pytest.raises(OptionError, match="another process"), SeedDispenser(path):
            pass
    crash = f"""
import os
from pathlib import Path
from auditor.seed_files import SeedDispenser
with SeedDispenser(Path({str(path)!r})) as dispenser:
    print(*(dispenser.take()[0] for _ in range(3)), flush=True)
    os._exit(1)
"""
    died = subprocess.run([sys.executable, "-c", crash], capture_output=True, text=True, check=False)
    with SeedDispenser(path) as dispenser:
        later = dispenser.take()[0]
    assert [counter for counter, _ in first] == list(range(100))
    assert died.stdout.split() == ["100", "101", "102"]
    assert later > 102


def test_damaged_counter_stops_rather_than_repeats(tmp_path):
    path = tmp_path / "run.key"
    write_key(path, KEY)
    (tmp_path / "run.key.next").write_text("twelve")
    with pytest.raises(OptionError, match="twelve"), SeedDispenser(path):
        pass


def logged(seed, **changes):
    return Trace("r", "m", (1,), (2,), SamplingSpec(**changes), seed=seed, file="log", line=1)


def test_log_is_checked_request_by_request():
    traces = [
        logged(KEY.seed(3)),
        logged(KEY.seed(3)),
        logged(KEY.seed(5) ^ 1),
        logged(None),
        logged(None, temperature=0.0),
        logged(KEY.seed(2000)),
        OptionError("bad line"),
    ]
    found = [(f.counter, f.problem) for f in check_seeds(KEY, traces, requests=1024)]
    assert found == [
        (3, None),
        (3, "used before"),
        (None, "not of this key"),
        (None, "none logged"),
        (None, None),
        (None, "not of this key"),
        (None, None),
    ]


def audit(*arguments, cwd):
    program = Path(sys.executable).parent / "audit"
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_command_from_key_to_checked_log(tmp_path):
    published = audit("seed", "new", "run.key", "--engine", "llama.cpp", cwd=tmp_path).stdout.strip()
    assert audit("seed", "commitment", "run.key", cwd=tmp_path).stdout.strip() == published
    derived = audit("seed", "derive", "run.key", "--count", "2", cwd=tmp_path).stdout.splitlines()
    assert [line.split("\t")[0] for line in derived] == ["0", "1"]
    again = audit("seed", "derive", "run.key", "--start", "1", "--format", "json", cwd=tmp_path).stdout
    assert json.loads(again)["seed"] == int(derived[1].split("\t")[1])
    (tmp_path / "opened.key").write_text(audit("seed", "reveal", "run.key", cwd=tmp_path).stdout)

    def line(seed):
        return json.dumps(
            {"schema": "auditor.trace/v1", "id": "r", "model": "m", "sampling": {}, "seed": seed}
        )

    seeds = [int(row.split("\t")[1]) for row in derived]
    (tmp_path / "good.jsonl").write_text("\n".join(map(line, seeds)))
    (tmp_path / "bad.jsonl").write_text("\n".join(map(line, [*seeds, 77])))
    (tmp_path / "none.jsonl").write_text(line(None))
    for log, committed, status in (
        ("good.jsonl", published, 0),
        ("bad.jsonl", published, 1),
        ("none.jsonl", published, 3),
        ("good.jsonl", "sha256:00", 1),
    ):
        done = audit("seed", "check", "opened.key", log, "--commitment", committed, cwd=tmp_path)
        assert done.returncode == status, done.stderr
    assert audit("seed", "new", "x.key", cwd=tmp_path).returncode == 2
    assert audit("seed", "derive", "missing.key", cwd=tmp_path).returncode == 2
