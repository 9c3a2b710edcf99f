"""The demo provider over HTTP: streams and whole answers agree, what it cannot serve it refuses."""

from __future__ import annotations

import functools
import json
import operator

import httpx
import pytest

from auditor.demo_provider import DemoProvider
from auditor.generation import Provider
from auditor.listening import serving
from auditor.reference.demo.prompts import TARGET
from auditor.reference.deviations import deviation

CHAT = {
    "model": "target",
    "messages": [{"role": "user", "content": "What is 2+3?"}],
    "seed": 7,
    "max_tokens": 12,
}


@pytest.fixture(scope="module")
def client():
    served = DemoProvider(Provider.load(TARGET), deviation("honest"))
    with (
        serving(served.application()) as address,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as it,
    ):
        yield it


def chunks(answer):
    data = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert data[-1] == "[DONE]"
    return [json.loads(part) for part in data[:-1]]


def test_stream_and_whole_answer_are_the_same_tokens(client):
    asked = CHAT | {"return_token_ids": True}
    whole = client.post("/v1/chat/completions", json=asked).json()
    parts = chunks(
        client.post(
            "/v1/chat/completions", json=asked | {"stream": True, "stream_options": {"include_usage": True}}
        )
    )
    choices = [part["choices"][0] for part in parts if part["choices"]]
    (choice,) = whole["choices"]
    assert functools.reduce(operator.iadd, (c["token_ids"] for c in choices), []) == choice["token_ids"]
    assert "".join(c["delta"]["content"] for c in choices) == choice["message"]["content"]
    assert parts[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert parts[-1]["usage"] == whole["usage"]
    assert [c["finish_reason"] for c in choices][-1] == choice["finish_reason"] == "length"
    assert len(choices) > 1


def test_ids_and_usage_come_only_when_asked_for(client):
    whole = client.post("/v1/chat/completions", json=CHAT).json()
    assert "prompt_token_ids" not in whole
    assert "token_ids" not in whole["choices"][0]
    parts = chunks(client.post("/v1/chat/completions", json=CHAT | {"stream": True}))
    assert not [part for part in parts if "usage" in part or not part["choices"]]


def test_prompt_as_text_and_as_ids_is_one_prompt(client):
    text = {"model": "target", "prompt": "The sum", "seed": 3, "max_tokens": 6, "return_token_ids": True}
    (first,) = client.post("/v1/completions", json=text).json()["choices"]
    (second,) = client.post("/v1/completions", json=text | {"prompt": first["prompt_token_ids"]}).json()[
        "choices"
    ]
    assert first["token_ids"] == second["token_ids"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "other"}, 404, "does not exist"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"n": 2}, 400, "n"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"response_format": {"type": "json_object"}}, 400, "grammar"),
        ({"stop": "x"}, 400, "stop"),
        ({"xtc_probability": 0.5}, 400, "xtc_probability"),
        ({"max_tokens": 10**9}, 400, "context"),
        ({"messages": []}, 400, ""),
    ],
)
def test_what_cannot_be_served_exactly_is_refused(client, change, status, said):
    answer = client.post("/v1/chat/completions", json=CHAT | change)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":NaN}', b"x" * (1 << 20) + b"y"])
def test_body_that_is_no_request_is_refused(client, body):
    assert client.post("/v1/completions", content=body).status_code == 400
