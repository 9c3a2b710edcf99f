"""Whitened distances: scale-free, and not ruled by the few dimensions with massive activations.

The second moment `E[a a^T]` of hidden states is estimated on calibration traffic and shrunk towards a
multiple of the identity; for features `P a` it is `P E[a a^T] P^T`, so one estimate serves every projection.
Source of the distance: the activation inner product of "Towards Atoms", arXiv 2509.20784. Source of the
shrinkage: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", JMVA
2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from auditor.kernels.sign_projection import SignBasis, matrix
from auditor.kernels.splitmix import F64

if TYPE_CHECKING:
    import torch

LEAST_SHRINKAGE = 0.01
"""Share of the identity that always remains, so that a direction never seen is not infinitely telling."""


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """Sums over hidden states, [d, d] in all: 8 d**2 bytes however long the traffic.

    Attributes:
        rows: how many were added.
        products: float64 [d, d], sum of outer products.
        fourth: sum of squared squared lengths, what the shrinkage needs.
    """

    rows: int
    products: F64
    fourth: float

    @classmethod
    def empty(cls, width: int) -> SecondMoment:
        """Nothing seen yet."""
        return cls(0, np.zeros((width, width)), 0.0)

    def add(self, hidden: npt.NDArray[np.float32] | torch.Tensor) -> SecondMoment:
        """The sums with rows [n, d] added."""
        rows = hidden if isinstance(hidden, np.ndarray) else hidden.float().cpu().numpy()
        a = rows.astype(np.float64)
        lengths = (a**2).sum(axis=1)
        return SecondMoment(
            self.rows + len(a), self.products + a.T @ a, self.fourth + float((lengths**2).sum())
        )

    @property
    def shrinkage(self) -> float:
        """Weight of the identity, by Ledoit and Wolf's formula, between 0.01 and 1."""
        if self.rows < 2:
            return 1.0
        mean = self.products / self.rows
        width = len(mean)
        square = float((mean**2).sum())
        spread = square - float(np.trace(mean)) ** 2 / width
        error = (self.fourth / self.rows - square) / self.rows
        return float(np.clip(error / spread if spread > 0 else 1.0, LEAST_SHRINKAGE, 1.0))

    @property
    def shrunk(self) -> F64:
        """The estimate, float64 [d, d], positive definite once a row that is not zero was added."""
        mean = self.products / max(self.rows, 1)
        weight = self.shrinkage
        return np.asarray((1 - weight) * mean + weight * np.trace(mean) / len(mean) * np.eye(len(mean)))


def whitened(outside: F64, moment: SecondMoment, basis: SignBasis) -> F64:
    """Whitened root mean square of feature differences, float64 [n].

    Args:
        outside: float64 [n, k], as `activation_difr.Residuals` has it.
    """
    p = matrix(basis)
    factor = np.linalg.cholesky(p @ moment.shrunk @ p.T)
    white = np.linalg.solve(factor, outside.T)
    return np.asarray(np.sqrt((white**2).mean(axis=0)))
