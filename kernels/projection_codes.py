"""From rows of hidden states to small codes of their projections, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from auditor.kernels.sign_projection import Backend, SignBasis, as_tensor, project
from auditor.kernels.value_codes import Coded, CodeName, quantize

if TYPE_CHECKING:
    import torch


def code_projections(
    hidden: npt.NDArray[np.float32] | torch.Tensor,
    basis: SignBasis,
    code: CodeName,
    *,
    backend: Backend = "torch",
) -> Coded:
    """Project rows and code the features.

    Backends round a feature differently in its last float32 bits, so now and then they choose neighbouring
    levels where it lies on the edge between two cells; the cells differ by no more than that rounding.

    Args:
        hidden: [n, d], an array of float32 or a tensor of any float dtype.
        backend: as `sign_projection.project`; `triton` fuses both steps for int4 and int8.

    Raises:
        ValueError: another width than the basis has, or features that are not finite or too large.
        ImportError: `triton` is asked for and not installed.
    """
    if backend == "triton" and code in ("int4", "int8") and hidden.shape[1] == basis.width:
        from auditor.kernels.sign_projection_triton import code_rows  # noqa: PLC0415 - an optional package

        return code_rows(as_tensor(hidden), basis, code)
    return quantize(project(hidden, basis, backend=backend), code)
