"""A trace's scores are the same bits alone, in company, in any order, budget and with shared prefixes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.reference.batch import Span, extend
from auditor.reference.decode import Ask, generate
from auditor.reference.layers.linear import MKL_SETTINGS, ROW_QUANTUM, Linear
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
SCHEME = noise_scheme("gumbel-pos-v1")


@pytest.fixture(scope="module")
def model():
    return Model.load(TARGET)


@pytest.fixture(scope="module")
def requests(model):
    """Seeded generations of many lengths; some share a long beginning."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randint(5, 4096, (70,), generator=generator).tolist()
    made = []
    for n in range(14):
        own = torch.randint(5, 4096, (3 + 7 * n,), generator=generator).tolist()
        prompt = tuple([*common[: 20 + 10 * (n % 6)], *own] if n % 2 else own)
        spec = SamplingSpec(max_tokens=2 + 9 * n, ignore_eos=True, top_p=0.9 if n % 3 else 1.0)
        ask = Ask(prompt, len(prompt), spec, n, SCHEME, 2 + 9 * n, frozenset())
        (output,) = generate(model, [ask])
        made.append(Request(prompt, output, spec, n, SCHEME))
    return made


@pytest.fixture(scope="module")
def alone(model, requests):
    """Each request in a runner of its own."""
    return [next(Runner(model, prefix_bytes=0).score([request])) for request in requests]


def same_bits(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in type(one).__slots__)


@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    budget=st.integers(20, 3000),
    prefix_bytes=st.sampled_from([0, 60_000, 1 << 24]),
    lanes=st.integers(1, 3),
)
def test_scores_are_the_same_bits_in_any_company(model, requests, alone, data, budget, prefix_bytes, lanes):
    order = data.draw(st.permutations(range(len(requests))))[: data.draw(st.integers(1, len(requests)))]
    runner = Runner(model, token_budget=budget, prefix_bytes=prefix_bytes)
    before = torch.get_num_threads()
    torch.set_num_threads(lanes)
    try:
        for _ in range(2):  # the second time, prefixes are found from the first
            got = list(runner.score([requests[n] for n in order]))
            assert all(same_bits(rows, alone[n]) for rows, n in zip(got, order, strict=True))
        assert torch.get_num_threads() == lanes
    finally:
        torch.set_num_threads(before)
    runner._cache.check([], runner.prefixes.held())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_product_does_not_depend_on_the_others(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(1)
        for outputs, inputs in ((512, 256), (256, 640), (4096, 256), (96, 40), (1152, 896)):
            product = Linear(torch.randn(outputs, inputs, generator=generator))
            rows = torch.randn(300, inputs, generator=generator)
            whole = product(rows)
            for count in (1, 2, 3, ROW_QUANTUM - 1, ROW_QUANTUM, 17, 100, 255):
                assert torch.equal(product(rows[7 : 7 + count]), whole[7 : 7 + count]), (outputs, count)
    finally:
        torch.set_num_threads(before)


USED_FIRST = """
import torch
torch.randn(99, 99) @ torch.randn(99, 99)
from auditor.reference.layers.linear import MKL_IS_STRICT, Linear
assert not MKL_IS_STRICT
torch.set_num_threads(2)
for outputs, inputs in ((1152, 896), (256, 640)):
    x, product = torch.randn(300, inputs), Linear(torch.randn(outputs, inputs))
    whole = product(x)
    assert all(torch.equal(product(x[:rows]), whole[:rows]) for rows in (1, 2, 15, 16, 17, 100, 254))
"""


# With AVX2 MKL's products keep nothing on Intel's processors: bits hang on the number of rows.
@pytest.mark.parametrize(
    "instructions", [{}, {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}]
)
def test_where_mkl_ran_before_it_could_be_asked_a_row_keeps_its_bits_all_the_same(instructions):
    environment = {name: value for name, value in os.environ.items() if name not in MKL_SETTINGS}
    subprocess.run([sys.executable, "-c", USED_FIRST], env=environment | instructions, check=True)


IN_BFLOAT16 = """
import torch
from auditor.reference.layers.linear import BFLOAT16_BY_AMX, Linear
assert not BFLOAT16_BY_AMX
torch.set_num_threads(2)
for outputs, inputs in ((1152, 896), (256, 640)):
    x, weight = torch.randn(300, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    whole = Linear(weight)(x)
    assert all(torch.equal(Linear(weight)(x[:rows]), whole[:rows]) for rows in (1, 2, 15, 16, 17, 100, 254))
"""


def test_without_amx_rows_keep_their_bits_in_bfloat16_too():
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    subprocess.run([sys.executable, "-c", IN_BFLOAT16], env=environment, check=True)


def test_shared_prefixes_are_computed_once_and_counted(model, requests):
    runner = Runner(model)
    list(runner.score(requests))
    asked, found = runner.prefixes.asked, runner.prefixes.found
    assert asked == sum(len(request.prompt) - 1 for request in requests)
    assert 0 < found < asked
    list(runner.score(requests))
    assert runner.prefixes.found - found >= found


@pytest.fixture
def rows(monkeypatch):
    """Rows of every forward pass from here on."""
    counts, forward = [], Model.forward

    def counted(self, spans, *rest, **options):
        counts.append(sum(len(span.tokens) for span in spans))
        return forward(self, spans, *rest, **options)

    monkeypatch.setattr(Model, "forward", counted)
    return counts


def test_a_pack_is_filled_with_the_rows_that_no_prefix_spares(model, rows):
    common = tuple(range(5, 105))
    requests = [
        Request((*common, 200 + n, 300), (7, 8, 9), SamplingSpec(ignore_eos=True), n, SCHEME)
        for n in range(12)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(Runner(model, token_budget=120).score(requests))
    finally:
        torch.set_num_threads(before)
    assert rows == [100, 48]


@pytest.mark.parametrize(("lanes", "packs"), [(1, [45] * 4), (2, [45] * 4), (3, [27, 27, 27, 27, 36, 36])])
def test_every_lane_fills_packs_of_its_own_and_all_finish_together(model, rows, lanes, packs):
    # Ten tokens each, of which the last is not fed.
    requests = [
        Request(tuple(range(5 + n, 12 + n)), (7, 8, 9), SamplingSpec(ignore_eos=True), n, SCHEME)
        for n in range(20)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(lanes)
    try:
        list(Runner(model, token_budget=50, prefix_bytes=0).score(requests))
    finally:
        torch.set_num_threads(before)
    assert sorted(rows) == packs


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_drafts_forks_and_preemption_leave_what_plain_prefill_computes(model, data):
    """I1 to I5 on the model itself: a random history of trees, forks and releases against one prefill."""
    cache = model.new_cache()
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(5, 4096, (count,), generator=generator)

    tokens, sequence = draw(9), Sequence()
    model.forward([extend(cache, sequence, tokens)], cache)
    sequence.length = 9
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["tree", "fork", "preempt"]))
        if kind == "fork":
            parent, sequence = sequence, cache.fork(sequence)
            cache.release(parent)
        elif kind == "preempt":
            cache.release(sequence)
            model.forward([extend(cache, sequence, tokens)], cache)
            sequence.length = len(tokens)
        else:
            drafts = draw(6)
            ancestors = torch.eye(6, dtype=torch.bool)
            parents = [-1, 0, 0, 1, 1, -1]  # two roots; node 1 and 2 are children of 0, 3 and 4 of 1
            for node, parent in enumerate(parents):
                if parent >= 0:
                    ancestors[node] |= ancestors[parent]
            span = extend(cache, sequence, drafts, ancestors=ancestors)
            hidden = model.forward([span], cache, exact=False)
            path = data.draw(st.sampled_from([[0, 1, 4], [0, 2], [5], []]))
            grown = torch.cat([tokens, drafts[path]])
            truth = model.forward([Span(grown, wanted=len(tokens))])
            if path:
                assert (hidden[path] - truth).abs().max() < 1e-4
            cache.keep(sequence, torch.tensor(path, dtype=torch.int64))
            tokens = grown
        assert sequence.length == len(tokens)
    last = draw(1)
    after = model.forward([extend(cache, sequence, last)], cache, exact=False)
    grown = torch.cat([tokens, last])
    assert (after - model.forward([Span(grown, wanted=len(tokens))])).abs().max() < 1e-4
    cache.check([sequence])
