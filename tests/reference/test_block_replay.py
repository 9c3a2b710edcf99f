"""Branches: rows of drafts that the output does not have, computed on its prefix, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from auditor.errors import OptionError, SamplingUnsupportedError
from auditor.reference.batch import Span
from auditor.reference.block_replay import branch_hidden, row_numbers
from auditor.reference.decode import Ask, generate
from auditor.reference.deviations import HONEST, Prompt, deviation
from auditor.reference.drafters import ModelDrafter
from auditor.reference.head import RowStats
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import Speculated, Step, find_rule, steps_of
from auditor.reference.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "reference" / "demo"
OWN = noise_scheme("gumbel-pos-v1")
RULE = find_rule("block", OWN, None)
SHARED = tuple(range(500, 540))
PROMPTS = [(1, *SHARED, 300, 41, 77), (1, *SHARED, 512, 9, 1000), (1, 17), (1, 3999, 3998, 64, 64, 64)]
SPECS = {
    "plain": SamplingSpec(),
    "filtered": SamplingSpec(temperature=0.9, top_k=40, top_p=0.95),
    "penalised": SamplingSpec(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
    "biased": SamplingSpec(logit_bias={7: 4.0, 300: -3.0}),
}


@pytest.fixture(scope="module")
def model():
    return Model.load(DEMO / "target")


@pytest.fixture(scope="module")
def drafter():
    return Model.load(DEMO / "draft")


def asks_of(spec, tokens=32):
    return [
        Ask(p, len(p), spec, 90 + n, OWN, tokens, frozenset(), speculation=RULE)
        for n, p in enumerate(PROMPTS)
    ]


def request_of(ask, output, steps):
    speculated = Speculated(RULE, np.zeros(len(output), np.int64), steps_of(steps, output))
    return Request(ask.prompt, output, ask.spec, ask.seed, OWN, speculated=speculated)


@pytest.fixture(scope="module")
def requests(model, drafter):
    def serve(name, tokens=32):
        steps = []
        asks = asks_of(SPECS[name], tokens)
        outputs = list(
            generate(model, asks, drafter=ModelDrafter(drafter, noise_aware=False), on_steps=steps.append)
        )
        return [request_of(*parts) for parts in zip(asks, outputs, steps, strict=True)]

    return serve


@pytest.mark.parametrize("name", SPECS)
def test_what_was_played_is_what_the_audit_expects(model, requests, name):
    """Penalties of a row count the drafts before it, kept or not."""
    for stats in Runner(model).score(requests(name)):
        assert (stats.matched | (stats.slack < 1e-4)).all()
        assert stats.matched.mean() > 0.95
        assert (stats.margin < 1e-3).all()


def test_branch_rows_are_those_of_whole_sequences_to_the_bit(model, requests):
    request = requests("plain")[0]
    steps = [*request.steps[:-1], Step(request.steps[-1].first, (5, 6, 7), 1, ended=False)]
    output = request.output[: steps[-1].first + 1]
    steps[-1] = replace(steps[-1], drafts=(output[-1], 6, 7))
    text = torch.tensor([*request.prompt, *output[:-1]])
    cache = model.new_cache()
    slots = cache.alloc(len(text))
    main = model.forward([Span(text, keep=slots, wanted=len(request.prompt) - 1)], cache)
    hidden = torch.cat([main, branch_hidden(model, cache, slots, len(request.prompt), steps, 16)])
    assert len(hidden) > len(output) + 5
    for step, rows in zip(steps, row_numbers(steps, len(output)), strict=True):
        read = (*request.prompt, *output[: step.first], *step.drafts)
        first = len(request.prompt) - 1 + step.first
        fresh = model.prefill([torch.tensor(read[: first + step.rows])])[first:]
        assert torch.equal(hidden[rows], fresh)


def same(left, right):
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in RowStats.__slots__)


@pytest.mark.parametrize("limits", [{"token_budget": 24}, {"tile_bytes": 1}, {"prefix_bytes": 0}])
def test_scores_do_not_hang_on_budgets_and_no_slot_is_lost(model, requests, limits):
    log = requests("filtered")
    free, bound = Runner(model), Runner(model, **limits)
    for one, other in zip(free.score(log), bound.score(log), strict=True):
        assert same(one, other)
    for runner in (free, bound):
        runner._cache.check([], runner.prefixes.held())


def test_hidden_states_shown_are_those_of_the_output_alone(model, requests):
    log = requests("plain")
    shown = []
    list(Runner(model).score(log, on_hidden=lambda _request, hidden: shown.append(len(hidden))))
    assert shown == [len(request.output) for request in log]


def test_an_honest_shadow_matches_and_dishonest_ones_do_not(model, requests):
    """Beside other sampling modes of the same requests, which see the output's rows alone."""
    log = [
        ({"sampled": replace(r, speculated=None), "drafted-block": r}, Prompt(r.prompt, None, None))
        for r in requests("plain")
    ]
    runner = Runner(model)
    shares = {}
    for name, kind in (("honest", HONEST), *((n, deviation(n)) for n in ("seed/wrong", "temperature/+0.1"))):
        shadows = list(runner.shadow(log, kind, model))
        rows = [stats for mode, stats in shadows if mode == "drafted-block"]
        others = [len(stats.margin) for mode, stats in shadows if mode == "sampled"]
        assert others == [len(variants["sampled"].output) for variants, _ in log]
        assert len(rows) == len(log)
        shares[name] = np.concatenate([stats.matched for stats in rows]).mean()
    skipped = model.replace(skip_layers=frozenset({1}))
    rows = [stats for mode, stats in runner.shadow(log, HONEST, skipped) if mode == "drafted-block"]
    assert shares["honest"] == 1.0
    assert shares["temperature/+0.1"] < 1.0
    assert shares["seed/wrong"] < 0.8
    assert np.concatenate([stats.matched for stats in rows]).mean() < 0.95


def test_greedy_requests_are_played_plainly(model, drafter):
    asks = asks_of(SamplingSpec(temperature=0.0), 12)
    plain = [replace(ask, speculation=None) for ask in asks]
    assert list(generate(model, asks, drafter=ModelDrafter(drafter, noise_aware=False))) == list(
        generate(model, plain)
    )


def test_a_model_that_cannot_go_back_is_refused(drafter, tmp_path):
    config = Mamba2Config(
        vocab_size=drafter.config.vocab_size,
        hidden_size=48,
        num_hidden_layers=1,
        state_size=16,
        num_heads=12,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="mamba2"):
        list(
            generate(
                Model.load(tmp_path),
                asks_of(SamplingSpec())[:1],
                drafter=ModelDrafter(drafter, noise_aware=False),
            )
        )


def test_a_grammar_is_refused(model, drafter):
    spec = SamplingSpec(grammar={"regex": "[a-z]+"})
    ask = replace(asks_of(spec)[0], tokenizer=Tokenizer.load(DEMO / "target"))
    with pytest.raises(SamplingUnsupportedError, match="grammar"):
        list(generate(model, [ask], drafter=ModelDrafter(drafter, noise_aware=False)))
