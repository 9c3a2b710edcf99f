"""`Trace`: one logged request, as every room sees it (format `auditor.trace/v1`).

A trace is read from bytes that a provider wrote, so nothing in it is true until replayed. What the
log itself did not say but the person who runs the audit did (`--engine-recipe`) is in `asserted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from auditor.reference.sampling import SamplingSpec

SCHEMA = "auditor.trace/v1"

Grade = Literal["A", "B", "C"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What served the request; `recipe` names everything that moves the last bits of a logit."""

    name: str | None = None
    version: str | None = None
    dtype: str | None = None
    device: str | None = None
    recipe: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What was billed, in tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Speculation:
    """How speculative decoding took part: its acceptance rule and, when logged, the drafts."""

    rule: str = "none"
    draft_token_ids: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One logged request. Token ids are exact; `output_token_ids` ends with the end id if it was sampled.

    Attributes:
        file, line: where it was read (lines, or rows of Parquet, count from 1); empty and 0 when made here.
        raw_digest: `sha256:` of the raw bytes of the line (of the canonical JSON for Parquet rows); where a
            line holds several traces, each has a digest of its own made from it.
        prompt_text: the prompt of a text completion as the client sent it.
        asserted: names of fields which the auditing side supplied, not the log.
        extra: unknown top-level fields, kept as they came; unknown fields inside `sampling`, `usage`,
            `engine` and `speculation` lie under those names. Anything in `extra["sampling"]` is a
            sampling feature that `SamplingSpec` does not model: a scorer must refuse it, not ignore it.
    """

    id: str
    model: str
    prompt_token_ids: tuple[int, ...] | None
    output_token_ids: tuple[int, ...] | None
    sampling: SamplingSpec
    seed: int | None = None
    noise: str | None = None
    created: str | None = None
    provider: str | None = None
    model_digest: str | None = None
    tokenizer_digest: str | None = None
    template_digest: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt_text: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    timing: Mapping[str, Any] | None = None
    logprobs: Any = None
    engine: Engine = field(default_factory=Engine)
    speculation: Speculation = field(default_factory=Speculation)
    policy: Any = None
    fingerprints: tuple[Any, ...] = ()
    commitment: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    asserted: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    raw_digest: str = ""

    @property
    def where(self) -> str:
        """Place for error messages: `file:line`, or the id when the trace was made in memory."""
        return f"{self.file}:{self.line}" if self.file else self.id

    @property
    def recipe(self) -> str | None:
        """What its numeric noise is calibrated for: the engine's recipe, and the policy it declares."""
        if self.policy is None or self.engine.recipe is None:
            return self.engine.recipe
        return f"{self.engine.recipe} with {self.policy}"

    @property
    def grade(self) -> Grade:
        """Completeness: A ids, replayable seed and fingerprints or commitment; B ids and seed; C the rest.

        A greedy request draws nothing, so it needs no seed to be replayed.
        """
        replayable = self.output_token_ids is not None and (
            self.sampling.greedy or (self.seed is not None and self.noise is not None)
        )
        if not replayable:
            return "C"
        return "A" if self.fingerprints or self.commitment is not None else "B"
