"""Commitments to hidden tokens from end to end: the four commands, the verdict, and every way to cheat on the way."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from auditor.commitment_errors import (
    ChallengeReplayedError,
    CommittedLateError,
    CountMismatchError,
    EmbeddingForgedError,
    ExposureError,
    HeadSwappedError,
    LeafMismatchError,
    OpeningIncompleteError,
    OpeningSyntaxError,
    SaltForeignError,
    SessionKeyError,
)
from auditor.errors import (
    AuditError,
    CannotScoreError,
    KeyUnknownError,
    ProofRootError,
    TraceIncompleteError,
)
from auditor.generation import Provider, generate
from auditor.hidden_tokens.checking import check_commitment, check_opened
from auditor.hidden_tokens.clock import clock_bound
from auditor.hidden_tokens.embedders import HashingEmbedder, quantised
from auditor.hidden_tokens.providing import commit, open_challenge
from auditor.hidden_tokens.revealed import Revealed, Revealer
from auditor.hidden_tokens.wire import (
    Commitment,
    SentHead,
    challenge_from_json,
    challenge_to_json,
    commitment_from_json,
    opening_from_json,
    opening_to_json,
)
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.token_heads import open_head, sign_head
from auditor.merkle.token_leaves import Salts
from auditor.merkle.token_openings import draw_challenge, open_blocks
from auditor.merkle.token_stream import Declared, TokenStream
from auditor.profiles import profile_finder
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference
from auditor.trace import Usage
from auditor.trace_format import trace_from_object, trace_to_json
from auditor.verification import verify

SIGNER = SeedSigner("provider.example/tokens", Algorithm.ED25519, b"\x05" * 32)
STRANGER = SeedSigner("provider.example/tokens", Algorithm.ED25519, b"\x06" * 32)
SESSION = b"s" * 32
EMBEDDER = HashingEmbedder()


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def full():
    """A provider's own log: hidden and visible tokens."""
    provider = Provider.load(TARGET)
    conversations = demo_conversations(6, 31)
    spec = SamplingSpec(max_tokens=60, ignore_eos=True)
    return list(generate(provider, conversations, deviation=HONEST, seed=31, sampling=spec, hidden_tokens=40))


def committed(trace, tokenizer, **changes):
    options = {"session_key": SESSION, "signer": SIGNER, "clock": lambda: 1_764_000_000, "embedder": EMBEDDER}
    return commit(trace, tokenizer, **(options | changes))


@pytest.fixture(scope="module")
def shown(full, reference):
    return [committed(trace, reference.tokenizer) for trace in full]


def opened(trace, kept, reference, count=100, *, prefix=False, nonce=b"n" * 32):
    known = check_commitment(trace, [SIGNER.public])
    challenge = draw_challenge(known.head, nonce, count, prefix=prefix)
    opening, after = open_challenge(
        kept, challenge, reference.tokenizer, session_key=SESSION, embedder=EMBEDDER
    )
    return known, challenge, opening, after


def check(known, challenge, opening, reference):
    vocabulary = reference.model.config.vocab_size
    return check_opened(
        known,
        challenge,
        opening,
        reference.tokenizer,
        EMBEDDER,
        tokenizer_digest=reference.tokenizer_digest,
        vocabulary=vocabulary,
    )


def with_opening(trace, kept, reference, **options):
    known, challenge, opening, _ = opened(trace, kept, reference, **options)
    found = replace(known.commitment, challenge=challenge, opening=opening)
    return replace(trace, commitment=found.to_json(trace.id))


def audit(traces, reference, keys=(SIGNER.public,)):
    return verify(
        lambda: iter(traces), reference, find_profile=profile_finder(()), provider_keys=keys, explain=False
    )


def test_a_client_sees_the_bill_and_the_visible_tokens_and_no_hidden_one(full, shown, reference):
    for trace, (seen, kept) in zip(full, shown, strict=True):
        assert kept.tokens + seen.output_token_ids == trace.output_token_ids
        assert (len(kept.tokens), seen.usage) == (40, trace.usage)
        assert seen.text == reference.tokenizer.decode(list(seen.output_token_ids))
        assert seen.grade == "A"
        line = json.dumps(trace_to_json(seen))
        assert (
            trace_from_object(json.loads(line), file="f", line=1, raw_digest="").commitment == seen.commitment
        )


def test_whole_openings_are_replayed_by_seed_and_acquit_nobody_by_size_alone(shown, reference):
    result = audit([with_opening(t, k, reference) for t, k in shown], reference)
    assert result.tokens == 6 * 60
    assert result.matched / result.tokens > 0.98
    assert result.outcome in {"consistent", "inconclusive"}
    (verdict,) = result.verdicts
    assert not any("opened" in reason or "scored" in reason for reason in verdict.reasons)
    assert all(t.scored.trace.commitment.opened.exposure.share == 1.0 for t in verdict.traces)


def test_a_prefix_is_replayed_and_never_acquits(shown, reference):
    traces = [with_opening(t, k, reference, count=1, prefix=True) for t, k in shown]
    result = audit(traces, reference)
    assert 0 < result.tokens < 6 * 60
    assert result.matched / result.tokens > 0.97
    assert result.outcome == "inconclusive"


def test_what_was_not_opened_or_cannot_be_trusted_is_never_replayed(shown, reference):
    """Visible tokens after the wrong prefix would convict an honest provider."""
    unopened = [trace for trace, _ in shown]
    single = [with_opening(t, k, reference, count=1, nonce=b"later block 5") for t, k in shown]
    good = [with_opening(t, k, reference) for t, k in shown]
    for traces, keys in ((unopened, (SIGNER.public,)), (good, ()), (good, (STRANGER.public,))):
        result = audit(traces, reference, keys)
        assert (result.outcome, result.tokens) == ("inconclusive", 0)
    assert audit(single, reference).outcome == "inconclusive"
    from auditor.preparation import prepare

    with pytest.raises(TraceIncompleteError):
        prepare(good[0], reference)  # by whoever does not know of commitments


def test_inflated_reasoning_is_convicted_by_replay(full, reference):
    inflated = []
    for trace in full:
        output = trace.output_token_ids
        copied = output[:40] + output[8:40] + output[40:]  # 32 hidden tokens more
        usage = Usage(trace.usage.prompt_tokens, len(copied), 72)
        shown, kept = committed(
            replace(
                trace, output_token_ids=copied, usage=usage, sampling=replace(trace.sampling, max_tokens=92)
            ),
            reference.tokenizer,
        )
        inflated.append(with_opening(shown, kept, reference))
    assert audit(inflated, reference).outcome == "inconsistent"


def test_more_billed_than_signed_is_inconsistent_whatever_the_replay_says(shown, reference):
    trace, _ = shown[0]
    padded = replace(trace, usage=Usage(trace.usage.prompt_tokens, 160, 140))
    with pytest.raises(CountMismatchError):
        check_commitment(padded, [SIGNER.public])
    result = audit([with_opening(t, k, reference) for t, k in shown[1:]] + [padded], reference)
    assert result.outcome == "inconsistent"
    assert any("count-mismatch" in reason for v in result.verdicts for reason in v.reasons)
    # A bill that was lost, or is lower, accuses nobody.
    for usage in (Usage(trace.usage.prompt_tokens, 40, 20), Usage()):
        assert audit([replace(trace, usage=usage)], reference).outcome == "inconclusive"


def failing(call):
    with pytest.raises(AuditError) as caught:
        call()
    return type(caught.value)


def test_each_bad_answer_has_its_own_error(shown, reference):
    (trace, kept), (other, other_kept) = shown[0], shown[1]
    known, challenge, good, _ = opened(trace, kept, reference)
    first = good.leaves[0]
    foreign = replace(first, salt=Salts(b"z" * 32, trace.id).salt(0))
    other_token = replace(good.leaves[1], token_id=good.leaves[1].token_id + 1)
    other_salt = replace(good.leaves[1], salt=foreign.salt)
    short = {i: leaf for i, leaf in good.leaves.items() if i}
    earlier = opened(trace, kept, reference, nonce=b"yesterday")[2]
    cases = {
        OpeningIncompleteError: replace(good, leaves=short),
        LeafMismatchError: replace(good, leaves={**good.leaves, 1: other_token}),
        SaltForeignError: replace(good, leaves={**good.leaves, 0: foreign, 1: other_salt}),
        ProofRootError: replace(good, hashes={**good.hashes, 0: bytes(32)}),
        ChallengeReplayedError: earlier,
    }
    assert failing(lambda: check(known, challenge, None, reference)) is OpeningIncompleteError
    for error, opening in cases.items():
        assert failing(lambda opening=opening: check(known, challenge, opening, reference)) is error
    assert failing(lambda: check_commitment(trace, [STRANGER.public])) is KeyUnknownError
    swapped = replace(trace, commitment=other.commitment)
    assert failing(lambda: check_commitment(swapped, [SIGNER.public])) is HeadSwappedError
    for key, record in ((b"q" * 32, kept), (SESSION, replace(kept, tokens=other_kept.tokens))):
        assert (
            failing(
                lambda key=key, record=record: open_challenge(
                    record, challenge, reference.tokenizer, session_key=key, embedder=EMBEDDER
                )
            )
            is SessionKeyError
        )
    assert len({error.code for error in (*cases, KeyUnknownError, HeadSwappedError, SessionKeyError)}) == 8


def test_a_provider_shows_no_more_than_it_agreed_to(shown, reference):
    trace, kept = shown[0]
    known, _, _, after = opened(trace, kept, reference, count=1)
    whole = draw_challenge(known.head, b"again", 100)
    with pytest.raises(ExposureError):
        open_challenge(
            after, whole, reference.tokenizer, session_key=SESSION, embedder=EMBEDDER, max_share=0.9
        )


def forged(trace, text, tokenizer):
    """A commitment whose blocks carry the embedding of another text."""
    head = check_commitment(trace, [SIGNER.public]).head
    return TokenStream(
        Declared(trace.id, head.model, head.tokenizer, EMBEDDER.digest, 16),
        Salts(SESSION, trace.id),
        SIGNER,
        lambda: 1_764_000_000,
        lambda block: quantised(EMBEDDER.embed([text or tokenizer.decode(list(block))])[0]),
    )


def test_an_embedding_of_another_text_is_found(full, shown, reference):
    trace, kept = shown[0]
    stream = forged(trace, "the embedding of something else", reference.tokenizer)
    for token in kept.tokens:
        stream.add(token)
    stream.answer()
    stream.finish(20)
    heads = tuple(SentHead(raw.decode()) for raw in stream.heads)
    cheat = replace(trace, commitment=Commitment(heads, tuple(map(tuple, stream.proofs))).to_json(trace.id))
    known = check_commitment(cheat, [SIGNER.public])
    challenge = draw_challenge(known.head, b"n", 1)
    opening = open_blocks(stream.tree.node, stream.leaves, known.head, challenge)
    with pytest.raises(EmbeddingForgedError):
        check(known, challenge, opening, reference)
    lied = replace(known.commitment, challenge=challenge, opening=opening)
    result = audit([replace(cheat, commitment=lied.to_json(trace.id))], reference)
    assert result.outcome == "inconsistent"


def test_another_tokenizer_at_hand_accuses_nobody_of_forgery(shown, reference):
    """With the wrong --model every honest embedding is of another text than the one worked out here."""
    trace, kept = shown[0]
    known, challenge, good, _ = opened(trace, kept, reference)
    elsewhere = replace(reference, tokenizer_digest="sha256:" + "0" * 64)
    with pytest.raises(CannotScoreError, match="--model"):
        check(known, challenge, good, elsewhere)
    result = audit([with_opening(t, k, reference) for t, k in shown], elsewhere)
    assert result.outcome == "inconclusive"
    assert result.tokens == 0


def test_tokens_committed_after_the_answer_began_are_found(shown):
    trace, _ = shown[0]
    sent = commitment_from_json(trace.commitment, trace.id, "here")
    heads = [open_head(head.note.encode(), [SIGNER.public]) for head in sent.heads]
    # The head before the answer covers less than the bill.
    early = replace(heads[-2], visible=1)
    notes = [sign_head(head, SIGNER).decode() for head in (*heads[:-2], early, heads[-1])]
    late = Commitment(tuple(map(SentHead, notes)), sent.proofs)
    with pytest.raises(CommittedLateError) as caught:
        check_commitment(replace(trace, commitment=late.to_json(trace.id)), [SIGNER.public])
    assert not caught.value.by_clock
    # The order is right, but the client's clock says that the head came late.
    stamped = replace(sent, heads=tuple(replace(h, received="2026-11-28T12:00:09+00:00") for h in sent.heads))
    for began, is_late in (("2026-11-28T12:00:10+00:00", False), ("2026-11-28T12:00:08+00:00", True)):
        timed = replace(trace, commitment=stamped.to_json(trace.id), timing={"first_token": began})
        if is_late:
            with pytest.raises(CommittedLateError) as caught:
                check_commitment(timed, [SIGNER.public])
            assert caught.value.by_clock
        else:
            assert check_commitment(timed, [SIGNER.public]).timed


def timing(first, finished):
    at = "2026-11-28T12:00:{:06.3f}+00:00"
    return {"received": at.format(0.0), "first_token": at.format(first), "finished": at.format(finished)}


def test_hidden_tokens_must_fit_before_the_first_visible_one(shown):
    trace, _ = shown[0]  # 40 hidden, 20 visible
    honest = clock_bound(replace(trace, timing=timing(4.0, 5.9)))  # ten tokens a second
    assert not honest.exceeded
    assert honest.most_hidden == pytest.approx(61, abs=1)
    assert clock_bound(replace(trace, timing=timing(1.0, 2.9))).exceeded
    assert not clock_bound(replace(trace, timing=timing(1.0, 2.9)), fastest=100.0).exceeded
    assert clock_bound(trace) is None
    with pytest.raises(OpeningSyntaxError):
        clock_bound(replace(trace, timing=timing(1.0, 2.9) | {"received": "yesterday"}))


def test_a_clock_that_does_not_fit_keeps_a_verdict_from_acquitting(shown, reference):
    trace, kept = shown[0]
    quick = replace(with_opening(trace, kept, reference), timing=timing(1.0, 2.9))
    result = audit([quick], reference)
    assert any("fit before" in reason for v in result.verdicts for reason in v.reasons)
    assert result.outcome != "consistent"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v | {"schema": "auditor.token-commitment/v2"},
        lambda v: v | {"heads": []},
        lambda v: v | {"more": 1},
        lambda v: v | {"heads": [{"note": 1}]},
        lambda v: v | {"proofs": [["AAAA"]]},
        lambda v: v | {"opening": {"schema": "x"}},
        lambda v: [v],
        lambda _: None,
    ],
)
def test_commitments_that_cannot_be_read(shown, spoil):
    trace, _ = shown[0]
    with pytest.raises(OpeningSyntaxError):
        commitment_from_json(spoil(trace.commitment), trace.id, "here")


def test_challenges_and_openings_survive_their_files(shown, reference):
    trace, kept = shown[0]
    _, challenge, opening, _ = opened(trace, kept, reference, count=2)
    assert challenge_from_json(challenge_to_json(trace.id, challenge), "here") == (trace.id, challenge)
    written = json.loads(json.dumps(opening_to_json(trace.id, opening)))
    assert opening_from_json(written, "here") == (trace.id, opening)
    doubled = written | {"leaves": written["leaves"] + written["leaves"][:1]}
    for bad in (doubled, written | {"proof": ["AAAA"]}, {k: v for k, v in written.items() if k != "leaves"}):
        with pytest.raises(OpeningSyntaxError):
            opening_from_json(bad, "here")


def test_the_revealer_leaves_other_traces_alone(full, reference):
    revealer = Revealer([SIGNER.public], reference)
    assert revealer.reveal(full[0]) is full[0]
    broken = revealer.reveal(replace(full[0], commitment={"schema": "?"}))
    assert isinstance(broken.commitment, Revealed)
    assert not broken.commitment.replayable
