"""Fingerprints in the whole audit: they convict where tokens cannot yet, and attacks on them are named."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from auditor.calibration import calibrate
from auditor.commands.generate import fingerprint_kind
from auditor.errors import FingerprintReplayedError, OptionError
from auditor.fingerprints.activation_difr import FingerprintKind, request_binding
from auditor.fingerprints.wire import from_entry, to_entry
from auditor.generation import Provider, generate
from auditor.profile import parse_profile, profile_bytes
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import deviation
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.result import result_to_json
from auditor.verification import verify

KIND = FingerprintKind("int8", 16)
SPEC = SamplingSpec(max_tokens=12)


@cache
def reference():
    torch.set_num_threads(1)
    return Reference.load(TARGET)


@cache
def provider():
    return Provider.load(TARGET, batch_size=24)


@cache
def traces(cause="honest", requests=8, seed=1, temperature=1.0, kind=KIND):
    made = generate(
        provider(),
        demo_conversations(requests, seed),
        deviation=deviation(cause),
        seed=seed,
        sampling=replace(SPEC, temperature=temperature),
        fingerprints=kind,
    )
    return tuple(replace(t, raw_digest=f"sha256:{cause}{seed}{i}{kind.name}") for i, t in enumerate(made))


@cache
def profile():
    return calibrate(traces(requests=24, seed=9), reference(), shadow_tokens=0)


def audited(log, own=None, **options):
    return verify(
        lambda: log, reference(), find_profile=lambda _key: own or profile(), explain=False, **options
    )


def evidence(log):
    (verdict,) = audited(log).verdicts
    return {e.name: e.log_e for e in verdict.evidence}


def reasons(log, own=None):
    (verdict,) = audited(log, own).verdicts
    assert verdict.outcome != "consistent"
    return " ".join(verdict.reasons)


def test_a_trace_with_fingerprints_has_grade_a_and_its_distance_is_reported():
    (honest, *_) = traces()
    assert honest.grade == "A"
    shown = result_to_json(audited(traces()))["traces"][0]
    (score,) = shown["fingerprints"]
    assert score["kind"] == KIND.name
    assert score["payload_bytes"] == 22 + 17 * len(honest.output_token_ids)
    assert 0 < score["distance"] < 0.3
    assert any("knew when it answered" in note for note in shown["notes"])


def test_honest_fingerprints_accuse_nobody():
    assert evidence(traces())[KIND.name] < 0


@pytest.mark.parametrize("cause", ["seed/wrong", "temperature/+0.1"])
def test_sampling_does_not_show_in_fingerprints(cause):
    assert evidence(traces(cause))[KIND.name] < np.log(20)


def test_int4_weights_are_convicted_by_fingerprints_where_tokens_alone_do_not():
    found = evidence(traces("weights/int4"))
    assert found[KIND.name] > np.log(1e5)
    assert found["token-difr"] < np.log(1000)
    assert audited(traces("weights/int4")).outcome == "inconsistent"


def test_a_profile_keeps_its_distances_when_written_and_read():
    again = parse_profile(profile_bytes(profile()), where="here")
    assert again == profile()
    assert len(again.fingerprints[KIND.name]) == 24


def test_without_calibrated_distances_the_verdict_is_inconclusive():
    bare = replace(profile(), fingerprints={})
    assert "[fingerprint-uncalibrated]" in reasons(traces(), bare)


def swapped(log):
    """Each request carries the fingerprint of the next."""
    return [replace(t, fingerprints=log[i - 1].fingerprints) for i, t in enumerate(log)]


def rebound(log):
    """The forger also writes the binding of the request it is put on, and makes the length fit."""
    result = []
    for i, t in enumerate(log):
        own, other = from_entry(t.fingerprints[0]), from_entry(log[i - 1].fingerprints[0])
        rows = np.arange(len(own.coded.levels)) % len(other.coded.levels)
        coded = replace(other.coded, scale=other.coded.scale[rows], levels=other.coded.levels[rows])
        binding = request_binding(t.prompt_token_ids, t.output_token_ids, t.seed)
        result.append(replace(t, fingerprints=(to_entry(replace(other, binding=binding, coded=coded)),)))
    return result


def test_a_replayed_fingerprint_is_refused_by_name():
    assert f"[{FingerprintReplayedError.code}]" in reasons(swapped(traces()))


def test_a_replayed_fingerprint_with_a_forged_binding_is_convicted():
    assert evidence(rebound(traces()))[KIND.name] > np.log(1e5)


def change(trace, cut=0, levels=None, **parts):
    own = from_entry(trace.fingerprints[0])
    kept = own.coded.levels[cut:] if levels is None else np.full_like(own.coded.levels, levels)
    coded = replace(own.coded, levels=kept, scale=own.coded.scale[cut:])
    return replace(trace, fingerprints=(to_entry(replace(own, coded=coded, **parts)),))


ATTACKS = {
    "fingerprint-length": lambda t: change(t, cut=1),
    "fingerprint-malformed": lambda t: replace(t, fingerprints=(*t.fingerprints, *t.fingerprints)),
    "fingerprint-unsupported": lambda t: change(t, kind=replace(KIND, layer=5)),
    "fingerprint-value": lambda t: change(t, levels=-128),
}


@pytest.mark.parametrize("code", ATTACKS)
def test_what_cannot_be_used_is_named_and_its_tokens_still_count(code):
    (first, *rest) = traces()
    result = audited([ATTACKS[code](first), *rest])
    assert f"[{code}]" in " ".join(result.verdicts[0].reasons)
    assert result.outcome == "inconclusive"
    assert result.tokens == audited(traces()).tokens


def test_junk_in_a_fingerprint_does_not_hide_a_conviction():
    (first, *rest) = traces("weights/int4")
    assert audited([ATTACKS["fingerprint-length"](first), *rest]).outcome == "inconsistent"


def test_a_resumed_audit_remembers_distances_and_looks_at_refused_ones_again(tmp_path):
    log = [ATTACKS["fingerprint-length"](traces()[0]), *traces()[1:]]
    first = audited(log, journal=tmp_path / "j")
    again = audited(log, journal=tmp_path / "j")
    assert [t.scored.fingerprints for v in first.verdicts for t in v.traces] == [
        t.scored.fingerprints for v in again.verdicts for t in v.traces
    ]
    assert first.verdicts[0].reasons == again.verdicts[0].reasons


def test_distances_do_not_depend_on_what_a_trace_is_audited_with():
    together = [s.fingerprints for s in replay(traces(), reference())]
    assert [next(replay([t], reference())).fingerprints for t in traces()[:2]] == together[:2]


@pytest.mark.parametrize(
    "text", ["", "int8", "int5:4", "int8:0", "int8:129", "int8:x", "int8:4:0", "int8:4:1:2:3", "int8:-4"]
)
def test_a_kind_that_does_not_exist_is_refused(text):
    with pytest.raises(OptionError):
        fingerprint_kind(text)


def test_a_kind_is_named_by_code_features_and_window():
    assert fingerprint_kind("int4:64:32") == FingerprintKind("int4", 64, 32)
    assert fingerprint_kind("int8:16:1:2") == FingerprintKind("int8", 16, 1, 2)


def test_a_layer_of_the_middle_is_compared_and_its_kind_has_honest_distances_of_its_own():
    middle = replace(KIND, layer=2)
    honest, audits = traces(requests=16, seed=31, kind=middle), traces(requests=3, seed=32, kind=middle)
    own = calibrate(honest, reference(), shadow_tokens=0)
    assert set(own.fingerprints) == {middle.name}
    (verdict,) = audited(audits, own).verdicts
    assert {e.name: e.log_e for e in verdict.evidence}[middle.name] < 0
    (verdict,) = audited(traces("weights/int4", 3, 32, kind=middle), own).verdicts
    assert {e.name: e.log_e for e in verdict.evidence}[middle.name] > np.log(50)


def test_a_layer_that_the_model_does_not_have_is_refused():
    with pytest.raises(OptionError):
        traces(requests=1, kind=replace(KIND, layer=5))


def test_a_model_without_layers_to_look_at_has_its_fingerprints_refused(monkeypatch):
    def refuse(self, layers):
        raise OptionError("hidden states of other, which runs through transformers")

    monkeypatch.setattr(type(reference().model), "showing", refuse)
    assert "[fingerprint-unsupported]" in reasons(traces())
