"""The Gram matrix of the Hamming kernel: both backends, odd shapes, padding."""

from __future__ import annotations

import numpy as np
import pytest

from auditor.kernels.hamming_gram import hamming_gram


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (13, 33), (25, 200)])
def test_backends_agree_to_the_bit(shape):
    rows = np.random.default_rng(shape[0]).integers(-1, 3, shape).astype(np.int32)
    gram = hamming_gram(rows)
    assert gram.dtype == np.int32
    np.testing.assert_array_equal(gram, hamming_gram(rows, backend="reference"))
    np.testing.assert_array_equal(gram, (rows[:, None] == rows[None]).sum(axis=-1))


def test_strided_rows_are_read_right():
    rows = np.random.default_rng(0).integers(0, 3, (6, 20)).astype(np.int32)
    np.testing.assert_array_equal(hamming_gram(rows[::2, ::3]), hamming_gram(rows[::2, ::3].copy()))
