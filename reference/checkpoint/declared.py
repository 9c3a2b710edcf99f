"""What a checkpoint declares about its quantization, as data, whichever tool wrote it.

Invariant: a `Scheme` says everything that moves a bit of a product; two modules with equal schemes and equal
tensors compute the same. What is not implemented to that standard is refused (`settings.py`).

Sources: the `quantization_config` of transformers 5.19 (`quantization_config.py`) and what vLLM 0.32 reads of
it (`fp8.py`, `auto_gptq.py`, `auto_awq.py`, `compressed_tensors.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["int8", "float8"]


@dataclass(frozen=True, slots=True)
class Activations:
    """How a product's inputs are rounded before it.

    Attributes:
        kind: to int8 or to float8 e4m3, symmetric either way.
        static: with a stored scale for the tensor; otherwise each row has its own.
        group: how many columns share a row's scale, 0 for all of them.
    """

    kind: Kind
    static: bool = False
    group: int = 0


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one module's weight is stored and multiplied.

    Attributes:
        layout: `codes` (one int8 or float8 a weight), `packed` (compressed-tensors' int32), `gptq` or `awq`.
        kind: what the codes are, int8 for all integers.
        bits: of one code.
        symmetric: no zero points.
        block: how many rows and columns share a scale; 0 stands for all of them.
        activations: None where only weights are quantized.
        zero_offset: what is added to stored zero points (GPTQ's first format stores them less one).
        reordered: columns belong to groups in an order of their own (`g_idx`).
    """

    layout: Literal["codes", "packed", "gptq", "awq"]
    kind: Kind
    bits: int
    symmetric: bool
    block: tuple[int, int]
    activations: Activations | None = None
    zero_offset: int = 0
    reordered: bool = False


@dataclass(frozen=True, slots=True)
class Declaration:
    """Which modules are quantized, and how.

    Attributes:
        method: `quant_method`.
        groups: targets and the scheme of the modules that match them: a module's name, `re:` and a pattern
            that its name begins with, or the class `Linear`, in this order of precedence.
        ignored: modules that are not quantized: names and patterns as in `groups`.
        ignored_parts: modules that are not quantized: names, their beginnings or ends at dots.
        tensors_decide: a module that is stored dense is dense, whatever the groups say.
        float8_key_value: keys and values are stored in float8.
    """

    method: str
    groups: tuple[tuple[tuple[str, ...], Scheme], ...]
    ignored: tuple[str, ...] = ()
    ignored_parts: tuple[str, ...] = ()
    tensors_decide: bool = False
    float8_key_value: bool = False

    def schemes(self, module: str) -> list[Scheme]:
        """Every scheme declared for the module at the highest precedence; more than one is a riddle."""
        if _match(self.ignored, module) is not None or self._ignores_part(module):
            return []
        ranked = [(_match(targets, module), scheme) for targets, scheme in self.groups]
        best = min((rank for rank, _ in ranked if rank is not None), default=None)
        return list(dict.fromkeys(scheme for rank, scheme in ranked if rank is not None and rank == best))

    def _ignores_part(self, module: str) -> bool:
        whole = f".{module}."
        return any(
            whole.startswith(f".{part}.") or whole.endswith(f".{part}.") for part in self.ignored_parts
        )


def is_safe_pattern(pattern: str) -> bool:
    """Whether a regular expression that comes with a checkpoint can be run: it compiles, and it ends soon.

    Repeating a group can take exponential time, and each repetition one more power of the name's length.
    """
    if len(pattern) > 500 or re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 4:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _match(targets: tuple[str, ...], module: str) -> int | None:
    """The precedence of the best target that the module matches, 0 being the highest; None for no match."""
    if module in targets:
        return 0
    patterns = [target.removeprefix("re:") for target in targets if target.startswith("re:")]
    if any(re.match(pattern, module) for pattern in patterns):
        return 1
    return 2 if "Linear" in targets and not module.endswith("embed_tokens") else None


def check_block(value: Any) -> tuple[int, int] | None:
    """Two positive sizes, rows and columns, from a list; None for anything else."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(type(size) is int and 0 < size < 2**31 for size in value):
        return None
    return value[0], value[1]
