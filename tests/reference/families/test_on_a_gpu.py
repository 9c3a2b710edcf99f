"""Every family on a device of its own (`separate_device.py`): nothing meets across, and rows are the CPU's."""

from __future__ import annotations

import torch

from auditor.reference.batch import Span
from auditor.reference.model import Model
from auditor.reference.slots import Sequence
from tests.reference.families.test_every_family import append, random_sequences, worst
from tests.reference.separate_device import OnSeparateDevice, separate_device


def test_prefill_cuts_and_decoding_are_those_of_the_cpu(architecture, checkpoint_of):
    tokens, other = random_sequences([90, 33])
    expected = Model.load(checkpoint_of(architecture)).prefill([tokens, other])
    with OnSeparateDevice():
        model = Model.load(checkpoint_of(architecture), device=separate_device())
        together = model.prefill([tokens, other]).cpu()
        cache, sequence = model.new_cache(), Sequence()
        parts = [append(model, cache, sequence, part, exact=True) for part in tokens[:70].split([40, 30])]
        parts += [append(model, cache, sequence, token[None], exact=False) for token in tokens[70:]]
        cut = torch.cat(parts).cpu()
        logits = model.logits(together.to(separate_device()))
    assert worst(together, expected) < 1e-5
    assert worst(cut, expected[:90]) < 1e-5
    assert logits.device.type == "cpu"


def test_half_precision_errs_as_on_the_cpu(architecture, checkpoint_of):
    sequences = random_sequences([90, 33])
    directory = checkpoint_of(architecture)
    exact, half = (Model.load(directory, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    truth, here = (model.logits(model.prefill(sequences)) for model in (exact, half))
    with OnSeparateDevice():
        model = Model.load(directory, dtype=torch.bfloat16, device=separate_device())
        there = model.logits(model.forward([Span(tokens) for tokens in sequences]))
    # Medians: where a row's experts change, its error is of another kind.
    ratio = float((there - truth).abs().median() / (here - truth).abs().median())
    assert 0.8 < ratio < 1.25
