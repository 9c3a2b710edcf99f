"""The four commands of commitments, and bad input through them: each its own code, none hides another's failure."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.commitment_errors import ExposureError
from auditor.errors import AuditError
from auditor.generation import Provider, generate
from auditor.hidden_tokens.wire import Commitment, SentHead
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.token_heads import TokenHead, sign_head
from auditor.merkle.token_leaves import Salts
from auditor.merkle.tree import Tree
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.sampling import SamplingSpec
from auditor.trace import Usage
from auditor.trace_files import read_traces, write_traces

STRANGER = SeedSigner("acme.example/tokens", Algorithm.ED25519, b"\x06" * 32)


def run(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit | AuditError), repr(done.exception)
    return done


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Three responses committed to, challenged and opened, all well."""
    at = tmp_path_factory.mktemp("commitments").__truediv__
    spec = SamplingSpec(max_tokens=32, ignore_eos=True)
    full = generate(
        Provider.load(TARGET), demo_conversations(3, 5), deviation=HONEST, seed=5, sampling=spec, hidden_tokens=24
    )  # fmt: skip
    write_traces(at("full.jsonl"), list(full))
    at("vkey").write_text(run("keys", "generate", "acme.example/tokens", "--out", at("key")).output.strip())
    run("keys", "session", "--out", at("session"))
    session = ("--session-key", at("session"))
    run("commit", at("full.jsonl"), "--key", at("key"), *session, "--out", at("c.jsonl"), "--kept", at("kept"),
        "--block", 8)  # fmt: skip
    vkey = at("vkey").read_text()
    run("challenge", at("c.jsonl"), "--vkey", vkey, "--blocks", 2, "--out", at("ask"))
    run("open", at("ask"), "--kept", at("kept"), *session, "--out", at("answer"))
    assert check(at).exit_code == 0
    return at


def check(at, *, log="c.jsonl", ask="ask", answer="answer", vkey=None):
    key = vkey or at("vkey").read_text()
    return run(
        "check", at(log), "--challenge", at(ask), "--opening", at(answer), "--vkey", key, "--format", "json"
    )


def test_openings_are_checked_and_their_exposure_adds_up(at):
    vkey = at("vkey").read_text()
    assert at("kept").stat().st_mode & 0o77 == 0
    report = json.loads(check(at).stdout)
    assert (report["passed"], report["failed"], report["hidden"]) == (3, 0, 72)
    assert report["seen"] == sum(row["seen"] for row in report["responses"]) == 3 * 16
    asked = ("--challenge", at("ask"), "--opening", at("answer"), "--vkey", vkey)
    assert run("check", at("c.jsonl"), *asked, "--out", at("o.jsonl")).exit_code == 0
    assert all(trace.commitment["opening"] for trace in read_traces(str(at("o.jsonl"))))
    # What the provider has shown adds up, over challenges, and so does what the auditor asks for.
    run("challenge", at("c.jsonl"), "--vkey", vkey, "--blocks", 9, "--out", at("all"))
    kept = ("--kept", at("kept"), "--session-key", at("session"))
    assert isinstance(run("open", at("all"), *kept, "--max-share", 0.7).exception, ExposureError)
    once = ("challenge", at("c.jsonl"), "--vkey", vkey, "--blocks", 1, "--max-share", 0.7)
    assert run(*once, "--out", at("more")).exit_code == 0
    more = [run(*once, "--earlier", at("ask"), "--earlier", at("all"))]
    assert isinstance(more[0].exception, ExposureError)


def test_fiat_shamir_draws_the_same_blocks_again(at):
    for name in ("one", "two"):
        run("challenge", at("c.jsonl"), "--vkey", at("vkey").read_text(), "--fiat-shamir", "--out", at(name))
    assert at("one").read_bytes() == at("two").read_bytes()


def test_the_installed_command_says_one_line_for_a_missing_session_key(tmp_path):
    program = Path(sys.executable).parent / "audit"
    done = subprocess.run(
        [program, "open", "ask", "--kept", "kept", "--session-key", tmp_path / "none"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error[key-file]" in done.stderr


def codes(done):
    """Codes on standard error, in order."""
    return [line.split("error[")[1].split("]")[0] for line in done.stderr.splitlines() if "error[" in line]


def answers(at):
    return [json.loads(line) for line in at("answer").read_text().splitlines()]


def save(at, name, values):
    at(name).write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))


def only_first_fails(done, status=1):
    """The first response fails, the other two hold and are shown to."""
    report = json.loads(done.stdout)
    assert (report["passed"], report["failed"], done.exit_code) == (2, 1, status)


def test_a_withheld_token_and_a_line_cut_short(at):
    first, *rest = answers(at)
    save(at, "less", [first | {"leaves": first["leaves"][1:]}, *rest])
    done = check(at, answer="less")
    assert codes(done) == ["opening-incomplete"]
    only_first_fails(done)
    save(at, "cut", [json.dumps(first)[:-40], *rest])
    done = check(at, answer="cut")
    assert codes(done) == ["opening-syntax", "opening-incomplete"]
    only_first_fails(done)


def test_salts_of_another_session_and_tokens_that_were_not_committed_to(at):
    first, *rest = answers(at)
    foreign = Salts(b"z" * 32, first["request"])
    salted = [
        leaf | {"salt": base64.b64encode(foreign.salt(leaf["index"])).decode()} for leaf in first["leaves"]
    ]
    save(at, "salts", [first | {"leaves": salted}, *rest])
    done = check(at, answer="salts")
    assert codes(done) == ["salt-foreign"]
    only_first_fails(done)
    *leaves, last = first["leaves"]
    save(at, "token", [first | {"leaves": [*leaves, last | {"token": last["token"] ^ 1}]}, *rest])
    done = check(at, answer="token")
    assert codes(done) == ["leaf-mismatch"]
    only_first_fails(done)
    hashed = first["leaves"][0] | {"hash": base64.b64encode(bytes(32)).decode()}
    save(at, "hash", [first | {"leaves": [hashed, *first["leaves"][1:]]}, *rest])
    done = check(at, answer="hash")
    assert codes(done) == ["proof-root"]
    only_first_fails(done)


def test_an_index_at_the_size_of_the_tree_and_a_replayed_challenge(at):
    first, *rest = answers(at)
    beyond = first["leaves"][0] | {"index": 24}
    save(at, "beyond", [first | {"leaves": [*first["leaves"], beyond]}, *rest])
    done = check(at, answer="beyond")
    assert codes(done) == ["leaf-index"]
    only_first_fails(done, status=2)
    run("challenge", at("c.jsonl"), "--vkey", at("vkey").read_text(), "--blocks", 2, "--out", at("again"))
    save(at, "mixed", [at("again").read_text().splitlines()[0], *at("ask").read_text().splitlines()[1:]])
    done = check(at, ask="mixed")
    assert codes(done) == ["challenge-replayed"]
    only_first_fails(done)


def relogged(at, name, change):
    """The log with its first trace changed."""
    first, *rest = read_traces(str(at("c.jsonl")))
    write_traces(at(name), [change(first, rest), *rest])
    return name


def test_a_head_of_another_response_and_a_key_that_nobody_knows(at):
    log = relogged(at, "swapped.jsonl", lambda first, rest: replace(first, commitment=rest[0].commitment))
    done = check(at, log=log)
    assert codes(done) == ["head-swapped"]
    only_first_fails(done)
    done = check(at, vkey=STRANGER.public.vkey)
    assert codes(done) == ["key-unknown"] * 3
    assert done.exit_code == 1
    done = run("challenge", at("c.jsonl"), "--vkey", STRANGER.public.vkey, "--out", at("none"))
    assert (codes(done), done.exit_code) == (["key-unknown"] * 3, 1)


def without_hidden_tokens(first, signer):
    visible = len(first.output_token_ids)
    head = TokenHead(
        first.id, 0, 0, 0, Tree().root(), 8, first.model_digest, first.tokenizer_digest, "none", 1_764_000_000, False
    )  # fmt: skip
    last = replace(head, sequence=1, visible=visible, final=True)
    notes = tuple(SentHead(sign_head(h, signer).decode()) for h in (head, last))
    usage = Usage(first.usage.prompt_tokens, visible, 0)
    return replace(first, usage=usage, commitment=Commitment(notes, ((),)).to_json(first.id))


def test_a_tree_of_no_hidden_tokens(at):
    from auditor.key_files import read_key

    signer = read_key(at("key"), None)
    log = relogged(at, "empty.jsonl", lambda first, _: without_hidden_tokens(first, signer))
    done = run("challenge", at(log), "--vkey", at("vkey").read_text(), "--out", at("asked"))
    assert codes(done) == ["tree-size"]
    assert len(at("asked").read_text().splitlines()) == 2, "the others are challenged all the same"


def test_the_wrong_model_at_hand_is_the_auditors_mistake(at, tmp_path):
    (tmp_path / "config.json").write_text((TARGET / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((TARGET / "tokenizer.json").read_text() + "\n")
    done = run("check", at("c.jsonl"), "--model", tmp_path, "--challenge", at("ask"), "--opening", at("answer"),
               "--vkey", at("vkey").read_text())  # fmt: skip
    assert codes(done) == ["cannot-score"] * 3
    assert done.exit_code == 2
