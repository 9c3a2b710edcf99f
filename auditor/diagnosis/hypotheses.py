"""What may have happened instead, in a form that can be replayed: the candidates of a diagnosis.

Each is a `Deviation`, a registered one or one of the cheap everyday mistakes below: a neighbouring seed,
another temperature, a filter that was not asked for, an older or broken chat template, a shortened context.
Another noise scheme is tried too (`other_schemes`). A wrong guess costs one pass over a dozen requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from auditor.errors import AuditError
from auditor.reference.deviations import CATALOGUE, DEVIATIONS, Deviation, Prompt
from auditor.reference.deviations.weights import projections
from auditor.reference.noise import SCHEMES, Declared
from auditor.reference.quantizer import integers
from auditor.reference.request import Request
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import check_shape

Messages = list[dict[str, object]]

_SOURCE = "everyday mistakes of deployments; difr.md section 9.5"


def _seed(name: str, change: Callable[[int], int]) -> Deviation:
    return Deviation(f"seed/{name}", "none: a mistake", _SOURCE, seed=change, needs_noise=True)


def _hotter_by(change: float) -> Deviation:
    def sampling(spec: SamplingSpec) -> SamplingSpec:
        # Not below what can be replayed; a greedy request stays greedy when made cooler.
        moved = round(spec.temperature + change, 6)
        return replace(spec, temperature=moved if moved > 0.0 else spec.temperature)

    return Deviation(f"temperature/{change:+g}", "livelier or safer text", _SOURCE, sampling=sampling)


def _at_temperature(value: float) -> Deviation:
    return Deviation(
        f"temperature/{value:g}",
        "a default in place of what was asked",
        _SOURCE,
        sampling=lambda spec: spec if spec.greedy else replace(spec, temperature=value),
        needs_noise=True,
    )


def _filtered(name: str, change: Callable[[SamplingSpec], SamplingSpec]) -> Deviation:
    return Deviation(f"filter/{name}", "safer text", _SOURCE, sampling=change, needs_noise=True)


def _cut_at_mass(p: float) -> Deviation:
    return _filtered(f"top-p-{p}", lambda spec: replace(spec, top_p=min(spec.top_p, p)))


def _cut_at_rank(k: int) -> Deviation:
    return _filtered(f"top-k-{k}", lambda spec: replace(spec, top_k=spec.top_k or k))


MASK = "filter/mask"
"""The declared mask of ids, or the grammar, was not the one at work: none was, or another."""


def _without_mask(spec: SamplingSpec) -> SamplingSpec:
    return replace(spec, allowed_token_ids=None, grammar=None, bad_words=(), bad_words_ids=())


def _int4(group: int, steps: float) -> Deviation:
    """Four bits by another convention than the registered one's, which hits other values: the same cause."""
    change = partial(integers, bits=4, group=group, steps=steps)
    name = f"weights/int4 (group {group}, {steps:g} steps)"
    return Deviation(name, "a quarter of the weight memory", "decision 0031", model=projections(change))


def _fed(name: str, prompt: Callable[[Prompt], Sequence[int]]) -> Deviation:
    return Deviation(f"prompt/{name}", "none: a mistake", _SOURCE, prompt=prompt)


def _rendered(
    change: Callable[[Messages], Messages],
) -> Callable[[Prompt], Sequence[int]]:
    """A prompt whose messages are changed before the model's own template renders them."""

    def prompt(declared: Prompt) -> Sequence[int]:
        if declared.messages is None or declared.tokenizer.template is None:
            return declared.token_ids
        messages = change([dict(message) for message in declared.messages])
        return declared.tokenizer.encode_chat(messages) if messages else declared.token_ids

    return prompt


def _without_system(messages: Messages) -> Messages:
    return [m for m in messages if m.get("role") != "system"]


def _system_as_user(messages: Messages) -> Messages:
    return [{**m, "role": "user"} if m.get("role") == "system" else m for m in messages]


def _last_turn(messages: Messages) -> Messages:
    return messages[-1:]


def _untemplated(declared: Prompt) -> Sequence[int]:
    if declared.messages is None:
        return declared.token_ids
    text = "\n".join(f"{m.get('role')}: {m.get('content')}" for m in declared.messages)
    return declared.tokenizer.encode(f"{text}\nassistant:", add_special_tokens=True)


def _later_half(declared: Prompt) -> Sequence[int]:
    ids = declared.token_ids
    return (*ids[:1], *ids[1 + len(ids) // 2 :])


EVERYDAY: tuple[Deviation, ...] = (
    _seed("one-less", lambda seed: (seed - 1) % 2**63),
    _seed("low-32-bits", lambda seed: seed & 0xFFFFFFFF),
    _seed("zero", lambda _seed: 0),
    _seed("42", lambda _seed: 42),
    *(_hotter_by(change) for change in (-0.3, -0.2, -0.1, -0.05, 0.05, 0.2, 0.3)),
    _at_temperature(1.0),
    _at_temperature(0.7),
    *(_cut_at_mass(p) for p in (0.8, 0.9, 0.95)),
    *(_cut_at_rank(k) for k in (20, 50)),
    _filtered("min-p-0.05", lambda s: replace(s, min_p=max(s.min_p, 0.05))),
    _filtered("ignored", lambda s: replace(s, top_p=1.0, top_k=0, min_p=0.0)),
    _filtered(MASK.partition("/")[2], _without_mask),
    *(_int4(group, steps) for group, steps in ((64, 7), (128, 7), (128, 7.5))),
    _fed("no-system", _rendered(_without_system)),
    _fed("system-as-user", _rendered(_system_as_user)),
    _fed("last-turn", _rendered(_last_turn)),
    _fed("no-template", _untemplated),
    _fed("later-half", _later_half),
)


def candidates() -> tuple[Deviation, ...]:
    """Every deviation that can be replayed: those that serve another, unknown model cannot."""
    return tuple(d for d in (*DEVIATIONS.values(), *EVERYDAY) if not d.needs_other_model)


def further_candidates() -> tuple[Deviation, ...]:
    """The catalogue's other deviations that are one model on one prompt with one sampler throughout.

    Each costs a pass and most a copy of the weights, so they are asked where no candidate explains a log.
    """
    known = {d.name for d in candidates()}
    return tuple(
        d
        for d in CATALOGUE.values()
        if d.name not in known
        and not d.needs_other_model
        and d.serves is None
        and (d.logits, d.applies, d.slips, d.shift) == (None, None, 0.0, 0)
    )


def other_schemes(request: Request, vocabulary: int) -> Iterator[tuple[str, Request]]:
    """The request as other engines would draw it, named `seed/noise NAME`."""
    if request.seed is None or request.speculated is not None:
        return
    spec = request.spec
    for name, scheme in SCHEMES.items():
        if name == request.scheme.name or scheme.family != request.scheme.family:
            continue
        try:
            known = scheme.declared(Declared(vocabulary, None, spec.top_k, spec.top_p, spec.min_p))
        except AuditError:
            continue
        other = replace(request, scheme=known, ruled_by=request.ruled_by or request.scheme)
        if can_be_replayed(other, vocabulary):
            yield f"seed/noise {name}", other


def can_be_replayed(request: Request, vocabulary: int) -> bool:
    """Whether the request's scheme offers what its parameters ask for, in this combination."""
    try:
        check_shape(request.spec, request.scheme, speculated=request.speculated is not None)
        request.rules(request.spec, vocabulary)
    except AuditError:
        return False
    return True
