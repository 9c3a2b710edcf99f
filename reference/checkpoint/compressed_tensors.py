"""Reading the `quantization_config` of compressed-tensors, what llm-compressor writes.

Formats: `int-quantized`, `float-quantized` and `naive-quantized` store one code a weight; `pack-quantized`
packs 4 or 8 bits into int32 and quantizes weights only.

Source: compressed-tensors 0.17 (`quant_config.py`, `quant_args.py`, `quant_scheme.py`, `utils/match.py`), and
which of its schemes vLLM 0.32 serves (`compressed_tensors.py`).
"""

from __future__ import annotations

from typing import Any

from auditor.reference.checkpoint.declared import (
    Activations,
    Declaration,
    Kind,
    Scheme,
    check_block,
    is_safe_pattern,
)
from auditor.reference.checkpoint.settings import Settings

CODES = ("int-quantized", "float-quantized", "naive-quantized")
PACKED = "pack-quantized"
_KINDS: dict[str, Kind] = {"int": "int8", "float": "float8"}
_STRATEGIES = ("tensor", "channel", "group", "block", "token", "attn_head")
_WEIGHT_STRATEGIES: dict[Kind, tuple[str, ...]] = {
    "int8": ("tensor", "channel", "group"),
    "float8": ("tensor", "channel", "block"),
}
_PACKED_STRATEGIES = ("channel", "group")
_OBSERVATION = {"observer", "observer_kwargs", "zp_dtype"}


def read_compressed_tensors(settings: Settings) -> Declaration:
    """Read the configuration, `quant_method` already taken.

    Raises:
        ModelCorruptError, ModelUnsupportedError: as `read_declaration`.
    """
    settings.choice("quantization_status", "compressed", default="compressed")
    form = settings.choice("format", *CODES, PACKED, "mixed-precision")
    groups = settings.take("config_groups")
    if not isinstance(groups, dict):
        settings.corrupt("config_groups must be an object")
    read = tuple(
        _group(Settings(group, f"{settings.name}.config_groups.{name}", settings.where), form)
        for name, group in groups.items()
    )
    ignored = _targets(settings, "ignore")
    key_value = _float8_key_value(settings)
    sparsity = settings.take("sparsity_config", None)
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"):
        settings.unsupported("sparsity_config")
    settings.finish({"global_compression_ratio", "version", "run_compressed"})
    return Declaration("compressed-tensors", read, ignored=ignored, float8_key_value=key_value)


def _group(settings: Settings, form: str) -> tuple[tuple[str, ...], Scheme]:
    own = settings.take("format", None)
    form = form if own is None else own
    if form not in (*CODES, PACKED):
        settings.unsupported(f"format {form!r:.60}", f"supported: {', '.join((*CODES, PACKED))}")
    targets = _targets(settings, "targets")
    weights = _Part(Settings(settings.take("weights"), f"{settings.name}.weights", settings.where))
    raw_inputs = settings.take("input_activations", None)
    settings.finish()
    scheme = weights.scheme(packed=form == PACKED)
    if raw_inputs is None:
        return targets, scheme
    inputs = _Part(Settings(raw_inputs, f"{settings.name}.input_activations", settings.where))
    if scheme.layout == "packed" or not scheme.symmetric or (weights.strategy == "group"):
        inputs.settings.unsupported("rounded activations with such weights")
    return targets, weights.scheme(packed=False, activations=inputs.activations(weights))


class _Part:
    """One `QuantizationArgs` object: how weights or activations are quantized."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kind = _KINDS[settings.choice("type", *_KINDS)]
        self.bits = settings.choice("num_bits", 4, 8)
        self.symmetric = settings.flag("symmetric")
        self.dynamic = settings.flag("dynamic", default=False)
        self.group = settings.take("group_size", None)
        if self.group is not None and (type(self.group) is not int or not -1 <= self.group < 2**31):
            settings.corrupt("group_size must be an integer")
        raw_block = settings.take("block_structure", None)
        self.block = check_block(raw_block)
        self.strategy = settings.choice("strategy", *_STRATEGIES, None, default=None) or self._inferred()
        settings.choice("actorder", None, False, "weight", "static", default=None)  # noqa: FBT003  as above
        settings.finish(_OBSERVATION)
        if (raw_block is None) != (self.strategy != "block") or (raw_block is not None and not self.block):
            settings.corrupt("block_structure must be two sizes with the strategy block")
        if self.strategy == "group" and (self.group is None or self.group < 1):
            settings.corrupt("group_size must be positive with the strategy group")
        if self.strategy != "group" and self.group not in (None, -1):
            settings.corrupt(f"group_size with the strategy {self.strategy}")

    def scheme(self, *, packed: bool, activations: Activations | None = None) -> Scheme:
        """What the weights of a module are."""
        allowed = _PACKED_STRATEGIES if packed else _WEIGHT_STRATEGIES[self.kind]
        if self.strategy not in allowed or self.dynamic:
            self.settings.unsupported(f"weights by {self.strategy}" + ", dynamic" * self.dynamic)
        if packed and self.kind != "int8":
            self.settings.unsupported("packed float codes")
        if not packed and self.bits != 8:
            self.settings.unsupported(f"{self.bits} bits a code, not packed")
        if self.kind == "float8" and not self.symmetric:
            self.settings.unsupported("asymmetric float codes")
        blocks = {"tensor": (0, 0), "channel": (1, 0), "group": (1, self.group or 0)}
        block = self.block or blocks[self.strategy]
        layout = "packed" if packed else "codes"
        return Scheme(layout, self.kind, self.bits, self.symmetric, block, activations)  # type: ignore[arg-type]

    def activations(self, weights: _Part) -> Activations:
        """What the inputs of a module with such weights are rounded to."""
        if (self.kind, self.bits, self.symmetric) != (weights.kind, 8, True):
            self.settings.unsupported("activations that are not 8-bit, symmetric and of the weights' type")
        if self.strategy == "tensor" and self.dynamic:
            self.settings.unsupported(
                "one dynamic scale for a tensor",
                "it depends on what else was in the batch, which nobody can replay",
            )
        columns = weights.block[1] if weights.block else 0
        possible = {
            ("token", True, None): Activations(self.kind),
            ("tensor", False, None): Activations(self.kind, static=True),
            ("group", True, columns or None): Activations(self.kind, group=columns),
        }
        found = possible.get((self.strategy, self.dynamic, self.group))
        if found is None or (found.group == 0) != (weights.block is None):
            self.settings.unsupported(f"activations by {self.strategy} with weights by {weights.strategy}")
        return found

    def _inferred(self) -> str:
        return {None: "tensor", -1: "channel"}.get(self.group, "group")


def _targets(settings: Settings, field: str) -> tuple[str, ...]:
    names = settings.names(field)
    for name in names:
        if name.startswith("re:") and not is_safe_pattern(name.removeprefix("re:")):
            settings.unsupported(
                f"the pattern {name!r:.60}", "it could take for ever to match; list the names"
            )
    return names


def _float8_key_value(settings: Settings) -> bool:
    raw: Any = settings.take("kv_cache_scheme", None)
    if raw is None:
        return False
    part = _Part(Settings(raw, f"{settings.name}.kv_cache_scheme", settings.where))
    fit = part.strategy in ("tensor", "attn_head") and part.symmetric and not part.dynamic
    if not fit or (part.kind, part.bits) != ("float8", 8):
        part.settings.unsupported("keys and values in anything but float8 with stored scales")
    return True
