"""LoRA adapters as PEFT saves them: low-rank changes of some modules' weights.

Invariants: every tensor of the file belongs to a module that `target_modules` names, with the rank and shape
that the settings give it; what would change a result otherwise (biases, DoRA, modules saved whole, weights of
the base changed when the adapter was made) is refused.

Two ways to apply one, which differ in their last bits:

- merged: W + scale * B A in float32, rounded once to W's dtype (PEFT's `merge_and_unload`);
- beside the weight, as engines that serve several adapters do: y + (x A') (scale B)', each product rounded to
  the compute dtype and scale * B rounded to it once (vLLM 0.32: `LoRALayerWeights.optimize`,
  `lora_shrink_op.py`, `lora_expand_op.py`).

Source of the format: PEFT 0.21, `tuners/lora/config.py`, `utils/save_and_load.py`, `get_pattern_key`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelNotFoundError, ModelUnsafeError
from auditor.reference.checkpoint.declared import is_safe_pattern
from auditor.reference.checkpoint.files import DTYPES, Checkpoint
from auditor.reference.checkpoint.settings import Settings
from auditor.reference.config import read_json_object
from auditor.reference.layers.linear import Linear

if TYPE_CHECKING:
    from auditor.reference.layers.parameters import OwnProduct, TensorSource

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# How the adapter was trained or where it came from; and defaults of what is switched off.
_MEANINGLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
# Ways to begin training that leave the base's weights as they are.
_HARMLESS_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")


class Delta(NamedTuple):
    """One module's change, scale * B A, as stored.

    Attributes:
        a: [rank, inputs]. b: [outputs, rank]. scale: alpha / rank, or alpha / sqrt(rank) with `use_rslora`.
    """

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter; its tensors are read when asked for.

    Attributes:
        directory: where it lies.
        modules: the Hugging Face names of the modules that it changes.
    """

    directory: Path
    modules: frozenset[str]
    _tensors: Checkpoint
    _ranks: dict[str, int]
    _scales: dict[str, float]

    @classmethod
    def open(cls, directory: Path | str) -> Adapter:
        """Read the settings and the header of the tensors.

        Raises:
            ModelNotFoundError: no such directory or file.
            ModelUnsafeError: the tensors are a pickle.
            ModelUnsupportedError: a kind of adapter or a setting that is not implemented.
            ModelCorruptError: settings that make no sense, or tensors that contradict them.
        """
        directory = Path(directory)
        path = directory / CONFIG
        if not directory.is_dir():
            raise ModelNotFoundError("no such adapter directory", where=str(directory))
        rules = _Rules(Settings(read_json_object(path), "adapter", str(path)))
        if not (directory / WEIGHTS).exists() and (directory / PICKLE).exists():
            raise ModelUnsafeError(
                f"{PICKLE} is a pickle, which can run code when it is opened",
                where=str(directory),
                fix="save the adapter as safetensors",
            )
        tensors = Checkpoint.of_file(directory / WEIGHTS)
        modules = _modules(tensors, rules.settings)
        for module in sorted(modules):
            rules.check(module, tensors)
        ranks = {module: rules.rank(module) for module in modules}
        return cls(directory, modules, tensors, ranks, {module: rules.scale(module) for module in modules})

    def deltas(self, module: str) -> Delta | None:
        """Read a module's change, None for one that the adapter leaves alone.

        Raises:
            ModelCorruptError: NaN or infinity.
        """
        if module not in self.modules:
            return None
        a, b = (self._tensors.tensor(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
        for side, tensor in (("A", a), ("B", b)):
            if not torch.isfinite(tensor).all():
                raise ModelCorruptError(
                    f"lora_{side} of {module} holds NaN or infinity", where=str(self.directory / WEIGHTS)
                )
        return Delta(a, b, self._scales[module])


def merged(weight: Tensor, delta: Delta) -> Tensor:
    """W + scale * B A in float32, rounded once to W's dtype: [outputs, inputs].

    Raises:
        ModelCorruptError: the change has another shape than the weight.
    """
    if weight.shape != (len(delta.b), delta.a.shape[1]):
        raise ModelCorruptError(
            f"an adapter of {[len(delta.b), delta.a.shape[1]]} for a weight of {list(weight.shape)}"
        )
    change = delta.b.to(torch.float32) @ delta.a.to(torch.float32)
    return (weight.to(torch.float32) + change * delta.scale).to(weight.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedLinear:
    """A product with a low-rank change computed beside it.

    Attributes:
        base: what the adapter changes.
        down: x -> x A'. up: -> (scale B)' of it; both in the compute dtype.
    """

    base: OwnProduct | Linear
    down: Linear
    up: Linear

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return len(self.up.weight), self.down.weight.shape[1]

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base.bias

    @classmethod
    def of(cls, base: OwnProduct | Linear, delta: Delta, dtype: torch.dtype) -> AdaptedLinear:
        """Round the change to the compute dtype, the scale into B."""
        return cls(base, Linear(delta.a.to(dtype)), Linear(delta.b.to(dtype) * delta.scale))

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs], in the dtype of `x`."""
        return self.base(x) + self.up(self.down(x))


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedTensors:
    """A source of tensors with an adapter applied: merged into matrices, or beside every product.

    Attributes:
        source: the base model's tensors.
        adapter: what changes them.
        merge: whether into the matrix; products of codes cannot be merged.
        names: those of the base model's tensors.
    """

    source: TensorSource
    adapter: Adapter
    merge: bool
    names: frozenset[str]

    @classmethod
    def of(cls, source: TensorSource, adapter: Adapter, *, merge: bool) -> AdaptedTensors:
        """Apply an adapter to a base model's tensors.

        Raises:
            ModelCorruptError: the adapter changes a module that the base model does not have.
        """
        names = source.names
        for module in sorted(adapter.modules):
            if f"{module}.weight" not in names:
                raise ModelCorruptError(
                    f"the adapter changes {module}, which the model does not have",
                    where=str(adapter.directory),
                    fix="use the adapter's own base model",
                )
        return cls(source, adapter, merge, names)

    def tensor(self, name: str) -> Tensor:
        """One tensor, changed where the adapter is merged."""
        module, _, part = name.rpartition(".")
        tensor = self.source.tensor(name)
        delta = self.adapter.deltas(module) if self.merge and part == "weight" else None
        return tensor if delta is None else merged(tensor, delta)

    def product(self, module: str, dtype: torch.dtype) -> OwnProduct | None:
        """A changed module's product, or the base's own.

        Raises:
            ModelCorruptError: an adapter is to be merged into codes.
        """
        base = self.source.product(module, dtype)
        delta = self.adapter.deltas(module)
        if delta is None or (self.merge and base is None):
            return base
        if self.merge:
            raise ModelCorruptError(
                f"{module} multiplies codes, which an adapter cannot be merged into",
                where=str(self.adapter.directory),
            )
        return AdaptedLinear.of(base or self._dense(module, dtype), delta, dtype)

    def parts(self, module: str) -> frozenset[str]:
        """The names that a changed or quantized module is made of."""
        dense = frozenset((f"{module}.weight", f"{module}.bias")) & self.names
        return self.source.parts(module) | dense

    def _dense(self, module: str, dtype: torch.dtype) -> Linear:
        bias = f"{module}.bias"
        held = self.source.tensor(bias).to(dtype) if bias in self.source.names else None
        return Linear(self.source.tensor(f"{module}.weight").to(dtype), held)


class _Rules:
    """What `adapter_config.json` says of any module."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.choice("peft_type", "LORA")
        settings.choice("task_type", "CAUSAL_LM", None, default=None)
        settings.choice("bias", "none", default="none")
        settings.choice("init_lora_weights", *_HARMLESS_BEGINNINGS, default=True)
        self._rank, self._alpha = settings.integer("r"), settings.number("lora_alpha")
        self._root = settings.flag("use_rslora", default=False)
        self._ranks = self._pattern("rank_pattern", whole=True)
        self._alphas = self._pattern("alpha_pattern", whole=False)
        self._targets = settings.take("target_modules")
        if isinstance(self._targets, str):
            self._refuse_unsafe(self._targets)
        elif not isinstance(self._targets, list) or not all(isinstance(item, str) for item in self._targets):
            settings.corrupt("target_modules must be names or a pattern")
        settings.finish(_MEANINGLESS)

    def rank(self, module: str) -> int:
        """The rank of a module's change."""
        return int(_first(self._ranks, module, self._rank))

    def scale(self, module: str) -> float:
        """What B A is multiplied by."""
        rank = self.rank(module)
        return _first(self._alphas, module, self._alpha) / (math.sqrt(rank) if self._root else rank)

    def check(self, module: str, tensors: Checkpoint) -> None:
        """Refuse a change of a module that is no target, or of another rank than declared."""
        if not self._is_target(module):
            self.settings.corrupt(f"{WEIGHTS} changes {module}, which is no target module")
        (rank, _), (_, other) = (
            tensors.shape(f"base_model.model.{module}.lora_{side}.weight") for side in "AB"
        )
        if not rank == other == self.rank(module):
            self.settings.corrupt(
                f"the change of {module} has rank {rank} and {other}, not {self.rank(module)}"
            )

    def _is_target(self, module: str) -> bool:
        if self._targets == "all-linear":
            return not module.endswith(("lm_head", "embed_tokens"))
        if isinstance(self._targets, str):
            return re.fullmatch(self._targets, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in self._targets)

    def _pattern(self, field: str, *, whole: bool) -> dict[str, float]:
        raw = self.settings.take(field, None) or {}
        own = Settings(raw, f"{self.settings.name}.{field}", self.settings.where)
        for key in raw:
            self._refuse_unsafe(key)
        return {key: own.integer(key) if whole else own.number(key) for key in raw}

    def _refuse_unsafe(self, pattern: str) -> None:
        if not is_safe_pattern(pattern):
            self.settings.unsupported(f"the pattern {pattern!r:.60}", "it may take for ever; list the names")


def _first(patterns: dict[str, float], module: str, default: float) -> float:
    """The value of the first pattern that ends the module's name at a dot, as PEFT's `get_pattern_key`."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _modules(tensors: Checkpoint, settings: Settings) -> frozenset[str]:
    sides: dict[str, set[str]] = {}
    for name in sorted(tensors.names):
        match = _NAME.fullmatch(name)
        if match is None:
            settings.unsupported(f"tensor {name}", "only lora_A and lora_B of linear modules are")
        if len(tensors.shape(name)) != 2 or tensors.dtype(name) not in DTYPES:
            settings.corrupt(f"tensor {name} is no matrix of floats")
        sides.setdefault(match["module"], set()).add(match["side"])
    for module, found in sides.items():
        if len(found) < 2:
            settings.corrupt(f"{module} has lora_{found.pop()} only")
    if not sides:
        settings.corrupt(f"{WEIGHTS} changes nothing")
    return frozenset(sides)
