"""The catalogue of deviations: every entry changes what it says, honestly described, and controls change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from auditor.errors import OptionError
from auditor.generation import Provider, generate
from auditor.reference.deviations import CATALOGUE, DEVIATIONS, HONEST, Prompt
from auditor.reference.model import Model
from auditor.reference.noise import SCHEMES
from auditor.reference.policies.selection import Scores, heavy_hitters, last_query, lazy, selecting
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.simulated import Views, served, simulate
from auditor.reference.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "reference" / "demo"
CONTROLS = {"kv/h2o-1000"}
# What need not show in 72 tokens of one request: in the matrix they do.
RARE = {"acceptance/blind-trust-0.9", "acceptance/token-routing", "acceptance/bug-pad-attended"}
MESSAGES = (
    {"role": "system", "content": "Explain every step."},
    {"role": "user", "content": "Tell me about json in Python. " * 10},
)


@pytest.fixture(scope="module")
def target():
    return Model.load(DEMO / "target")


@pytest.fixture(scope="module")
def prompt():
    tokenizer = Tokenizer.load(DEMO / "target")
    return Prompt(tuple(tokenizer.encode_chat(MESSAGES)), MESSAGES, tokenizer)


@pytest.fixture(scope="module")
def request_of(target, prompt):
    """An honest request, filtered and penalised, of 120 tokens."""
    from auditor.reference.decode import Ask
    from auditor.reference.decode import generate as decode

    spec = SamplingSpec(top_p=0.95, repetition_penalty=1.05, presence_penalty=0.1, ignore_eos=True)
    scheme = SCHEMES["gumbel-pos-v1"]

    def made(spec):
        ask = Ask(prompt.token_ids, len(prompt.token_ids), spec, 5, scheme, 120, frozenset())
        return Request(prompt.token_ids, next(iter(decode(target, [ask]))), spec, 5, scheme)

    return {"ruled": made(spec), "plain": made(SamplingSpec(ignore_eos=True))}


def hidden(target, request, model, fed):
    return next(Runner(target, prefix_bytes=0).states([(request, fed)], model))


def simulated(target, request, prompt, cause):
    draft = Model.load(DEMO / "draft")
    deviant = cause.model(target, draft)
    own = hidden(target, request, target, request.prompt)
    other = hidden(target, request, deviant, tuple(cause.prompt(prompt)))
    return simulate(request, 0, cause, Views((target, own), (target, own), (deviant, other))).stats


def test_a_hypothesis_is_scored_and_shows_its_states_in_one_pass(target, draft, request_of, prompt):
    fed = tuple(CATALOGUE["prompt/system-dropped"].prompt(prompt))
    both = [({"declared": request}, fed) for request in request_of.values()]
    passed = list(Runner(target).under(both, draft))
    for request, (scores, states) in zip(request_of.values(), passed, strict=True):
        assert torch.equal(states, hidden(target, request, draft, fed))
        assert len(scores["declared"].claimed) == len(states) == len(request.output)


def test_there_are_more_than_eighty_and_each_says_where_it_is_from():
    assert len(CATALOGUE) >= 80
    assert DEVIATIONS.keys() <= CATALOGUE.keys()
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert name.count("/") == 1
        assert entry.gain
        assert entry.source
        assert HONEST.name not in CATALOGUE


def test_the_honest_one_returns_the_log(target, request_of, prompt):
    for request in request_of.values():
        stats = simulated(target, request, prompt, HONEST)
        assert (~stats.matched).sum() <= 1  # a tie between decode and prefill


SIMULATED = [cause for cause in CATALOGUE.values() if cause.serves is None]
SERVING = [cause for cause in CATALOGUE.values() if cause.serves is not None]


@pytest.fixture(scope="module")
def draft():
    return Model.load(DEMO / "draft")


@pytest.fixture(scope="module")
def short(target, request_of, prompt):
    """The honest requests, cut to what shows in seconds."""
    return [(replace(request, output=request.output[:72]), prompt) for request in request_of.values()]


@pytest.mark.parametrize("cause", SERVING, ids=lambda c: c.name)
def test_one_that_decodes_by_itself_returns_other_tokens(target, draft, short, cause):
    asked = [short[0] if cause.needs_penalty else short[1]]
    asked = [(replace(r, spec=replace(r.spec, max_tokens=len(r.output))), prompt) for r, prompt in asked]
    log = served(asked, cause, (target, draft))
    stats = next(Runner(target).score(log))
    missed = int((~stats.matched).sum())
    assert missed < len(stats.matched)
    assert cause.declares(asked[0][0].spec) == log[0].spec
    if cause.unseen:  # another check's business
        assert missed <= 1
        assert log[0].output == asked[0][0].output
    elif cause.name not in RARE:
        assert missed or log[0].output != asked[0][0].output
    assert not cause.decodes


@pytest.mark.parametrize("cause", SIMULATED, ids=lambda c: c.name)
def test_each_changes_something_and_never_every_token(target, request_of, prompt, cause):
    request = request_of["ruled" if cause.needs_filter or cause.needs_penalty else "plain"]
    stats = simulated(target, request, prompt, cause)
    missed = int((~stats.matched).sum())
    assert np.isfinite(stats.margin).all()
    assert missed < len(stats.matched)
    if cause.name in CONTROLS:
        assert missed <= 1
        return
    # A subtle one need not show in the tokens of one request, but in what is drawn from.
    own = hidden(target, request, target, request.prompt)
    other = hidden(
        target, request, cause.model(target, Model.load(DEMO / "draft")), tuple(cause.prompt(prompt))
    )
    states = own.shape != other.shape or bool((own - other).abs().max() > 1e-4)
    parameters = cause.sampling(request.spec) != request.spec or cause.seed(5) != 5
    assert missed or states or parameters or cause.logits is not None or cause.slips


def test_a_slip_returns_the_runner_up(target, request_of, prompt):
    stats = simulated(target, request_of["plain"], prompt, replace(HONEST, slips=1.0))
    assert np.array_equal(stats.rank, np.ones(len(stats.rank)))
    assert np.allclose(stats.margin, stats.slack)


def test_what_applies_nowhere_is_honest(target, request_of, prompt):
    cause = replace(CATALOGUE["seed/wrong"], applies=lambda served: np.zeros(len(served.position), np.bool_))
    assert (~simulated(target, request_of["plain"], prompt, cause).matched).sum() <= 1


@pytest.mark.parametrize("rule", [heavy_hitters, last_query, lazy])
def test_what_was_evicted_stays_away_and_the_budget_holds(rule):
    generator = torch.Generator().manual_seed(3)
    rows, prompt, budget = 90, 50, 24
    raw = torch.randn(4, rows, rows, generator=generator)
    weights = raw.masked_fill(~torch.ones(rows, rows).tril().bool(), -torch.inf).softmax(-1)
    seen = Scores(
        torch.zeros(4, rows, 8), torch.zeros(2, rows, 8), weights.unflatten(0, (2, 2)).mean(1), raw, prompt
    )
    kept = rule(seen, budget=budget)
    for row in range(prompt, rows - 1):
        assert not (kept[:, row + 1, :row] & ~kept[:, row, :row]).any()
        if rule is not lazy:
            assert (kept[:, row, :row].sum(1) <= budget).all()
    assert kept[:, :prompt].all()


def test_selecting_everything_is_the_models_own_attention(target, request_of):
    request = request_of["plain"]
    every = target.replace(
        attention=selecting(lambda seen: torch.ones(1, seen.rows, seen.rows, dtype=torch.bool))
    )
    own = hidden(target, request, target, request.prompt)
    assert (hidden(target, request, every, request.prompt) - own).abs().max() < 1e-4


def test_one_that_sees_whole_sequences_does_not_decode(target):
    deviant = CATALOGUE["depth/skip-decode"].model(target, None)
    cache = deviant.new_cache()
    from auditor.reference.batch import extend
    from auditor.reference.slots import Sequence

    sequence = Sequence()
    deviant.forward([extend(cache, sequence, torch.arange(5, 9))], cache)
    sequence.length = 4
    with pytest.raises(OptionError, match="whole sequences"):
        deviant.forward([extend(cache, sequence, torch.arange(5, 6))], cache, exact=False)


def test_a_deviation_that_cannot_serve_is_refused_by_name():
    provider = Provider.load(DEMO / "target", dtype="float32", batch_size=1)
    with pytest.raises(OptionError, match="depth/skip-decode is measured on logs"):
        next(generate(provider, [MESSAGES], deviation=CATALOGUE["depth/skip-decode"], seed=1))
