"""Plans over HTTP: the planner of `audit plan`."""

from __future__ import annotations

import threading
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from auditor.api.bodies import json_body, json_content
from auditor.api.problems import responses
from auditor.api.service import Reader, Service, TheService
from auditor.api.views import Body, Digest, Label, Whole
from auditor.plan_result import plan_to_json
from auditor.planning import MOST_SCORE, plan
from auditor.profile import Profile, parse_profile
from auditor.profiles import demo_profile, shipped_profiles
from auditor.sample_size import Effect
from auditor.service import tenant_profiles
from auditor.service.errors import RateLimitedError, RequestInvalidError

router = APIRouter(tags=["plans"])
_one_at_a_time = threading.Lock()
_Score = Annotated[float, Field(ge=-MOST_SCORE, le=MOST_SCORE)]
_EXAMPLE = {
    "schema": "auditor.plan/v1",
    "alpha": 0.001,
    "power": 0.9,
    "fraction": 1.0,
    "speed": None,
    "mode": None,
    "profile": None,
    "rows": [{"cause": "mismatch rate by hand", "required": True, "tokens": 1093.0, "requests": 6}],
}


class PlanOrder(Body):
    """What to plan for, as the options of `audit plan`."""

    profile: Digest | None = Field(
        default=None,
        description="One of the tenant's or the shipped; without it and without sizes by hand, the demo's.",
    )
    causes: list[Label] = Field(default=[], max_length=20, examples=[["weights/int4"]])
    mode: Literal["sampled", "nucleus", "greedy"] = "sampled"
    effect: list[_Score] | None = Field(
        default=None,
        min_length=4,
        max_length=4,
        description="By hand: mean and standard deviation of a token's score, honest then dishonest.",
        examples=[[0.0001, 0.004, 0.0004, 0.009]],
    )
    rates: list[Annotated[float, Field(ge=0.0, le=1.0)]] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="By hand: mismatch rates a token, honest then cheating.",
        examples=[[0.004, 0.02]],
    )
    correlation: float = Field(default=0.0, ge=0.0, le=1.0)
    request_tokens: float = Field(default=200.0, ge=1.0, le=1e9)
    alpha: float = Field(default=0.001, gt=0.0, lt=1.0)
    power: float = Field(default=0.9, gt=0.0, lt=1.0)
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    speed: float | None = Field(
        default=None, gt=0.0, le=1e12, description="Output tokens a second.", examples=[1000.0]
    )
    seed: Whole = Field(default=0, ge=0, lt=1 << 63)


@router.post(
    "/plans",
    summary="Plan an audit",
    response_class=JSONResponse,
    responses={
        200: {
            "description": "`auditor.plan/v1`",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE}},
        },
        **responses(400, 401, 403, 404, 413, 415, 422, 429),
    },
    openapi_extra=json_content(PlanOrder),
)
def make_plan(
    service: TheService, caller: Reader, body: Annotated[PlanOrder, json_body(PlanOrder)]
) -> dict[str, Any]:
    """Tokens, requests and seconds for a wanted power. Against a profile, audits are simulated.

    Takes up to seconds, and one is made at a time. Nothing is kept.
    """
    by_hand = body.effect is not None or body.rates is not None
    profile = None
    if body.profile is not None or not by_hand:
        profile = _profile(service, caller.tenant_id, body.profile)
    shape = None
    if by_hand:
        m0, s0, m1, s1 = body.effect or [0.0] * 4
        shape = Effect(m0, s0, m1, s1, body.correlation, body.request_tokens, body.correlation)
    if not _one_at_a_time.acquire(blocking=False):
        raise RateLimitedError("another plan is being made", retry_after=5)
    try:
        made = plan(
            profile,
            causes=body.causes,
            effect=shape if body.effect is not None else None,
            rates=None if body.rates is None else (body.rates[0], body.rates[1]),
            shape=shape,
            alpha=body.alpha,
            power=body.power,
            fraction=body.fraction,
            mode=body.mode,
            speed=body.speed,
            seed=body.seed,
        )
    finally:
        _one_at_a_time.release()
    return plan_to_json(made)


@cache
def _shipped() -> dict[str, Profile]:
    return {profile.id: profile for profile in shipped_profiles().values()}


def _profile(service: Service, tenant_id: str, profile_id: str | None) -> Profile:
    if profile_id is None:
        return demo_profile()
    if profile_id in _shipped():
        return _shipped()[profile_id]
    with service.store.transaction() as connection:
        if tenant_profiles.find(connection, tenant_id, profile_id).revoked is not None:
            raise RequestInvalidError("that profile was revoked", where="profile")
        raw = tenant_profiles.content(connection, tenant_id, profile_id)
    return parse_profile(raw, where="profile")
