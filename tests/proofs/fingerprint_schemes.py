"""What is compared: our fingerprints, TOPLOC's proofs, and the released Activation-DiFR rule, as scores by request.

Each scheme turns a provider's states and the reference's, [tokens, d] of one request, into one number for every
token or window; a request's score after T tokens is the mean of those that are complete. Larger is further.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from auditor.fingerprints.activation_difr import FINAL, FingerprintKind, fingerprint, residuals
from auditor.fingerprints.toploc import chunks, make_proofs, verify_proofs
from auditor.fingerprints.wire import row_bytes
from auditor.generation import derived_projection_seed
from auditor.kernels.value_codes import SCALES

MIDDLE = 2
"""The layer after which the demo model's (five) states are also fingerprinted."""


@dataclass(frozen=True)
class States:
    """One request's states, float32 [tokens, d].

    Attributes:
        final: after the final norm.
        middle: after layer `MIDDLE`.
        before_norm: the last layer's; of a provider not used.
        noise: float64 [tokens], mean square by which a pass in half precision leaves `final`; of the reference.
    """

    final: torch.Tensor
    middle: torch.Tensor
    before_norm: torch.Tensor
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Ours:
    """Our fingerprints of one kind, a fresh projection for each request."""

    kind: FingerprintKind

    @property
    def name(self):
        return self.kind.name.removeprefix("activation-difr/v2 ")

    @property
    def window(self):
        return self.kind.window

    @property
    def row_bytes(self):
        return row_bytes(self.kind)

    def scores(self, own: States, truth: States, seed: int, index: int):
        final = self.kind.layer == FINAL
        given = fingerprint(
            own.final if final else own.middle,
            self.kind,
            projection_seed=derived_projection_seed(seed, index),
            binding=bytes(8),
        )
        if final:
            return residuals(given, truth.final, truth.before_norm).distance
        return residuals(given, truth.middle).distance


@dataclass(frozen=True)
class Rescaled(Ours):
    """The same bytes, read with a second pass of the reference, in half precision: a try, not what verdicts use.

    The score is the distance from the code's centre over what is honest: the root of the second pass's own square
    distance plus a twelfth of a level's square, which rounding to a level adds.
    """

    @property
    def name(self):
        return f"{super().name}, second pass"

    def scores(self, own: States, truth: States, seed: int, index: int):
        given = fingerprint(
            own.final,
            self.kind,
            projection_seed=derived_projection_seed(seed, index),
            binding=bytes(8),
        )
        level = SCALES[given.coded.scale]
        centre = given.coded.levels * level[:, None]
        square = ((residuals(given, truth.final).features - centre) ** 2).mean(axis=1)
        return np.sqrt(square / (truth.noise + level**2 / 12))


@dataclass(frozen=True)
class Toploc:
    """TOPLOC's proofs; the score is the mean error over points, an exponent mismatch counted as 128 of the mantissa."""

    window: int
    points: int

    @property
    def name(self):
        return f"TOPLOC k{self.points} per {self.window}"

    @property
    def row_bytes(self):
        return 2 + 2 * self.points

    def scores(self, own: States, truth: States, seed: int, index: int):
        del seed, index
        proofs = make_proofs(list(chunks(own.final.bfloat16(), 0, self.window)), self.points)
        results = verify_proofs(list(chunks(truth.final.bfloat16(), 0, self.window)), proofs)
        wrong = np.array([r.exponent_mismatches for r in results])
        mantissa = np.minimum([r.mantissa_error_mean for r in results], 128)
        return (128 * wrong + (self.points - wrong) * mantissa) / self.points


@cache
def _gaussian(width, features):
    generator = torch.Generator().manual_seed(42)
    return (torch.randn(width, features, generator=generator) / features**0.5).bfloat16()


@dataclass(frozen=True)
class Released:
    """The authors' code: one public Gaussian matrix in bfloat16, features kept in bfloat16, the plain L2 distance."""

    features: int
    window: int = 1

    @property
    def name(self):
        return f"released Gaussian k{self.features}"

    @property
    def row_bytes(self):
        return 2 * self.features

    def scores(self, own: States, truth: States, seed: int, index: int):
        del seed, index
        matrix = _gaussian(own.final.shape[1], self.features)
        sides = [(x.final.bfloat16() @ matrix) for x in (own, truth)]
        return (sides[0] - sides[1]).norm(dim=1).double().numpy()


SCHEMES = [
    *(Ours(FingerprintKind("int8", 16)), Ours(FingerprintKind("int8", 4)), Ours(FingerprintKind("int4", 16))),
    *(
        Ours(FingerprintKind("int4", 8)),
        Ours(FingerprintKind("int4", 4)),
        Ours(FingerprintKind("int8", 16, 32)),
    ),
    *(Ours(FingerprintKind("int4", 16, 32)), Ours(FingerprintKind("int8", 16, 1, MIDDLE))),
    *(Rescaled(FingerprintKind("int8", 16)), Rescaled(FingerprintKind("int8", 4))),
    *(Released(16), Released(4)),
    *(Toploc(1, 2), Toploc(1, 8), Toploc(32, 32), Toploc(32, 128)),
]
