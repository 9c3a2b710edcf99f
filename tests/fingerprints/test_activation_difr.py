"""Fingerprints: honest rounding stays near, attacks are refused by name or stand out, hostile bytes are harmless."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import (
    FingerprintError,
    FingerprintLengthError,
    FingerprintUnsupportedError,
    FingerprintValueError,
)
from auditor.fingerprints.activation_difr import (
    FingerprintKind,
    basis_of,
    fingerprint,
    projection_key,
    request_binding,
    residuals,
    windowed,
)
from auditor.fingerprints.whitening import SecondMoment, whitened
from auditor.fingerprints.wire import (
    HEADER_BYTES,
    from_entry,
    from_payload,
    from_sidecar,
    row_bytes,
    to_entry,
    to_payload,
    to_sidecar,
)
from auditor.kernels.sign_projection import matrix
from auditor.kernels.value_codes import CODES

SEED = bytes(range(16))
BINDING = b"12345678"
KINDS = [FingerprintKind(code, k, w) for code in CODES for k, w in ((1, 1), (5, 3), (16, 32))]


def hidden_of(n=20, d=96, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


PLAIN = FingerprintKind()


def made(kind=PLAIN, hidden=None, seed=SEED):
    return fingerprint(
        hidden_of() if hidden is None else hidden,
        kind,
        projection_seed=seed,
        binding=BINDING,
        backend="reference",
    )


def distance(given_, hidden):
    return float(residuals(given_, hidden, backend="reference").plain.mean())


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_what_is_written_is_read_back_and_costs_what_it_says(kind):
    own = made(kind)
    raw = to_payload(own)
    assert len(raw) == HEADER_BYTES + kind.windows(20) * row_bytes(kind)
    again = from_payload(raw, projection_seed=SEED)
    assert again.kind == kind
    assert again.binding == BINDING
    assert np.array_equal(again.coded.levels, own.coded.levels)
    assert to_payload(from_entry(to_entry(own))) == raw
    (record,) = from_sidecar(to_sidecar([("req-é", own)]))
    assert record[0] == "req-é"
    assert to_payload(record[1]) == raw


def test_bytes_of_the_common_kinds():
    assert [row_bytes(FingerprintKind(c, 16)) for c in CODES] == [9, 17, 17, 32]
    assert row_bytes(FingerprintKind("int4", 3)) == 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_the_same_states_lie_in_their_own_cells(kind):
    assert distance(made(kind), hidden_of()) < 1e-9


@pytest.mark.parametrize("kind", [k for k in KINDS if k.features > 1], ids=lambda k: k.name)
def test_distance_grows_with_the_deviation(kind):
    own, noise = hidden_of(64), hidden_of(64, seed=1)
    d = [distance(made(kind, own + s * noise), own) for s in (0.01, 0.1, 1.0)]
    assert d[0] < d[1] / 3 < d[2] / 9
    assert 0.3 < d[2] < 3


def test_a_window_adds_up_differences_in_square():
    kind = FingerprintKind("bf16", 64, 8)
    own, noise = hidden_of(160), hidden_of(160, seed=1)
    assert 0.07 < distance(made(kind, own + 0.1 * noise), own) < 0.13
    rows = windowed(own[:9], kind, SEED)
    assert rows.shape == (2, 96)
    assert np.allclose(np.abs(rows[1]), np.abs(own[8]))  # a short last window is scaled by its own length


@pytest.mark.parametrize("window", [1, 4])
def test_a_short_residual_stream_does_not_make_honest_noise_look_large(window):
    """The final norm divides by the stream's length: noise of one size must give distances of one size."""
    stream = hidden_of(n=24, d=512)
    lengths = np.repeat([1.0, 9.0, 4.0], 8).astype(np.float32)[:, None]
    noise = 0.1 * hidden_of(n=24, d=512, seed=1)

    def normed(x):
        return (x / np.sqrt((x**2).mean(axis=1, keepdims=True))).astype(np.float32)

    kind = FingerprintKind("bf16", 64, window)
    given_ = made(kind, normed(lengths * stream + noise))
    found = residuals(given_, normed(lengths * stream), lengths * stream, backend="reference")
    short, long, middle = (found.distance[part] for part in np.split(np.arange(24 // window), 3))
    assert 0.05 < found.distance.mean() < 0.12
    assert short.mean() == pytest.approx(middle.mean(), rel=0.25)
    assert found.plain[: 8 // window].mean() > 5 * found.plain[8 // window : 16 // window].mean()
    assert long.mean() > 0.0


def test_a_layers_distance_is_relative_to_its_own_states():
    given_ = made(PLAIN, hidden_of())
    found = residuals(given_, 1.1 * hidden_of(), backend="reference")
    assert np.array_equal(found.distance, found.plain)


def test_a_residual_stream_that_is_not_finite_is_no_evidence():
    given_ = made()
    with pytest.raises(FingerprintValueError):
        residuals(given_, hidden_of(), hidden_of() * np.float32(np.nan), backend="reference")


def test_tensors_and_arrays_are_windowed_alike():
    import torch

    kind = FingerprintKind("int8", 4, 6)
    own = hidden_of(20)
    assert np.allclose(
        windowed(own, kind, SEED), windowed(torch.from_numpy(own), kind, SEED).numpy(), atol=1e-6
    )


def test_layers_and_seeds_have_their_own_projection():
    keys = {projection_key(s, layer) for s in (SEED, bytes(16)) for layer in (-1, 0, 1)}
    assert len(keys) == 6
    with pytest.raises(ValueError):
        projection_key(b"short", -1)


def test_binding_depends_on_prompt_output_and_seed():
    assert (
        len({request_binding((1,), (2,), 3), request_binding((1, 2), (), 3), request_binding((1,), (2,), 4)})
        == 3
    )


# Attacks.


def test_a_forger_who_knows_the_projection_passes_and_one_who_does_not_stands_out():
    """Why the seed must be drawn after the commitment: k features are cheap to get right, d dimensions are not."""
    kind, truth = FingerprintKind("int8", 16), hidden_of(64)
    cheap = truth + 0.3 * hidden_of(64, seed=1)
    p = matrix(basis_of(kind, SEED, 96))
    forged = (cheap + (truth - cheap) @ p.T @ p).astype(np.float32)  # right only where it is looked at
    assert distance(made(kind, forged), truth) < 1e-3
    later = bytes(16)
    assert distance(made(kind, forged, later), truth) > 0.1


def test_interpolated_states_are_as_far_as_they_are_wrong():
    truth, cheap = hidden_of(64), hidden_of(64, seed=1)
    half = distance(made(FingerprintKind("int8", 16), truth + 0.5 * (cheap - truth)), truth)
    assert 0.5 < half < 1.0


def test_a_fingerprint_of_other_states_is_far():
    assert distance(made(hidden=hidden_of(seed=7)), hidden_of()) > 0.5


def test_flipped_bits_are_refused_or_stand_out():
    raw = bytearray(to_payload(made(FingerprintKind("int8", 16))))
    generator = np.random.default_rng(0)
    for place in generator.integers(HEADER_BYTES, len(raw), 40):
        flipped = raw.copy()
        flipped[place] ^= 0x40
        try:
            given_ = from_payload(bytes(flipped), projection_seed=SEED)
        except FingerprintError:
            continue
        assert distance(given_, hidden_of()) > 1e-3


@pytest.mark.parametrize(
    ("code", "bytes_of_level"),
    [("fp8", b"\x7f"), ("fp8", b"\xff"), ("bf16", b"\x7f\x80"), ("bf16", b"\x7f\xc0")],
)
def test_nan_and_infinity_are_refused(code, bytes_of_level):
    kind = FingerprintKind(code, 4)
    raw = bytearray(to_payload(made(kind)))
    start = HEADER_BYTES + (code != "bf16")
    raw[start : start + len(bytes_of_level)] = bytes_of_level
    with pytest.raises(FingerprintValueError) as caught:
        from_payload(bytes(raw), projection_seed=SEED)
    assert caught.value.code == "fingerprint-value"


@pytest.mark.parametrize("code", ["int4", "int8", "fp8"])
def test_cells_so_wide_that_anything_lies_in_them_are_refused(code):
    """A forger's universal fingerprint: level 0 at the largest scale, whatever the states are."""
    own = made(FingerprintKind(code, 16))
    levels = np.zeros_like(own.coded.levels)
    forged = replace(own, coded=replace(own.coded, levels=levels, scale=np.full_like(own.coded.scale, 255)))
    with pytest.raises(FingerprintValueError):
        from_payload(to_payload(forged), projection_seed=SEED)
    with pytest.raises(FingerprintValueError):
        residuals(forged, hidden_of(), backend="reference")


@pytest.mark.parametrize("code", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 1.0, 1e4])
def test_no_scale_that_an_encoder_chooses_is_refused(code, size):
    for seed in range(20):
        own = made(FingerprintKind(code, 1 + seed % 16), np.float32(size) * hidden_of(seed=seed))
        assert len(from_payload(to_payload(own), projection_seed=SEED).coded.levels) == 20


@pytest.mark.parametrize(("code", "level"), [("int8", 0x80), ("int4", 0x88)])
def test_levels_that_no_encoder_writes_are_refused(code, level):
    raw = bytearray(to_payload(made(FingerprintKind(code, 4))))
    raw[HEADER_BYTES + 1] = level
    with pytest.raises(FingerprintValueError):
        from_payload(bytes(raw), projection_seed=SEED)


def test_states_that_are_not_finite_are_not_fingerprinted():
    bad = hidden_of()
    bad[3, 4] = np.nan
    with pytest.raises(FingerprintValueError):
        made(hidden=bad)
    with pytest.raises(FingerprintValueError):
        residuals(made(), bad, backend="reference")


@pytest.mark.parametrize("tokens", [1, 19, 21, 400])
def test_a_fingerprint_of_another_length_is_refused(tokens):
    with pytest.raises(FingerprintLengthError) as caught:
        residuals(made(), hidden_of(tokens), backend="reference")
    assert caught.value.code == "fingerprint-length"


def header(**changes):
    fields = {"magic": b"ADFR", "version": 1, "code": 1, "k": 2, "window": 1, "layer": -1, "n": 1}
    fields = fields | {"binding": BINDING} | changes
    return struct.pack(">4sBBBBhI8s", *fields.values())


MALFORMED = {
    "nothing": b"",
    "half a header": header()[:20],
    "another magic": header(magic=b"XXXX") + b"\x80\0\0",
    "no features": header(k=0) + b"\x80",
    "too many features": header(k=129) + bytes(130),
    "no window": header(window=0) + b"\x80\0\0",
    "a layer below the final one": header(layer=-2) + b"\x80\0\0",
    "four billion rows": header(n=2**32 - 1) + b"\x80\0\0",
    "cut short": header() + b"\x80\0",
    "bytes left over": header() + b"\x80\0\0\0",
    "padding that is not zero": header(code=0, k=1) + b"\x80\x01",
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_bytes_are_refused(fault):
    with pytest.raises(FingerprintError) as caught:
        from_payload(MALFORMED[fault], projection_seed=SEED)
    assert caught.value.code == "fingerprint-malformed"


@pytest.mark.parametrize("raw", [header(version=2) + b"\x80\0\0", header(code=4) + b"\x80\0\0"])
def test_another_version_or_code_is_refused_as_that(raw):
    with pytest.raises(FingerprintUnsupportedError):
        from_payload(raw, projection_seed=SEED)


GOOD = to_entry(made())
BAD_ENTRIES = [
    None,
    "text",
    {},
    {**GOOD, "kind": 3},
    {**GOOD, "kind": "toploc"},
    {**GOOD, "extra": 1},
    {**GOOD, "projection_seed": "00"},
    {**GOOD, "projection_seed": "zz" * 16},
    {**GOOD, "projection_seed": GOOD["projection_seed"].upper().replace("0", "A")},
    {**GOOD, "data": 7},
    {**GOOD, "data": "é"},
    {**GOOD, "data": GOOD["data"] + "\n"},
    {**GOOD, "data": base64.b64encode(b"junk").decode()},
]


@pytest.mark.parametrize("entry", BAD_ENTRIES, ids=range(len(BAD_ENTRIES)))
def test_a_bad_entry_is_refused(entry):
    with pytest.raises(FingerprintError):
        from_entry(entry)


@given(st.binary(max_size=60), st.sampled_from([b"", header(), header(code=0, k=3), header(code=3)]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_exactly_or_refused(tail, head):
    for read, write in (
        (lambda raw: from_payload(raw, projection_seed=SEED), to_payload),
        (lambda raw: list(from_sidecar(b"ADFS\x01" + raw)), to_sidecar),
    ):
        try:
            value = read(head + tail)
        except FingerprintError:
            continue
        assert write(value) in (head + tail, b"ADFS\x01" + head + tail)


def test_a_sidecar_cut_anywhere_is_refused():
    raw = to_sidecar([("a", made()), ("b", made())])
    whole = len(to_sidecar([("a", made())]))
    for end in [*range(5), 6, 7, 20, 30, 60, whole - 1, whole + 1, len(raw) - 1]:
        with pytest.raises(FingerprintError):
            list(from_sidecar(raw[:end]))


# Whitening.


def test_whitening_is_free_of_scale_and_not_ruled_by_a_massive_dimension():
    scale = np.ones(96, np.float32)
    scale[7] = 1000.0
    own = hidden_of(4000) * scale
    moment = SecondMoment.empty(96).add(own[:1000]).add(own[1000:])
    kind = FingerprintKind("bf16", 16)
    basis = basis_of(kind, SEED, 96)
    noise = hidden_of(64, seed=1)
    quiet = own[:64] + 0.1 * noise * scale
    outside = residuals(made(kind, quiet), own[:64], backend="reference").outside
    larger = SecondMoment.empty(96).add(own * 10)
    assert np.allclose(whitened(outside * 10, larger, basis), whitened(outside, moment, basis), rtol=1e-3)
    assert moment.rows == 4000
    assert 0.01 <= moment.shrinkage <= 1


def test_shrinkage_falls_with_calibration_and_is_whole_without():
    few, many = (SecondMoment.empty(96).add(hidden_of(n) * np.arange(1, 97)) for n in (5, 5000))
    assert few.shrinkage > many.shrinkage
    assert SecondMoment.empty(4).shrinkage == 1.0
    np.linalg.cholesky(few.shrunk)


@pytest.mark.parametrize(
    "bad", [{"code": "int5"}, {"features": 0}, {"features": 129}, {"window": 0}, {"layer": -2}]
)
def test_kinds_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError):
        replace(FingerprintKind(), **bad)
