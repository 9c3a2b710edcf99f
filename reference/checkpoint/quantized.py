"""The weights that a provider declares, quantized or not, as the model computes with them.

Invariants:

- What a module is, is what both the configuration and the stored tensors say; a contradiction is an error.
- Weight-only schemes become a plain matrix in the compute dtype, rounded as `packing.Groups` and
  `QuantizedLinear.dequantized` say: no engine multiplies them otherwise.
- Schemes that round activations become a `QuantizedLinear`.
- Scales are finite and codes are numbers; other tensors are the caller's to check.

Module names are Hugging Face's, such as `model.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.declarations import read_declaration
from auditor.reference.checkpoint.declared import Declaration, Scheme
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.key_value import Float8KeyValue, scale_names, stored_scales
from auditor.reference.checkpoint.layouts import PARTS, Module, dense_shape, quantized_parts
from auditor.reference.checkpoint.products import InputScheme, QuantizedLinear

ATTENTION = "model.layers.{}.self_attn"


def declaration_of(checkpoint: Checkpoint) -> Declaration | None:
    """Read what `config.json` declares, None for an unquantized checkpoint.

    Raises:
        ModelCorruptError, ModelUnsupportedError: as `read_declaration`.
    """
    raw = checkpoint.quantization_config
    return None if raw is None else read_declaration(raw, str(checkpoint.directory / "config.json"))


def scheme_of(checkpoint: Checkpoint, module: str, declaration: Declaration | None) -> Scheme | None:
    """Find how a module is quantized, None for a dense one.

    Raises:
        ModelCorruptError: declared quantized but stored dense, or the other way round.
        ModelUnsupportedError: two schemes are declared for it.
    """
    stored = bool(quantized_parts(checkpoint, module))
    schemes = [] if declaration is None else declaration.schemes(module)
    if len(schemes) > 1:
        raise ModelUnsupportedError(
            f"two schemes are declared for {module}", where=str(checkpoint.directory / "config.json")
        )
    undecided = declaration is not None and (
        declaration.tensors_decide or (declaration.method == "fp8" and module == "lm_head")
    )
    if schemes and not stored and undecided:
        return None
    if bool(schemes) != stored:
        said, found = ("quantized", "dense") if schemes else ("dense", "quantized")
        raise ModelCorruptError(
            f"module {module} is declared {said} but stored {found}", where=str(checkpoint.directory)
        )
    return schemes[0] if schemes else None


def dequantized(checkpoint: Checkpoint, module: str, dtype: torch.dtype) -> Tensor:
    """Read the matrix that a module's weight stands for, rounded to `dtype`: [outputs, inputs].

    Integer codes: the scale is rounded first, then the product, as in weight-only kernels. Float8 codes, and
    weights whose inputs are rounded too: the product in float32 with the scale as stored, rounded once.

    Raises:
        ModelCorruptError, ModelUnsupportedError: as `scheme_of` and `Module`.
    """
    return _matrix(checkpoint, module, scheme_of(checkpoint, module, declaration_of(checkpoint)), dtype)


def linear_of(checkpoint: Checkpoint, module: str, compute_dtype: torch.dtype) -> Tensor | QuantizedLinear:
    """Read how a module multiplies: a matrix [outputs, inputs] in `compute_dtype`, or a product of codes.

    A matrix comes without the module's bias, which is a plain tensor beside it; a product holds its own.

    Raises:
        ModelCorruptError, ModelUnsupportedError: as `scheme_of` and `Module`.
    """
    scheme = scheme_of(checkpoint, module, declaration_of(checkpoint))
    if scheme is None or scheme.activations is None:
        return _matrix(checkpoint, module, scheme, compute_dtype)
    return _product(checkpoint, module, scheme, compute_dtype)


def key_value_of(
    checkpoint: Checkpoint, layers: int, *, prefix: str = ATTENTION, toward_zero: bool = False
) -> Float8KeyValue | None:
    """Read how keys and values are stored, None for as they are.

    Args:
        layers: how many the model has.
        prefix: name of the attention modules, `{}` for the layer.
        toward_zero: see `Float8KeyValue`.

    Raises:
        ModelCorruptError: scales that are incomplete or no scales; stored, but no cache is declared for them.
        ModelUnsupportedError: as `read_declaration`.
    """
    declaration = declaration_of(checkpoint)
    if declaration is None or not declaration.float8_key_value:
        return None
    return Float8KeyValue(*stored_scales(checkpoint, layers, prefix), toward_zero)


@dataclass(frozen=True, slots=True, eq=False)
class ServedTensors:
    """A checkpoint as a model reads it: every weight under its dense name, whatever lies on the disk.

    Attributes:
        checkpoint: what is stored.
        compute_dtype: what the model computes in.
        names: as stored, but `weight` for the parts of a weight-only module, and no scales of the cache.
    """

    checkpoint: Checkpoint
    compute_dtype: torch.dtype
    names: frozenset[str]
    _declaration: Declaration | None
    _schemes: dict[str, Scheme]

    @classmethod
    def of(cls, checkpoint: Checkpoint, compute_dtype: torch.dtype) -> ServedTensors:
        """Find how every module is stored, reading no data.

        Raises:
            ModelCorruptError, ModelUnsupportedError: as `scheme_of`.
        """
        declaration = declaration_of(checkpoint)
        names = set(checkpoint.names - scale_names(checkpoint))
        schemes = {}
        for module in {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in PARTS}:
            parts = quantized_parts(checkpoint, module)
            scheme = scheme_of(checkpoint, module, declaration) if parts else None
            if scheme is not None:
                schemes[module] = scheme
            if scheme is not None and scheme.activations is None:
                names = (names - parts) | {f"{module}.weight"}
        return cls(checkpoint, compute_dtype, frozenset(names), declaration, schemes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, no codes read.

        Raises:
            ModelCorruptError: as `Checkpoint.shape` and `dense_shape`.
        """
        scheme = self._matrix_scheme(name)
        if scheme is None:
            return self.checkpoint.shape(name)
        return dense_shape(self.checkpoint, name.removesuffix(".weight"), scheme)

    def dtype(self, name: str) -> torch.dtype:
        """What `tensor` returns it in.

        Raises:
            ModelCorruptError: as `Checkpoint.dtype`.
        """
        return self.checkpoint.dtype(name) if self._matrix_scheme(name) is None else self.compute_dtype

    def tensor(self, name: str) -> Tensor:
        """One tensor: as stored, or the matrix of a weight-only module in the compute dtype.

        Raises:
            ModelCorruptError, ModelUnsupportedError: as `Checkpoint.tensor` and `dequantized`.
        """
        scheme = self._matrix_scheme(name)
        if scheme is None:
            return self.checkpoint.tensor(name)
        return _matrix(self.checkpoint, name.removesuffix(".weight"), scheme, self.compute_dtype)

    def product(self, module: str, dtype: torch.dtype) -> QuantizedLinear | None:
        """The product of a module whose inputs are rounded, None for one that is a matrix.

        Raises:
            ModelCorruptError, ModelUnsupportedError: as `linear_of`.
        """
        scheme = self._schemes.get(module) or scheme_of(self.checkpoint, module, self._declaration)
        if scheme is None or scheme.activations is None:
            return None
        return _product(self.checkpoint, module, scheme, dtype)

    def parts(self, module: str) -> frozenset[str]:
        """The names that a module's product is made of, its bias among them."""
        return (quantized_parts(self.checkpoint, module) | {f"{module}.bias"}) & self.names

    def _matrix_scheme(self, name: str) -> Scheme | None:
        """The scheme of a weight that is shown as a matrix, but not stored as one."""
        scheme = self._schemes.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return None if scheme is None or scheme.activations is not None else scheme


def _matrix(checkpoint: Checkpoint, module: str, scheme: Scheme | None, dtype: torch.dtype) -> Tensor:
    if scheme is None:
        return checkpoint.tensor(f"{module}.weight").to(dtype)
    if scheme.kind == "float8" or scheme.activations is not None:
        return _product(checkpoint, module, scheme, dtype).dequantized().to(dtype)
    return Module(checkpoint, module, scheme).groups().dequantized(dtype)


def _product(checkpoint: Checkpoint, module: str, scheme: Scheme, dtype: torch.dtype) -> QuantizedLinear:
    """Codes, scales, and the bias as an engine holds it: in the compute dtype, added in float32."""
    stored = Module(checkpoint, module, scheme)
    codes, scales = stored.codes()
    name, bias = f"{module}.bias", None
    if name in checkpoint.names:
        bias = checkpoint.tensor(name).to(dtype).to(torch.float32)
    group = 0 if scheme.activations is None else scheme.activations.group
    return QuantizedLinear(codes, scales, bias, InputScheme(scheme.kind, stored.input_scale(), group))
