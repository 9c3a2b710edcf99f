"""`demo`: the whole story on the shipped model, honest and dishonest providers side by side.

1. An honest provider serves conversations; its numeric noise is calibrated.
2. The same honest provider, and dishonest ones, serve fresh conversations under fresh seeds.
3. Each log is audited by `verify` as any other log, knowing nothing of what was really run.

Every log has its own stream of seeds: calibration and audits share neither prompts' nor requests' seeds.
The evidence is an e-process at request boundaries: whoever watches it may stop where it first reaches
1/alpha, and an honest provider still gets there with probability at most alpha (Ville).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from auditor.calibration import calibrate
from auditor.errors import OptionError
from auditor.gathering import evidence_curve
from auditor.generation import Provider, derived_seed, generate
from auditor.must_detect import MUST_DETECT
from auditor.noise_model import RequestCounts
from auditor.power import detection_power
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import DEVIATIONS, HONEST, deviation
from auditor.reference.loading import ReferenceModel, load_model
from auditor.replay import Reference
from auditor.result import e_value
from auditor.verification import Result, verify

if TYPE_CHECKING:
    from auditor.profile import Profile
    from auditor.trace import Trace
    from auditor.verdict import TraceVerdict, Verdict

SCHEMA = "auditor.demo/v1"

REALLY_RAN = {
    "honest": "what it sold",
    "weights/int8": "weights rounded to 8 bits",
    "prompt/system": "a hidden instruction in the prompt",
    "temperature/+0.1": "temperature 1.1 instead of 1.0",
    "weights/int4": "weights rounded to 4 bits",
    "kv/int4": "KV cache rounded to 4 bits",
    "depth/skip-layer": "the model less one layer",
    "model/substituted": "a smaller, cheaper model",
    "seed/wrong": "another random seed than it logged",
}
"""The cast, from honest to gross, in plain words."""

POWER_TOKENS = (500, 1000, 2000, 4000, 8000, 16000)
"""Log sizes of the power table."""

_MOSTLY_MATCHING = 0.9

_GENERATE_SECONDS = 0.13  # one request; these weights only pace the progress bar
_AUDIT_SECONDS = 0.20
_SIMULATE_SECONDS = 2.0

OnProgress = Callable[[str, float, float], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is served; a request of the demo model is about 125 output tokens."""

    calibration_requests: int = 64
    honest_requests: int = 32
    dishonest_requests: int = 16
    shadow_tokens: int = 1500


@dataclass(frozen=True, slots=True)
class Audit:
    """One provider, audited.

    Attributes:
        cause: `honest` or the name of its deviation.
        curve_tokens, curve_log_e: evidence after each request, in the order served.
        tokens_to_convict: tokens after which the evidence first reached 1/alpha; None if it never did.
        power: chance that a log of this size convicts this deviation; None for the honest provider.
    """

    cause: str
    really_ran: str
    result: Result
    curve_tokens: tuple[int, ...]
    curve_log_e: tuple[float, ...]
    tokens_to_convict: int | None
    power: float | None

    @property
    def verdict(self) -> Verdict:
        """The log's only group."""
        return self.result.verdicts[0]

    @property
    def match_rate(self) -> float:
        """Share of output tokens that the reference would also have returned."""
        return self.result.matched / self.result.tokens

    @property
    def counts(self) -> tuple[RequestCounts, ...]:
        """Slacks and margins of each request."""
        return tuple(t.scored.counts for t in self.verdict.traces if t.scored.counts is not None)


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One convicted request, token by token. `pieces` are (text, margin in logits, None where it matched)."""

    audit: Audit
    trace_id: str
    question: str
    pieces: tuple[tuple[str, float | None], ...]
    log_e: float


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Everything the screen and the page show; `power`: cause -> its power at each of `POWER_TOKENS`."""

    alpha: float
    seed: int
    model: str
    profile: Profile
    audits: tuple[Audit, ...]
    power: Mapping[str, tuple[float | None, ...]]
    exhibit: Exhibit | None
    seconds: float

    @property
    def dishonest(self) -> tuple[Audit, ...]:
        """The audits of providers that did not run what they sold."""
        return tuple(a for a in self.audits if a.cause != HONEST.name)


def demo(
    *,
    alpha: float = 0.001,
    seed: int = 0,
    sizes: Sizes | None = None,
    causes: Sequence[str] = tuple(REALLY_RAN),
    progress: OnProgress = lambda _stage, _done, _total: None,
) -> Demonstration:
    """Calibrate on an honest provider, then audit one honest and several dishonest ones.

    Args:
        alpha: false-alarm rate of each verdict.
        seed: master seed of all prompts and requests.
        sizes: how much is served.
        causes: which of `REALLY_RAN` appear.
        progress: called with (stage, seconds' worth of work done, and in all).

    Raises:
        OptionError: alpha out of range, or an unknown cause.
    """
    if not 0.0 < alpha < 1.0:
        raise OptionError(f"alpha {alpha} is outside (0, 1)", where="--alpha")
    for cause in causes:
        deviation(cause)
    started = time.monotonic()
    sizes = sizes or Sizes()
    pace = _Pace(sizes, causes, progress)
    stage = _Stage.load(seed)
    profile = _calibrated(stage, sizes, pace)
    audits = []
    for stream, cause in enumerate(causes, 1):
        pace.enter(f"auditing: {REALLY_RAN[cause]}" if cause in REALLY_RAN else f"auditing: {cause}")
        requests = sizes.honest_requests if cause == HONEST.name else sizes.dishonest_requests
        audits.append(_audited(stage, cause, stage.serve(cause, stream, requests), profile, alpha))
        pace.advance(requests * _AUDIT_SECONDS)
    return Demonstration(
        alpha=alpha,
        seed=seed,
        model=stage.provider.model.directory.name,
        profile=profile,
        audits=tuple(audits),
        power=_power_table(profile, alpha),
        exhibit=_exhibit(audits, stage.reference),
        seconds=time.monotonic() - started,
    )


class _Pace:
    """Work done, in seconds' worth, so that a progress bar's time left means something."""

    def __init__(self, sizes: Sizes, causes: Sequence[str], progress: OnProgress) -> None:
        honest = sum(cause == HONEST.name for cause in causes)
        requests = honest * sizes.honest_requests + (len(causes) - honest) * sizes.dishonest_requests
        self._total = (
            sizes.calibration_requests * _GENERATE_SECONDS
            + len(DEVIATIONS) * _SIMULATE_SECONDS
            + requests * _AUDIT_SECONDS
        )
        self._done = 0.0
        self._stage = ""
        self._progress = progress

    def enter(self, stage: str) -> None:
        self._stage = stage
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        self._done += seconds
        self._progress(self._stage, self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Stage:
    """The actors: a provider of the target model, the auditor's reference, and the cheaper model."""

    seed: int
    provider: Provider
    reference: Reference
    cheaper: ReferenceModel
    cheaper_served: ReferenceModel

    @classmethod
    def load(cls, seed: int) -> _Stage:
        provider = Provider.load(TARGET, dtype="bfloat16", batch_size=32)
        served = load_model(DRAFT, dtype=provider.model.dtype, wide_matmul=True)
        return cls(seed, provider, Reference.load(TARGET), load_model(DRAFT), served)

    def serve(self, cause: str, stream: int, requests: int) -> list[Trace]:
        master = derived_seed(self.seed, stream)
        return list(
            generate(
                self.provider,
                demo_conversations(requests, master),
                deviation=deviation(cause),
                seed=master,
                other_model=self.cheaper_served,
            )
        )


def _calibrated(stage: _Stage, sizes: Sizes, pace: _Pace) -> Profile:
    pace.enter("an honest provider serves")
    honest = stage.serve(HONEST.name, 0, sizes.calibration_requests)
    pace.advance(sizes.calibration_requests * _GENERATE_SECONDS)
    pace.enter("learning honest noise, simulating cheats")
    return calibrate(
        honest,
        stage.reference,
        other_model=stage.cheaper,
        shadow_tokens=sizes.shadow_tokens,
        progress=lambda _stage, done, _total: pace.advance(_SIMULATE_SECONDS if done else 0.0),
    )


def _audited(stage: _Stage, cause: str, traces: Sequence[Trace], profile: Profile, alpha: float) -> Audit:
    result = verify(
        lambda: traces,
        stage.reference,
        find_profile=lambda key: profile if key == profile.key else None,
        alpha=alpha,
        explain=False,  # what each provider really ran is known here
    )
    verdict = result.verdicts[0]
    scored = [t.scored for t in verdict.traces]
    usable = [s for s in scored if s.counts is not None]
    tokens = np.cumsum([s.counts.tokens for s in usable if s.counts is not None])
    log_e = evidence_curve(usable, profile)
    crossed = np.flatnonzero(log_e >= -math.log(alpha))
    power = {d.cause: d.power for d in verdict.detectable or ()}
    return Audit(
        cause=cause,
        really_ran=REALLY_RAN.get(cause, cause),
        result=result,
        curve_tokens=tuple(tokens.tolist()),
        curve_log_e=tuple(log_e.tolist()),
        tokens_to_convict=int(tokens[crossed[0]]) if len(crossed) else None,
        power=power.get(cause),
    )


def _power_table(profile: Profile, alpha: float) -> dict[str, tuple[float | None, ...]]:
    """Power against each simulated cause at each log size, most visible first; sampled traffic."""
    columns = [detection_power(profile, {"sampled": n}, alpha) for n in POWER_TOKENS]
    table = {row[0].cause: tuple(d.power for d in row) for row in zip(*columns, strict=True)}
    shown = {cause: powers for cause, powers in table.items() if any(p is not None for p in powers)}
    return dict(sorted(shown.items(), key=lambda item: -sum(p or 0.0 for p in item[1])))


def _exhibit(audits: Sequence[Audit], reference: Reference) -> Exhibit | None:
    """Choose the most telling request, among those that mostly match, of a convicted provider."""
    convicted = {a.cause: a for a in audits if a.result.outcome == "inconsistent"}
    for cause in ("weights/int4", "kv/int4", "temperature/+0.1", *convicted):
        if cause in convicted:
            audit = convicted[cause]
            return _token_by_token(audit, max(audit.verdict.traces, key=_telling), reference)
    return None


def _telling(verdict: TraceVerdict) -> tuple[bool, float]:
    scores = verdict.scored.scores
    return scores is not None and scores.match_rate >= _MOSTLY_MATCHING, verdict.log_e


def _token_by_token(audit: Audit, shown: TraceVerdict, reference: Reference) -> Exhibit:
    trace, scores = shown.scored.trace, shown.scored.scores
    margins = {t: margin for t, margin, _ in scores.misses} if scores else {}
    ids = trace.output_token_ids or ()
    pieces = tuple((reference.tokenizer.decode((token,)), margins.get(t)) for t, token in enumerate(ids))
    question = str(trace.messages[-1].get("content", "")) if trace.messages else ""
    return Exhibit(audit, trace.id, question, pieces, shown.log_e)


def conclusion(audit: Audit) -> str:
    """Return the last column: how soon it was convicted, or why it was not."""
    if audit.tokens_to_convict is not None:
        return f"{audit.tokens_to_convict:,}"
    if audit.cause == HONEST.name:
        return "never convicted"
    if audit.cause in MUST_DETECT or audit.power is None:
        return "not convicted by this log"
    return f"too subtle for {audit.result.tokens:,} tokens: power {audit.power:.2f}"


def evidence_text(log_e: float) -> str:
    """Write an e-value for people: a plain number near 1, a power of ten beyond."""
    exponent = log_e / math.log(10)
    return f"{math.exp(log_e):.2g}" if abs(exponent) < 2 else f"10^{math.floor(exponent):.0f}"


def demonstration_to_json(demonstration: Demonstration) -> dict[str, Any]:
    """Return the demonstration as JSON data (`auditor.demo/v1`)."""
    profile = demonstration.profile
    return {
        "schema": SCHEMA,
        "alpha": demonstration.alpha,
        "seed": demonstration.seed,
        "model": {"name": demonstration.model, "digest": profile.key.model_digest},
        "profile": {"id": profile.id, "honest_tokens": profile.honest_tokens},
        "providers": [
            {
                "provider": audit.cause,
                "really_ran": audit.really_ran,
                "verdict": audit.result.outcome,
                "tokens": audit.result.tokens,
                "match_rate": audit.match_rate,
                "e_value": e_value(audit.result.log_e),
                "tokens_to_convict": audit.tokens_to_convict,
                "power": audit.power,
                "conclusion": conclusion(audit),
            }
            for audit in demonstration.audits
        ],
        "power": {
            cause: dict(zip(map(str, POWER_TOKENS), powers, strict=True))
            for cause, powers in demonstration.power.items()
        },
        "seconds": round(demonstration.seconds, 1),
    }
