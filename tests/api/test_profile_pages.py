"""The page of profiles: the tenant's own beside the shipped ones, and why one is not used."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from auditor.api.pages import profiles
from auditor.profile_trust import sign_profile
from tests.api.test_pages import Browser
from tests.api.test_providers import AUDITOR, OTHER, demo_profile, hand_in, post, trust

SHORT = AUDITOR.public.vkey.split("+")[0]


def rows(browser):
    """Texts of the rows of the tenant's own profiles."""
    text = browser.get("/profiles").text
    own = text[text.index('id="own"') : text.index('id="stored"')]
    table = own.partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in table.split("</tr>")[:-1]]


def test_the_page_says_of_each_own_profile_who_vouches_for_it_and_whether_it_is_used(world):
    alice, bob = Browser(world), Browser(world)
    alice.sign_in(world.alice.key)
    bob.sign_in(world.bob.key)
    assert "No key may vouch" in alice.get("/profiles").text
    trust(world.alice, AUDITOR)
    ends = (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=0)
    dated = replace(demo_profile(), note=None, expires=f"{ends:%Y-%m-%dT%H:%M:%SZ}")
    first = hand_in(world.alice, sign_profile(dated, AUDITOR)).json()["id"]
    (row,) = rows(alice)
    assert SHORT in row
    assert f"{ends:%Y-%m-%d}" in row
    assert " yes " in row
    assert rows(bob) == []
    assert "Shipped for the demo model" in alice.get("/profiles").text
    while datetime.now(UTC) <= ends:
        time.sleep(0.1)
    (row,) = rows(alice)
    assert "no: profile-expired" in row
    assert SHORT in row, "signed it is still"
    second = replace(demo_profile(), note=None, expires=None, created="2027-01-01T00:00:00Z")
    second = hand_in(world.alice, sign_profile(second, AUDITOR)).json()["id"]
    assert " yes " in rows(alice)[1]
    other_recipe = replace(demo_profile().key, provider_recipe="<i>other</i>")
    third = replace(demo_profile(), note=None, expires=None, created="2026-01-01T00:00:00Z", key=other_recipe)
    for created, end in (("2026-01-01T00:00:00Z", None), ("2026-01-02T00:00:00Z", "2999-01-01T00:00:00Z")):
        hand_in(world.alice, sign_profile(replace(third, created=created, expires=end), AUDITOR))
    assert "a newer one was handed in" in rows(alice)[2]
    assert " yes " in rows(alice)[3]
    assert "<i>other" not in alice.get("/profiles").text
    post(world.alice, f"/v1/profiles/{second}/revoke", {"reason": "<b>quantized</b>"})
    assert "revoked 20" in rows(alice)[1]
    assert "&lt;b&gt;quantized" in alice.get("/profiles").text
    trust(world.alice, OTHER)
    assert "no: key-unknown" in rows(alice)[3]
    assert "nobody who is trusted now" in rows(alice)[3]
    assert first != second


def test_many_profiles_come_in_pages(world, monkeypatch):
    monkeypatch.setattr(profiles, "_PAGE", 1)
    alice = Browser(world)
    alice.sign_in(world.alice.key)
    trust(world.alice, AUDITOR)
    for number in range(2):
        key = replace(demo_profile().key, provider_recipe=f"recipe-{number}")
        hand_in(world.alice, sign_profile(replace(demo_profile(), note=None, key=key), AUDITOR))
    assert "recipe-0" in rows(alice)[0]
    following = re.search(r'rel="next" href="([^"]+)"', alice.get("/profiles").text)[1]
    assert "recipe-1" in alice.get(following).text
