"""A key that was given to a provider opens none of its buyer's pages, by whatever door."""

from __future__ import annotations

from auditor.service import sessions, tenants
from tests.api.test_pages import Browser
from tests.api.test_providers import provider


def providers_key(world):
    sold_by = provider(world.alice)["id"]
    asked = {"name": "acme's", "scopes": ["provider"], "provider": sold_by}
    return world.alice.call("POST", "/v1/keys", json=asked).json()


def test_a_providers_key_does_not_sign_in_and_is_told_why(world):
    browser, key = Browser(world), providers_key(world)["key"]
    answer = browser.post("/sign-in", {"key": key, "next": "/audits"})
    assert answer.status_code == 403
    assert "was given to a provider" in answer.text
    assert "can commit and open" in answer.text, "what it is good for"
    assert key not in answer.text
    assert "alice" not in answer.text, "not even whose pages they are"
    assert "auditor-session" not in answer.headers.get("set-cookie", "")
    for path in ("/", "/audits", "/challenges", "/profiles", "/schedules", "/reports", "/disputes", "/keys"):
        assert browser.get(path).headers.get("location", "").startswith("/sign-in"), path


def test_a_wrong_secret_of_a_providers_key_is_like_any_other(world):
    key = providers_key(world)["key"]
    answer = Browser(world).post("/sign-in", {"key": key.split(".")[0] + ".wrong", "next": "/"})
    assert answer.status_code == 401
    assert "given to a provider" not in answer.text


def test_a_session_that_a_providers_key_had_before_is_over(world):
    browser, key = Browser(world), providers_key(world)
    browser.sign_in(world.alice.key)
    secret = browser.client.cookies["auditor-session"]
    with world.service.store.transaction(writes=True) as connection:
        own = tenants.authenticate(connection, world.alice.key)
        connection.exec_driver_sql(
            f"UPDATE session SET api_key_id = '{key['id']}' WHERE api_key_id = '{own.id}'"
        )
    with world.service.store.transaction() as connection:
        assert sessions.find(connection, secret) is None
    assert "alice" not in browser.get("/log").text
    assert browser.get("/audits").headers["location"].startswith("/sign-in")
