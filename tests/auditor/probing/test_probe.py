"""Probing: the plan, its schedule, and a run against servers that fail in the ways servers fail."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from auditor.errors import OptionError, TraceFileError
from auditor.listening import serving
from auditor.probing.plan import EXAMPLE, Plan, plan_from_toml
from auditor.probing.prompts import prompts_of
from auditor.probing.run import probe
from auditor.probing.schedule import AskedPrompt, schedule
from auditor.reference.sampling import SamplingSpec
from auditor.seed_files import read_key
from auditor.seeds import SeedKey
from auditor.token_counts.lengthening import LENGTHEN
from auditor.trace import Trace
from auditor.trace_files import read_traces, write_traces

KEY = SeedKey(bytes(32), 32, "run")
FAST = (
    'model = "m"\nrequests = {n}\n[pace]\nper_minute = 1000000\nconcurrency = 4\n[retries]\nfirst_wait = 0\n'
)


def a_plan(n=6, text=""):
    return plan_from_toml(FAST.format(n=n) + text, where="plan.toml")


def test_example_plan_is_the_defaults_with_a_sampling_mixture():
    plan = plan_from_toml(EXAMPLE, where="example")
    assert plan.model_copy(update={"sampling": []}) == Plan(model="target")
    assert [choice.weight for choice in plan.sampling] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model", "not valid TOML"),
        ("", "field model"),
        ('model = "m"\nrequest = 3', "field request"),
        ('model = "m"\nrequests = 0', "field requests"),
        ('model = "m"\nrequests = "3"', "field requests"),
        ('model = "m"\nseed_bits = 33', "field seed_bits"),
        ('model = "m"\n[[sampling]]\nmax_tokens = [9, 3]', "low above high"),
        ('model = "m"\n[[sampling]]\ntop_p = 0', "field sampling.0.top_p"),
        ('model = "m"\n[headers]\nAuthorization = "Bearer x"', "--api-key-env"),
    ],
)
def test_bad_plan_names_the_field(text, said):
    with pytest.raises(OptionError) as caught:
        plan_from_toml(text, where="plan.toml")
    assert str(caught.value).startswith("plan.toml: ")
    assert said in str(caught.value)


def test_schedule_is_a_function_of_the_key_and_every_prompt_comes_before_any_returns():
    plan = a_plan(20, "[[sampling]]\nmax_tokens = [5, 9]\n[[sampling]]\ntemperature = 0\ntop_p = 0.5\n")
    prompts = [AskedPrompt(({"role": "user", "content": str(number)},)) for number in range(10)]
    probes = schedule(plan, prompts, KEY)
    assert probes == schedule(plan, prompts, KEY)
    assert probes != schedule(plan, prompts, SeedKey(bytes([1] * 32), 32, "run"))
    bodies = [json.loads(item.body) for item in probes]
    assert [body["seed"] for body in bodies] == [KEY.seed(index) for index in range(20)]
    asked = [body["messages"][0]["content"] for body in bodies]
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(map(str, range(10)))
    assert asked[:10] != asked[10:] != sorted(asked[10:])
    assert {body["temperature"] for body in bodies} == {0.0, 1.0}
    assert {body["max_tokens"] for body in bodies} <= {5, 6, 7, 8, 9, 200}
    assert 0 < sum("stream" in body for body in bodies) < 20


def test_questions_are_asked_plainly_and_for_length():
    plan = a_plan(8).model_copy(update={"lengthen": True})
    prompts = prompts_of(plan, 3)
    assert len(prompts) == 8
    asked = [json.loads(item.body)["messages"][-1]["content"] for item in schedule(plan, prompts, KEY)]
    plain = {text for text in asked if not text.endswith(LENGTHEN)}
    assert {f"{text} {LENGTHEN}" for text in plain} == set(asked) - plain
    assert len(plain) == 4
    with pytest.raises(OptionError, match="chat"):
        plan_from_toml('model = "m"\napi = "completions"\nlengthen = true', where="plan")


def test_gaps_have_mean_one_and_the_spread_of_independent_arrivals():
    prompts = [AskedPrompt("x")]
    gaps = [item.gap_seconds for item in schedule(a_plan(2000), prompts, KEY)]
    mean = sum(gaps) / 2000
    assert abs(mean - 1) < 0.1
    assert abs(sum((gap - mean) ** 2 for gap in gaps) / 2000 - 1) < 0.25
    even = plan_from_toml('model = "m"\n[pace]\njitter = 0', where="plan")
    assert {item.gap_seconds for item in schedule(even, prompts, KEY)} == {1.0}


def test_prompts_and_parameters_of_the_users_own_logs(tmp_path):
    messages = ({"role": "user", "content": "Hi"},)
    spec = SamplingSpec(temperature=0.5, top_p=0.9, max_tokens=17)
    logged = [
        Trace("a", "m", (1, 2), (3,), spec, messages=messages),
        Trace("b", "m", (1, 2), (3,), spec, messages=messages),
        Trace("c", "m", (7, 8), (3,), SamplingSpec()),
    ]
    write_traces(tmp_path / "own.jsonl", logged)
    own = f'prompts = ["{tmp_path}/own.jsonl"]\n'
    chat = plan_from_toml(own + 'model = "m"', where="plan")
    assert prompts_of(chat, 0) == [AskedPrompt(messages, spec)]
    body = json.loads(schedule(chat, prompts_of(chat, 0), KEY)[0].body)
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 17)
    plain = plan_from_toml(own + 'model = "m"\napi = "completions"', where="plan")
    assert [prompt.content for prompt in prompts_of(plain, 0)] == [(1, 2), (7, 8)]
    write_traces(tmp_path / "none.jsonl", [logged[2]])
    with pytest.raises(TraceFileError, match="no prompt"):
        prompts_of(plan_from_toml(own.replace("own.jsonl", "none.jsonl") + 'model = "m"', where="plan"), 0)


class Endpoint:
    """Answers with three tokens, after failing as it is told: a list of statuses for each seed."""

    def __init__(self, fail=(), hook=None):
        self.fail, self.hook = list(fail), hook
        self.asked = Counter()
        self.requests = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        body = json.loads(raw)
        attempt = self.asked[body["seed"]]
        self.asked[body["seed"]] += 1
        self.requests.append((dict(scope["headers"]), body))
        status = self.fail[attempt] if attempt < len(self.fail) else 200
        if self.hook:
            status = self.hook(len(self.requests)) or status
        choice = {
            "index": 0,
            "message": {"content": "abc"},
            "finish_reason": "length",
            "token_ids": [4, 5, 6],
        }
        answer = {"id": f"r{body['seed']}", "model": body["model"], "choices": [choice]}
        answer |= {"prompt_token_ids": [1], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}
        data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


def run(tmp_path, endpoint, plan, **options):
    with serving(endpoint) as address:
        return probe(address, plan, tmp_path / "out.jsonl", **options)


def test_answers_become_a_log_with_seeds_of_the_committed_key(tmp_path):
    endpoint = Endpoint()
    plan = a_plan(6, '[headers]\nuser-agent = "OurApp/1.0"\n')
    report = run(tmp_path, endpoint, plan, api_key="secret-key")
    assert (report.recorded, report.output_tokens, report.stopped) == (6, 18, "")
    key = read_key(tmp_path / "out.jsonl.key")
    traces = list(read_traces(tmp_path / "out.jsonl"))
    assert sorted(key.counter(trace.seed) for trace in traces) == list(range(6))
    assert {trace.output_token_ids for trace in traces} == {(4, 5, 6)}
    headers, body = endpoint.requests[0]
    assert headers[b"user-agent"] == b"OurApp/1.0"
    assert headers[b"authorization"] == b"Bearer secret-key"
    assert not [name for name, value in headers.items() if b"audit" in (name + value).lower()]
    assert body["return_token_ids"] is True
    assert "secret" not in (tmp_path / "out.jsonl").read_text()


def test_failures_that_may_pass_are_tried_again_with_the_same_seed(tmp_path):
    endpoint = Endpoint(fail=[503, 429])
    report = run(tmp_path, endpoint, a_plan(3))
    assert (report.recorded, sum(report.failed.values())) == (3, 0)
    assert set(endpoint.asked.values()) == {3}


def test_what_never_passes_is_noted_and_asked_again_by_the_next_run(tmp_path):
    report = run(tmp_path, Endpoint(fail=[500] * 5), a_plan(2))
    assert dict(report.failed) == {"the endpoint answered 500": 2}
    assert (tmp_path / "out.jsonl.failures").read_text().count("\n") == 2
    again = run(tmp_path, Endpoint(), a_plan(2))
    assert (again.recorded, again.skipped) == (2, 0)


def test_interrupted_run_goes_on_where_it_stopped(tmp_path):
    first = run(tmp_path, Endpoint(), a_plan(6, "[budget]\noutput_tokens = 208\n"))
    assert first.stopped == "the token budget is spent"
    assert first.recorded == 3
    with (tmp_path / "out.jsonl").open("ab") as stream:
        stream.write(b'{"request": {"torn')
    endpoint = Endpoint()
    second = run(tmp_path, endpoint, a_plan(6))
    assert (second.skipped, second.recorded) == (first.recorded, 6 - first.recorded)
    assert len(endpoint.requests) == 6 - first.recorded


def test_log_of_another_plan_is_not_mixed_in(tmp_path):
    run(tmp_path, Endpoint(), a_plan(1))
    with pytest.raises(OptionError, match="another plan"):
        run(tmp_path, Endpoint(), a_plan(2))
    (tmp_path / "out.jsonl.key").unlink()
    with pytest.raises(OptionError, match="key"):
        run(tmp_path, Endpoint(), a_plan(1))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_credentials_or_model_stop_the_run_at_once(tmp_path, status):
    endpoint = Endpoint(fail=[status] * 9)
    with pytest.raises(OptionError, match=str(status)):
        run(tmp_path, endpoint, a_plan(50))
    assert len(endpoint.requests) <= 5


def test_endpoint_that_refuses_the_question_for_ids_is_asked_without(tmp_path):
    endpoint = Endpoint(fail=[400])
    report = run(tmp_path, endpoint, a_plan(1))
    assert report.recorded == 1
    assert ["return_token_ids" in body for _, body in endpoint.requests] == [True, False]


def test_no_more_requests_at_once_than_planned(tmp_path):
    running, most = 0, 0

    class Slow(Endpoint):
        async def __call__(self, scope, receive, send):
            nonlocal running, most
            if scope["type"] == "http":
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.02)
            await super().__call__(scope, receive, send)
            running -= scope["type"] == "http"

    run(tmp_path, Slow(), a_plan(12))
    assert 1 < most <= 4
