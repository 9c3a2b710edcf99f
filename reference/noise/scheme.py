"""What a noise scheme is: the seam between an engine's draws and the head that scores them.

Three families, which say what `draws` hands out and how it is scored:

* `greedy`: nothing is drawn;
* `race`: Gumbel noise is added to every logit and the largest wins. Keyed schemes hand out a key a row, of
  which the noise of any token is a function (`kernels/keyed_noise.py`); sequential ones hand out states of
  their generator, or whole rows;
* `icdf`: one uniform number a token is held against the cumulative distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.splitmix import F64, U64

FilterOrder = Literal["vllm", "transformers", "llama.cpp"]
Family = Literal["greedy", "race", "icdf"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a scheme is believed to be an engine's.

    Attributes:
        confirmed: a recorded trace of the engine was replayed; otherwise the scheme is derived from source.
        source: the recording, or the files and releases that were read.
        needs: what a trace must declare besides engine and version; empty when nothing.
    """

    confirmed: bool
    source: str
    needs: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """Engines that draw by a scheme: the registry's key.

    Attributes:
        engine: its name in a trace. versions: exact releases, or how they begin where one ends in `*`.
        device: class of device. runner: which of an engine's samplers, as a step of a recipe. flags: switches
            that choose the scheme, as steps of a recipe.
    """

    engine: str
    versions: tuple[str, ...]
    device: Device = "cpu"
    runner: str = ""
    flags: frozenset[str] = frozenset()

    def has(self, version: str) -> bool:
        """Whether a release is one of these."""
        return any(version.startswith(v[:-1]) if v.endswith("*") else version == v for v in self.versions)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a request says of itself that a scheme may need, or be unable to replay.

    Attributes:
        vocabulary: V. device: as the trace has it, for instance `cuda/h100-sxm`.
        top_k, top_p, min_p: as `SamplingSpec` has them.
    """

    vocabulary: int
    device: str | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class RowDraws(Protocol):
    """Hands out noise in the order of output tokens."""

    def take(self, start: int, stop: int) -> npt.NDArray[Any] | None:
        """Noise of output tokens start..stop-1, in the form `head.score_rows` takes; calls leave no gap."""
        ...


class NoiseScheme(Protocol):
    """One engine's draws. Implementations are frozen dataclasses, a file for each engine."""

    @property
    def name(self) -> str:
        """What a trace declares."""
        ...

    @property
    def family(self) -> Family:
        """How draws are scored."""
        ...

    @property
    def filters(self) -> FilterOrder:
        """In which order the engine filters, and whose rules for temperatures and seeds it follows."""
        ...

    @property
    def evidence(self) -> Evidence:
        """Why the scheme is believed."""
        ...

    @property
    def served(self) -> tuple[Served, ...]:
        """Engines that draw so; empty for a scheme that belongs to none."""
        ...

    def declared(self, request: Declared) -> NoiseScheme:
        """The scheme as this request has it.

        Raises:
            NoiseUnknownError: the noise cannot be replayed exactly for what the request declares.
        """
        ...

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> RowDraws:
        """A reader of one request's noise; `filtered` when only tokens that filters keep are asked for."""
        ...


class KeyedScheme(NoiseScheme, Protocol):
    """A race whose noise is a function of (row key, token id)."""

    @property
    def noise(self) -> KeyedNoise:
        """Which function."""
        ...

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys of output tokens start..stop-1, uint64 [stop - start] or [stop - start, W]."""
        ...


@dataclass(frozen=True, slots=True)
class KeyedRows:
    """Reader of a keyed scheme."""

    scheme: KeyedScheme
    seed: int
    prompt_tokens: int

    def take(self, start: int, stop: int) -> U64:
        """Keys of output tokens start..stop-1."""
        return self.scheme.row_keys(self.seed, self.prompt_tokens, start, stop)


@runtime_checkable
class Tolerant(Protocol):
    """A scheme whose integers are exact but whose engine takes logarithms in rounded arithmetic."""

    def tolerance(self, noise: F64) -> F64:
        """Bound on the engine's noise less ours, where ours is `noise`; float64 of that shape."""
        ...


def positions(prompt_tokens: int, start: int, stop: int) -> U64:
    """Absolute positions of output tokens start..stop-1 of a prompt of that length, uint64."""
    return np.arange(prompt_tokens + start, prompt_tokens + stop, dtype=np.uint64)


class UniformScheme(NoiseScheme, Protocol):
    """An inverse CDF."""

    @property
    def float32_sums(self) -> bool:
        """Whether the engine adds up its distribution in float32, one weight after another."""
        ...

    def uniforms(self, seed: int, start: int, stop: int) -> F64:
        """Uniform numbers of output tokens start..stop-1, float64 [stop - start]."""
        ...


@dataclass(frozen=True, slots=True)
class UniformRows:
    """Reader of an inverse CDF."""

    scheme: UniformScheme
    seed: int

    def take(self, start: int, stop: int) -> F64:
        """Uniform numbers of output tokens start..stop-1."""
        return self.scheme.uniforms(self.seed, start, stop)
