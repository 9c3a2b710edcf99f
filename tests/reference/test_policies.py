"""Declared policies: one meaning in decoding and in replay, read from one line, refused where nobody knows it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import OptionError
from auditor.reference.batch import Span, extend
from auditor.reference.decode import Ask, generate
from auditor.reference.drafters import DRAFTERS
from auditor.reference.engine import Engine
from auditor.reference.layers.rotary import frequencies, rotate
from auditor.reference.model import Model
from auditor.reference.noise import SCHEMES
from auditor.reference.policies import RULES, Policy
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence

DEMO = Path(__file__).parents[2] / "reference" / "demo"
SCHEME = SCHEMES["gumbel-pos-v1"]
NEEDED = {"budget": 16, "at": 3, "inserted": 4}
LINES = [
    " ".join([name, *(f"{option}={NEEDED[option]}" for option, n in rule.defaults.items() if n == 0)])
    for name, rule in RULES.items()
]


@pytest.fixture(scope="module")
def target():
    return Model.load(DEMO / "target")


def ask(seed: int, prompt: int = 40, tokens: int = 24) -> Ask:
    ids = np.random.default_rng(seed).integers(10, 400, prompt)
    spec = SamplingSpec(max_tokens=tokens, ignore_eos=True)
    return Ask(tuple(ids.tolist()), prompt, spec, seed, SCHEME, tokens, frozenset())


def replayed(model: Model, asked: Ask, output: tuple[int, ...], **options: int) -> np.ndarray:
    request = Request(asked.prompt, output, asked.spec, asked.seed, asked.scheme)
    (stats,) = Runner(model, **options).score([request])
    return stats.matched


@pytest.mark.parametrize("line", LINES)
def test_what_was_decoded_under_a_policy_is_replayed_under_it(target, line):
    model = Policy.parse(line).applied(target)
    asks = [ask(seed, prompt) for seed, prompt in ((1, 40), (2, 9), (3, 70))]
    outputs = list(generate(model, asks, batch_size=2))
    assert all(replayed(model, a, o).all() for a, o in zip(asks, outputs, strict=True))
    spans = [
        Span(torch.tensor((*a.prompt, *o)), prompt=len(a.prompt)) for a, o in zip(asks, outputs, strict=True)
    ]
    changed = (model.forward(spans) - target.forward(spans)).abs().max()
    assert changed > 1e-3  # it is another model


@pytest.mark.parametrize("line", ["kv/h2o budget=16", "kv/lazy-eviction budget=16", "kv/snapkv budget=16"])
def test_how_calls_are_cut_changes_nothing(target, line):
    model = Policy.parse(line).applied(target)
    asks = [ask(seed, 50) for seed in (4, 5, 6)]
    alone = [next(generate(model, [a])) for a in asks]
    engine = Engine(model, batch_size=3, slots=150, token_budget=16)
    running = [engine.add(a) for a in asks]
    while not all(r.finished for r in running):
        engine.step()
    assert [tuple(r.output) for r in running] == alone  # chunked, mixed with decoding, preempted
    assert replayed(model, asks[0], alone[0], token_budget=16).all()


def test_a_row_at_a_time_sees_what_all_rows_at_once_see(target):
    model = Policy.parse("kv/h2o budget=12").applied(target)
    tokens = torch.tensor(ask(7, 60).prompt)
    whole = model.forward([Span(tokens, prompt=30)])
    cache, sequence, parts = model.new_cache(), Sequence(), []
    for start, stop in ((0, 30), *((n, n + 1) for n in range(30, 60))):
        span = extend(cache, sequence, tokens[start:stop], prompt=30)
        parts.append(model.forward([span], cache, exact=stop - start > 1))
        sequence.length = stop
    assert (torch.cat(parts) - whole).abs().max() < 1e-4


def test_a_sequence_without_its_beginning_is_refused(target):
    model = Policy.parse("kv/tova budget=8").applied(target)
    cache, sequence = model.new_cache(), Sequence()
    target.forward([extend(cache, sequence, torch.arange(5, 15))], cache)  # keys and values, but no queries
    sequence.length, sequence.state = 10, {}
    with pytest.raises(OptionError, match="first ones are not there"):
        model.forward([extend(cache, sequence, torch.arange(5, 6), prompt=10)], cache)
    with pytest.raises(OptionError, match="draft trees"):
        tree = torch.ones(2, 2, dtype=torch.bool).tril()
        model.forward([Span(torch.arange(5, 7), ancestors=tree, depth=torch.arange(2))])


def test_a_drafter_changes_no_token_under_a_policy(target):
    model = Policy.parse("kv/streaming budget=16").applied(target)
    plain = list(generate(model, [ask(8)]))
    assert list(generate(model, [ask(8)], drafter=DRAFTERS["ngram"]())) == plain


@given(
    name=st.sampled_from(sorted(RULES)),
    numbers=st.lists(st.integers(5, 2**30), min_size=4, max_size=4, unique=True),
)
def test_a_policy_reads_what_it_writes(name, numbers):
    options = " ".join(f"{o}={n}" for o, n in zip(RULES[name].defaults, sorted(numbers)[::-1], strict=False))
    policy = Policy.parse(f"{name} {options}".strip())
    assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "h2o",
            "kv/h2o",
            "kv/h2o budget=0",
            "kv/h2o budget=-1",
            "kv/h2o budget=1.5",
            "kv/h2o  budget=9",
        ),
        *("kv/h2o budget=9 budget=9", "kv/h2o budget=9 sinks=1", "kv/int8 budget=9", "kv/h2o budget=9\n"),
        *("kv/streaming budget=4", "kv/unheard-of budget=9", f"kv/h2o budget={2**31}", "kv/h2o budget=٣"),
        *(None, 7, {"name": "kv/h2o"}, ["kv/h2o budget=9"]),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(line):
    with pytest.raises(OptionError) as refusal:
        Policy.parse(line)
    assert "\n" not in refusal.value.message.replace("\\n", "")


@given(st.one_of(st.text(), st.integers(), st.none(), st.dictionaries(st.text(), st.integers())))
def test_no_declaration_crashes_the_reader(line):
    with suppress(OptionError):
        assert str(Policy.parse(line)).startswith("kv/")


@pytest.mark.parametrize(("at", "inserted"), [(1, 9), (12, 1), (5, 20), (33, 6), (38, 2), (60, 3)])
def test_an_insertion_is_what_moving_cached_keys_computes(target, at, inserted):
    """The provider's own way: three pieces of cache, the last one's keys turned on, its values as they were."""
    prompt = torch.tensor(ask(9, 40).prompt)
    behind = at + inserted
    cache, before, edited = target.new_cache(), Sequence(), Sequence()
    old = torch.cat([prompt[:at], prompt[behind:-1]])
    target.forward([extend(cache, before, old)], cache)
    known = min(at, len(prompt) - 1)
    target.forward([extend(cache, edited, prompt[:known])], cache)
    edited.length = known
    if known < len(prompt) - 1:
        target.forward([extend(cache, edited, prompt[known : min(behind, len(prompt) - 1)])], cache)
        edited.length = min(behind, len(prompt) - 1)
        cache.reserve(edited, len(prompt))
    stale = before.table[at : len(old)]
    for layer, plan in enumerate(target.config.layers):
        keys, values = cache.read(layer, stale)
        turns = inserted * frequencies(plan.mixer.rope, keys.shape[-1])
        moved = rotate(keys, turns.cos(), turns.sin())
        cache.write(layer, edited.table[edited.length :][: len(stale)], moved, values)
    edited.length += len(stale)
    assert edited.length == len(prompt) - 1
    expected = target.forward([extend(cache, edited, prompt[-1:])], cache)
    model = Policy.parse(f"kv/pie at={at} inserted={inserted}").applied(target)
    got = model.forward([Span(prompt, wanted=len(prompt) - 1)])
    assert (got - expected).abs().max() < 1e-4
    changed = (target.forward([Span(prompt, wanted=len(prompt) - 1)]) - expected).abs().max()
    assert (changed > 1e-3) == (len(stale) > 0)
