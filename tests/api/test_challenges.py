"""Commitments, challenges and openings over HTTP: an honest round, and every way to cheat in one."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from auditor.api import serving
from auditor.generation import Provider, generate
from auditor.hidden_tokens.embedders import HashingEmbedder
from auditor.hidden_tokens.providing import commit, head_text, open_challenge
from auditor.hidden_tokens.wire import (
    challenge_from_json,
    commitment_from_json,
    opening_from_json,
    opening_to_json,
)
from auditor.merkle.encoding import encode_base64
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.policy import parse_policy
from auditor.merkle.token_heads import parse_head_text, sign_head
from auditor.merkle.token_leaves import Salts
from auditor.merkle.token_openings import check_draw, open_blocks
from auditor.merkle.token_stream import Declared, TokenStream
from auditor.profile_trust import sign_profile
from auditor.profiles import shipped_profiles
from auditor.reference.checkpoint.digests import tokenizer_digest, weights_digest
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer
from auditor.replay import Reference
from auditor.service import challenges
from auditor.service.audit_work import AuditWork
from auditor.service.log_placing import open_log, place
from auditor.service.opening_checks import OpeningChecker
from auditor.service.worker import Worker
from auditor.standalone_verifier import main as verify_standalone
from auditor.trace import Trace, Usage
from auditor.trace_format import trace_to_json
from auditor.transparency_log import verify_log
from tests.api.conftest import Party, refused
from tests.api.test_providers import ACME, AUDITOR, OTHER, hand_in, made, post, provider, trust

SESSION = b"s" * 32
EMBEDDER = HashingEmbedder()
HIDDEN = 40
NUMBERS = itertools.count(100)


@cache
def tokenizer():
    return Tokenizer.load(TARGET)


@cache
def digests():
    return {"model_digest": weights_digest(TARGET), "tokenizer_digest": tokenizer_digest(TARGET)}


def committed(request="req-1", signer=ACME, *, shift=0):
    """A client's trace and the provider's record; no model is needed for what is not replayed."""
    tokens = tuple((7 * i + shift) % 200 + 50 for i in range(HIDDEN + 8))
    trace = Trace(
        request, "demo", (1, 2), tokens, SamplingSpec(), usage=Usage(2, HIDDEN + 8, HIDDEN), **digests()
    )
    return commit(
        trace,
        tokenizer(),
        session_key=SESSION,
        signer=signer,
        clock=lambda: 1_764_000_000,
        embedder=EMBEDDER,
        block=8,
        head_blocks=2,
    )


def heads_of(trace):
    found = commitment_from_json(trace.commitment, trace.id, "")
    proofs = ((), *found.proofs)
    return [
        {"note": head.note, "proof": [encode_base64(value) for value in proof]}
        for head, proof in zip(found.heads, proofs, strict=True)
    ]


def posted(party, heads):
    return post(party, "/v1/commitments", {"heads": heads})


class Round:
    """A tenant, its provider with a key of its own, and a log that is signed when told."""

    def __init__(self, world, folder):
        world.service = replace(
            world.service, checker=OpeningChecker({digests()["tokenizer_digest"]: tokenizer()})
        )
        world.client.app.state.service = world.service
        self.world, self.alice = world, world.alice
        self.provider = provider(world.alice)["id"]
        made(world.alice, "/v1/models", {"name": "demo", **digests()})
        key = post(world.alice, "/v1/keys", {"name": "a", "scopes": ["provider"], "provider": self.provider})
        self.acme = Party(world.client, world.alice.tenant, key.json()["key"])
        self.log = open_log(world.service.log, folder / "log.key")

    def place(self):
        return place(self.world.service.store, self.log)

    def commit(self, trace=None):
        answer = posted(self.acme, heads_of(trace or committed()[0]))
        assert answer.status_code == 201, answer.text
        self.place()
        return answer.json()

    def draw(self, commitment, key="draw", **how):
        return post(
            self.alice,
            "/v1/challenges",
            {"commitment": commitment["id"], **how},
            **{"Idempotency-Key": f"{key}{how}"},
        )

    def opening(self, challenge, kept=None):
        _, asked = challenge_from_json(challenge["challenge"], "")
        kept = kept or committed()[1]
        found, _ = open_challenge(kept, asked, tokenizer(), session_key=SESSION, embedder=EMBEDDER)
        return opening_to_json(kept.request, found)

    def open(self, challenge, opening, party=None):
        return post(party or self.acme, f"/v1/challenges/{challenge['id']}/openings", opening)

    def state(self, challenge):
        return self.alice.get(f"/v1/challenges/{challenge['id']}").json()["state"]

    def settle(self):
        with self.world.service.store.transaction(writes=True) as connection:
            return challenges.settle(connection)

    def expire(self, challenge, seconds):
        """Let the deadline have been so long ago."""
        with self.world.service.store.transaction(writes=True) as connection:
            sql = "UPDATE challenge SET deadline = created - :past WHERE id = :id"
            connection.execute(text(sql), {"past": int(seconds * 1e6), "id": challenge["id"]})


@pytest.fixture
def ring(world, tmp_path):
    return Round(world, tmp_path)


def test_an_honest_round_from_streamed_heads_to_a_result_in_the_log(ring, tmp_path, capsys):
    heads = heads_of(committed()[0])
    assert len(heads) == 4
    first = posted(ring.acme, heads[:1])
    assert (first.status_code, first.json()["finished"]) == (201, None)
    for head in heads[1:]:
        assert posted(ring.acme, [head]).status_code == 200
    commitment = ring.alice.get(first.headers["location"]).json()
    counted = {name: commitment[name] for name in ("heads", "hidden", "visible", "block", "provider")}
    assert counted == {"heads": 4, "hidden": 40, "visible": 8, "block": 8, "provider": ring.provider}
    ring.place()
    challenge = ring.draw(commitment, blocks=2).json()
    assert ring.acme.get("/v1/challenges?state=open").json()["items"] == [challenge]
    opened = ring.open(challenge, ring.opening(challenge))
    assert opened.status_code == 200, opened.text
    assert (opened.json()["state"], opened.json()["error"]) == ("held", None)
    result = ring.alice.get(f"/v1/challenges/{challenge['id']}/result")
    assert result.json()["found"]["seen"] == 16
    ring.place()
    policy = f"log {ring.log.signer.public.vkey}\nquorum none\n".encode()
    (tmp_path / "policy").write_bytes(policy)
    things = [(f"/v1/commitments/{commitment['id']}", number) for number in range(4)]
    things += [(f"/v1/challenges/{challenge['id']}", kind) for kind in ("challenge", "result")]
    for path, kind in things:
        entry = ring.acme.get(f"{path}/entries/{kind}").content
        (tmp_path / "entry").write_bytes(entry)
        (tmp_path / "proof").write_bytes(ring.acme.get(f"{path}/receipts/{kind}").content)
        arguments = [str(tmp_path / name) for name in ("proof", "entry", "policy")]
        assert verify_standalone(arguments) == 0, capsys.readouterr()
    assert json.loads(entry)["result"] == "sha256:" + hashlib.sha256(result.content).hexdigest()
    assert verify_log(ring.log.folder, parse_policy(policy)).size == 6
    standing = ring.alice.get(f"/v1/providers/{ring.provider}/standing").json()
    assert (standing["commitments"], standing["challenges"]["held"]) == (1, 1)


def test_blocks_follow_from_the_head_a_nonce_and_a_checkpoint_that_holds_the_head(ring):
    commitment = ring.commit()
    challenge = ring.draw(commitment, blocks=3).json()
    _, asked = challenge_from_json(challenge["challenge"], "")
    assert asked.nonce[32:] == hashlib.sha256(challenge["checkpoint"].encode()).digest()
    trace = committed()[0]
    final = commitment_from_json(trace.commitment, trace.id, "").heads[-1]
    check_draw(parse_head_text(head_text(final.note)), asked)
    again = ring.draw(commitment, blocks=3).json()
    assert again == challenge, "the same order draws once"
    assert (
        ring.draw(commitment, "other", blocks=3).json()["challenge"]["nonce"]
        != challenge["challenge"]["nonce"]
    )


def test_nothing_is_drawn_before_the_head_is_committed_and_logged(ring):
    heads = heads_of(committed()[0])
    commitment = posted(ring.acme, heads[:3]).json()
    ring.place()
    refused(ring.draw(commitment), 409, "not-finished")
    posted(ring.acme, heads[3:])
    answer = ring.draw(commitment)
    refused(answer, 409, "not-finished")
    assert answer.headers["retry-after"] == "3"
    ring.place()
    assert ring.draw(commitment).status_code == 201


def test_heads_posted_again_are_the_same_heads_and_another_in_their_place_is_refused(ring):
    heads = heads_of(committed()[0])
    first = posted(ring.acme, heads[:2]).json()
    assert posted(ring.acme, heads[:2]).json() == first
    assert posted(ring.acme, heads).json()["heads"] == 4
    refused(posted(ring.acme, heads_of(committed(shift=1)[0])), 409, "head-conflict")
    with ring.world.service.store.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM log_entry")).scalar_one() == 4


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=4))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_heads_are_cut_into_requests_and_repeated_the_commitment_is_one(ring, cuts):
    heads = heads_of(committed(f"req-{next(NUMBERS)}")[0])
    there, entries = 0, counted(ring)
    for back, more in [*cuts, (0, len(heads))]:
        part = heads[max(0, there - back) : there + more] or heads
        answer = posted(ring.acme, part)
        assert answer.status_code in (200, 201), answer.text
        there = answer.json()["heads"]
    assert answer.json()["finished"] is not None
    assert counted(ring) == entries + len(heads), "the log is told of each head once"


def counted(ring):
    with ring.world.service.store.transaction() as connection:
        return connection.execute(text("SELECT count(*) FROM log_entry")).scalar_one()


def test_heads_that_do_not_continue_each_other_are_refused_and_nothing_is_kept(ring):
    heads, others = heads_of(committed()[0]), heads_of(committed(shift=1)[0])
    refused(posted(ring.acme, heads[1:]), 422, "head-chain")
    refused(posted(ring.acme, [heads[0], heads[2]]), 422, "head-chain")
    refused(posted(ring.acme, [heads[0], others[1]]), 422, "proof-root")
    refused(posted(ring.acme, [heads[0], heads[1] | {"proof": []}]), 422, "proof-length")
    refused(posted(ring.acme, [heads[0], heads_of(committed("req-2")[0])[1]]), 422, "head-chain")
    refused(posted(ring.acme, [heads[0] | {"note": heads[0]["note"][:-9]}]), 422, "note-syntax")
    refused(posted(ring.acme, [heads[0] | {"note": "\0"}]), 422, "note-syntax")
    assert ring.alice.get("/v1/commitments").json()["items"] == []
    posted(ring.acme, heads[:1])
    refused(posted(ring.acme, heads[2:]), 422, "head-chain")
    refused(posted(ring.acme, [heads[3], heads[0]]), 422, "head-chain")
    posted(ring.acme, heads)
    head = parse_head_text(head_text(heads[-1]["note"]))
    more = sign_head(replace(head, sequence=4), ACME).decode()
    proof = [{"note": more, "proof": heads[-1]["proof"]}]
    refused(posted(ring.acme, proof), 422, "head-chain")


def test_a_stranger_signs_for_nobody_and_a_provider_for_itself_only(ring):
    theirs = heads_of(committed(signer=OTHER)[0])
    refused(posted(ring.alice, theirs), 422, "key-unknown")
    provider(ring.alice, "other", OTHER)
    refused(posted(ring.acme, theirs), 422, "key-unknown")
    assert posted(ring.alice, theirs).status_code == 201, "the tenant had them streamed"
    assert ring.acme.get("/v1/commitments").json()["items"] == []
    refused(posted(ring.world.bob, theirs), 422, "key-unknown")
    mixed = [theirs[0], heads_of(committed()[0])[1]]
    refused(posted(ring.alice, mixed), 422, "head-chain")


def test_a_model_that_nobody_registered_is_not_committed_to(ring):
    trace, _ = committed()
    stream = TokenStream(
        Declared("req-9", "sha256:" + "1" * 64, trace.tokenizer_digest, "none", 8),
        Salts(SESSION, "req-9"),
        ACME,
        lambda: 1,
    )
    stream.answer()
    stream.finish(3)
    heads = [{"note": note.decode()} for note in stream.heads]
    refused(posted(ring.acme, heads), 422, "model-unknown")


def test_nothing_hidden_is_nothing_to_open(ring):
    declared = Declared("req-0", *digests().values(), "none", 8)
    stream = TokenStream(declared, Salts(SESSION, "req-0"), ACME, lambda: 1)
    stream.answer()
    stream.finish(3)
    commitment = posted(ring.acme, [{"note": note.decode()} for note in stream.heads]).json()
    assert (commitment["hidden"], commitment["visible"]) == (0, 3)
    ring.place()
    refused(ring.draw(commitment), 422, "tree-size")


def test_what_could_not_be_checked_is_not_asked_for(ring):
    unknown = Declared("req-0", *digests().values(), "sha256:" + "2" * 64, 8)
    stream = TokenStream(unknown, Salts(SESSION, "req-0"), ACME, lambda: 1)
    stream.add(5)
    stream.answer()
    stream.finish(3)
    proofs = ((), *stream.proofs)
    heads = [
        {"note": note.decode(), "proof": [encode_base64(h) for h in proof]}
        for note, proof in zip(stream.heads, proofs, strict=True)
    ]
    commitment = posted(ring.acme, heads).json()
    ring.place()
    refused(ring.draw(commitment), 422, "tokenizer-absent")
    ring.world.client.app.state.service = replace(ring.world.service, checker=OpeningChecker())
    refused(ring.draw(ring.commit(), "x"), 422, "tokenizer-absent")


def test_no_more_is_drawn_than_agreed_earlier_challenges_included(ring):
    commitment = ring.commit()
    assert ring.draw(commitment, "1", blocks=2, max_share=0.5).status_code == 201
    refused(ring.draw(commitment, "2", blocks=5, max_share=0.5), 422, "exposure")


def test_openings_that_are_no_answer_are_refused_by_name_and_change_nothing(ring):
    commitment = ring.commit()
    challenge = ring.draw(commitment, blocks=2).json()
    other = ring.draw(commitment, "other", blocks=2).json()
    good = ring.opening(challenge)
    refused(ring.open(challenge, ring.opening(other)), 422, "challenge-replayed")
    second, kept = committed("req-2")
    foreign = ring.draw(ring.commit(second), "f", blocks=2).json()
    refused(ring.open(challenge, ring.opening(foreign, kept)), 422, "challenge-mismatch")
    refused(ring.open(challenge, good | {"head": encode_base64(b"x" * 32)}), 422, "challenge-mismatch")
    refused(ring.open(challenge, good | {"leaves": good["leaves"][1:]}), 422, "opening-incomplete")
    refused(ring.open(challenge, good | {"leaves": []}), 422, "opening-incomplete")
    beyond = [*good["leaves"][1:], good["leaves"][0] | {"index": HIDDEN}]
    refused(ring.open(challenge, good | {"leaves": beyond}), 422, "leaf-index")
    swapped = [good["leaves"][0] | {"token": 3}, *good["leaves"][1:]]
    refused(ring.open(challenge, good | {"leaves": swapped}), 422, "leaf-mismatch")
    refused(ring.open(challenge, {}), 422, "opening-syntax")
    refused(ring.open(challenge, good | {"leaves": good["leaves"] * 2}), 422, "opening-syntax")
    assert ring.state(challenge) == "open"
    refused(ring.alice.get(f"/v1/challenges/{challenge['id']}/result"), 409, "not-finished")
    refused(ring.alice.get(f"/v1/challenges/{challenge['id']}/opening"), 409, "not-finished")
    assert ring.open(challenge, good).json()["state"] == "held"


def test_an_answer_ends_its_challenge_and_the_same_again_is_the_same_as_once(ring):
    commitment = ring.commit()
    challenge = ring.draw(commitment).json()
    good = ring.opening(challenge)
    first = ring.open(challenge, good).json()
    assert ring.open(challenge, good).json() == first
    refused(ring.open(challenge, good | {"leaves": []}), 409, "challenge-closed")
    kept = ring.alice.get(f"/v1/challenges/{challenge['id']}/opening")
    assert opening_from_json(kept.json(), "") == opening_from_json(good, "")
    held = {"If-None-Match": kept.headers["etag"]}
    assert ring.alice.get(f"/v1/challenges/{challenge['id']}/opening", headers=held).status_code == 304


def test_withholding_past_the_deadline_is_a_failure_on_record(ring):
    commitment = ring.commit()
    challenge = ring.draw(commitment).json()
    ring.expire(challenge, 1)
    refused(ring.open(challenge, ring.opening(challenge)), 409, "challenge-expired")
    assert ring.settle() == 0, "an opening that came in time may still be being checked"
    ring.expire(challenge, 61)
    assert (ring.settle(), ring.settle()) == (1, 0)
    found = ring.acme.get(f"/v1/challenges/{challenge['id']}").json()
    assert (found["state"], found["error"]["code"]) == ("withheld", "opening-incomplete")
    refused(ring.open(challenge, ring.opening(challenge)), 409, "challenge-expired")
    result = ring.alice.get(f"/v1/challenges/{challenge['id']}/result")
    ring.place()
    entry = ring.alice.get(f"/v1/challenges/{challenge['id']}/entries/result").json()
    assert entry["result"] == "sha256:" + hashlib.sha256(result.content).hexdigest()
    assert ring.alice.get(f"/v1/challenges/{challenge['id']}/receipts/result").status_code == 200
    standing = ring.alice.get(f"/v1/providers/{ring.provider}/standing").json()
    assert standing["challenges"]["withheld"] == 1


def test_the_server_ends_what_nobody_answered(ring, monkeypatch):
    challenge = ring.draw(ring.commit()).json()
    ring.expire(challenge, 61)
    monkeypatch.setattr(serving, "SETTLE_SECONDS", 0.05)
    deadline = time.monotonic() + 30
    with serving.kept_settled(ring.world.service.store):
        while ring.state(challenge) == "open":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert ring.state(challenge) == "withheld"


def forged():
    """What a provider signs that commits to embeddings of another text."""
    declared = Declared("req-f", *digests().values(), EMBEDDER.digest, 8)
    stream = TokenStream(declared, Salts(SESSION, "req-f"), ACME, lambda: 1, lambda _block: b"\x7f" * 384)
    for token in range(60, 60 + HIDDEN):
        stream.add(token)
    stream.answer()
    stream.finish(8)
    return stream


def test_an_opening_that_contradicts_what_was_signed_ends_its_challenge_as_failed(ring):
    stream = forged()
    proofs = ((), *stream.proofs)
    heads = [
        {"note": note.decode(), "proof": [encode_base64(h) for h in proof]}
        for note, proof in zip(stream.heads, proofs, strict=True)
    ]
    commitment = posted(ring.acme, heads).json()
    ring.place()
    challenge = ring.draw(commitment).json()
    _, asked = challenge_from_json(challenge["challenge"], "")
    head = parse_head_text(head_text(stream.heads[-1].decode()))
    opening = open_blocks(stream.tree.node, stream.leaves, head, asked)
    answer = ring.open(challenge, opening_to_json("req-f", opening)).json()
    assert (answer["state"], answer["error"]["code"]) == ("failed", "embedding-forged")
    assert ring.alice.get(f"/v1/challenges/{challenge['id']}/opening").status_code == 200


def test_what_was_opened_is_for_the_tenant_alone(ring):
    commitment = ring.commit()
    challenge = ring.draw(commitment).json()
    ring.open(challenge, ring.opening(challenge))
    refused(ring.acme.get(f"/v1/challenges/{challenge['id']}/opening"), 403, "scope-missing")
    refused(post(ring.acme, "/v1/challenges", {"commitment": commitment["id"]}), 403, "scope-missing")
    rival = provider(ring.alice, "other", SeedSigner("x.example/y", Algorithm.ED25519, b"\x09" * 32))["id"]
    key = post(ring.alice, "/v1/keys", {"name": "r", "scopes": ["provider"], "provider": rival}).json()["key"]
    other = Party(ring.world.client, ring.alice.tenant, key)
    paths = [f"/v1/commitments/{commitment['id']}", f"/v1/challenges/{challenge['id']}"]
    for path in (*paths, f"{paths[0]}/heads", f"{paths[1]}/result", f"{paths[0]}/entries/0"):
        refused(other.get(path), 404, "not-found")
        refused(ring.world.bob.get(path), 404, "not-found")
    refused(ring.open(challenge, ring.opening(challenge), other), 404, "not-found")
    for kind in ("commitments", "challenges"):
        assert (
            other.get(f"/v1/{kind}").json()["items"]
            == ring.world.bob.get(f"/v1/{kind}").json()["items"]
            == []
        )
        assert len(ring.acme.get(f"/v1/{kind}").json()["items"]) == 1


@cache
def generated():
    """Two committed traces of the reference itself, and their records."""
    spec = SamplingSpec(max_tokens=HIDDEN + 8, ignore_eos=True)
    traces = generate(
        Provider.load(TARGET),
        demo_conversations(2, 31),
        deviation=HONEST,
        seed=31,
        sampling=spec,
        hidden_tokens=HIDDEN,
    )
    return [
        commit(t, tokenizer(), session_key=SESSION, signer=ACME, clock=lambda: 1, embedder=EMBEDDER, block=8)
        for t in traces
    ]


@cache
def reference():
    return Reference.load(TARGET)


def test_an_audit_replays_what_was_opened_through_the_service(ring):
    """The log is as the client kept it: heads, and no hidden token."""
    (first, kept), (second, _) = generated()
    challenge = ring.draw(ring.commit(first), blocks=5).json()
    ring.commit(second)
    log = b"".join(json.dumps(trace_to_json(trace)).encode() + b"\n" for trace in (first, second))
    before = ring.alice.submit(log, query="?name=before").json()["id"]
    assert ring.open(challenge, ring.opening(challenge, kept)).json()["state"] == "held"
    trust(ring.alice, AUDITOR)
    ours = next(p for k, p in shipped_profiles().items() if k.provider_recipe == first.engine.recipe)
    ours = sign_profile(replace(ours, honest=ours.honest[:50], deviations={}), AUDITOR)
    assert hand_in(ring.alice, ours).status_code == 201
    after = ring.alice.submit(log, query="?name=after&provider=acme").json()["id"]
    work = AuditWork(ring.world.service.blobs, reference(), lambda _key: None)
    worker = Worker(ring.world.service.store, work)
    assert worker.run_once()
    assert worker.run_once()
    found = {}
    for audit in (before, after):
        items = ring.alice.get(f"/v1/audits/{audit}/evidence").json()["items"]
        found[audit] = [(t["commitment"]["replayed"], t["tokens"]) for t in items]
    assert found[before] == [(0, None), (0, None)], "what is opened later changes no verdict"
    assert found[after] == [(HIDDEN, HIDDEN + 8), (0, None)]
    assert items[0]["match_rate"] > 0.95
    profiles = [ring.alice.get(f"/v1/audits/{audit}/verdict").json()["profile"] for audit in (before, after)]
    assert profiles[0] is None, "the operator has none"
    assert profiles[1]["id"] == ours.id
    assert profiles[1]["signed_by"] == [f"{AUDITOR.public.name}+{AUDITOR.public.key_id.hex()}"]
    assert items[1]["commitment"]["problem"]["code"] == "trace-incomplete"


def test_heads_are_read_in_pages_and_verify_offline(ring):
    trace, _ = committed()
    commitment = ring.commit(trace)
    path = f"/v1/commitments/{commitment['id']}/heads"
    page = ring.alice.get(f"{path}?limit=3").json()
    assert page["next"] == 2
    rest = ring.alice.get(f"{path}?limit=3&after=2").json()
    assert rest["next"] is None
    found = [{"note": h["note"], "proof": h["proof"]} for h in [*page["items"], *rest["items"]]]
    assert found == heads_of(trace)
