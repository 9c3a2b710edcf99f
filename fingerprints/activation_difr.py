"""Activation-DiFR: a few random features of the hidden state at each output token, coded in a few bytes.

The provider projects the hidden states that it computed; the auditor computes its own and measures how far
its features lie outside the cells of the provider's codes. Source: DiFR, arXiv 2511.20621 section 4.3, with
a truly orthonormal projection, small codes, and windows: one fingerprint for several tokens, whose hidden
states are added with random signs, so that differences add in square like those of separate tokens.

What it can show: that the forward pass is consistent with the tokens. What it cannot: that the tokens were
sampled from it (whoever runs the right model once over any text can fingerprint it), so it stands beside
Token-DiFR. And a provider that knows the projection beforehand needs only to get k features right, not d
dimensions: the seed must be drawn after it has committed, else the evidence is against carelessness only.

What honest rounding leaves in the residual stream hardly depends on the text; but the final norm divides by
the stream's length, which does (ninefold on the demo model, least after a system message). So the relative
distance of final states is multiplied by that length, which the reference knows. Without it one honest first
token in a hundred stands at 2.6 times the median, with it at 1.4.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from auditor.errors import FingerprintLengthError, FingerprintValueError
from auditor.kernels.projection_codes import code_projections
from auditor.kernels.sign_projection import MOST_ROWS, Backend, SignBasis, project, sign_basis
from auditor.kernels.splitmix import F64, GOLDEN, mix
from auditor.kernels.value_codes import CODES, Coded, CodeName, cells, has_loose_scale, quantize

if TYPE_CHECKING:
    import torch

FINAL = -1
"""The layer whose states follow the model's last norm (the input of the output matrix)."""

MOST_WINDOW = 255
SEED_BYTES = 16
BINDING_BYTES = 8


@dataclass(frozen=True, slots=True)
class FingerprintKind:
    """Everything on which honest distances depend besides the recipes.

    Attributes:
        code: how features are coded.
        features: k, 1 to 128.
        window: tokens in one fingerprint, 1 to 255; the last window of a request may be shorter.
        layer: `FINAL`, or the decoder layer (0 the first) after which the residual stream is read.
    """

    code: CodeName = "int8"
    features: int = 16
    window: int = 1
    layer: int = FINAL

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"code {self.code!r}; known: {', '.join(CODES)}")
        if not 1 <= self.features <= MOST_ROWS:
            raise ValueError(f"{self.features} features; between 1 and {MOST_ROWS}")
        if not 1 <= self.window <= MOST_WINDOW:
            raise ValueError(f"a window of {self.window} tokens; between 1 and {MOST_WINDOW}")
        if not FINAL <= self.layer < 2**15:
            raise ValueError(f"layer {self.layer}")

    @classmethod
    def parse(cls, text: str) -> FingerprintKind:
        """The kind that `CODE:K`, `CODE:K:WINDOW` or `CODE:K:WINDOW:LAYER` names, say `int8:16`.

        Raises:
            ValueError: not of this form, or out of range.
        """
        parts = text.split(":")
        codes = {str(code): code for code in CODES}
        numbers = [int(part) for part in parts[1:] if part.isdecimal() and len(part) < 6]
        if len(parts) not in (2, 3, 4) or len(numbers) != len(parts) - 1 or parts[0] not in codes:
            raise ValueError(f"{text!r} names no kind of fingerprint; write CODE:K[:WINDOW[:LAYER]]")
        return cls(codes[parts[0]], *numbers)

    @property
    def name(self) -> str:
        """A key for profiles, say `activation-difr/v2 int8 k16 w1 final`; the v2 is of `distance`."""
        layer = "final" if self.layer == FINAL else f"layer{self.layer}"
        return f"activation-difr/v2 {self.code} k{self.features} w{self.window} {layer}"

    def windows(self, tokens: int) -> int:
        """Fingerprints of an output of that many tokens."""
        return -(-tokens // self.window)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One request's fingerprints at one layer.

    Attributes:
        projection_seed: 16 bytes from which the projection and the window signs are drawn.
        binding: 8 bytes that tie it to the request (`request_binding`).
        coded: one row for each window.
    """

    kind: FingerprintKind
    projection_seed: bytes
    binding: bytes
    coded: Coded


def request_binding(prompt: tuple[int, ...], output: tuple[int, ...], seed: int | None) -> bytes:
    """The first 8 bytes of SHA-256 over prompt ids, output ids and the sampling seed.

    It is no signature: it makes a fingerprint that was copied from another request visible as that.
    """
    text = f"auditor.fingerprint-binding/v1 {list(prompt)} {list(output)} {seed}"
    return hashlib.sha256(text.encode()).digest()[:BINDING_BYTES]


def projection_key(projection_seed: bytes, layer: int) -> int:
    """The 64-bit key of a layer's projection: from SHA-256, so layers have independent matrices."""
    if len(projection_seed) != SEED_BYTES:
        raise ValueError(f"a projection seed of {len(projection_seed)} bytes; it has {SEED_BYTES}")
    text = b"auditor.projection/v1\0" + projection_seed + layer.to_bytes(2, "big", signed=True)
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def basis_of(kind: FingerprintKind, projection_seed: bytes, width: int) -> SignBasis:
    """The projection of hidden states of that width.

    Raises:
        ValueError: more features than the width, or a seed of another length.
    """
    return sign_basis(projection_key(projection_seed, kind.layer), kind.features, width)


def windowed(
    hidden: npt.NDArray[np.float32] | torch.Tensor, kind: FingerprintKind, projection_seed: bytes
) -> npt.NDArray[np.float32] | torch.Tensor:
    """Rows [n, d] added up by window with random signs, over the root of their number: [windows, d].

    Tensors are added in float32. The sign of row t is bit 63 of SplitMix64 word t of the key xor 1.
    """
    if kind.window == 1:
        return hidden
    n, width = hidden.shape
    key = np.uint64(projection_key(projection_seed, kind.layer) ^ 1)
    with np.errstate(over="ignore"):
        words = mix(key + np.arange(1, n + 1, dtype=np.uint64) * GOLDEN)
    starts = np.arange(0, n, kind.window)
    counts = np.minimum(kind.window, n - starts)
    weight = np.where(words >> np.uint64(63), -1.0, 1.0) / np.sqrt(np.repeat(counts, counts))
    if isinstance(hidden, np.ndarray):
        padded = np.zeros((len(starts) * kind.window,), np.float32)
        padded[:n] = weight
        full = np.zeros((len(padded), width), np.float32)
        full[:n] = hidden
        return np.asarray((full * padded[:, None]).reshape(len(starts), kind.window, width).sum(axis=1))
    return _windowed_tensor(hidden, weight.astype(np.float32), kind.window)


def _windowed_tensor(hidden: torch.Tensor, weights: npt.NDArray[np.float32], window: int) -> torch.Tensor:
    """Weighted sums of whole windows, and of what is left over, without a weighted copy of the rows."""
    import torch  # noqa: PLC0415 - arrays need only numpy

    weight = torch.from_numpy(weights).to(hidden.device)
    whole = len(hidden) // window * window
    blocks = hidden[:whole].float().view(-1, window, hidden.shape[1])
    sums = (weight[:whole].view(-1, 1, window) @ blocks)[:, 0]
    if whole == len(hidden):
        return sums
    return torch.cat([sums, weight[None, whole:] @ hidden[whole:].float()])


def fingerprint(
    hidden: npt.NDArray[np.float32] | torch.Tensor,
    kind: FingerprintKind,
    *,
    projection_seed: bytes,
    binding: bytes,
    backend: Backend = "torch",
) -> Fingerprint:
    """Fingerprint one request's hidden states, [output tokens, d], n >= 1.

    Raises:
        FingerprintValueError: NaN, infinity, or values too large for the code.
        ValueError: more features than dimensions, or a seed of another length.
    """
    basis = basis_of(kind, projection_seed, hidden.shape[1])
    try:
        if kind.window == 1 or backend == "triton":
            rows = windowed(hidden, kind, projection_seed)
            coded = code_projections(rows, basis, kind.code, backend=backend)
        else:  # features add up as rows do, and are shorter
            features = project(hidden, basis, backend=backend).astype(np.float32)
            coded = quantize(np.asarray(windowed(features, kind, projection_seed), np.float64), kind.code)
    except ValueError as error:
        raise FingerprintValueError(str(error)) from error
    return Fingerprint(kind, projection_seed, binding, coded)


@dataclass(frozen=True, slots=True)
class Residuals:
    """How far the reference's features lie outside the provider's cells.

    Attributes:
        outside: float64 [windows, k], signed distance to the nearest edge of the cell, 0 inside.
        features: float64 [windows, k], the reference's own.
        energy: float64 [windows], mean square of the reference's hidden state (all of its dimensions).
        shrinking: float64 [windows], what the final norm divided noise by: the residual stream's length (root
            mean square, over a window that of the inverse lengths, inverted); 1 where no norm stands between.
    """

    outside: F64
    features: F64
    energy: F64
    shrinking: F64

    @property
    def plain(self) -> F64:
        """Relative distance of each window: root mean square outside, over that of the hidden state."""
        square = (self.outside**2).mean(axis=1)
        return np.asarray(np.sqrt(square / np.maximum(self.energy, np.finfo(np.float64).tiny)))

    @property
    def distance(self) -> F64:
        """What is judged, [windows]: the relative distance, times what the final norm divided noise by."""
        return self.plain * self.shrinking


def residuals(
    given: Fingerprint,
    hidden: npt.NDArray[np.float32] | torch.Tensor,
    before_norm: npt.NDArray[np.float32] | torch.Tensor | None = None,
    *,
    backend: Backend = "torch",
) -> Residuals:
    """Compare a provider's fingerprint with the reference's hidden states [output tokens, d].

    Args:
        before_norm: the reference's residual stream where the final norm takes it, [output tokens, d]; None
            for fingerprints of a layer.

    Raises:
        FingerprintLengthError: the fingerprint covers another number of windows.
        FingerprintValueError: the reference's own states are not finite, or a scale that no encoder chooses.
    """
    if has_loose_scale(given.coded):
        raise FingerprintValueError("a scale larger than its levels need, which hides any value")
    wanted = given.kind.windows(len(hidden))
    if len(given.coded.levels) != wanted:
        raise FingerprintLengthError(
            f"{len(given.coded.levels)} fingerprints for {len(hidden)} output tokens; {wanted} are due"
        )
    rows = windowed(hidden, given.kind, given.projection_seed)
    features = project(rows, basis_of(given.kind, given.projection_seed, hidden.shape[1]), backend=backend)
    energy, shrinking = _mean_square(rows), np.ones(wanted)
    if before_norm is not None:
        inverse = 1.0 / np.maximum(_mean_square(before_norm), np.finfo(np.float64).tiny)
        starts = np.arange(0, len(hidden), given.kind.window)
        counts = np.diff(np.append(starts, len(hidden)))
        shrinking = np.sqrt(counts / np.add.reduceat(inverse, starts))
    if not (np.isfinite(features).all() and np.isfinite(energy).all() and np.isfinite(shrinking).all()):
        raise FingerprintValueError("the reference's own hidden states are not finite")
    low, high = cells(given.coded)
    outside = np.maximum(features - high, 0.0) + np.minimum(features - low, 0.0)
    return Residuals(outside, features, energy, shrinking)


def _mean_square(rows: npt.NDArray[np.float32] | torch.Tensor) -> F64:
    if isinstance(rows, np.ndarray):
        return np.asarray((rows.astype(np.float64) ** 2).mean(axis=1))
    # In float32, to about 1e-6: a float64 copy of wide rows costs more than the whole projection.
    lengths = rows.float().norm(dim=1).cpu().numpy().astype(np.float64)
    return np.asarray(lengths**2 / rows.shape[1])
