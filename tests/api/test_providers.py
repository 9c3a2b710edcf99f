"""Providers, models, profiles and plans over HTTP: what is unique, what may change, and whose it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor import profiles
from auditor.api import plans
from auditor.errors import KeyUnknownError, ProfileRevokedError
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.plan_result import plan_to_json
from auditor.planning import plan
from auditor.profile import parse_profile, profile_bytes
from auditor.profile_trust import sign_profile
from auditor.sample_size import Effect
from auditor.service import tenant_profiles
from tests.api.conftest import Party, refused

ACME = SeedSigner("acme.example/tokens", Algorithm.ED25519, b"\x05" * 32)
OTHER = SeedSigner("other.example/tokens", Algorithm.ED25519, b"\x06" * 32)
AUDITOR = SeedSigner("auditor.example/profiles", Algorithm.ED25519, b"\x07" * 32)
DIGEST = "sha256:" + "0" * 64
MODEL = {"name": "demo", "model_digest": DIGEST, "tokenizer_digest": DIGEST}


@cache
def demo_profile():
    """A small one: the tests are about who vouches for it."""
    whole = profiles.demo_profile()
    return replace(whole, honest=whole.honest[:4], deviations={}, fingerprints={})


def post(party, path, body, **headers):
    return party.call("POST", path, json=body, headers=headers)


def made(party, path, body, key="once"):
    answer = post(party, path, body, **{"Idempotency-Key": f"{path}{json.dumps(body)}{key}"})
    assert answer.status_code == 201, answer.text
    return answer.json()


def provider(party, name="acme", signer=ACME):
    return made(party, "/v1/providers", {"name": name, "vkeys": [signer.public.vkey]})


def trust(party, *signers):
    tag = party.get("/v1/profile-keys").headers["etag"]
    body = {"vkeys": [signer.public.vkey for signer in signers]}
    answer = party.call("PUT", "/v1/profile-keys", json=body, headers={"If-Match": tag})
    assert answer.status_code == 200, answer.text


def hand_in(party, profile):
    headers = {"Content-Type": "application/json"}
    return party.call("POST", "/v1/profiles", content=profile_bytes(profile), headers=headers)


def trusted_profile(party):
    trust(party, AUDITOR)
    answer = hand_in(party, sign_profile(demo_profile(), AUDITOR))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_a_provider_is_registered_once_and_listed(world):
    first = provider(world.alice)
    assert provider(world.alice) == first, "the same Idempotency-Key and request"
    assert world.alice.get(f"/v1/providers/{first['id']}").json() == first
    assert first["vkeys"] == [ACME.public.vkey]
    second = made(world.alice, "/v1/providers", {"name": "other"})
    page = world.alice.get("/v1/providers?limit=1")
    assert page.json()["items"] == [first]
    rest = world.alice.get(f"/v1/providers?limit=1&cursor={page.json()['next']}").json()
    assert (rest["items"], rest["next"]) == ([second], None)


def test_names_and_keys_of_providers_are_unique_in_a_tenant(world):
    provider(world.alice)
    taken = post(world.alice, "/v1/providers", {"name": "acme"}, **{"Idempotency-Key": "x"})
    assert refused(taken, 409, "conflict")["where"] == "name"
    body = {"name": "other", "vkeys": [ACME.public.vkey]}
    assert (
        refused(post(world.alice, "/v1/providers", body, **{"Idempotency-Key": "y"}), 409, "conflict")[
            "where"
        ]
        == "vkeys"
    )
    assert len(world.alice.get("/v1/providers").json()["items"]) == 1, "nothing is left half made"
    provider(world.bob)


def test_what_is_no_key_is_refused_without_being_repeated(world):
    body = {"name": "a", "vkeys": [ACME.public.vkey, "PRIVATE+KEY+secret"]}
    answer = post(world.alice, "/v1/providers", body, **{"Idempotency-Key": "x"})
    assert refused(answer, 422, "key-syntax")["where"] == "vkeys.1"
    assert "secret" not in answer.text


def test_a_provider_changes_only_for_whoever_saw_it(world):
    path = f"/v1/providers/{provider(world.alice)['id']}"
    tag = world.alice.get(path).headers["etag"]
    change = {"vkeys": [OTHER.public.vkey]}
    refused(world.alice.call("PATCH", path, json=change), 428, "version-missing")
    changed = world.alice.call("PATCH", path, json=change, headers={"If-Match": tag})
    assert changed.json()["vkeys"] == [OTHER.public.vkey]
    assert changed.json()["name"] == "acme"
    refused(world.alice.call("PATCH", path, json=change, headers={"If-Match": tag}), 412, "version-stale")
    refused(world.alice.call("PATCH", path, json=change, headers={"If-Match": "*"}), 412, "version-stale")
    assert world.alice.get(path, headers={"If-None-Match": tag}).status_code == 200
    fresh = changed.headers["etag"]
    assert world.alice.get(path, headers={"If-None-Match": fresh}).status_code == 304
    third = SeedSigner("third.example/x", Algorithm.ED25519, b"\x0b" * 32)
    provider(world.alice, "third", third)
    theirs = {"vkeys": [third.public.vkey]}
    refused(world.alice.call("PATCH", path, json=theirs, headers={"If-Match": fresh}), 409, "conflict")


def test_standing_counts_the_audits_that_name_a_provider(world):
    ours = provider(world.alice)["id"]
    world.alice.submit(query="?provider=acme")
    world.work()
    world.alice.submit(b'{"schema": "auditor.trace/v1", "id": "2"}\n', query="?provider=acme")
    world.alice.submit(b'{"schema": "auditor.trace/v1", "id": "3"}\n')
    standing = world.alice.get(f"/v1/providers/{ours}/standing").json()
    assert standing == {
        "audits": {"consistent": 0, "inconsistent": 1, "inconclusive": 0, "overturned": 0},
        "without_verdict": 1,
        "commitments": 0,
        "unfinished": 0,
        "challenges": {"open": 0, "held": 0, "failed": 0, "withheld": 0},
    }
    assert [a["provider"] for a in world.alice.get("/v1/audits").json()["items"]] == [None, "acme", "acme"]


def test_a_model_is_registered_and_never_changes(world):
    model = made(world.alice, "/v1/models", MODEL)
    found = world.alice.get(f"/v1/models/{model['id']}")
    assert found.json() == model
    assert (model["model_digest"], model["template_digest"]) == (DIGEST, None)
    assert world.alice.get("/v1/models").json()["items"] == [model]
    refused(post(world.alice, "/v1/models", MODEL, **{"Idempotency-Key": "x"}), 409, "conflict")
    wrong = MODEL | {"model_digest": "md5:0"}
    refused(post(world.alice, "/v1/models", wrong, **{"Idempotency-Key": "y"}), 422, "request-invalid")


def test_another_tenants_things_are_not_there(world):
    ours = provider(world.alice)["id"]
    model = made(world.alice, "/v1/models", MODEL)["id"]
    trust(world.alice, AUDITOR)
    profile = hand_in(world.alice, sign_profile(demo_profile(), AUDITOR)).json()["id"]
    things = (f"providers/{ours}", f"providers/{ours}/standing", f"models/{model}", f"profiles/{profile}")
    for path in (*things, f"profiles/{profile}/content"):
        refused(world.bob.get(f"/v1/{path}"), 404, "not-found")
    for kind in ("providers", "models", "profiles"):
        assert world.bob.get(f"/v1/{kind}").json()["items"] == []
    assert world.bob.get("/v1/profile-keys").json() == {"vkeys": []}
    change = world.bob.call("PATCH", f"/v1/providers/{ours}", json={}, headers={"If-Match": '"1"'})
    refused(change, 404, "not-found")
    refused(post(world.bob, f"/v1/profiles/{profile}/revoke", {"reason": "x"}), 404, "not-found")
    refused(
        post(world.bob, "/v1/plans", {"profile": profile.replace("sha256:", "sha256:")[:-1] + "0"}),
        404,
        "not-found",
    )
    key = {"name": "k", "scopes": ["provider"], "provider": ours}
    refused(post(world.bob, "/v1/keys", key), 404, "not-found")


def test_only_a_key_with_the_scope_says_whose_signatures_count(world):
    weak = world.party("weak", ("audits:read", "audits:write"))
    refused(post(weak, "/v1/providers", {"name": "a"}, **{"Idempotency-Key": "x"}), 403, "scope-missing")
    refused(weak.call("PUT", "/v1/profile-keys", json={"vkeys": []}), 403, "scope-missing")
    refused(post(weak, "/v1/profiles/sha256:0/revoke", {"reason": "x"}), 403, "scope-missing")


def test_a_providers_key_commits_and_opens_and_does_nothing_else(world):
    ours = provider(world.alice)["id"]
    body = {"name": "acme", "scopes": ["provider"], "provider": ours}
    key = post(world.alice, "/v1/keys", body)
    assert (key.status_code, key.json()["provider"]) == (201, ours)
    acme = Party(world.client, world.alice.tenant, key.json()["key"])
    for path in ("/v1/audits", "/v1/providers", "/v1/models", "/v1/profiles", "/v1/profile-keys", "/v1/keys"):
        refused(acme.get(path), 403, "scope-missing")
    for wrong in ({"scopes": ["provider", "keys"], "provider": ours}, {"scopes": ["keys"], "provider": ours}):
        refused(post(world.alice, "/v1/keys", body | wrong), 422, "request-invalid")
    refused(post(world.alice, "/v1/keys", {"name": "k", "scopes": ["provider"]}), 422, "request-invalid")


def test_a_profile_is_taken_signed_by_a_trusted_key_only(world):
    profile = demo_profile()
    refused(hand_in(world.alice, sign_profile(profile, AUDITOR)), 422, "key-unknown")
    trust(world.alice, AUDITOR)
    refused(hand_in(world.alice, replace(profile, note=None)), 422, "profile-unsigned")
    refused(hand_in(world.alice, sign_profile(profile, OTHER)), 422, "key-unknown")
    expired = replace(profile, expires="2026-01-01T00:00:00Z", note=None)
    refused(hand_in(world.alice, sign_profile(expired, AUDITOR)), 422, "profile-expired")
    altered = replace(sign_profile(profile, AUDITOR), created="2026-11-20T00:00:00Z")
    refused(hand_in(world.alice, altered), 422, "signature-invalid")
    odd = replace(profile, key=replace(profile.key, provider_recipe="a\0b"), note=None)
    refused(hand_in(world.alice, sign_profile(odd, AUDITOR)), 422, "profile-invalid")
    headers = {"Content-Type": "application/json"}
    broken = world.alice.call("POST", "/v1/profiles", content=b"{}", headers=headers)
    refused(broken, 422, "profile-invalid")
    assert world.alice.get("/v1/profiles").json()["items"] == []
    signed = sign_profile(profile, AUDITOR)
    answer = hand_in(world.alice, signed)
    assert answer.status_code == 201, answer.text
    assert hand_in(world.alice, signed).json() == answer.json()
    (listed,) = world.alice.get("/v1/profiles").json()["items"]
    assert listed == world.alice.get(answer.headers["location"]).json() == answer.json()
    assert (listed["id"], listed["honest_tokens"]) == (profile.id, profile.honest_tokens)
    content = world.alice.get(f"/v1/profiles/{profile.id}/content")
    assert parse_profile(content.content, where="") == signed
    held = {"If-None-Match": content.headers["etag"]}
    assert world.alice.get(f"/v1/profiles/{profile.id}/content", headers=held).status_code == 304


def test_trusted_keys_change_only_for_whoever_saw_them(world):
    tag = world.alice.get("/v1/profile-keys").headers["etag"]
    trust(world.alice, AUDITOR)
    stale = world.alice.call("PUT", "/v1/profile-keys", json={"vkeys": []}, headers={"If-Match": tag})
    refused(stale, 412, "version-stale")
    assert world.alice.get("/v1/profile-keys").json() == {"vkeys": [AUDITOR.public.vkey]}


NEVER = lambda _key: None  # noqa: E731
LATER = 1 << 61


def finder(world, moment=1_800_000_000_000_000, otherwise=NEVER):
    return tenant_profiles.finder(world.service.store, world.alice.tenant.id, moment, otherwise)


def test_an_audit_is_judged_by_the_tenants_own_profile_before_the_operators(world):
    profile = sign_profile(demo_profile(), AUDITOR)
    trust(world.alice, AUDITOR)
    ours = hand_in(world.alice, profile).json()
    operators = object()
    found = finder(world, otherwise=lambda _key: operators)
    assert found(profile.key).signed_by == (f"{AUDITOR.public.name}+{AUDITOR.public.key_id.hex()}",)
    assert found(replace(profile.key, family="icdf")) is operators
    assert finder(world, 1, lambda _key: operators)(profile.key) is operators, "of an audit that came before"
    bobs = tenant_profiles.finder(world.service.store, world.bob.tenant.id, 1 << 50, lambda _key: operators)
    assert bobs(profile.key) is operators
    later = sign_profile(replace(demo_profile(), created="2026-11-28T00:00:00Z", note=None), AUDITOR)
    assert hand_in(world.alice, later).json()["created"] == ours["created"], (
        "the same figures are one profile"
    )


def test_a_revoked_profile_is_not_replaced_by_another(world):
    profile = sign_profile(demo_profile(), AUDITOR)
    trust(world.alice, AUDITOR)
    hand_in(world.alice, profile)
    path = f"/v1/profiles/{profile.id}/revoke"
    gone = post(world.alice, path, {"reason": "quantized"}).json()
    assert gone["revoked"] is not None
    assert post(world.alice, path, {"reason": "again"}).json() == gone
    with pytest.raises(ProfileRevokedError, match="quantized"):
        finder(world, otherwise=lambda _key: profile)(profile.key)
    refused(hand_in(world.alice, profile), 422, "profile-revoked")
    refused(post(world.alice, "/v1/plans", {"profile": profile.id[:-1] + "f"}), 404, "not-found")


def test_a_key_that_is_no_longer_trusted_vouches_for_nothing(world):
    profile = sign_profile(demo_profile(), AUDITOR)
    trust(world.alice, AUDITOR)
    hand_in(world.alice, profile)
    for signers in ((OTHER,), ()):
        trust(world.alice, *signers)
        with pytest.raises(KeyUnknownError):
            finder(world, otherwise=lambda _key: profile)(profile.key)


def test_a_plan_over_http_is_the_plan_of_the_library(world):
    answer = post(world.alice, "/v1/plans", {"rates": [0.004, 0.02], "speed": 1000.0})
    assert answer.status_code == 200, answer.text
    shape = Effect(0.0, 0.0, 0.0, 0.0, 0.0, 200.0, 0.0)
    assert answer.json() == plan_to_json(plan(rates=(0.004, 0.02), shape=shape, speed=1000.0))
    ordered = {"causes": ["weights/int4"], "seed": 3}
    simulated = post(world.alice, "/v1/plans", ordered).json()
    assert simulated == plan_to_json(plan(profiles.demo_profile(), causes=["weights/int4"], seed=3))
    refused(post(world.alice, "/v1/plans", {"causes": ["none"]}), 422, "option-invalid")
    refused(
        post(world.alice, "/v1/plans", {"alpha": 0.9, "power": 0.5, "rates": [0.1, 0.2]}),
        422,
        "option-invalid",
    )


def test_one_plan_is_made_at_a_time(world):
    with plans._one_at_a_time:
        busy = post(world.alice, "/v1/plans", {"rates": [0.004, 0.02]})
    refused(busy, 429, "rate-limited")
    assert busy.headers["retry-after"] == "5"
    assert post(world.alice, "/v1/plans", {"rates": [0.004, 0.02]}).status_code == 200


@given(
    st.lists(st.floats(-1e6, 1e6) | st.floats(-1.7e308, 1.7e308), min_size=4, max_size=4),
    st.floats(0, 1),
    st.floats(1, 1e9),
    st.floats(1e-9, 0.5),
)
@settings(max_examples=60)
def test_any_effect_by_hand_is_planned_or_refused(effect, correlation, request_tokens, alpha):
    from auditor.errors import OptionError

    shape = Effect(*effect, correlation, request_tokens, correlation)
    try:
        made = plan_to_json(plan(effect=shape, shape=shape, alpha=alpha))
    except OptionError:
        return
    json.dumps(made, allow_nan=False)
    assert all(row["tokens"] is None or not math.isnan(row["tokens"]) for row in made["rows"])
