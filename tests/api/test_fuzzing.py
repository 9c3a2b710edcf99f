"""Schemathesis over the whole description: requests that fit it and requests that do not, singly and in sequence.

Every check of Schemathesis is on: documented statuses, types, headers and schemas; no 5xx; what fits is taken, what
does not is refused; keys are asked for; what was deleted is gone. `make soak` takes more examples.
"""

from __future__ import annotations

import contextlib
import itertools
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.api.conftest import LINE

EXAMPLES = int(os.environ.get("AUDITOR_SOAK_EXAMPLES", "3"))
COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],
}
# Their answers do not depend on anything a request says.
WITHOUT_NEGATIVES = {"/livez", "/readyz", "/problems/{code}", "/log/checkpoint", "/log/tile/{path}"}


@pytest.fixture
def schema(world, monkeypatch):
    monkeypatch.setattr("auditor.service.tenants.SUBMISSIONS_AT_ONCE", 1e9)
    monkeypatch.setattr("auditor.service.webhooks.MOST_WEBHOOKS", 1 << 30)
    monkeypatch.setattr("auditor.api.progress.LONGEST_SECONDS", 0.0)
    # Beside what single operations make, sequences find things in every state.
    world.alice.submit()
    world.work()
    return schemathesis.openapi.from_asgi("/v1/openapi.json", world.client.app)


_numbers = itertools.count()


def made_sensible(case):
    """What no schema can say: a log is a log, a cursor comes from a page, a key is used for one request."""
    if "cursor" in case.query:
        case.query = {name: value for name, value in case.query.items() if name != "cursor"}
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"fuzz-{next(_numbers)}"
    if (case.method, case.path) == ("POST", "/v1/audits") and case.media_type != "application/json":
        case.body = LINE % 1
    if isinstance(case.body, dict):
        changes = {"url": "https://example.com/hook", "public_key": None}
        if case.path == "/v1/tenants":
            changes["name"] = f"tenant {next(_numbers)}"
        case.body |= {name: value for name, value in changes.items() if name in case.body}
    return case


def operations(schema):
    return [found.ok() for found in schema.get_all_operations()]


def test_requests_that_fit_the_description_are_answered_as_it_says(world, schema):
    headers, seen = {"Authorization": f"Bearer {world.alice.key}"}, set()
    for operation in operations(schema):

        @settings(max_examples=EXAMPLES, **COMMON)
        @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        def fits(case):
            response = made_sensible(case).call(headers=headers)
            seen.add((case.method, case.path, response.status_code))
            case.validate_response(response, headers=headers)

        fits()
    made = {(method, path) for method, path, status in seen if status in (200, 201, 202)}
    assert {("POST", "/v1/audits"), ("POST", "/v1/uploads"), ("POST", "/v1/keys")} <= made
    assert {("POST", "/v1/tenants"), ("POST", "/v1/webhooks"), ("GET", "/metrics")} <= made


def test_requests_that_do_not_fit_are_refused_as_it_says(world, schema):
    headers = {"Authorization": f"Bearer {world.alice.key}"}
    for operation in operations(schema):
        if operation.path in WITHOUT_NEGATIVES:
            continue

        @settings(max_examples=EXAMPLES, **COMMON)
        @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def fits_not(case):
            response = case.call(headers=headers)
            case.validate_response(response, headers=headers)

        with contextlib.suppress(Unsatisfiable):
            fits_not()


def test_sequences_of_requests_are_answered_as_it_says(world, schema):
    key = {"Authorization": f"Bearer {world.alice.key}"}
    steps = []

    class Sequences(schema.as_state_machine()):
        def before_call(self, case):
            steps.append(case.path)
            made_sensible(case)

        def get_call_kwargs(self, case):
            return {"headers": key}

        def validate_response(self, response, case, **options):
            super().validate_response(response, case, **options)

    Sequences.run(settings=settings(max_examples=2 * EXAMPLES, stateful_step_count=10, **COMMON))
    assert len(steps) > EXAMPLES
    assert len(set(steps)) > 5
