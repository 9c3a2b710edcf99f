"""What each drafter guesses, and that it learns nothing from one tenant for another."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import replace

import numpy as np
import pytest

from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.drafters import (
    EMPTY,
    Budget,
    Context,
    CostCurve,
    GrammarDrafter,
    NgramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TraceDrafter,
    Verified,
)
from auditor.reference.drafters.replay import Logged, replay
from auditor.reference.engine import Engine
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.running import Ask, Running
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

SCHEME = noise_scheme("gumbel-pos-v1")
VOCABULARY = 4096
GREEDY = SamplingSpec(temperature=0.0)


def context_of(tokens, prompt, *, key=0, spec=GREEDY, tenant="", seed=1):
    ask = Ask(tuple(tokens[:prompt]), prompt, spec, seed, SCHEME, 200, frozenset(), tenant=tenant)
    return Context(key, list(tokens), prompt, Running(ask, VOCABULARY))


def guess(drafter, context, nodes=8):
    return drafter.propose(context, Budget.alone(nodes), context.request.noise)


def test_prompt_lookup_goes_on_as_it_went_on_before():
    text = [10, 11, 12, 13, 14, 15, 99, 10, 11]
    tree = guess(NgramDrafter(), context_of(text, 9))
    assert (12, 13, 14, 15, 99) in {tree.path(node) for node in range(len(tree))}
    assert guess(NgramDrafter(), context_of([1, 2, 3], 3)) == EMPTY


def test_recycling_guesses_what_the_model_last_thought_likely():
    drafter, context = RecyclingDrafter(), context_of([1, 2, 3], 3)
    assert guess(drafter, context) == EMPTY
    seen = Verified(
        np.array([3, 7]), np.array([[7, 8], [9, 3]]), np.array([[5.0, 4.0], [6.0, 1.0]], np.float32)
    )
    drafter.observe(context, (7,), seen)
    context.tokens.append(3)
    paths = {
        drafter_path
        for tree in [guess(drafter, context)]
        for drafter_path in map(tree.path, range(len(tree)))
    }
    assert {(7,), (8,), (7, 9), (7, 3)} <= paths


@pytest.mark.parametrize("make", [SuffixDrafter, RecyclingDrafter])
def test_nothing_is_learned_from_one_tenant_for_another(make):
    drafter = make()
    first = context_of([5, 40, 41, 42, 43, 44], 1, key=1, tenant="a")
    guess(drafter, first)
    seen = Verified(np.array([40]), np.array([[41]]), np.array([[9.0]], np.float32))
    drafter.observe(first, (44,), seen)
    drafter.forget(first)
    assert len(guess(drafter, context_of([6, 40], 2, key=2, tenant="a"))) > 0
    assert guess(drafter, context_of([6, 40], 2, key=3, tenant="b")) == EMPTY


def test_the_noise_decides_between_equally_likely_tokens():
    """After 5 came 6 and 7 as often: the one with the larger noise is the first guess."""
    text = [5, 6, 5, 7, 5]
    for seed in range(6):
        context = context_of(text, 5, spec=SamplingSpec(), seed=seed)
        six, seven = context.request.noise.gumbel(0, [6, 7])
        assert guess(NgramDrafter(), context, nodes=1).tokens == (6 if six > seven else 7,)
        assert guess(NgramDrafter(noise_aware=False), context, nodes=1).tokens == (6,)


def test_noise_ahead_is_the_noise_that_decides():
    """Rows read ahead, kept over steps and looked up by token are those that the sampler draws with."""
    from auditor.kernels.keyed_noise import keyed_noise

    request = context_of([1, 2, 3], 3, spec=SamplingSpec()).request
    ids = np.array([4, 4000])
    for taken in (0, 1, 3):
        request.noise.advance(taken)
        rows = request.noise.rows(np.arange(5))
        for depth in (0, 4):
            expected = keyed_noise(SCHEME.noise, rows[depth : depth + 1], ids[None])[0]
            assert request.noise.gumbel(depth, ids.tolist()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert rows.tolist() == SCHEME.row_keys(1, 3, 4, 9).tolist()


@pytest.fixture(scope="module")
def demo():
    tokenizer = Tokenizer.load(TARGET)
    return Model.load(TARGET), tokenizer


def finished(engine, requests):
    while not all(request.finished for request in requests):
        engine.step()
    return [tuple(request.output) for request in requests]


def test_a_log_is_replayed_in_a_few_steps_and_rejected_where_it_was_tampered_with(demo):
    model, tokenizer = demo
    prompts = [tuple(tokenizer.encode_chat(c)) for c in demo_conversations(3, 5)]
    asks = [
        Ask(p, len(p), SamplingSpec(ignore_eos=True), n, SCHEME, 65, frozenset())
        for n, p in enumerate(prompts)
    ]
    plain = Engine(model, batch_size=1)
    started = time.process_time()
    outputs = finished(plain, [plain.add(ask) for ask in asks])
    decoded = time.process_time() - started

    def log(outputs):
        return {(ask.prompt, ask.seed): output for ask, output in zip(asks, outputs, strict=True)}

    again = Engine(model, drafter=TraceDrafter(log(outputs)), batch_size=1)
    started = time.process_time()
    assert finished(again, [again.add(ask) for ask in asks]) == outputs
    assert again.steps == 2 * len(asks), "the prompt, and all of the output: everything was accepted"
    # At the pace of prefill: what plain decoding takes is four times less than when this was five times as quick.
    assert decoded > 2 * (time.process_time() - started)

    tampered = list(outputs)
    tampered[1] = (*outputs[1][:30], (outputs[1][30] + 1) % 4096, *outputs[1][31:])
    engine = Engine(model, drafter=TraceDrafter(log(tampered)), batch_size=1)
    requests = [engine.add(ask) for ask in asks]
    while requests[1].finished or not requests[1].output:
        engine.step()
    while len(requests[1].output) < 2:
        engine.step()
    assert tuple(requests[1].output) == outputs[1][:31], "the step ended with the model's own token"
    assert finished(engine, requests) == outputs


def test_what_a_grammar_forces_is_guessed_and_taken(demo):
    model, tokenizer = demo
    schema = {"type": "object", "properties": {"quantity": {"type": "integer"}}, "required": ["quantity"]}
    grammar = {
        "library": "xgrammar",
        "version": importlib.metadata.version("xgrammar"),
        "kind": "json_schema",
        "schema": schema,
        "any_whitespace": False,
    }
    prompt = tuple(tokenizer.encode_chat(demo_conversations(1, 6)[0]))
    spec = SamplingSpec(grammar=grammar)
    ask = Ask(prompt, len(prompt), spec, 4, SCHEME, 24, frozenset(tokenizer.eos_ids), tokenizer=tokenizer)
    outputs, steps = [], []
    for drafter in (None, GrammarDrafter()):
        engine = Engine(model, drafter=drafter)
        outputs += finished(engine, [engine.add(ask)])
        steps.append(engine.steps)
    assert outputs[0] == outputs[1]
    assert steps[1] < steps[0]


def test_replay_without_the_model_counts_the_steps_that_decoding_takes(demo):
    model, tokenizer = demo
    prompts = [tuple(tokenizer.encode_chat(c)) for c in demo_conversations(2, 8)]
    asks = [Ask(p, len(p), SamplingSpec(), n, SCHEME, 40, frozenset()) for n, p in enumerate(prompts)]
    engine = Engine(model, drafter=SuffixDrafter(), batch_size=1, nodes=6)
    outputs = finished(engine, [engine.add(ask) for ask in asks])
    logs = [Logged(ask, output) for ask, output in zip(asks, outputs, strict=True)]
    tallies = replay(SuffixDrafter(), logs, VOCABULARY, nodes=6)
    assert sum(tally.steps for tally in tallies) + len(asks) == engine.steps
    assert sum(tally.tokens for tally in tallies) == sum(map(len, outputs)) - len(asks)
    assert tallies[0].tokens_per_step >= 1.0


def test_a_profile_of_costs_rises(demo):
    curve = CostCurve.profiled(demo[0], 2, context=16, repetitions=1)
    assert curve.rows[0] == 2
    assert list(curve.seconds) == sorted(curve.seconds)
    assert curve(2) > 0


def test_a_request_that_fits_no_cache_is_an_error_and_others_are_preempted(demo):
    from auditor.errors import OptionError

    model, _ = demo
    ask = Ask((1, 2, 3, 4), 4, SamplingSpec(), 1, SCHEME, 20, frozenset())
    engine = Engine(model, slots=12)
    engine.add(ask)
    with pytest.raises(OptionError, match="do not fit the 12"):
        for _ in range(20):
            engine.step()
    tight = Engine(model, slots=30, batch_size=3)
    requests = [tight.add(replace(ask, seed=seed)) for seed in range(3)]
    roomy = Engine(model, batch_size=3)
    assert finished(tight, requests) == finished(roomy, [roomy.add(replace(ask, seed=n)) for n in range(3)])
    assert tight.steps > roomy.steps
