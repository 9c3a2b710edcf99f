"""The path of few rows: the exact path's numbers, the same bits in a tree as in plain decoding, no silent strangers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import auditor.kernels.narrow_product as narrow_file
import auditor.reference.model as model_file
from auditor.errors import ContextLengthError, TokenOutOfRangeError
from auditor.kernels.narrow_product import narrow_product
from auditor.reference.batch import Span, extend
from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context
from auditor.reference.drafters.model import ModelDrafter
from auditor.reference.drafters.tree import DraftTree
from auditor.reference.future_noise import FutureNoise
from auditor.reference.head import draw_rows
from auditor.reference.layers.linear import ONEDNN_DTYPES, Linear, PackedLinear
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.running import Ask, Running
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence

DEMO = Path(__file__).parents[2] / "reference" / "demo"
TEXT = torch.arange(7, 67)
pytestmark = pytest.mark.skipif(torch.float32 not in ONEDNN_DTYPES, reason="needs oneDNN")


@pytest.fixture(scope="module")
def target():
    return Model.load(DEMO / "target")


def begun(model, count, length=40):
    """A cache with some sequences, and they."""
    cache, sequences = model.new_cache(), [Sequence() for _ in range(count)]
    for sequence in sequences:
        cache.reserve(sequence, 100)
        model.forward([extend(cache, sequence, TEXT[:length])], cache)
        sequence.length = length
    return cache, sequences


def test_its_rows_are_those_of_the_exact_path(target):
    cache, sequences = begun(target, 3)
    spans = [
        extend(cache, sequences[0], TEXT[40:41]),
        extend(cache, sequences[1], TEXT[40:49], wanted=4),
        extend(cache, sequences[2], TEXT[40:44], ancestors=DraftTree((5, 6, 7), (-1, 0, -1)).ancestors()),
    ]
    assert target._few_rows(spans) is not None
    got = target.forward(spans, cache, exact=False)
    whole = target.forward([Span(TEXT)])
    branch = target.forward([Span(torch.cat([TEXT[:41], TEXT[43:44]]))])[-1:]
    expected = torch.cat([whole[40:41], whole[44:49], whole[40:43], branch])
    assert (got - expected).abs().max() < 1e-4
    logits = target.logits(got, exact=False)
    assert (logits - target.logits(expected)).abs().max() < 1e-3


def test_a_row_has_the_same_bits_in_a_tree_and_in_plain_decoding(target):
    cache, (first, second, other) = begun(target, 3)
    chain = extend(cache, first, TEXT[40:46], ancestors=DraftTree.chain(TEXT[41:46].tolist()).ancestors())
    together = target.logits(
        target.forward([chain, extend(cache, other, TEXT[40:41])], cache, exact=False), exact=False
    )
    for row in range(6):
        spans = [extend(cache, second, TEXT[40 + row : 41 + row]), extend(cache, other, TEXT[40:41])]
        alone = target.logits(target.forward(spans, cache, exact=False), exact=False)
        second.length += 1
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("rows", [4, 2])
def test_without_memory_for_copies_the_numbers_are_the_same(target, monkeypatch, rows):
    """To the bit where more than eight rows are read."""
    monkeypatch.setattr(model_file, "free_memory", lambda: 0.0)
    bare = Model.load(DEMO / "target", stream=False)
    found = []
    for model in (target, bare):
        cache, sequences = begun(model, 3)
        spans = [extend(cache, sequence, TEXT[40 : 40 + rows]) for sequence in sequences]
        found.append(model.logits(model.forward(spans, cache, exact=False), exact=False))
    assert bare._few_path._layers[0].qkv.weight is bare._layers[0].mixer.qkv.weight
    assert torch.equal(*found) == (rows == 4)
    assert (found[0] - found[1]).abs().max() < 1e-3


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_weights_of_a_bfloat16_checkpoint_are_read_as_such(rows):
    torch.manual_seed(rows)
    for outputs, inputs in ((96, 256), (251, 63), (7, 96)):
        linear = Linear(torch.randn(outputs, inputs).bfloat16().float(), torch.randn(outputs))
        packed, x = PackedLinear.of(linear, packed=True), torch.randn(rows, inputs)
        assert packed.narrow is not None
        expected = x.double() @ linear.weight.double().T + linear.bias.double()
        assert (packed.padded(x) - expected).abs().max() < 1e-4
        alone = PackedLinear.of(Linear(linear.weight), packed=True)
        narrow_product(
            functional.pad(x, (0, 0, 0, 8 - rows)).numpy(),
            alone.narrow,
            out := np.zeros((8, outputs), np.float32),
            backend="reference",
        )
        assert (alone.padded(x) - torch.from_numpy(out[:rows])).abs().max() < 1e-4


@pytest.mark.parametrize("few_registers", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(2, 1), (7, 63), (96, 256)])
def test_eight_rows_are_the_plain_product_however_many_registers_there_are(
    monkeypatch, few_registers, outputs, inputs
):
    monkeypatch.setattr(narrow_file, "FEW_REGISTERS", few_registers)
    generator = np.random.default_rng(outputs)
    x = generator.normal(size=(8, inputs)).astype(np.float32)
    weight = (generator.normal(size=(outputs, inputs)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    plain, compiled = (np.zeros((8, outputs), np.float32) for _ in range(2))
    narrow_product(x, weight, plain, backend="reference")
    narrow_product(x, weight, compiled)
    assert np.abs(compiled - plain).max() < 1e-4


@pytest.mark.parametrize("rows", [2, 3, 8, 17, 40])
def test_a_packed_product_has_the_bits_of_one_that_reads_the_weight_where_it_is(rows):
    torch.manual_seed(rows)
    for outputs, inputs in ((96, 256), (250, 63), (1000, 96)):
        linear = Linear(torch.randn(outputs, inputs), torch.randn(outputs))
        x = torch.randn(rows, inputs)
        packed, bare = (PackedLinear.of(linear, packed=own).padded(x) for own in (True, False))
        assert torch.equal(packed, bare)
        assert (packed - linear(x)).abs().max() < 1e-4


def test_what_it_does_not_serve_goes_the_other_way(target):
    cache, (sequence,) = begun(target, 1)
    span = extend(cache, sequence, TEXT[40:42])
    for model in (
        target.replace(key_value=lambda _layer, keys, values: (keys, values)),
        target.showing([1]),
        Model.load(DEMO / "target", dtype=torch.bfloat16),
        Model.load(DEMO / "target", dtype=torch.bfloat16, wide_matmul=True),
        Model.load(DEMO / "target", stream=True),
    ):
        assert model._few_rows([span]) is None
    assert target._few_rows([Span(TEXT[:4])]) is None


def test_wrong_rows_are_refused(target):
    cache, (sequence,) = begun(target, 1)
    with pytest.raises(TokenOutOfRangeError):
        target.forward([extend(cache, sequence, torch.tensor([4096]))], cache, exact=False)
    sequence.table, sequence.length = torch.arange(512), 512
    with pytest.raises(ContextLengthError):
        target.forward([Span(TEXT[:1], sequence.table, torch.tensor([3]))], cache, exact=False)


def test_a_draft_model_guesses_what_it_would_draw_itself(target):
    """Under keyed noise, over the whole vocabulary, chains of all sequences at once."""
    scheme, spec = noise_scheme("gumbel-pos-v1"), SamplingSpec(temperature=0.7)
    drafter, asked = ModelDrafter(target), []
    for seed in (1, 2, 3):
        prompt = tuple(TEXT[seed : 30 + seed].tolist())
        request = Running(Ask(prompt, len(prompt), spec, seed, scheme, 20, frozenset()), 4096)
        asked.append((Context(seed, list(prompt), len(prompt), request), Budget.alone(5, 5), request.noise))
    trees = drafter.propose_all(asked)
    for (context, _, noise), tree in zip(asked, trees, strict=True):
        assert tree.is_chain
        assert len(tree) == 5
        text = list(context.tokens)
        for depth, token in enumerate(tree.tokens):
            logits = target.logits(target.forward([Span(torch.tensor(text))])[-1:])
            assert draw_rows(logits, spec, scheme, noise.rows(np.array([depth])))[0] == token
            text.append(token)
    assert isinstance(asked[0][2], FutureNoise)
