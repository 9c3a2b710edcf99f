"""A provider is its name: whatever asks about it, before and after it is registered, gets the same audits."""

from __future__ import annotations

import re

from auditor.disputes import disputes
from auditor.disputes.rules import Said
from auditor.service import exhibits
from tests.api.conftest import LINE, refused
from tests.api.test_pages import Browser, exhibit_of, work
from tests.api.test_providers import made, post, provider


def overview(world):
    """(provider, outcome -> count) of each row of the first page."""
    with world.service.store.transaction() as connection:
        found = exhibits.standings(connection, world.alice.tenant.id)
    return {row.provider: row.verdicts for row in found}


def listed(world, name="acme"):
    browser = Browser(world)
    browser.sign_in(world.alice.key)
    page = browser.client.get("/audits", params={"provider": name}).text
    return len(re.findall(r'<th scope="row"><a href="/audits/', page))


def test_a_provider_registered_later_has_the_audits_that_named_it_before(world):
    world.alice.submit(query="?provider=acme")
    work(world)
    world.alice.submit(LINE % 2, query="?provider=acme")
    world.bob.submit(query="?provider=acme")
    assert world.alice.get("/v1/audits").json()["items"][0]["provider_id"] is None
    ours = provider(world.alice)["id"]
    found = world.alice.get("/v1/audits").json()["items"]
    assert [(a["provider"], a["provider_id"]) for a in found] == [("acme", ours)] * 2
    assert world.bob.get("/v1/audits").json()["items"][0]["provider_id"] is None, "another tenant's"
    standing = world.alice.get(f"/v1/providers/{ours}/standing").json()
    assert (standing["audits"]["inconsistent"], standing["without_verdict"]) == (1, 1)
    assert overview(world) == {"acme": {"inconsistent": 1}}
    assert listed(world) == 2, "the open one too"


def test_who_submits_says_whom_a_log_is_of_and_else_the_log_does(world):
    ours = provider(world.alice)["id"]
    world.alice.submit(query="?provider=acme")
    work(world, provider="somebody else")
    world.alice.submit(LINE % 2)
    work(world, provider="acme")
    world.alice.submit(LINE % 3)
    work(world, provider=None)
    found = world.alice.get("/v1/audits").json()["items"]
    assert [a["provider"] for a in found] == [None, "acme", "acme"]
    assert [a["provider_id"] for a in found] == [None, ours, ours]
    assert overview(world) == {"acme": {"inconsistent": 2}, None: {"inconsistent": 1}}
    assert world.alice.get(f"/v1/providers/{ours}/standing").json()["audits"]["inconsistent"] == 2
    assert listed(world) == 2


def test_a_log_names_nobody_by_what_no_name_can_be(world):
    for number, name in enumerate(("", "a\x01b", "x" * 201)):
        world.alice.submit(LINE % number)
        work(world, provider=name)
    assert [a["provider"] for a in world.alice.get("/v1/audits").json()["items"]] == [None] * 3
    assert overview(world) == {None: {"inconsistent": 3}}


def test_a_providers_name_is_for_good(world):
    path = f"/v1/providers/{provider(world.alice)['id']}"
    tag = world.alice.get(path).headers["etag"]
    answer = world.alice.call("PATCH", path, json={"name": "other"}, headers={"If-Match": tag})
    refused(answer, 422, "request-invalid")
    assert world.alice.get(path).json()["name"] == "acme"


def test_what_was_overturned_counts_against_nobody_wherever_one_looks(world):
    ours = provider(world.alice)["id"]
    audit = world.alice.submit(query="?provider=acme").json()["id"]
    work(world)
    said = Said("Jo", "no", ())
    with world.service.store.transaction(writes=True) as connection:
        filed = disputes.file(connection, world.alice.tenant.id, audit, said)
        disputes.resolve(connection, world.alice.tenant.id, filed.id, "upheld", said)
    counted = {"consistent": 0, "inconsistent": 0, "inconclusive": 0, "overturned": 1}
    assert world.alice.get(f"/v1/providers/{ours}/standing").json()["audits"] == counted
    assert overview(world) == {"acme": {"overturned": 1}}


def test_the_first_page_shows_how_registered_providers_answered_challenges(world):
    browser = Browser(world)
    browser.sign_in(world.alice.key)
    world.alice.submit(query="?provider=acme")
    assert "Registered providers" not in browser.get("/").text
    provider(world.alice, "acme")
    made(world.alice, "/v1/providers", {"name": "<b>other</b>"})
    page = browser.get("/").text
    assert 'href="/challenges?provider=acme"' in page
    assert "<b>other" not in page
    assert post(world.alice, "/v1/providers", {"name": "acme"}, **{"Idempotency-Key": "x"}).status_code == 409
    assert exhibit_of().provider == "acme"
