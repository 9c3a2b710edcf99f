"""Pages of challenges: every end of one, what has been seen in all, and no hidden token until it is asked for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.api.pages.challenges import _runs
from auditor.hidden_tokens.providing import head_text
from auditor.hidden_tokens.wire import challenge_from_json, opening_to_json
from auditor.merkle.encoding import encode_base64
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.token_heads import parse_head_text
from auditor.merkle.token_openings import open_blocks
from auditor.service.opening_checks import OpeningChecker
from tests.api.conftest import refused
from tests.api.test_challenges import committed, forged, posted, ring, tokenizer  # noqa: F401
from tests.api.test_pages import HOSTILE, Browser
from tests.api.test_providers import provider


@pytest.fixture
def alice(ring):  # noqa: F811
    browser = Browser(ring.world)
    browser.sign_in(ring.alice.key)
    return browser


def words(page):
    """A page's text without its marks."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.text))


def test_a_challenge_is_followed_from_the_draw_to_what_was_opened(ring, alice):  # noqa: F811
    assert "draws one of a committed response" in alice.get("/challenges").text
    trace, kept = committed()
    challenge = ring.draw(ring.commit(trace), blocks=2).json()
    path = f"/challenges/{challenge['id']}"
    waiting = words(alice.get(path))
    assert "An answer is awaited" in waiting
    assert "Nothing yet" in waiting
    assert "0.00%" in waiting
    assert ring.open(challenge, ring.opening(challenge, kept)).status_code == 200
    ring.place()
    row = words(alice.get("/challenges"))
    assert "req-1 held 16 tokens 40.00% of 40 hidden acme" in row, row
    page = alice.get(path)
    assert "What was opened is what the provider signed" in words(page)
    assert "2 blocks of 5, 8 tokens each" in words(page)
    assert page.text.count('<rect class="asked"') >= 1
    for kind in ("challenge", "result"):
        assert alice.get(f"{path}/receipts/{kind}").text.startswith("c2sp.org/tlog-proof")
        assert alice.get(f"{path}/entries/{kind}").json()["kind"] == kind
    assert alice.get(f"{path}/result.json").json()["found"]["seen"] == 16
    log = alice.get("/log").text
    assert log.count(f'<a href="{path}">') == 2, "challenge and result"
    assert log.count(f"<code>{challenge['commitment']}</code>") == 4, "its heads"
    assert "<code></code>" not in log
    assert f'href="{path}"' not in Browser(ring.world).get("/log").text


def test_hidden_tokens_are_not_sent_until_they_are_asked_for(ring, alice):  # noqa: F811
    trace, kept = committed()
    challenge = ring.draw(ring.commit(trace), prefix=True).json()
    opened = ring.opening(challenge, kept)
    ring.open(challenge, opened)
    ids = tuple(leaf["token"] for leaf in opened["leaves"])
    text = tokenizer().decode(ids)
    path = f"/challenges/{challenge['id']}"
    redacted = alice.get(path)
    assert f"{len(ids)} hidden tokens left out" in words(redacted)
    shown = alice.get(f"{path}?hidden=shown")
    assert text.strip()[:12] in unescape(shown.text)
    for n in range(len(text) - 6):
        assert text[n : n + 6] not in redacted.text, "it had been sent all along"
    listed = alice.get("/challenges").text
    assert text.strip()[:12] not in listed


def test_failed_and_withheld_say_why_and_only_what_was_opened_counts_as_seen(ring, alice):  # noqa: F811
    withheld = ring.draw(ring.commit(committed("req-w")[0])).json()
    ring.expire(withheld, 61)
    ring.settle()
    page = words(alice.get(f"/challenges/{withheld['id']}"))
    assert "Withheld. The provider did not open what was drawn." in page
    assert "No opening came by the deadline" in page
    assert "Seen so far 0.00%" in page
    stream = forged()
    proofs = ((), *stream.proofs)
    heads = [
        {"note": note.decode(), "proof": [encode_base64(h) for h in proof]}
        for note, proof in zip(stream.heads, proofs, strict=True)
    ]
    commitment = posted(ring.acme, heads).json()
    ring.place()
    failed = ring.draw(commitment, "f").json()
    _, asked = challenge_from_json(failed["challenge"], "")
    head = parse_head_text(head_text(stream.heads[-1].decode()))
    ring.open(failed, opening_to_json("req-f", open_blocks(stream.tree.node, stream.leaves, head, asked)))
    page = words(alice.get(f"/challenges/{failed['id']}"))
    assert "Failed. What was opened contradicts what the provider signed." in page
    assert "embedding-forged" in page
    assert "Seen so far 20.00%" in page
    for state, count in (("withheld", 1), ("failed", 1), ("held", 0), ("", 2)):
        assert alice.get(f"/challenges?state={state}").text.count('<th scope="row">') == count
    refused(
        alice.client.get("/challenges?state=odd", headers={"accept": "application/json"}),
        422,
        "request-invalid",
    )


def test_several_challenges_of_a_response_are_seen_together(ring, alice):  # noqa: F811
    trace, kept = committed()
    commitment = ring.commit(trace)
    seen = set()
    for number in range(3):
        challenge = ring.draw(commitment, f"draw-{number}").json()
        seen |= set(challenge["challenge"]["blocks"])
        ring.open(challenge, ring.opening(challenge, kept))
        page = words(alice.get(f"/challenges/{challenge['id']}"))
        assert f"Seen so far {len(seen) / 5:.2%}" in page


def test_challenges_are_filtered_by_provider_and_hostile_names_stay_text(ring, alice):  # noqa: F811
    hostile = HOSTILE.replace("\ud800", "").replace("\u202e", "")
    key = SeedSigner("x.example/y", Algorithm.ED25519, b"\x09" * 32)
    provider(ring.alice, hostile, key)
    challenge = ring.draw(ring.commit(committed("<b>req</b>")[0])).json()
    for path in ("/challenges", f"/challenges/{challenge['id']}"):
        text = alice.get(path).text
        assert "<b>req" not in text
        assert "<script>alert" not in text
        assert "style=" not in text
        assert not re.search(r"<script(?! src=)", text)
    assert alice.client.get("/challenges", params={"provider": "acme"}).text.count('<th scope="row">') == 1
    assert alice.client.get("/challenges", params={"provider": hostile}).text.count('<th scope="row">') == 0
    assert alice.client.get("/challenges", params={"provider": "nobody"}).status_code == 422


def test_another_tenants_challenges_are_not_there(ring, alice):  # noqa: F811
    challenge = ring.draw(ring.commit()).json()
    bob = Browser(ring.world)
    bob.sign_in(ring.world.bob.key)
    path = f"/challenges/{challenge['id']}"
    for place in (path, f"{path}/result.json", f"{path}/entries/challenge", f"{path}/receipts/challenge"):
        assert bob.get(place).status_code == 404, place
        assert alice.get(place).status_code in (200, 409), place
    assert "req-1" not in bob.get("/challenges").text


@given(st.sets(st.integers(0, 60)))
def test_runs_are_the_numbers_and_no_two_touch(numbers):
    runs = list(_runs(sorted(numbers)))
    assert [n for first, after in runs for n in range(first, after)] == sorted(numbers)
    assert all(a[1] < b[0] for a, b in pairwise(runs))


def test_without_the_tokenizer_opened_tokens_are_shown_as_numbers(ring, alice):  # noqa: F811
    trace, kept = committed()
    challenge = ring.draw(ring.commit(trace), prefix=True).json()
    ring.open(challenge, ring.opening(challenge, kept))
    ring.world.client.app.state.service = replace(ring.world.service, checker=OpeningChecker())
    first = json.loads(json.dumps(ring.opening(challenge, kept)))["leaves"][0]["token"]
    shown = words(alice.get(f"/challenges/{challenge['id']}?hidden=shown"))
    assert f"Hidden: {first} " in shown, "ids, where this service has no such tokenizer"
