"""What the vLLM recorder checks before the first request: is this the engine it was written for?

1. The rows: the engine's own `BatchUpdateBuilder` reports a small history (full batch, a request that leaves,
   one that takes its row, one that is moved), and each request must come out once, with its own tokens.
2. The noise, where a scheme is claimed: the engine's own sampler draws from seeded generators over fixed
   logits, and must choose what the scheme says.

Runs inside the engine, so it may import torch and vllm; both are passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from auditor.capture.rows import Rows, Served
from auditor.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

_SEEDS = (0, 1, 7, 1234, 2**31 - 1, 2**32 + 5, 2**63 - 1)
DRAWS = 3
_VOCABULARY = 97


class _Params:
    """The parts of `SamplingParams` that decide whether an output is over: two tokens and no end id."""

    eos_token_id = None
    stop_token_ids: tuple[int, ...] = ()
    max_tokens = 2


def check_rows(new_builder: Callable[[], Any], one_way: Any, swap: Any) -> None:
    """Step 1.

    Args:
        new_builder: makes the engine's `BatchUpdateBuilder`.
        one_way, swap: its two kinds of move.

    Raises:
        CaptureError: requests came out otherwise than they went in.
    """
    seen: list[tuple[int, tuple[int, ...], str | None]] = []

    def report(served: Served, reason: str | None) -> None:
        seen.append((next(iter(served.prompt or ())), tuple(served.output), reason))

    rows = Rows(report, context_length=100, is_swap=lambda kind: kind == swap, clock=lambda: 0.0)
    builder, params = new_builder(), _Params()
    outputs: list[list[int]] = [[], [], [], []]
    for row in range(3):
        builder.added.append((row, params, [row], outputs[row]))
    rows.update(builder.get_and_reset(3))
    for row in range(3):
        outputs[row].append(10 + row)
    outputs[0].append(20)
    builder.removed_append(0)  # is over; a new request takes its row
    builder.added.append((builder.pop_removed(), params, [3], outputs[3]))
    builder.moved.append((1, 2, swap))
    rows.update(builder.get_and_reset(3))
    outputs[2].append(22)
    builder.removed_append(1)  # the one that was swapped there; the last row moves down
    builder.moved.append((2, builder.peek_removed(), one_way))
    builder.pop_removed()
    rows.update(builder.get_and_reset(2))
    outputs[1].append(21)
    outputs[3].append(13)
    rows.close()
    expected = [(0, (10, 20), "length"), (2, (12, 22), "length"), (1, (11, 21), "length"), (3, (13,), None)]
    if sorted(seen) != sorted(expected):
        raise CaptureError(f"this vLLM reports its batch otherwise than known: {seen}")


def check_noise(
    name: str, sample: Callable[[npt.NDArray[np.float32], list[int]], npt.NDArray[np.int64]]
) -> None:
    """Step 2.

    Args:
        name: the keyed noise scheme that traces will declare.
        sample: logits float32 [R, V] and one seed a row -> the engine's choices int64 [draws, R], made one
            after the other from one generator a row.

    Raises:
        CaptureError: the engine draws otherwise than the scheme.
    """
    from auditor.kernels.keyed_noise import KeyedNoise  # noqa: PLC0415
    from auditor.kernels.splitmix import bits53, gumbel  # noqa: PLC0415  # compiles; only where noise is claimed
    from auditor.reference.noise import noise_scheme  # noqa: PLC0415

    scheme: Any = noise_scheme(name)
    if scheme.noise != KeyedNoise.SPLITMIX_CLASSIC:
        raise CaptureError(f"no start-up check is written for {name}", fix="unset AUDITOR_CAPTURE")
    tokens = np.arange(_VOCABULARY)
    logits = ((tokens[None, :] * 37 + np.arange(len(_SEEDS))[:, None] * 11) % 101 / 20).astype(np.float32)
    expected = np.empty((DRAWS, len(_SEEDS)), np.int64)
    for row, seed in enumerate(_SEEDS):
        keys = scheme.row_keys(seed, 5, 0, DRAWS)
        noise = gumbel(bits53(keys, np.tile(tokens, (DRAWS, 1))), tail_safe=False)
        expected[:, row] = (logits[row].astype(np.float64) + noise).argmax(axis=1)
    chosen = sample(logits, list(_SEEDS))
    if chosen.shape != expected.shape or (chosen != expected).any():
        raise CaptureError(
            f"this vLLM's sampler does not draw {name}: {int((chosen != expected).sum())} of "
            f"{expected.size} choices differ",
            fix="unset AUDITOR_CAPTURE and report the release",
        )
