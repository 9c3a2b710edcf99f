"""Activations committed to, challenged, answered and checked: files in, files out. JSON objects, one a line.

    commitment   provider to auditor, before anything else: a digest of each layer's states
    challenge    auditor to provider: a secret drawn after that, from which both derive what is asked
    answer       provider to auditor: leaves, fingerprints of every position, the states asked for
    kept         what the provider keeps until then: bfloat16 states, in safetensors

Bytes are base64; unknown fields and other spellings are refused. The steps are numbered in
`fingerprints/commit_challenge.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from auditor.durable_files import write_durably
from auditor.errors import (
    AuditError,
    FingerprintError,
    FingerprintLengthError,
    FingerprintOpeningError,
    FingerprintReplayedError,
    FingerprintUnsupportedError,
    OptionError,
    TraceSyntaxError,
)
from auditor.fingerprints.activation_difr import (
    BINDING_BYTES,
    FINAL,
    FingerprintKind,
    request_binding,
    residuals,
)
from auditor.fingerprints.commit_challenge import (
    SECRET_BYTES,
    ActivationAnswer,
    ActivationChallenge,
    ActivationCommitment,
    Bits,
    answer,
    challenge,
    check_answer,
    commit,
)
from auditor.fingerprints.wire import from_payload, to_payload
from auditor.merkle.encoding import encode_base64
from auditor.preparation import prompt_ids
from auditor.rank_evidence import rank_log_e
from auditor.reference.loading import ReferenceModel
from auditor.replay import Reference
from auditor.strict_json import dump_json, load_object
from auditor.trace import Trace
from auditor.wire_fields import Bytes, Exact, Hash

COMMITMENT = "auditor.activation-commitment/v1"
CHALLENGE = "auditor.activation-challenge/v1"
ANSWER = "auditor.activation-answer/v1"
MOST_FILE_BYTES = 1 << 30


_Count = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Request(Exact):
    request: str


class _CommitmentWire(_Request):
    binding: Annotated[Bytes, Field(min_length=BINDING_BYTES, max_length=BINDING_BYTES)]
    positions: _Count
    width: _Count
    layers: Annotated[dict[Annotated[str, Field(pattern=r"^(-1|[0-9]{1,5})$")], Hash], Field(min_length=1)]


class _ChallengeWire(_Request):
    root: Hash
    secret: Annotated[Bytes, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    count: Annotated[int, Field(ge=1, lt=1 << 31)]
    code: str
    features: _Count


class _AnswerWire(_Request):
    root: Hash
    leaves: list[Hash]
    fingerprint: Bytes
    states: dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")], Bytes]


W = TypeVar("W", bound=_Request)


@dataclass(frozen=True, slots=True)
class CheckedActivations:
    """One request after its answer was checked.

    Attributes:
        problem: why it says nothing, with the other fields empty; None when it was compared.
        kind: `FingerprintKind.name`, with the layer that was drawn.
        prompt, output: mean distances over the prompt's positions, and over those that output tokens were
            drawn from; what calibrates them are the same of honest requests.
    """

    request: str
    problem: AuditError | None
    kind: str = ""
    prompt: float = math.nan
    output: float = math.nan


# ---- provider


def commit_activations(
    traces: Iterable[Trace],
    model: ReferenceModel,
    layers: Sequence[int],
    *,
    prompt_of: Callable[[Trace], tuple[int, ...]],
    out: Path,
    kept: Path,
) -> int:
    """Commit to the states of a log that our own engine computes again by prefill; returns the requests.

    Args:
        layers: numbers from 0, or `FINAL`.
        prompt_of: ids that were fed.

    Raises:
        OptionError: no layers, or one that the model does not have.
    """
    if not layers:
        raise OptionError("no layer to commit to")
    order = (FINAL, *(layer for layer in layers if layer != FINAL))
    shown = model.showing(order[1:])
    lines, tensors, width = [], {}, model.config.hidden_size
    for number, trace in enumerate(traces):
        prompt, output = prompt_of(trace), tuple(trace.output_token_ids or ())
        hidden = shown.prefill([torch.tensor([*prompt, *output[:-1]])]).to(torch.bfloat16)
        parts = dict(zip(order, torch.split(hidden, width, dim=1), strict=True))
        states = {
            layer: parts[layer].contiguous().view(torch.int16).numpy().view(np.uint16) for layer in layers
        }
        made = commit(request_binding(prompt, output, trace.seed), states)
        lines.append(_commitment_json(trace.id, made))
        tensors.update({f"{number}/{layer}": rows for layer, rows in states.items()})
    write_durably(kept, save(tensors, {str(n): line["request"] for n, line in enumerate(lines)}), mode=0o600)
    write_durably(out, _lines(lines))
    return len(lines)


def answer_challenges(commitments: Path, challenges: Path, kept: Path, *, out: Path) -> int:
    """Answer every challenge from what was kept; returns how many.

    Raises:
        FingerprintOpeningError: a challenge of another commitment, or states that were not kept.
        FingerprintError: a file that is malformed.
    """
    committed = read_commitments(commitments)
    place = {request: number for number, request in enumerate(committed)}
    try:
        tensors = load_file(kept)
    except (SafetensorError, OSError) as error:
        raise FingerprintError(f"no states can be read: {error}", where=str(kept)) from error
    lines = []
    for request, wire in _read(challenges, CHALLENGE, _ChallengeWire).items():
        own, asked = _asked(committed, request, wire, str(challenges))
        states = {layer: tensors[f"{place[request]}/{layer}"] for layer in own.layers}
        lines.append(_answer_json(request, own, answer(own, asked, states)))
    write_durably(out, _lines(lines))
    return len(lines)


# ---- auditor


def draw_challenges(
    commitments: Path, *, count: int, kind: FingerprintKind, randomness: Callable[[int], bytes], out: Path
) -> int:
    """Challenge every commitment, each by a secret of its own; returns how many.

    Args:
        count: positions to open. kind: code and features; the layer is drawn from those committed to.
        randomness: bytes of a length from a generator fit for secrets (`os.urandom`).

    Raises:
        FingerprintError: a malformed file, or fewer than one position.
    """
    lines = []
    for request, own in read_commitments(commitments).items():
        secret = randomness(SECRET_BYTES)
        challenge(own, secret, count, kind)
        body = {"root": encode_base64(own.root), "secret": encode_base64(secret), "count": count}
        lines.append(
            {"schema": CHALLENGE, "request": request, **body, "code": kind.code, "features": kind.features}
        )
    write_durably(out, _lines(lines))
    return len(lines)


def check_activations(
    commitments: Path, challenges: Path, answers: Path, traces: Iterable[Trace], reference: Reference
) -> Iterator[CheckedActivations]:
    """Check the answer to every challenge and compare it with the reference up to the layer asked for.

    A request that was challenged and not answered, or is not in the log, is a problem like any other.

    Raises:
        FingerprintError: a malformed file.
    """
    committed, got = read_commitments(commitments), _read(answers, ANSWER, _AnswerWire)
    by_id = {trace.id: trace for trace in traces}
    for request, wire in _read(challenges, CHALLENGE, _ChallengeWire).items():
        try:
            own, asked = _asked(committed, request, wire, str(challenges))
            if request not in got or request not in by_id:
                raise FingerprintOpeningError(
                    "no answer to its challenge" if request in by_id else "challenged, and not in the log",
                    where=request,
                )
            found = _answer_of(got[request], own, asked, request)
            yield _compared(by_id[request], own, asked, found, reference)
        except AuditError as problem:
            yield CheckedActivations(request, problem)


def challenge_log_e(honest: Sequence[CheckedActivations], audited: Sequence[CheckedActivations]) -> float:
    """Log e-value of checked requests beside honest ones that were challenged alike.

    The product over kinds (layers), which have no request in common: where each kind's requests may change
    places among themselves, the product's mean is 1 as every factor's is. Requests with a problem say
    nothing here; the caller must not pass over them.
    """
    kinds = sorted({one.kind for one in audited if one.problem is None})
    found = [
        rank_log_e(*(np.array([c.output for c in side if c.kind == kind]) for side in (honest, audited)))
        for kind in kinds
    ]
    return float(sum(found))


def _compared(
    trace: Trace,
    own: ActivationCommitment,
    asked: ActivationChallenge,
    got: ActivationAnswer,
    reference: Reference,
) -> CheckedActivations:
    prompt, output = prompt_ids(trace, reference), tuple(trace.output_token_ids or ())
    if own.binding != request_binding(prompt, output, trace.seed):
        raise FingerprintReplayedError("the commitment belongs to another request", where=trace.where)
    if own.positions != len(prompt) + len(output) - 1 or own.width != reference.model.config.hidden_size:
        raise FingerprintLengthError(
            f"{own.positions} positions of width {own.width} for {len(prompt)} + {len(output)} tokens",
            where=trace.where,
        )
    check_answer(own, asked, got)
    tokens, last = torch.tensor([*prompt, *output[:-1]]), reference.model.config.num_hidden_layers - 1
    if asked.kind.layer == FINAL:
        hidden = reference.model.showing((last,)).prefill([tokens])
        distance = residuals(got.given, hidden[:, : own.width], hidden[:, own.width :]).distance
    else:
        distance = residuals(got.given, reference.model.up_to(asked.kind.layer).prefill([tokens])).distance
    first = len(prompt) - 1
    before = float(distance[:first].mean()) if first else math.nan
    return CheckedActivations(trace.id, None, asked.kind.name, before, float(distance[first:].mean()))


def _asked(
    committed: Mapping[str, ActivationCommitment], request: str, wire: _ChallengeWire, where: str
) -> tuple[ActivationCommitment, ActivationChallenge]:
    own = committed.get(request)
    if own is None or own.root != wire.root:
        raise FingerprintOpeningError(f"the challenge of {request} is of another commitment", where=where)
    try:
        kind = FingerprintKind.parse(f"{wire.code}:{wire.features}")
    except ValueError as error:
        raise FingerprintError(str(error), where=where) from error
    return own, challenge(own, wire.secret, wire.count, kind)


# ---- files


def read_commitments(path: Path) -> dict[str, ActivationCommitment]:
    """The commitments of a file, by request.

    Raises:
        FingerprintError: it is malformed.
    """
    return {
        request: ActivationCommitment(
            wire.binding, wire.positions, wire.width, {int(n): digest for n, digest in wire.layers.items()}
        )
        for request, wire in _read(path, COMMITMENT, _CommitmentWire).items()
    }


def _commitment_json(request: str, own: ActivationCommitment) -> dict[str, Any]:
    layers = {str(layer): encode_base64(digest) for layer, digest in own.layers.items()}
    sizes = {"positions": own.positions, "width": own.width}
    return {
        "schema": COMMITMENT,
        "request": request,
        "binding": encode_base64(own.binding),
        **sizes,
        "layers": layers,
    }


def _answer_json(request: str, own: ActivationCommitment, made: ActivationAnswer) -> dict[str, Any]:
    states = {str(t): encode_base64(row.astype(">u2").tobytes()) for t, row in made.opened.items()}
    return {
        "schema": ANSWER,
        "request": request,
        "root": encode_base64(own.root),
        "leaves": [encode_base64(one) for one in made.leaves],
        "fingerprint": encode_base64(to_payload(made.given)),
        "states": states,
    }


def _answer_of(
    wire: _AnswerWire, own: ActivationCommitment, asked: ActivationChallenge, where: str
) -> ActivationAnswer:
    if wire.root != own.root:
        raise FingerprintOpeningError("the answer is of another commitment", where=where)
    given = from_payload(wire.fingerprint, projection_seed=asked.projection_seed, where=where)
    if any(len(raw) != 2 * own.width for raw in wire.states.values()):
        raise FingerprintOpeningError(f"opened states that are not of width {own.width}", where=where)
    opened: dict[int, Bits] = {
        int(t): np.frombuffer(raw, ">u2").astype(np.uint16) for t, raw in wire.states.items()
    }
    return ActivationAnswer(tuple(wire.leaves), given, opened)


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(dump_json(value, where=value["request"]) + b"\n" for value in values)


def _read(path: Path, schema: str, model: type[W]) -> dict[str, W]:
    """The objects of a file, by request."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise FingerprintError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(raw) > MOST_FILE_BYTES:
        raise FingerprintError(f"more than {MOST_FILE_BYTES} bytes", where=str(path))
    found: dict[str, W] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            value = load_object(line, where=where)
            if value.pop("schema", None) != schema:
                raise FingerprintUnsupportedError(f"not of schema {schema}", where=where)
            wire = model.model_validate(value)
        except TraceSyntaxError as error:
            raise FingerprintError(error.message, where=where) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FingerprintError(f"{place}: {first['msg']}", where=where) from error
        if wire.request in found:
            raise FingerprintError(f"request {wire.request} stands there twice", where=where)
        found[wire.request] = wire
    return found
