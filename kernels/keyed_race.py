"""A Gumbel race over the whole vocabulary under keyed noise: plain reference, compiled (CPU), Triton (GPU).

For every row: who wins `logit / temperature + noise`, who comes second, what the claimed token scored and
how many tokens beat it. `race` takes logits; `race_head` takes hidden states and the head's weights, and
where rows are few never writes the logits. All backends have one signature; `backend=` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from auditor.kernels.keyed_noise import KeyedNoise, key_words, keyed_noise
from auditor.kernels.keyed_race_numba import race_compiled
from auditor.kernels.splitmix import F64, U64

if TYPE_CHECKING:
    import torch

    from auditor.kernels.keyed_race_triton import Partials

Backend = Literal["reference", "compiled", "triton"]

# Rows up to which a tile of logits is raced where it was multiplied; above, a library's product is faster.
FUSED_ROWS = 32


def _no_ids() -> npt.NDArray[np.int64]:
    return np.empty((0, 0), np.int64)


def _no_logits() -> npt.NDArray[np.float32]:
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class RaceRows:
    """Outcome of R races. Scores are `logit / temperature + noise`, float64 [R]; ids int64 [R].

    Attributes:
        winner, winner_score: the race's first; ties go to the lowest id.
        runner_up_score: score of the second (-inf when one token has all the mass).
        claimed_score: score of the claimed token.
        rank: how many tokens score above the claimed one.
        log_normaliser: log of the summed exponentials of the row's logits / temperature.
        top_ids, top_logits: int64 and float32 [R, min(top, V)], the largest logits as given, falling, then by
            id.
    """

    winner: npt.NDArray[np.int64]
    winner_score: F64
    runner_up_score: F64
    claimed_score: F64
    rank: npt.NDArray[np.int64]
    log_normaliser: F64
    top_ids: npt.NDArray[np.int64] = field(default_factory=_no_ids)
    top_logits: npt.NDArray[np.float32] = field(default_factory=_no_logits)


def race(
    logits: npt.NDArray[np.float32] | torch.Tensor,
    keys: U64,
    claimed: npt.NDArray[np.int64],
    *,
    noise: KeyedNoise,
    temperature: float = 1.0,
    top: int = 0,
    backend: Backend = "compiled",
) -> RaceRows:
    """Run one race a row.

    Args:
        logits: float32 [R, V]; -inf excludes a token. For `triton` a tensor of any float dtype on the device
            to run on; an array goes to the GPU if there is one.
        keys: uint64 [R] or [R, W], one noise row each, as `noise` has them.
        claimed: int64 [R], token ids within [0, V).
        noise: which noise keys and tokens make. `triton` has the two of SplitMix64 only.
        temperature: what logits are divided by, in float32.
        top: how many of the largest logits to return. With `triton` they come from `torch.topk`, which leaves
            open which of the tokens that tie for the last place it returns.
        backend: `reference` materialises [R, V] noise; the others do not.

    Raises:
        ImportError: `triton` is asked for and not installed.
        ValueError: `triton` is asked for and does not have this noise.
    """
    top = min(top, logits.shape[1])
    if backend == "triton":
        return _race_triton(logits, keys, claimed, noise, temperature, top)
    z = np.ascontiguousarray(logits)
    if backend == "reference":
        return _race_reference(z, keys, claimed, noise, np.float32(temperature), top)
    kind = int(noise)
    return RaceRows(*race_compiled(z, key_words(keys), claimed, kind, np.float32(temperature), top))


def race_head(
    hidden: torch.Tensor,
    head: torch.Tensor,
    keys: U64,
    claimed: npt.NDArray[np.int64],
    *,
    noise: KeyedNoise,
    temperature: float = 1.0,
    top: int = 0,
    backend: Backend = "compiled",
) -> RaceRows:
    """Run one race a row over `hidden @ head.T`, accumulated in float32.

    With `triton` and at most `FUSED_ROWS` rows (and `top` 0) product and race are one kernel. Its sums run in
    another order than a library's, and the claimed token's in float64, so scores differ by float32's
    rounding of the product.

    Args:
        hidden: [R, H]. head: [V, H], of the same float dtype and on the same device.
        keys, claimed, noise, temperature, top, backend: as `race` has them.

    Raises:
        ImportError, ValueError: as `race`.
    """
    if backend != "triton":
        logits = (hidden.float() @ head.float().T).numpy()
        return race(logits, keys, claimed, noise=noise, temperature=temperature, top=top, backend=backend)
    if top > 0 or len(hidden) > FUSED_ROWS:
        return _race_triton(_product(hidden, head), keys, claimed, noise, temperature, min(top, len(head)))
    return _race_fused(hidden, head, keys, claimed, noise, temperature)


def _race_fused(
    hidden: torch.Tensor,
    head: torch.Tensor,
    keys: U64,
    claimed: npt.NDArray[np.int64],
    noise: KeyedNoise,
    temperature: float,
) -> RaceRows:
    import torch  # noqa: PLC0415 - the other kernels need only numpy

    from auditor.kernels.keyed_race_triton import race_product  # noqa: PLC0415 - an optional package

    own = (hidden.double() * head[torch.from_numpy(claimed).to(head.device)].double()).sum(dim=1)
    z = own.float().cpu().numpy() / np.float32(temperature)
    tail_safe = _splitmix_only(noise)
    scores = z + keyed_noise(noise, keys, claimed[:, None])[:, 0]
    there = [torch.from_numpy(a).to(hidden.device) for a in (keys.view(np.int64), claimed, scores)]
    return _joined(
        race_product(
            hidden.contiguous(), head.contiguous(), *there, tail_safe=tail_safe, temperature=temperature
        )
    )


def _race_triton(
    logits: npt.NDArray[np.float32] | torch.Tensor,
    keys: U64,
    claimed: npt.NDArray[np.int64],
    noise: KeyedNoise,
    temperature: float,
    top: int,
) -> RaceRows:
    import torch  # noqa: PLC0415 - the other kernels need only numpy

    from auditor.kernels.keyed_race_triton import race_logits  # noqa: PLC0415 - an optional package
    from auditor.kernels.row_head_torch import top_tokens  # noqa: PLC0415

    if not isinstance(logits, torch.Tensor):
        logits = torch.from_numpy(np.ascontiguousarray(logits))
        logits = logits.cuda() if torch.cuda.is_available() else logits
    tail_safe = _splitmix_only(noise)
    keys_there = torch.from_numpy(keys.view(np.int64)).to(logits.device)
    claimed_there = torch.from_numpy(claimed).to(logits.device)
    rows = logits if logits.stride(1) == 1 else logits.contiguous()
    partials = race_logits(rows, keys_there, claimed_there, tail_safe=tail_safe, temperature=temperature)
    if top == 0:
        return _joined(partials)
    return _joined(partials, *top_tokens(logits, top))


def _splitmix_only(noise: KeyedNoise) -> bool:
    """Whether the transform is the tail-safe one."""
    if noise > KeyedNoise.SPLITMIX_TAIL_SAFE:
        raise ValueError(f"there is no Triton kernel for {noise.name}")
    return noise == KeyedNoise.SPLITMIX_TAIL_SAFE


def _product(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """`hidden @ head.T` in float32 [R, V]."""
    import torch  # noqa: PLC0415 - the other kernels need only numpy

    if hidden.dtype == torch.float32 or not hidden.is_cuda:
        return hidden.float() @ head.float().T
    return torch.mm(hidden, head.T, out_dtype=torch.float32)  # the head is not copied to float32


def _joined(
    partials: Partials,
    top_ids: npt.NDArray[np.int64] | None = None,
    top_logits: npt.NDArray[np.float32] | None = None,
) -> RaceRows:
    """Whole rows from what programs found in parts of them."""
    best, second, best_id, above, top, total, claimed = (cast("Any", t).cpu().numpy() for t in partials)
    first = best.max(axis=1)
    winner = np.where(best == first[:, None], best_id, np.iinfo(np.int64).max).min(axis=1)
    runner_up = np.where(best_id == winner[:, None], second, best).max(axis=1)
    shift = top.max(axis=1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        normaliser = shift + np.log((total * np.exp(top - shift[:, None])).sum(axis=1))
    ids = np.empty((len(first), 0), np.int64) if top_ids is None else top_ids
    logits = np.empty((len(first), 0), np.float32) if top_logits is None else top_logits
    return RaceRows(winner, first, runner_up, claimed, above.sum(axis=1), normaliser, ids, logits)


def _race_reference(
    logits: npt.NDArray[np.float32],
    keys: U64,
    claimed: npt.NDArray[np.int64],
    noise: KeyedNoise,
    temperature: np.float32,
    top: int,
) -> RaceRows:
    rows, vocabulary = logits.shape
    ids = np.broadcast_to(np.arange(vocabulary, dtype=np.int64), (rows, vocabulary))
    z = (logits / temperature).astype(np.float64)
    scores = z + keyed_noise(noise, keys, ids)
    here = np.arange(rows)
    winner = scores.argmax(axis=1)
    claimed_score = scores[here, claimed]
    rank = (scores > claimed_score[:, None]).sum(axis=1)
    winner_score = scores[here, winner]
    scores[here, winner] = -np.inf
    largest = z.max(axis=1)
    normaliser = largest + np.log(np.exp(z - largest[:, None]).sum(axis=1))
    top_ids = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    top_logits = np.take_along_axis(logits, top_ids, axis=1)
    runner_up = scores.max(axis=1)
    return RaceRows(winner, winner_score, runner_up, claimed_score, rank, normaliser, top_ids, top_logits)
