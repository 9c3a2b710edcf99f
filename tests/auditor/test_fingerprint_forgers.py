"""Forgers who know the code, k, the layer and how fingerprints are judged, in whole audits: refused, or detected."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from auditor.calibration import calibrate
from auditor.fingerprints.activation_difr import FingerprintKind, fingerprint, request_binding
from auditor.fingerprints.wire import HEADER_BYTES, entry_of, from_entry, to_entry, to_payload
from auditor.generation import Provider, generate
from auditor.reference.batch import Span
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import deviation
from auditor.reference.loading import load_model
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference
from auditor.verification import verify

KIND = FingerprintKind("int8", 16)
SPEC = SamplingSpec(max_tokens=24)


@cache
def reference():
    torch.set_num_threads(1)
    return Reference.load(TARGET)


@cache
def provider():
    return Provider.load(TARGET, batch_size=24)


@cache
def served(cause="honest", requests=8, seed=41):
    made = generate(
        provider(),
        demo_conversations(requests, seed),
        deviation=deviation(cause),
        seed=seed,
        sampling=SPEC,
        other_model=load_model(DRAFT) if cause == "model/substituted" else None,
        fingerprints=KIND,
    )
    return tuple(replace(t, raw_digest=f"sha256:{cause}{seed}{i}") for i, t in enumerate(made))


@cache
def profile():
    return calibrate(served(requests=24, seed=49), reference(), shadow_tokens=0)


def audited(log, own=None):
    result = verify(lambda: log, reference(), find_profile=lambda _key: own or profile(), explain=False)
    return result, {e.name: e.log_e for e in result.verdicts[0].evidence}


def states(model, trace):
    """What a model computes at each output token of a logged text."""
    tokens = torch.tensor([*trace.prompt_token_ids, *trace.output_token_ids[:-1]])
    return model.forward([Span(tokens, wanted=len(trace.prompt_token_ids) - 1)]).float()


def with_states(trace, hidden):
    """The trace with a fingerprint of these states, sealed as the provider's own."""
    sent = from_entry(trace.fingerprints[0])
    binding = request_binding(trace.prompt_token_ids, trace.output_token_ids, trace.seed)
    own = fingerprint(hidden, KIND, projection_seed=sent.projection_seed, binding=binding)
    return replace(trace, fingerprints=(to_entry(own),))


def cheap(model):
    return deviation("weights/int4").model(model, None)


def test_states_drawn_half_way_to_the_right_ones_are_convicted():
    """Half of the tokens' compute spent on the right model, and the two averaged, buys nothing."""
    right, poor = provider().model, cheap(provider().model)
    log = [with_states(t, 0.5 * states(right, t) + 0.5 * states(poor, t)) for t in served("weights/int4")]
    result, found = audited(log)
    assert result.outcome == "inconsistent"
    assert found[KIND.name] > np.log(1000)


def test_right_states_at_half_of_the_tokens_do_not_hide_the_others():
    right, poor = provider().model, cheap(provider().model)

    def mixed(trace):
        odd = torch.arange(len(trace.output_token_ids))[:, None] % 2 == 1
        return with_states(trace, torch.where(odd, states(right, trace), states(poor, trace)))

    result, found = audited([mixed(t) for t in served("weights/int4")])
    assert result.outcome == "inconsistent"
    assert found[KIND.name] > np.log(1000)


def test_a_prefill_spoof_leaves_fingerprints_at_chance_and_is_convicted_by_its_tokens():
    """A cheap model writes, the right one is run once over the text: what is fused must not need both."""
    log = [with_states(t, states(provider().model, t)) for t in served("model/substituted")]
    result, found = audited(log)
    assert found[KIND.name] < np.log(20)
    assert found["token-difr"] > np.log(1000)
    assert result.outcome == "inconsistent"


def flipped(trace, bit, *, sealed):
    """One bit of the payload's rows flipped: on the way, or by a provider that makes its check sum anew."""
    sent = from_entry(trace.fingerprints[0])
    raw = bytearray(to_payload(sent))
    raw[HEADER_BYTES + bit // 8 % (len(raw) - HEADER_BYTES)] ^= 1 << bit % 8
    entry = entry_of(bytes(raw), sent.projection_seed)
    return replace(
        trace, fingerprints=(entry if sealed else {**trace.fingerprints[0], "data": entry["data"]},)
    )


@pytest.mark.parametrize("bit", [0, 7, 8, 15, 100])
def test_any_bit_flipped_on_the_way_is_refused_by_name(bit):
    first, *rest = served()
    result, _ = audited([flipped(first, bit, sealed=False), *rest])
    assert "[fingerprint-corrupted]" in " ".join(result.verdicts[0].reasons)
    assert result.outcome != "consistent"


@pytest.mark.parametrize("bit", [7, 6, 15])
def test_a_flipped_high_bit_in_each_request_is_refused_or_convicted_whatever_its_sum_says(bit):
    """Bit 7 of a row's first byte is its scale's highest; bit 15 turns the sign of a level."""
    result, found = audited([flipped(t, bit, sealed=True) for t in served()])
    refused = " ".join(result.verdicts[0].reasons)
    assert (
        result.outcome == "inconsistent"
        or "[fingerprint-value]" in refused
        or found[KIND.name] > np.log(1000)
    )


NOT_NUMBERS = {"bf16": b"\x7f\x80", "fp8": b"\x7f"}


@pytest.mark.parametrize("code", NOT_NUMBERS)
def test_nan_and_infinity_are_refused_by_name_and_never_pass(code):
    trace = served()[0]
    kind = FingerprintKind(code, 16)
    sent = from_entry(trace.fingerprints[0])
    own = fingerprint(
        states(provider().model, trace), kind, projection_seed=sent.projection_seed, binding=sent.binding
    )
    raw = to_payload(own)
    raw = raw[: -len(NOT_NUMBERS[code])] + NOT_NUMBERS[code]
    entry = entry_of(raw, own.projection_seed)
    result, _ = audited([replace(trace, fingerprints=(entry,)), *served()[1:]])
    assert "[fingerprint-value]" in " ".join(result.verdicts[0].reasons)
    assert result.outcome != "consistent"


def test_a_fingerprint_that_fits_any_state_is_refused_by_name():
    def universal(trace):
        sent = from_entry(trace.fingerprints[0])
        coded = replace(
            sent.coded, levels=np.zeros_like(sent.coded.levels), scale=np.full_like(sent.coded.scale, 255)
        )
        return replace(trace, fingerprints=(to_entry(replace(sent, coded=coded)),))

    result, _ = audited([universal(t) for t in served("weights/int4")])
    assert "[fingerprint-value]" in " ".join(result.verdicts[0].reasons)
    assert result.outcome != "consistent"


@pytest.mark.parametrize("tokens", [1, -1])
def test_a_fingerprint_with_a_token_too_few_or_too_many_is_refused_by_name(tokens):
    def stretched(trace):
        hidden = states(provider().model, trace)
        return with_states(trace, hidden[:-1] if tokens < 0 else torch.cat([hidden, hidden[-1:]]))

    first, *rest = served()
    result, _ = audited([stretched(first), *rest])
    assert "[fingerprint-length]" in " ".join(result.verdicts[0].reasons)
    assert result.outcome != "consistent"


def test_another_requests_fingerprints_under_this_ones_name_are_convicted():
    log = [
        with_states(
            t, states(provider().model, o)[: len(t.output_token_ids)].repeat(24, 1)[: len(t.output_token_ids)]
        )
        for t, o in zip(served(), served()[::-1], strict=True)
    ]
    result, found = audited(log)
    assert found[KIND.name] > np.log(1000)
    assert result.outcome == "inconsistent"


def test_fingerprints_copied_from_another_request_with_its_seal_are_refused_by_name():
    log = [replace(t, fingerprints=o.fingerprints) for t, o in zip(served(), served()[::-1], strict=True)]
    result, _ = audited(log)
    assert "[fingerprint-replayed]" in " ".join(result.verdicts[0].reasons)
    assert result.outcome != "consistent"
