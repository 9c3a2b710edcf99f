"""Schemathesis over the whole description: requests that fit it and requests that do not, singly and in sequence.

Every check of Schemathesis is on: documented statuses, types, headers and schemas; no 5xx; what fits is taken, what
does not is refused; keys are asked for; what was deleted is gone. `make soak` takes more examples.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    use_after_free,
)

from auditor.service.tenants import SCOPES
from tests.api.conftest import LINE
from tests.api.test_access import POLICY

EXAMPLES = int(os.environ.get("AUDITOR_SOAK_EXAMPLES", "3"))
EXAMPLES_A_RUN = 6
COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],
}
# Their answers do not depend on anything a request says.
WITHOUT_NEGATIVES = {"/livez", "/readyz", "/problems/{code}", "/log/checkpoint", "/log/tile/{path}"}
# Their bodies are about something that a schema cannot describe: signatures, what a challenge drew, a profile's figures.
BEYOND_SCHEMAS = {"/v1/profiles", "/v1/commitments", "/v1/challenges/{challenge_id}/openings", "/v1/plans"}
# What is deleted there stays as a record that says so: a log without its bytes, a schedule that is over.
STAYS_AS_RECORD = {"/v1/logs/{log_id}", "/v1/schedules/{schedule_id}"}


@pytest.fixture
def schema(world, monkeypatch):
    monkeypatch.setattr("auditor.service.tenants.SUBMISSIONS_AT_ONCE", 1e9)
    monkeypatch.setattr("auditor.service.webhooks.MOST_WEBHOOKS", 1 << 30)
    monkeypatch.setattr("auditor.api.progress.LONGEST_SECONDS", 0.0)
    # Beside what single operations make, sequences find things in every state.
    world.alice.submit()
    world.work()
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", world.client.app)
    schema.config.request_timeout = 120.0  # a plan takes seconds, on a busy machine many
    # Whoever breaks `maxLength` may break the limit of all bodies with it.
    refused, taken = (
        schema.config.checks.negative_data_rejection,
        schema.config.checks.positive_data_acceptance,
    )
    refused.expected_statuses = [*refused.expected_statuses, "413"]
    # Of a schedule that was changed meanwhile.
    taken.expected_statuses = [*taken.expected_statuses, "412"]
    return schema


_numbers = itertools.count()


def made_sensible(case):
    """What no schema can say: a log is a log, a cursor comes from a page, a key is used for one request."""
    if "cursor" in case.query:
        case.query = {name: value for name, value in case.query.items() if name != "cursor"}
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"fuzz-{next(_numbers)}"
    if (
        case.method == "POST"
        and case.path in ("/v1/audits", "/v1/logs")
        and case.media_type != "application/json"
    ):
        case.body = LINE % 1
    if "Content-Digest" in case.headers:
        case.body = LINE % 1
        case.headers["Content-Digest"] = (
            f"sha-256=:{base64.b64encode(hashlib.sha256(case.body).digest()).decode()}:"
        )
    if isinstance(case.body, dict):
        changes = {
            "vkeys": [],
            "url": "https://example.com/hook",
            "public_key": None,
            "by": "Jo Doe",
            "evidence": [],
        }
        if case.path in ("/v1/keys", "/v1/tenants/{tenant_id}/keys"):
            changes |= {
                "provider": None,
                "scopes": [s for s in case.body.get("scopes", []) if s in SCOPES] or ["keys"],
            }
        if case.path == "/v1/tenants":
            changes["name"] = f"tenant {next(_numbers)}"
        if case.path == "/v1/schedules":
            changes |= {"cron": "0 6 * * 1", "zone": "UTC", "policy": POLICY}
        case.body |= {name: value for name, value in changes.items() if name in case.body}
    return case


def excluded(case):
    beyond = case.method == "POST" and case.path in BEYOND_SCHEMAS
    kept = case.method == "GET" and case.path in STAYS_AS_RECORD
    return [positive_data_acceptance] * beyond + [use_after_free] * kept


def arrives(case):
    """Whether its query is sent as it is: what has no value is left out, be it what was wrong or not."""
    return all(value is not None and value != [] for value in case.query.values())


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
            case.validate_response(response, headers=headers, excluded_checks=excluded(case))

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
            assume(arrives(case))
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
            sensible = case.meta.generation.mode is GenerationMode.POSITIVE
            self.put_right = sensible and "cursor" in case.query
            if sensible:  # else what is wrong must stay wrong
                made_sensible(case)

        def get_call_kwargs(self, case):
            return {"headers": key}

        def validate_response(self, response, case, **options):
            # A link may have brought a cursor that is none, and it was taken out.
            wrong = excluded(case) + [negative_data_rejection] * self.put_right
            if wrong:
                case.validate_response(response, headers=key, excluded_checks=wrong)
            else:
                super().validate_response(response, case, **options)

    # What can follow depends on what is in the database, which no example empties: so a few examples a run, or
    # Hypothesis finds that one beginning went on in two ways. The first run is the same every time.
    for first in range(0, 2 * EXAMPLES, EXAMPLES_A_RUN):
        common = COMMON | {"derandomize": first == 0}
        Sequences.run(settings=settings(max_examples=EXAMPLES_A_RUN, stateful_step_count=10, **common))
    assert len(steps) > EXAMPLES
    assert len(set(steps)) > 5
