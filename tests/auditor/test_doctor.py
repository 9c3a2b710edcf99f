"""`audit doctor` prints every scheme with its standing, every refusal with its reason, and what is installed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.reference.noise import REFUSED, SCHEMES


def doctor(*options, **environment):
    return CliRunner().invoke(cli, ["doctor", *options], env=environment, catch_exceptions=False)


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path}/store.sqlite3"


def test_every_scheme_and_refusal_is_listed_with_its_standing(store):
    done = doctor("--format", "json", AUDITOR_DATABASE_URL=store)
    found = json.loads(done.stdout)
    assert (done.exit_code, found["schema"]) == (0, "auditor.doctor/v1")
    standing = {row["scheme"]: row["status"] for row in found["schemes"] if row["scheme"]}
    assert standing == {
        name: "confirmed" if scheme.evidence.confirmed else "unconfirmed" for name, scheme in SCHEMES.items()
    }
    assert sum(row["status"] == "refused" for row in found["schemes"]) == len(REFUSED)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["torch"]["ok"]
    assert checks["oneDNN bfloat16"]["ok"] in (True, None)


def test_the_table_says_what_a_scheme_needs(store):
    text = doctor(AUDITOR_DATABASE_URL=store).stdout
    for word in ("vllm-gpu-v2/murmur32", "unconfirmed", "refused", "tensorrt-llm", "oneDNN"):
        assert word in text


def test_looking_makes_no_store_and_an_unreachable_one_fails(tmp_path, store):
    assert "not made yet" in doctor("--format", "json", AUDITOR_DATABASE_URL=store).stdout
    assert list(tmp_path.iterdir()) == []
    done = doctor("--format", "json", AUDITOR_DATABASE_URL="mysql://nowhere/x")
    assert done.exit_code == 2
    assert "mysql" in done.stdout
