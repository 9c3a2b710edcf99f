"""TOPLOC 0.1.6 proofs: the package's own bytes, its one fault left out, and hostile bytes refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import FingerprintError, FingerprintLengthError, FingerprintValueError
from auditor.fingerprints.toploc import (
    NOTHING_TO_COMPARE,
    ToplocProof,
    ToplocResult,
    chunks,
    interpolate,
    make_proofs,
    verify_proofs,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "toploc_0_1_6.json").read_text())["cases"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: str(len(c["indices"])))
def test_proofs_are_the_bytes_that_the_packages_code_makes(case):
    proof = interpolate(np.array(case["indices"]), np.array(case["values"]))
    assert proof.modulus == case["modulus"]
    assert proof.to_bytes().hex() == case["proof"]
    assert proof.values_at(np.array(case["indices"])).tolist() == case["values"]


def test_the_packages_fault_at_colliding_indices_is_real_and_not_ours():
    colliding = [c for c in VECTORS if c["modulus"] != 65497]
    assert colliding
    for case in colliding:
        assert case["evaluated_unreduced"] != case["values"]


def rows(n=40, d=64, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_an_honest_proof_verifies_and_another_request_does_not():
    own = list(chunks(rows(), 8, 32))
    assert [len(c) for c in own] == [8, 32]
    proofs = [ToplocProof.from_base64(p.to_base64()) for p in make_proofs(own, 16)]
    assert verify_proofs(own, proofs) == [ToplocResult(0, 0.0, 0.0)] * 2
    other = verify_proofs(list(chunks(rows(seed=1), 8, 32)), proofs)
    assert all(r.exponent_mismatches > 8 for r in other)


def test_rounding_of_an_honest_machine_moves_mantissas_only():
    own = rows().float()
    proofs = make_proofs([own.bfloat16()], 16)
    (result,) = verify_proofs([(own * 1.004).bfloat16()], proofs)
    assert result.exponent_mismatches <= 2
    assert 0 < result.mantissa_error_mean < 2


def test_nothing_to_compare_is_written_as_the_package_writes_it():
    proof = interpolate(np.arange(4), np.zeros(4, np.int64))
    assert verify_proofs([torch.ones(1, 4, dtype=torch.bfloat16)], [proof]) == [
        ToplocResult(4, NOTHING_TO_COMPARE, NOTHING_TO_COMPARE)
    ]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\xff\xd9",
        b"\x00\x00\x00\x01",
        b"\xff\xd9\x00",
        b"\xff\xff\x00\x01",
        b"\xff\xd9\xff\xff",
    ],
)
def test_malformed_proofs_are_refused(raw):
    with pytest.raises(FingerprintError):
        ToplocProof.from_bytes(raw)


@given(st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_proof_or_refused(raw):
    try:
        proof = ToplocProof.from_bytes(raw)
    except FingerprintError:
        return
    assert proof.to_bytes() == raw
    assert (proof.values_at(np.arange(20)) < 65497).all()


def test_what_cannot_be_proved_is_refused():
    with pytest.raises(FingerprintValueError):
        make_proofs([torch.full((1, 4), float("nan"))], 2)
    with pytest.raises(FingerprintLengthError):
        make_proofs([torch.ones(1, 4)], 5)
    with pytest.raises(FingerprintLengthError):
        verify_proofs([rows()], [])
    with pytest.raises(FingerprintError):
        ToplocProof.from_base64("not base64!")
