"""What recorders fingerprint: states after the final norm, one for each output token; imports no engine."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from auditor.errors import CaptureError

if TYPE_CHECKING:
    import torch

    from auditor.fingerprints.activation_difr import FingerprintKind


def recorded_kind(text: str, *, where: str) -> FingerprintKind:
    """The kind that a recorder is asked for.

    Raises:
        CaptureError: it names no kind, or states that recorders do not see: those after a layer, which under
            that layer's name would accuse an honest provider.
    """
    from auditor.fingerprints.activation_difr import FINAL, FingerprintKind  # noqa: PLC0415  # imports a compiler

    try:
        kind = FingerprintKind.parse(text)
    except ValueError as error:
        raise CaptureError(str(error), where=where, fix="for example int8:16") from error
    if kind.layer != FINAL:
        raise CaptureError(
            f"states after layer {kind.layer}, of which recorders see nothing",
            where=where,
            fix=f"leave the layer out, {':'.join(text.split(':')[:3])}: states after the final norm",
        )
    return kind


def recorded_entry(
    states: Sequence[torch.Tensor],
    kind: FingerprintKind,
    *,
    prompt: Sequence[int],
    output: Sequence[int],
    seed: int | None,
) -> dict[str, str]:
    """A trace's entry for states [hidden] of each output token, under a projection that is drawn here.

    Raises:
        FingerprintValueError: states that are not finite.
    """
    import torch  # noqa: PLC0415

    from auditor.fingerprints.activation_difr import (  # noqa: PLC0415  # imports a compiler
        SEED_BYTES,
        fingerprint,
        request_binding,
    )
    from auditor.fingerprints.wire import to_entry  # noqa: PLC0415

    rows = torch.stack(list(states)).float().cpu()
    binding = request_binding(tuple(prompt), tuple(output), seed)
    projection_seed = secrets.token_bytes(SEED_BYTES)
    return to_entry(fingerprint(rows, kind, projection_seed=projection_seed, binding=binding))
