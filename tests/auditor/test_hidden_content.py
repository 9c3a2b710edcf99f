"""Content of opened blocks: embedders that see every token, features, verifiers, and decisions at a stated rate."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.commitment_errors import EmbedderUnknownError
from auditor.errors import OptionError
from auditor.hidden_tokens.checking import canonical_excess
from auditor.hidden_tokens.decisions import ResponseTest, p_values, responses_needed, tail_log_p, worst_of
from auditor.hidden_tokens.embedders import (
    HashingEmbedder,
    MiniLm,
    embedder_of,
    embedder_of_digest,
    quantised,
    same_embedding,
)
from auditor.hidden_tokens.features import (
    BLOCK_FEATURES,
    Lexicon,
    OpenedResponse,
    Vectoriser,
    longest_copy,
    rules,
)
from auditor.hidden_tokens.matching import CosineHead, PerceptronHead, fit_extractor, mixed_up
from auditor.hidden_tokens.reexecution import least_log_probability, replay_blocks
from auditor.hidden_tokens.verifiers import CoinRule, CrossFitted, DeepSets, Example
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations.accounting import INFLATIONS, Served
from auditor.reference.loading import load_model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

BLOCK = 16


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TARGET)


@pytest.fixture(scope="module")
def minilm():
    return MiniLm()


TEXT = "First add 17 and 25, which is 42. Then take 8 away. " * 12


def test_hashed_embeddings_are_unit_rows_the_same_anywhere_and_see_the_tail_of_a_block():
    embedder = HashingEmbedder()
    whole, tail, empty = embedder.embed([TEXT, TEXT[:300] + "q#7 zz " * 44, ""])
    assert np.linalg.norm(whole) == pytest.approx(1.0, abs=1e-6)
    assert not empty.any()
    assert float(whole @ tail) < 0.9
    assert not same_embedding(quantised(tail), whole)
    assert same_embedding(quantised(whole), whole)
    assert same_embedding(quantised(empty), empty)
    assert not same_embedding(b"", whole)
    assert quantised(embedder.embed(["abc"])[0]).hex().count("00") < 256
    assert embedder_of_digest(embedder.digest).name == "hashing"
    for name in ("", "word2vec"):
        with pytest.raises(EmbedderUnknownError):
            embedder_of(name)
    assert embedder_of("none") is None
    assert embedder_of_digest("none") is None


def test_windowed_sentence_vectors_see_garbage_that_the_models_own_limit_hides(minilm):
    """With its default limit of 256 pieces the encoder gives both texts one vector (coin.md, C4)."""
    honest, cheat = TEXT * 2, (TEXT * 2)[: len(TEXT)] + "qx7 vv zzk " * 60
    whole, tail = minilm.embed([honest, cheat])
    assert float(whole @ tail) < 0.97
    again = minilm.embed([cheat, "short", honest])
    assert np.allclose(again[[2, 0]], np.stack([whole, tail]), atol=1e-5)
    assert same_embedding(quantised(whole), again[2])
    assert embedder_of_digest(minilm.digest).name == "minilm"


def test_the_canonical_tokenization_has_no_excess_and_split_tokens_have(tokenizer):
    ids = tokenizer.encode("The difference is 17 and the factor follows from the sequence.")
    assert canonical_excess(ids, tokenizer) == 0
    served = Served((1, 2), tuple(ids), (3,), tokenizer, BLOCK)
    split = INFLATIONS["accounting/splits"].inflate(served, 0.3, 0)
    assert tokenizer.decode(list(split)) == tokenizer.decode(ids)
    assert canonical_excess(split, tokenizer) == len(split) - len(ids) == round(0.3 * len(ids))
    assert canonical_excess([ids[0], 200, 201], tokenizer) >= 0


def test_every_attack_adds_what_it_says_and_keeps_the_honest_tokens(tokenizer):
    rng = random.Random(3)
    hidden = tuple(rng.choices(range(300, 4000), k=64))
    others = [
        (tuple(rng.choices(range(300, 4000), k=20)), tuple(rng.choices(range(300, 4000), k=90)))
        for _ in range(9)
    ]
    served = Served(hidden[:9], hidden, (5, 6), tokenizer, BLOCK, others, lambda _prefix, n: (7,) * n)
    for name, attack in INFLATIONS.items():
        for rate in (0.1, 0.5, 2.0):
            found = attack.inflate(served, rate, 1)
            assert found == attack.inflate(served, rate, 1)
            if attack.counts_only:
                assert found == hidden
            elif name == "accounting/splits":
                assert tokenizer.decode(list(found)) == tokenizer.decode(list(hidden))
                assert len(hidden) < len(found) <= len(hidden) + round(rate * 64)
            elif name == "accounting/tail-garbage":
                assert len(found) == pytest.approx(64 * (1 + rate), rel=0.2)
                assert found[:4] == hidden[:4]
            else:
                assert len(found) == 64 + max(1, round(rate * 64))
                assert found[:64] == hidden
    bare = replace(served, others=(), draft=None)
    for name in ("accounting/same-domain", "accounting/small-model"):
        with pytest.raises(OptionError):
            INFLATIONS[name].inflate(bare, 0.5, 1)


def response_of(tokens, tokenizer, answer="42"):
    blocks = tuple(tuple(tokens[s : s + BLOCK]) for s in range(0, len(tokens), BLOCK))
    texts = tuple(tokenizer.decode(list(block)) for block in blocks)
    return OpenedResponse(
        blocks, tuple(range(len(blocks))), texts, answer, canonical_excess(tokens, tokenizer)
    )


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_the_longest_copied_run_is_what_trying_all_pairs_finds(tokens):
    response = OpenedResponse((tuple(tokens),), (0,), ("",), "")
    n = len(tokens)
    slow = max(
        (length for a in range(n) for b in range(a + 1, n) for length in range(1, min(b - a, n - b) + 1)
         if tokens[a : a + length] == tokens[b : b + length]),
        default=0,
    )  # fmt: skip
    assert longest_copy(response) == slow


def problems(count, seed, tokenizer):
    """Made-up honest reasoning: sums, step by step."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        a, b, c = (rng.randrange(10, 99) for _ in range(3))
        who = rng.choice(["Ana", "Ivo", "Mina", "Tara", "Wen"])
        steps = [
            f"{who} starts with {a} stamps. {rng.choice(['Then', 'Next,'])} {b} more come in, {a} + {b} = {a + b}.",
            f" After that {c} are given away, {a + b} - {c} = {a + b - c}.",
            f" So the number of stamps that {who} has now is {a + b - c}.",
        ]
        text = "".join(steps[: rng.randrange(2, 4)]) + rng.choice(
            ["", " Keep going.", " That looks reasonable."]
        )
        found.append((tuple(tokenizer.encode(text)), f"{a + b - c} stamps"))
    return found


def test_trained_verifiers_tell_garbage_from_reasoning_and_rules_tell_copies(tokenizer):
    honest = problems(60, 1, tokenizer)
    vectoriser = Vectoriser(HashingEmbedder(), tokenizer.decode)
    garbage = INFLATIONS["accounting/random-vocabulary"]

    def cheat(tokens, seed):
        return garbage.inflate(Served((1,), tokens, (2,), tokenizer, BLOCK), 1.0, seed)

    examples = []
    for origin, (tokens, answer) in enumerate(honest):
        examples += [
            Example(origin, response_of(tokens, tokenizer, answer), inflated=False),
            Example(origin, response_of(cheat(tokens, origin), tokenizer, answer), inflated=True),
        ]
    model = CrossFitted(examples, vectoriser, tokenizer.vocab_size, 1)
    fresh = problems(30, 2, tokenizer)
    good = model.score([response_of(t, tokenizer, a) for t, a in fresh])
    bad = model.score([response_of(cheat(t, 99), tokenizer, a) for t, a in fresh])
    assert np.mean(bad[:, None] > good[None, :]) > 0.98

    clean = [e.response for e in examples if not e.inflated]
    published = fit_extractor(clean, vectoriser.vectors(clean), tokenizer.vocab_size, 2, CosineHead)
    blocks = [published.blocks(r, v) for r, v in zip(clean, vectoriser.vectors(clean), strict=True)]
    assert {b.shape[1] for b in blocks} == {len(BLOCK_FEATURES)}
    assert all(0.0 <= s <= 1.0 for s in CoinRule().score(blocks))
    deep = DeepSets(0)
    wrong = [b[:, ::-1].copy() - 1.0 for b in blocks]
    deep.fit([*blocks, *wrong], np.array([0.0] * len(blocks) + [1.0] * len(wrong)))
    assert np.mean(deep.score(wrong)) > np.mean(deep.score(blocks))
    order = [b[::-1].copy() for b in blocks[:5]]
    assert np.allclose(deep.score(order), deep.score(blocks[:5]), atol=1e-5)

    copied = INFLATIONS["accounting/copied-blocks"]
    for tokens, answer in fresh:
        more = copied.inflate(Served((1,), tokens, (2,), tokenizer, BLOCK), 1.0, 5)
        before = rules(response_of(tokens, tokenizer, answer), model.lexicons)["copied-run"]
        assert rules(response_of(more, tokenizer, answer), model.lexicons)["copied-run"] >= max(before, BLOCK)
    with pytest.raises(OptionError):
        fit_extractor(clean[:1], vectoriser.vectors(clean[:1]), tokenizer.vocab_size, 2)


def test_matching_heads_learn_which_vectors_belong_together():
    rng = np.random.default_rng(0)
    left = rng.normal(size=(400, 32)).astype(np.float32)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    right = left.copy()
    right[:, 16:] = rng.normal(size=(400, 16)) / 32**0.5  # half of it says nothing
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    pairs = mixed_up(left, right, range(400), 0)
    for head in (PerceptronHead, CosineHead):
        fitted = head(*pairs, 0)
        u, v, labels = mixed_up(left, right, range(400), 7)
        scores = fitted.score(u, v)
        assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.2, head


def test_replay_by_seed_sees_filler_that_is_honest_text(tokenizer):
    from auditor.generation import Provider, derived_seed, generate
    from auditor.reference.deviations import HONEST

    spec = SamplingSpec(max_tokens=48, ignore_eos=True)
    provider = Provider.load(TARGET, dtype="float32")
    traces = list(generate(provider, demo_conversations(6, 71), deviation=HONEST, seed=71, sampling=spec))
    runner, scheme = Runner(load_model(TARGET)), noise_scheme("gumbel-pos-v1")

    def replay(outputs):
        requests = [
            Request(t.prompt_token_ids, output, spec, derived_seed(71, i), scheme, tokenizer)
            for i, (t, output) in enumerate(zip(traces, outputs, strict=True))
        ]
        return list(replay_blocks(runner, requests, BLOCK))

    honest = replay([t.output_token_ids for t in traces])
    assert max(s.suspicion for s in honest) < 0.05
    assert all(len(s.margins) == 3 for s in honest)
    spliced = replay(
        [
            t.output_token_ids + o.output_token_ids[:16]
            for t, o in zip(traces, traces[1:] + traces[:1], strict=True)
        ]
    )
    assert min(s.suspicion for s in spliced) > 0.2
    assert all(s.margins[:3].max() < 0.05 for s in spliced)
    first, second = traces[0], traces[1]
    own = least_log_probability(runner, first.prompt_token_ids, [first.output_token_ids], BLOCK)
    assert own > least_log_probability(runner, first.prompt_token_ids, [(17,) * 16], BLOCK)
    # Another request's reasoning is likely text, but not after this prompt; the worst block tells.
    apart = [first.output_token_ids[:32], second.output_token_ids[:16]]
    assert own > least_log_probability(runner, first.prompt_token_ids, apart, BLOCK)


def test_conformal_p_values_are_at_most_uniform_ties_included():
    rng = np.random.default_rng(1)
    for draw in (lambda n: rng.normal(size=n), lambda n: rng.integers(0, 3, size=n).astype(float)):
        p = np.concatenate([p_values(draw(50), draw(20)) for _ in range(400)])
        for level in (0.02, 0.05, 0.2, 0.5):
            assert (p <= level).mean() <= level + 4 * math.sqrt(level / len(p)) + 0.01
    assert p_values(np.arange(99.0), np.array([1000.0])) == pytest.approx([0.01])
    with pytest.raises(OptionError):
        p_values(np.array([]), np.array([1.0]))


def test_several_tests_become_one_score_that_any_of_them_raises():
    honest = np.arange(50.0)
    fused = worst_of([(honest, np.array([10.0, 99.0, 10.0])), (honest, np.array([10.0, 10.0, 99.0]))])
    assert fused[1] == fused[2] > fused[0]
    # Beyond every honest score there is still an order, else small rates would be out of reach.
    far = worst_of([(honest, np.array([20.0, 44.0, 47.0, 49.0, 60.0, 600.0]))])
    assert (np.diff(far) > 0).all()
    assert np.isfinite(worst_of([(np.zeros(50), np.array([0.0, 1e-9, 5.0]))])).all()


def test_a_rare_honest_score_is_no_more_extreme_than_it_is_rare():
    """Most honest responses have no excess at all; the few that have must not outrank every other test."""
    honest = np.array([0.0] * 146 + [0.011, 0.012, 0.013, 0.02])
    scores = np.array([0.0, 0.011, 0.012, 0.3])
    found = tail_log_p(honest, scores)
    assert found[0] > math.log(0.9)
    assert (found[1:3] > math.log(1 / 151)).all()
    assert found[3] < -10.0, "what no honest response has is beyond all ranks"
    assert np.isfinite(tail_log_p(np.zeros(50), np.array([0.0, 1.0]))).all()


def test_pairs_that_honest_reasoning_never_has_are_counted_block_by_block():
    lexicon = Lexicon([OpenedResponse(((1, 2, 3, 4),), (0,), ("",), "")], 9)
    more = Lexicon([OpenedResponse(((4, 5),), (0,), ("",), "")], 9)
    seen = OpenedResponse(((1, 2, 3), (3, 4, 5)), (0, 1), ("", ""), "")
    assert rules(seen, [lexicon, more])["unseen-pairs"] == 0
    assert rules(seen, [lexicon])["unseen-pairs"] == 1
    garbage = OpenedResponse(((1, 2, 3), (4, 2, 1)), (0, 1), ("", ""), "")
    assert rules(garbage, [lexicon, more])["unseen-pairs"] == 2


def test_honest_sequences_are_hardly_ever_convicted_whatever_the_calibrations_luck():
    """False alarms at alpha, over calibrations and sequences of 200 responses, a look after each."""
    rng, alpha, runs = np.random.default_rng(2), 0.05, 400
    convicted = 0
    for _ in range(runs):
        wealth = ResponseTest(rng.normal(size=60), alpha).log_e_along(rng.normal(size=200))
        convicted += bool((wealth >= math.log(2.0 / alpha)).any())
    assert convicted / runs <= alpha


def test_evidence_adds_up_over_responses_and_the_quick_way_agrees():
    rng = np.random.default_rng(3)
    honest, scores = rng.normal(size=300), rng.normal(size=40) + 1.5
    test = ResponseTest(honest, 0.001)
    along = test.log_e_along(scores)
    assert [test.update(float(s)) for s in scores] == pytest.approx(along.tolist())
    assert test.convicts
    assert test.responses == 40
    needed = responses_needed(honest, scores, 0.001, limit=100, draws=21, seed=0)
    assert 3 < needed < 60
    assert math.isinf(responses_needed(honest, honest, 0.001, limit=100, draws=21, seed=0))
    for calibration, alpha in ((honest[:10], 0.01), (honest, 0.0), (honest, 1.5)):
        with pytest.raises(OptionError):
            ResponseTest(calibration, alpha)


def made_up_log(count, seed, tokenizer, attack=None):
    """Full traces of made-up reasoning, inflated by an attack."""
    from auditor.reference.checkpoint.digests import tokenizer_digest
    from auditor.trace import Trace, Usage

    found = []
    for i, (tokens, answer) in enumerate(problems(count, seed, tokenizer)):
        prompt, visible = (1, 2, 3), tuple(tokenizer.encode(answer))
        served = Served(prompt, tokens, visible, tokenizer, BLOCK)
        hidden = tokens if attack is None else INFLATIONS[attack].inflate(served, 1.0, i)
        digest = tokenizer_digest(TARGET)
        found.append(
            Trace(
                f"req-{seed}-{i}",
                "demo",
                prompt,
                hidden + visible,
                SamplingSpec(),
                model_digest=digest,
                tokenizer_digest=digest,
                usage=Usage(3, len(hidden + visible), len(hidden)),
            )
        )
    return found


@pytest.mark.parametrize(
    ("attack", "weights"),
    [
        (None, True),
        ("accounting/random-vocabulary", True),
        ("accounting/copied-blocks", False),
    ],
)
def test_audit_check_judges_content_against_honest_traces(attack, weights, tokenizer, tmp_path):
    import json

    from click.testing import CliRunner

    from auditor.commands import cli
    from auditor.trace_files import write_traces

    at = tmp_path.__truediv__

    def run(*words):
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code in (0, 1), done.output + repr(done.exception)
        return done

    write_traces(at("honest.jsonl"), made_up_log(160, 1, tokenizer))
    write_traces(at("full.jsonl"), made_up_log(12, 2, tokenizer, attack))
    vkey = run("keys", "generate", "acme.example/tokens", "--out", at("key")).output.strip()
    run("keys", "session", "--out", at("session"))
    session = ("--session-key", at("session"))
    run(
        "commit", at("full.jsonl"), "--key", at("key"), *session, "--out", at("c.jsonl"), "--kept", at("kept")
    )
    run("challenge", at("c.jsonl"), "--vkey", vkey, "--blocks", 64, "--out", at("ask"))
    run("open", at("ask"), "--kept", at("kept"), *session, "--out", at("answer"))
    done = run(
        "check", at("c.jsonl"), "--challenge", at("ask"), "--opening", at("answer"), "--vkey", vkey, "--honest",
        at("honest.jsonl"), "--alpha", 0.05, "--format", "json", *(["--likelihood"] if weights else []),
    )  # fmt: skip
    content = json.loads(done.output)["content"]
    assert len(content["p_values"]) == 12
    assert content["convicts"] == (attack is not None)
    assert done.exit_code == (0 if attack is None else 1)
