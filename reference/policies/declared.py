"""`Policy`: how a provider says that its cache is cut or rounded, so that it can be held to it.

A trace's `policy` is one line, a name and whole numbers, for instance `kv/h2o budget=1024`. A declared policy
is replayed as declared and is no deviation; the same thing undeclared is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.batch import Attending, AttentionHook, KeyValueHook
from auditor.reference.loading import ReferenceModel
from auditor.reference.policies.edits import inserted_span, ropes_of
from auditor.reference.policies.rounding import float8_cache, integer_cache
from auditor.reference.policies.selection import (
    blocks,
    frequency_chunks,
    heavy_hitters,
    last_query,
    lazy,
    pyramid,
    selecting,
    snapshot,
    soft_votes,
    streaming,
)

_MOST = 1 << 30
_LINE = re.compile(r"(?P<name>kv/[a-z0-9-]+)(?P<options>(?: [a-z]+=[0-9]{1,10})*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of policy.

    Attributes:
        source: where it is described.
        defaults: its options; one that is 0 must be given.
        attention: options -> what attention layers gather. key_value: what is stored instead.
        moves: whether `attention` is also told the layers' `ropes`, to move keys.
    """

    source: str
    defaults: Mapping[str, int]
    attention: Callable[..., AttentionHook] | None = None
    key_value: KeyValueHook | None = None
    moves: bool = False


def _selection(source: str, keep: Callable[..., Tensor], **defaults: int) -> Rule:
    def attention(**options: int) -> AttentionHook:
        return selecting(partial(keep, **options))

    return Rule(source, {"budget": 0, **defaults}, attention)


def _pyramid(**options: int) -> Callable[[Attending], Tensor]:
    return pyramid(**options)


RULES: dict[str, Rule] = {
    "kv/streaming": _selection("StreamingLLM, arXiv 2309.17453", streaming, sinks=4),
    "kv/h2o": _selection("H2O, arXiv 2306.14048 (local, sticky)", heavy_hitters),
    "kv/tova": _selection("TOVA, arXiv 2401.06104", last_query),
    "kv/lazy-eviction": _selection("LazyEviction, arXiv 2506.15969", lazy, window=16),
    "kv/snapkv": _selection("SnapKV, arXiv 2404.14469", snapshot, window=8),
    "kv/tokenselect": _selection("TokenSelect, arXiv 2411.02886", soft_votes, local=16, sinks=4),
    "kv/fasa": _selection("FASA, arXiv 2602.03152", frequency_chunks, chunks=4),
    "kv/blocks": _selection(
        "SentenceKV, arXiv 2504.00970; Quest, arXiv 2406.10774 (runs of 16)", blocks, size=16
    ),
    "kv/pie": Rule(
        "PIE, arXiv 2407.03157 (an insertion)", {"at": 0, "inserted": 0}, inserted_span, moves=True
    ),
    "kv/pyramid": Rule("PyramidKV, arXiv 2406.02069", {"budget": 0}, _pyramid),
    "kv/fp8": Rule("vLLM kv_cache_dtype=fp8, scale 1", {}, key_value=float8_cache),
    "kv/int8": Rule("a scale a token and head", {}, key_value=integer_cache(8, 8)),
    "kv/int4": Rule("a scale a token and head; KIVI, arXiv 2402.02750", {}, key_value=integer_cache(4, 4)),
}
"""Every policy that can be declared."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A declared policy; `str` gives the line that declares it, every option included."""

    name: str
    options: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, line: Any) -> Policy:
        """Read a declaration.

        Raises:
            OptionError: not of this form, of a rule or option that is not known, or without a budget.
        """
        known = f"a rule is one of {', '.join(RULES)}, as in `kv/h2o budget=1024`"
        found = _LINE.fullmatch(line) if isinstance(line, str) else None
        rule = None if found is None else RULES.get(found["name"])
        if found is None or rule is None:
            raise OptionError(f"policy {str(line)[:60]!r} is not known", fix=known)
        given: dict[str, int] = {}
        for name, value in (part.split("=") for part in found["options"].split()):
            if name not in rule.defaults or name in given:
                takes = ", ".join(rule.defaults) or "no options"
                raise OptionError(
                    f"policy {found['name']}: option {name!r}", fix=f"it takes {takes}, once each"
                )
            given[name] = int(value)
        chosen = {**rule.defaults, **given}
        for name, number in chosen.items():
            if not (1 if name != "sinks" else 0) <= number <= _MOST:
                raise OptionError(f"policy {found['name']}: {name} {number}", fix=f"say {name}=N, N from 1")
        if chosen.get("budget", _MOST) <= chosen.get("sinks", 0):
            raise OptionError(f"policy {found['name']}: the budget must exceed the sinks")
        return cls(found["name"], tuple(sorted(chosen.items())))

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.options)])

    def applied(self, model: ReferenceModel) -> ReferenceModel:
        """Return the model as it runs under the policy.

        Raises:
            OptionError: an architecture that cannot be changed, or whose attention has a window, a soft cap
                or sinks, for which nobody has said what a rule then sees.
        """
        rule = RULES[self.name]
        if rule.key_value is not None:
            return model.replace(key_value=rule.key_value)
        assert rule.attention is not None, "a rule does something"
        for plan in getattr(model.config, "layers", ()):
            if any(getattr(plan.mixer, name, None) for name in ("window", "softcap", "sinks")):
                raise OptionError(f"policy {self.name} on attention with a window, a soft cap or sinks")
        told = {"ropes": ropes_of(model)} if rule.moves else {}
        return model.replace(attention=rule.attention(**dict(self.options), **told))
