"""A drafter that does not pay is hardly asked, one that does is asked nearly always; tokens stay the same."""

from __future__ import annotations

import time

import pytest

from auditor.reference.decode import generate
from auditor.reference.demo.prompts import TARGET
from auditor.reference.drafters import CostCurve, DraftTree, TraceDrafter
from auditor.reference.drafters.cost import Payback
from auditor.reference.engine import Engine
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec

CHEAP = CostCurve((1, 64), (0.001, 0.0011), time.process_time)
"""By processor time: other work on the machine should not count."""
ASKS = [
    Ask((1, 300 + n), 2, SamplingSpec(), n, noise_scheme("gumbel-pos-v1"), 160, frozenset()) for n in range(2)
]


class Garbage:
    """Guesses what never comes, and takes its time."""

    top = 0

    def __init__(self):
        self.asked = 0

    def propose(self, context, budget, noise):
        self.asked += 1
        until = time.process_time() + 0.003
        while time.process_time() < until:
            pass
        return DraftTree.chain([0] * min(4, budget.left))

    def observe(self, context, emitted, verified):
        pass

    def forget(self, context):
        pass


@pytest.fixture(scope="module")
def model():
    return Model.load(TARGET)


@pytest.fixture(scope="module")
def plain(model):
    return list(generate(model, ASKS, batch_size=1))


def steps_of(payback, speed, count):
    """Whether the drafter is asked in each of `count` steps, when steps with guesses have this speed."""
    asked = []
    for step in range(count):
        asked.append(payback.asks)
        payback.note(1, 1, 0.001 / speed(step) if payback.asks else 0.001)
    return asked


@pytest.mark.parametrize(("speed", "most"), [(0.5, 0.1), (0.95, 0.1)])
def test_guesses_that_slow_decoding_down_are_tried_ever_more_rarely(speed, most):
    asked = steps_of(Payback(CHEAP), lambda _: speed, 2000)
    assert all(asked[:16])
    assert sum(asked) < most * len(asked)
    assert any(asked[-512:]), "it is never tried again"


def test_guesses_that_pay_are_nearly_always_made():
    asked = steps_of(Payback(CHEAP), lambda _: 1.3, 2000)
    assert sum(asked) > 0.9 * len(asked)


def test_a_drafter_that_begins_to_pay_is_found_out():
    asked = steps_of(Payback(CHEAP), lambda step: 0.6 if step < 500 else 3.0, 3000)
    assert sum(asked[:500]) < 100
    assert sum(asked[1200:]) > 0.9 * 1800


def test_an_engine_gives_up_a_drafter_that_wastes_its_time(model, plain):
    drafter = Garbage()
    assert list(generate(model, ASKS, batch_size=1, drafter=drafter, cost=CHEAP)) == plain
    assert drafter.asked < sum(map(len, plain)) / 3
    always = Garbage()
    assert list(generate(model, ASKS, batch_size=1, drafter=always)) == plain
    assert always.asked > 0.9 * sum(map(len, plain))


def test_an_engine_goes_on_asking_a_drafter_that_is_right(model, plain):
    logged = {(ask.prompt, ask.seed): output for ask, output in zip(ASKS, plain, strict=True)}
    engine = Engine(model, drafter=TraceDrafter(logged), cost=CHEAP, batch_size=1, nodes=2)
    running = [engine.add(ask) for ask in ASKS]
    while not all(request.finished for request in running):
        engine.step()
    assert [tuple(request.output) for request in running] == plain
    assert engine.tokens == sum(map(len, plain))
    assert engine.tokens > 2 * engine.steps
