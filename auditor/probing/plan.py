"""The plan of a probe run: a TOML file, checked strictly. Pure."""

from __future__ import annotations

import hashlib
import tomllib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from auditor.errors import OptionError
from auditor.seeds import WIDTHS

EXAMPLE = """\
# Plan of `audit probe`. Every line but `model` may be left out; shown are the defaults.
model = "target"            # as the endpoint calls it
api = "chat"                # chat or completions
requests = 64
prompts = "demo"            # demo, or logs of your own traffic: ["traffic.jsonl.gz"]
lengthen = false            # ask each chat prompt a second time, for length (`audit tokens --trusted`)
stream = 0.5                # share of requests that are streamed
token_ids = true            # ask for token ids (return_token_ids)
logprobs = 0                # ask for this many alternatives a token; they are kept in the trace
seed_bits = 32              # width of the engine's seed: 31, 32, 53, 63 or 64

# Sampling parameters, drawn by weight. A pair [low, high] of max_tokens is drawn in between.
# Without any [[sampling]] the parameters of the logged requests are used (demo: temperature 1).
[[sampling]]
weight = 3
temperature = 1.0
max_tokens = [60, 200]

[[sampling]]
weight = 1
temperature = 0.7
top_p = 0.95
max_tokens = [60, 200]

[pace]
per_minute = 30.0           # requests a minute on average
jitter = 1.0                # 0 even gaps, 1 gaps as of independent users
concurrency = 4             # requests under way at once

[budget]
output_tokens = 50000
minutes = 240.0

[retries]
attempts = 5                # of one request, in all
first_wait = 1.0            # seconds; doubles, with jitter; Retry-After prevails
longest_wait = 120.0

# Headers of your ordinary client, so that probes look like it. Credentials come from --api-key-env.
[headers]
"""


_NOT_FOR_PLANS = ("authorization", "x-api-key", "api-key", "content-length", "content-type", "host")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Positive = Annotated[int, Field(ge=1, le=10**9)]


class SamplingChoice(_Strict):
    """One set of sampling parameters and how often it is drawn."""

    weight: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_tokens: Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)] = 200


class Pace(_Strict):
    """When requests leave."""

    per_minute: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 1.0
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 4


class Budget(_Strict):
    """When to stop: before either is exceeded."""

    output_tokens: Positive = 50_000
    minutes: Annotated[float, Field(gt=0, le=1e6)] = 240.0


class Retries(_Strict):
    """How often and how soon a failed request is sent again."""

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    first_wait: Annotated[float, Field(ge=0, le=3600)] = 1.0
    longest_wait: Annotated[float, Field(ge=0, le=3600)] = 120.0


class Plan(_Strict):
    """A checked plan; `EXAMPLE` says what the fields mean."""

    model: Annotated[str, Field(min_length=1)]
    api: Literal["chat", "completions"] = "chat"
    requests: Positive = 64
    prompts: Literal["demo"] | Annotated[list[str], Field(min_length=1)] = "demo"
    lengthen: bool = False
    stream: Annotated[float, Field(ge=0, le=1)] = 0.5
    token_ids: bool = True
    logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    seed_bits: int = 32
    sampling: list[SamplingChoice] = []
    pace: Pace = Pace()
    budget: Budget = Budget()
    retries: Retries = Retries()
    headers: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Names the plan in each log line; pace, budget and retries may change between two runs."""
        asked = self.model_dump_json(exclude={"pace", "budget", "retries", "headers"})
        return "sha256:" + hashlib.sha256(asked.encode()).hexdigest()


def plan_from_toml(text: str, *, where: str) -> Plan:
    """Read a plan.

    Raises:
        OptionError: no TOML, or a field is unknown, missing, mistyped or out of range.
    """
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"not valid TOML: {error}", where=where) from None
    try:
        plan = Plan.model_validate(_with_floats(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise OptionError(f"field {path}: {first['msg']}", where=where, fix="see --example-plan") from None
    if plan.seed_bits not in WIDTHS:
        raise OptionError(f"field seed_bits: {plan.seed_bits} is none of {WIDTHS}", where=where)
    if plan.lengthen and plan.api != "chat":
        raise OptionError("field lengthen: only chat prompts can be asked for length", where=where)
    for choice in plan.sampling:
        if isinstance(choice.max_tokens, list) and choice.max_tokens[0] > choice.max_tokens[1]:
            raise OptionError("field sampling.max_tokens: low above high", where=where)
    for name in plan.headers:
        if name.lower() in (
            "authorization",
            "content-length",
            "content-type",
            "host",
            "x-api-key",
            "api-key",
        ):
            raise OptionError(f"header {name!r} is not for a plan", where=where, fix="use --api-key-env")
    return plan


def _with_floats(value: object) -> object:
    """TOML tells 1 from 1.0, people do not: whole numbers are taken where a float is meant."""
    floats = {"weight", "temperature", "top_p", "min_p", "stream", "per_minute", "jitter", "minutes"}
    floats |= {"first_wait", "longest_wait"}
    if isinstance(value, dict):
        return {
            key: float(item) if key in floats and type(item) is int else _with_floats(item)
            for key, item in value.items()
        }
    return [_with_floats(item) for item in value] if isinstance(value, list) else value
