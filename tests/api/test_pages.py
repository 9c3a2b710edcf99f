"""Pages, by attack and by habit: sessions, forged forms, other tenants, hostile text, hidden text; without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from auditor.api.pages.layout import NAVIGATION
from auditor.service import audits, exhibits, sessions, tenants
from auditor.service.blobs import BlobFolder
from auditor.service.exhibit import Exhibit
from auditor.service.log_placing import open_log, place
from auditor.service.worker import Worker
from auditor.store_engine import connect_to, find_place, for_writing
from tests.api.conftest import LINE, refused

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\ud800\u202e"
RESULT = {
    "schema": "auditor.result/v1",
    "verdict": "inconsistent",
    "alpha": 0.001,
    "e_value": 1e300,
    "p_value": 1e-300,
    "tokens": {"audited": 90, "matched": 30, "outside_support": 0, "forbidden": 0, "forced": 0},
    "evidence": [{"name": HOSTILE, "statistic": 1.5, "p_value": 1e-9, "e_value": 1e9}],
    "diagnosis": [{"cause": HOSTILE, "weight": 0.8}],
    "detectable": [{"cause": HOSTILE, "power": None, "required": True}],
    "reasons": [HOSTILE],
    "groups": [
        {"provider_recipe": HOSTILE, "verdict": "inconsistent", "e_value": 0.0, "traces": 1},
        {"provider_recipe": None, "verdict": "inconclusive", "e_value": 1.0, "traces": 1},
    ],
    "errors": [{"code": "trace-syntax", "where": HOSTILE, "message": HOSTILE, "fix": ""}],
    "model": {"digest": "sha256:0", "recipe": HOSTILE},
    "profile": {"id": HOSTILE, "honest_tokens": 9, "smallest_alpha": {}, "signed_by": [HOSTILE]},
}
TRACE = {
    "id": HOSTILE,
    "grade": "B",
    "verdict": "inconsistent",
    "e_value": 1e5,
    "tokens": 90,
    "match_rate": 0.5,
    "spans": [[3, 9]],
    "notes": [HOSTILE],
    "contradictions": [HOSTILE],
}


def excerpt(**changes):
    value = {
        "number": 0,
        "id": HOSTILE,
        "alone": True,
        "log10_e": 12.0,
        "tokens": 6,
        "misses": 2,
        "hidden": 2,
        "window": [0, 6],
        "spans": [[2, 5]],
        "question": HOSTILE,
        "pieces": [
            [0, "SECRET one", 0],
            [1, "SECRET two", 2],
            [2, HOSTILE, 2],
            [3, " plain", 0],
            [4, " near", 1],
        ],
    }
    return value | changes


def exhibit_of(provider="acme", outcome="inconsistent", **changes):
    value = {
        "schema": "auditor.exhibit/v1",
        "subjects": [{"provider": HOSTILE, "model": HOSTILE, "requests": 1}],
        "curves": [{"recipe": HOSTILE, "points": [[40, 1.5], [90, 12.0]]}],
        "excerpts": [excerpt(**changes)],
    }
    body = json.dumps(value).encode()
    return Exhibit(provider, "m", outcome, 90, 0.001, body)


def work(world, *, provider="acme", outcome="inconsistent"):
    """Let a worker find the same of everything that is queued."""

    def found(job, lease):
        with lease.store.transaction() as connection:
            audit = audits.find(connection, job.tenant_id, job.audit_id)
        body = json.dumps(RESULT | {"verdict": outcome}).encode()

        def effects(connection, now):
            audits.record(connection, audit, body, outcome, [json.dumps(TRACE).encode()], now)
            exhibits.record(connection, audit, exhibit_of(provider, outcome))

        return effects

    worker = Worker(world.service.store, found)
    while worker.run_once():
        pass


class Browser:
    """What a browser does without script: keeps cookies, reads forms, sends them."""

    def __init__(self, world, base="http://localhost:8000"):
        self.client = TestClient(
            world.client.app, base_url=base, follow_redirects=False, raise_server_exceptions=False
        )
        self.client.headers["accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"

    def get(self, path):
        return self.client.get(path)

    def token(self, path):
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.get(path).text)
        return found[1] if found else ""

    def post(self, path, fields=None, *, at=None, **options):
        return self.client.post(path, data={"token": self.token(at or path), **(fields or {})}, **options)

    def sign_in(self, key, following="/"):
        answer = self.post("/sign-in", {"key": key, "next": following})
        assert answer.status_code == 303, answer.text
        return answer

    def submit(self, body=LINE % 1, *, name="traffic.jsonl", **fields):
        page = self.get("/submit").text
        given = dict(re.findall(r'name="(token|once)" value="([^"]+)"', page))
        given |= {"alpha": "0.001", "input_format": "auto"} | fields
        return self.client.post("/submit", data=given, files={"log": (name, body)})


@pytest.fixture
def alice(world):
    browser = Browser(world)
    browser.sign_in(world.alice.key)
    return browser


@pytest.fixture
def bob(world):
    browser = Browser(world)
    browser.sign_in(world.bob.key)
    return browser


def page_routes(world, method):
    """Paths of the routes that are pages: not of the API's description."""
    described = world.client.get("/v1/openapi.json").json()["paths"]
    return sorted(
        route.path
        for route in world.client.app.routes
        if method in getattr(route, "methods", ())
        and route.path not in described
        and not route.path.startswith(("/v1", "/log/"))
    )


def test_a_key_opens_a_session_that_script_cannot_read_and_other_sites_cannot_use(world):
    browser = Browser(world)
    asked = browser.get("/audits?state=done")
    assert (asked.status_code, asked.headers["location"]) == (303, "/sign-in?next=%2Faudits%3Fstate%3Ddone")
    done = browser.sign_in(world.alice.key, "/audits?state=done")
    assert done.headers["location"] == "/audits?state=done"
    cookies = [value.lower() for value in done.headers.get_list("set-cookie")]
    (session,) = [value for value in cookies if value.startswith("auditor-session=")]
    assert "httponly" in session
    assert "samesite=strict" in session
    assert world.alice.key.split(".")[1].lower() not in "".join(cookies)
    page = browser.get("/")
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"
    assert browser.get("/sign-in?next=/keys").headers["location"] == "/keys"
    assert browser.post("/sign-out", at="/").status_code == 303
    assert browser.get("/").status_code == 303


def test_the_database_signs_nobody_in(world, database_url):
    browser = Browser(world)
    browser.sign_in(world.alice.key)
    engine = connect_to(find_place(database_url))
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM session").all()
    engine.dispose()
    assert len(rows) == 1
    assert browser.client.cookies["auditor-session"] not in str(rows)


def test_beyond_this_machine_cookies_are_for_https_only(world):
    away = Browser(world, "https://audit.example.com")
    assert away.sign_in(world.alice.key).status_code == 303
    cookie = away.get("/sign-in").headers.get("set-cookie", "")
    assert away.client.cookies.get("__Host-auditor-session")
    fresh = Browser(world, "https://audit.example.com").get("/sign-in").headers["set-cookie"]
    assert fresh.startswith("__Host-auditor-visitor=")
    assert "Secure" in fresh
    assert "Path=/" in fresh
    assert cookie == ""
    plain = Browser(world, "http://audit.example.com")
    answer = plain.post("/sign-in", {"key": world.alice.key})
    assert answer.status_code == 403
    assert "over plain HTTP pages work on this machine only" in answer.text


@pytest.mark.parametrize("text", ["", "x", "ak_1.x", "é", "ak_\0.x"])
def test_wrong_keys_open_nothing_and_are_not_repeated(world, text):
    browser = Browser(world)
    answer = browser.post("/sign-in", {"key": text})
    assert answer.status_code == 401
    assert "unknown, expired or revoked" in answer.text
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize(
    "place",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\t/evil",
        "evil",
        "",
    ],
)
def test_signing_in_leads_to_no_other_site(world, place):
    browser = Browser(world)
    page = browser.client.get("/sign-in", params={"next": place}).text
    assert 'name="next" value="/"' in page
    assert browser.sign_in(world.alice.key, place).headers["location"] == "/"


def test_a_revoked_or_expired_key_and_an_old_session_end_at_once(world, database_url):
    browser = Browser(world)
    with world.service.store.transaction(writes=True) as connection:
        key, text = tenants.create_key(connection, world.alice.tenant.id, "k", ["audits:read"], days=1)
    browser.sign_in(text)
    assert browser.get("/").status_code == 200
    with world.service.store.transaction(writes=True) as connection:
        tenants.revoke_key(connection, world.alice.tenant.id, key.id)
    assert browser.get("/").status_code == 303
    other = Browser(world)
    other.sign_in(world.alice.key)
    engine = connect_to(find_place(database_url))
    with for_writing(engine.connect()) as connection, connection.begin():
        connection.exec_driver_sql("UPDATE session SET expires = 1")
    assert other.get("/").status_code == 303
    other.sign_in(world.alice.key)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM session").scalar() == 1, "old ones are swept"
    engine.dispose()


def test_every_form_is_refused_without_the_token_of_its_own_session(world, alice, bob):
    audit = alice.submit().headers["location"]
    theirs = bob.token("/submit")
    paths = page_routes(world, "POST")
    assert len(paths) >= 6
    key = world.alice.get("/v1/keys").json()["items"][0]["id"]
    for path in paths:
        filled = path.replace("{audit_id}", audit.split("/")[-1]).replace("{key_id}", key)
        for data in ({"x": "y"}, {"token": ""}, {"token": theirs}, {"token": "0" * 64}):
            answer = alice.client.post(filled, data=data)
            assert answer.status_code == 403, filled
            assert "form-forged" in answer.text
        wrong_kind = alice.client.post(filled, json={"token": alice.token("/submit")})
        assert wrong_kind.status_code in (403, 415), filled
    assert world.alice.get(f"/v1/audits/{audit.split('/')[-1]}").json()["state"] == "queued"
    assert world.alice.get("/v1/keys").json()["items"][0]["revoked"] is None
    assert alice.get("/").status_code == 200


def test_every_page_asks_who_is_there_and_for_its_scope(world, alice):
    public = {"/sign-in", "/static/{name}", "/log"}
    scopes = {item.path: item.scope for item in NAVIGATION}
    nothing = Browser(world)
    nothing.sign_in(world.party("operator", ["operator"]).key)
    for path in page_routes(world, "GET"):
        if path in public:
            continue
        filled = re.sub(r"\{kind\}", "verdict", re.sub(r"\{\w+_id\}", "x_0", path))
        assert Browser(world).get(filled).headers["location"].startswith("/sign-in?next="), path
        answer = nothing.get(filled)
        assert answer.status_code == 403, path
        assert "scope-missing" in answer.text
    assert scopes["/keys"] == "keys"
    assert 'href="/keys"' in alice.get("/").text
    reader = Browser(world)
    reader.sign_in(world.party("reader", ["audits:read"]).key)
    page = reader.get("/").text
    assert 'href="/audits"' in page
    assert 'href="/keys"' not in page
    assert 'href="/submit"' not in re.sub(r"(?s)<main.*", "", page)


def test_another_tenants_things_are_not_there(world, alice, bob):
    path = alice.submit(name="alices.jsonl").headers["location"]
    work(world)
    for suffix in ("", "/progress", "/requests", "/verdict.json", "/receipts/verdict", "/entries/verdict"):
        theirs, nobodys = bob.get(path + suffix), bob.get(f"/audits/aud_0{suffix}")
        assert (theirs.status_code, theirs.text) == (404, nobodys.text), suffix
    assert bob.post(f"{path}/cancel", at="/submit").status_code == 404
    for page in ("/", "/audits", "/audits?provider=acme"):
        assert "alices.jsonl" in alice.get(page).text
        assert "alices.jsonl" not in bob.get(page).text
        assert "acme</bdi>" not in bob.get(page).text
    key = world.alice.get("/v1/keys").json()["items"][0]["id"]
    assert bob.post(f"/keys/{key}/revoke", at="/keys").status_code == 404
    assert key not in bob.get("/keys").text


class Markup(HTMLParser):
    """Collects what could run or reach out."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


def test_hostile_text_stays_text_on_every_page_and_nothing_is_inline(world, alice):
    name = "<script>alert(3)</script>.jsonl"
    path = alice.submit(name=name).headers["location"]
    work(world, provider=HOSTILE.replace("\ud800", "?"))
    log = open_log(world.service.log, world.service.log.parent / "log.key")
    place(world.service.store, log)
    made = alice.post("/keys", {"name": "<b onclick=x>", "scope": "audits:read", "days": "3"})
    pages = [
        "/",
        "/audits",
        path,
        f"{path}?hidden=shown",
        f"{path}/requests",
        "/log",
        "/keys",
        "/profiles",
        "/submit",
    ]
    answers = [alice.get(page) for page in pages] + [
        made,
        alice.get("/nowhere"),
        alice.get("/audits?state=x"),
    ]
    for answer in answers:
        found = Markup()
        found.feed(answer.text)
        scripts = [value for tag, attribute, value in found.attributes if tag == "script"]
        assert all(value.startswith("/static/") or value == "" for value in scripts), answer.url
        assert "style" not in found.tags
        assert "img" not in found.tags
        assert "b" not in found.tags
        for tag, attribute, value in found.attributes:
            assert not attribute.startswith("on"), (answer.url, tag, attribute)
            assert attribute != "style"
            if attribute in ("href", "src", "action"):
                assert value.startswith(("/", "#")), value
                assert not value.startswith("//")
        assert "alert(" not in re.sub(r"&lt;script&gt;alert\(\d\)|onerror=alert\(2\)&gt;", "", answer.text)
        assert "49" not in re.findall(r"&gt;(\d+)", answer.text), "a template ran in a template"
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
    assert "&lt;script&gt;alert(3)" in answers[2].text


def test_hidden_reasoning_is_not_sent_until_it_is_asked_for(world, alice):
    path = alice.submit().headers["location"]
    work(world)
    page = alice.get(path).text
    assert "SECRET" not in page
    assert "2 hidden tokens left out, 1 of them off" in page
    assert " plain" in page
    shown = alice.get(f"{path}?hidden=shown").text
    assert "SECRET one" in shown
    assert "SECRET two" in shown
    assert alice.get(f"{path}?hidden=perhaps").status_code == 422


def test_a_log_whose_bytes_are_erased_while_the_form_is_read_is_kept_all_the_same(world, alice, monkeypatch):
    put, kept = BlobFolder.put, []

    def lost_once(blobs, data):
        kept.append(put(blobs, data))
        if len(kept) == 1:
            blobs.remove(kept[0])
        return kept[0]

    monkeypatch.setattr(BlobFolder, "put", lost_once)
    assert alice.submit(LINE % 9 * 1100).status_code == 303
    assert world.service.blobs.holds(kept[0])


def test_a_log_is_handed_in_once_however_often_the_form_is_sent(world, alice):
    page = alice.get("/submit").text
    given = dict(re.findall(r'name="(token|once)" value="([^"]+)"', page))
    given |= {"alpha": "0.01", "input_format": "auto", "served_model": "demo"}
    files = {"log": ("a.jsonl", LINE % 7)}
    first = alice.client.post("/submit", data=given, files=files)
    assert first.status_code == 303
    assert (
        alice.client.post("/submit", data=given, files=files).headers["location"] == first.headers["location"]
    )
    (audit,) = world.alice.get("/v1/audits").json()["items"]
    assert audit["options"]["alpha"] == 0.01
    assert audit["options"]["served_model"] == "demo"
    other = alice.client.post("/submit", data=given, files={"log": ("a.jsonl", LINE % 8)})
    assert other.status_code == 422
    assert len(world.alice.get("/v1/audits").json()["items"]) == 1


@pytest.mark.parametrize(
    ("body", "fields", "said"),
    [
        (b"", {}, "choose a file"),
        (LINE % 1, {"alpha": "2"}, "less than 1"),
        (LINE % 1, {"alpha": "often"}, "Not a number"),
        (LINE % 1, {"alpha": "nan"}, "alpha"),
        (LINE % 1, {"input_format": "pickle"}, "input_format"),
        (LINE % 1, {"noise": "a\0b"}, "noise"),
        (b"PK\x03\x04" + b"x" * 99, {}, "not a trace log"),
    ],
)
def test_a_form_that_cannot_be_used_says_what_and_keeps_what_was_typed(world, alice, body, fields, said):
    answer = alice.submit(body, engine_recipe="my-recipe", **fields)
    assert answer.status_code == 422, answer.text
    assert said.lower() in answer.text.lower()
    assert 'role="alert"' in answer.text
    assert 'value="my-recipe"' in answer.text
    assert world.alice.get("/v1/audits").json()["items"] == []


def test_a_file_beyond_the_limit_is_refused(world, alice):
    answer = alice.submit(b"x" * ((8 << 20) + (65 << 10)))
    assert answer.status_code == 413
    assert "body-too-large" in answer.text


def test_progress_is_a_part_of_the_page_and_sends_it_anew_at_the_end(world, alice):
    path = alice.submit().headers["location"]
    part = alice.get(f"{path}/progress")
    assert "Waiting for a worker" in part.text
    assert "hx-refresh" not in part.headers
    assert "<html" not in part.text
    page = alice.get(path).text
    assert f'hx-get="{path}/progress"' in page
    work(world)
    assert alice.get(f"{path}/progress").headers["hx-refresh"] == "true"
    gone = Browser(world).client.get(f"{path}/progress", headers={"HX-Request": "true"})
    assert (gone.status_code, gone.headers["hx-refresh"]) == (401, "true")
    cancelled = alice.submit(LINE % 2).headers["location"]
    assert alice.post(f"{cancelled}/cancel", at=cancelled).headers["location"] == cancelled
    assert "Cancelled" in alice.get(cancelled).text
    again = alice.post(f"{path}/cancel", at="/submit")
    assert again.status_code == 409


def test_the_standing_of_a_provider_counts_its_own_logs_only(world, alice):
    for number, (provider, outcome) in enumerate(
        [("acme", "consistent"), ("acme", "consistent"), ("acme", "inconsistent"), (None, "inconsistent")]
    ):
        alice.submit(LINE % number)
        work(world, provider=provider, outcome=outcome)
    with world.service.store.transaction() as connection:
        nobody, acme = exhibits.standings(connection, world.alice.tenant.id)
        assert exhibits.standings(connection, world.bob.tenant.id) == []
    assert (nobody.provider, nobody.verdicts) == (None, {"inconsistent": 1})
    assert acme.verdicts == {"consistent": 2, "inconsistent": 1}
    assert (acme.audits, acme.tokens, acme.last_outcome) == (3, 270, "inconsistent")
    assert acme.false_alarms == pytest.approx(0.003)
    page = alice.get("/").text
    assert "none or several named" in page
    assert "≤ 0.003" in page
    assert alice.get("/audits?provider=acme").text.count("/audits/aud_") == 3
    assert alice.get("/audits?outcome=consistent&state=done").text.count("/audits/aud_") == 2
    assert "No audit fits" in alice.get("/audits?provider=a%00b").text


def test_long_lists_come_in_pages(world, alice, monkeypatch):
    monkeypatch.setattr("auditor.api.pages.audits._PAGE", 2)
    monkeypatch.setattr("auditor.api.pages.keys._PAGE", 2)
    for number in range(5):
        alice.submit(LINE % number, name=f"log-{number}.jsonl")
    seen, path = [], "/audits"
    while path:
        page = alice.get(path).text
        seen += re.findall(r"log-\d", page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = following and following[1].replace("&amp;", "&")
    assert seen == [f"log-{n}" for n in (4, 3, 2, 1, 0)]
    for _ in range(3):
        alice.post("/keys", {"name": "k", "scope": "keys", "days": "1"})
    assert 'rel="next"' in alice.get("/keys").text


def test_keys_are_shown_once_and_give_no_more_than_the_session_has(world, alice):
    made = alice.post("/keys", {"name": "ci", "scope": ["audits:read", "audits:write"], "days": "7"})
    assert made.status_code == 201
    (text,) = re.findall(r'value="(ak_[^"]+)"', made.text)
    assert made.headers["cache-control"] == "no-store"
    assert text not in alice.get("/keys").text
    other = Browser(world)
    other.sign_in(text)
    assert other.get("/keys").status_code == 403
    for wrong in ({"scope": "root"}, {"days": "9999"}, {"days": "x"}, {"name": ""}, {"name": "a\0b"}):
        answer = alice.post("/keys", {"name": "n", "scope": "keys", "days": "1"} | wrong)
        assert answer.status_code == 422, wrong
        assert 'role="alert"' in answer.text
    keeper = Browser(world)
    keeper.sign_in(world.party("keeper", ["keys"]).key)
    assert keeper.post("/keys", {"name": "n", "scope": "operator", "days": "1"}).status_code == 403
    key_id = text.split(".")[0]
    assert alice.post(f"/keys/{key_id}/revoke", at="/keys").status_code == 303
    assert other.get("/").status_code == 303
    assert "revoked" in alice.get("/keys").text


def test_browsers_get_pages_and_programs_get_problems(world, alice):
    page = alice.get("/nowhere")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "/problems/not-found" in page.text
    refused(world.client.get("/nowhere"), 404, "not-found")
    refused(world.client.get("/audits"), 401, "sign-in-needed")
    refused(alice.get("/v1/audits/aud_0"), 401, "unauthenticated")
    wrong = alice.client.put("/audits")
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, "text/html; charset=utf-8")
    assert "allow" in wrong.headers


def test_a_fault_of_ours_is_a_page_that_says_nothing_about_itself(world, alice, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("canary-prompt")

    monkeypatch.setattr("auditor.service.audits.listed", broken)
    answer = alice.get("/audits")
    assert answer.status_code == 500
    assert "a fault of the service" in answer.text.lower()
    assert "canary" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_nothing_but_our_own_files_is_served(world):
    client = world.client
    for name in ("../layout.py", "%2e%2e%2flayout.py", "htmx-LICENSE", "", "pages.css/x"):
        assert client.get(f"/static/{name}").status_code == 404, name
    for name in ("colours.css", "pages.css", "htmx-4.0.1.min.js", "receipt-check.js", "mark.svg"):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200
        again = client.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304


def test_receipts_and_entries_are_offered_once_a_signed_tree_holds_them(world, alice):
    assert "Nothing was signed yet" in Browser(world).get("/log").text
    path = alice.submit().headers["location"]
    work(world)
    assert "not in a signed tree yet" in alice.get(path).text
    log = open_log(world.service.log, world.service.log.parent / "log.key")
    place(world.service.store, log)
    page = alice.get(path).text
    assert 'id="verdict-check"' in page
    receipt = alice.get(f"{path}/receipts/verdict")
    assert receipt.text.startswith("c2sp.org/tlog-proof@v1\n")
    assert "attachment" in receipt.headers["content-disposition"]
    assert json.loads(alice.get(f"{path}/entries/verdict").text)["kind"] == "verdict"
    assert json.loads(alice.get(f"{path}/verdict.json").text)["schema"] == "auditor.result/v1"
    strangers = Browser(world).get("/log").text
    assert path not in strangers
    assert path in alice.get("/log").text


def test_an_audit_made_before_there_were_exhibits_still_has_its_page(world, alice):
    path = alice.submit().headers["location"]

    def found(job, lease):
        with lease.store.transaction() as connection:
            audit = audits.find(connection, job.tenant_id, job.audit_id)
        body = json.dumps(RESULT | {"verdict": "inconclusive", "detectable": None, "profile": None}).encode()
        return lambda c, now: audits.record(c, audit, body, "inconclusive", [], now)

    Worker(world.service.store, found).run_once()
    page = alice.get(path)
    assert page.status_code == 200
    assert "nothing is vouched for" in page.text
    assert "No request was read" in alice.get(f"{path}/requests").text


def test_a_session_that_never_was_ends_without_complaint(world):
    with world.service.store.transaction(writes=True) as connection:
        sessions.sign_out(connection, "x")
        assert sessions.find(connection, "x") is None
