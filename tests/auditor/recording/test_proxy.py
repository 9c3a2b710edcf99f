"""The recording proxy between a real HTTP client and a server that answers as real ones do, well or badly."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from auditor.errors import AuditError, OptionError, TraceFileError
from auditor.listening import bound_socket, is_loopback, serving
from auditor.recording.line_log import LineLog
from auditor.recording.record import recorder, server_url, with_client
from auditor.seed_files import write_key
from auditor.seeds import SeedKey
from auditor.trace_files import read_traces

IDS = [5, 6, 2]


def whole(body, **more):
    choice = {"index": 0, "text": " Hé", "finish_reason": "stop"}
    answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    if body.get("return_token_ids"):
        choice |= {"token_ids": IDS, "prompt_token_ids": [1, 4]}
    return {**answer, "choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 3}, **more}


def events(body):
    for number, token in enumerate(IDS):
        choice = {"index": 0, "text": f"t{number}", "finish_reason": "stop" if number == 2 else None}
        if body.get("return_token_ids"):
            choice["token_ids"] = [token]
            if number == 0:
                choice["prompt_token_ids"] = [1, 4]
        yield {"id": "cmpl-s", "object": "text_completion", "model": body["model"], "choices": [choice]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {"id": "cmpl-s", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}


class Server:
    """A server of the kinds that are met: which one is told by the model that is asked for."""

    def __init__(self):
        self.seen = []
        self.cancelled = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        self.seen.append((scope["path"], dict(scope["headers"]), raw))
        if scope["method"] == "GET" or not scope["path"].endswith("completions"):
            text = b"%d bytes" % len(raw)
            headers = [(b"x-two", b"1"), (b"x-two", b"2"), (b"content-length", b"%d" % len(text))]
            await self.answer(send, 200, headers, text)
            return
        try:
            body = json.loads(raw)
        except ValueError:
            await self.answer(send, 400, [], b"bad json")
            return
        await getattr(self, body["model"])(body, send, receive)

    async def answer(self, send, status, headers, data, *, more=False):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": more})

    async def good(self, body, send, _receive):
        if body.get("stream"):
            head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request", b"9")]
            await self.answer(send, 200, head, b": hello\n\n", more=True)
            for event in events(body):
                data = b"data: " + json.dumps(event).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": data[:9], "more_body": True})
                await send({"type": "http.response.body", "body": data[9:], "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
            return
        data = json.dumps(whole(body), indent=1).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        await self.answer(send, 200, head, data)

    async def zipped(self, body, send, _receive):
        if body.get("stream"):
            data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events(body))
            kind = b"text/event-stream"
        else:
            data, kind = json.dumps(whole(body)).encode(), b"application/json"
        await self.answer(
            send, 200, [(b"content-type", kind), (b"content-encoding", b"gzip")], gzip.compress(data)
        )

    async def strict(self, body, send, receive):
        if set(body) - {"model", "prompt", "stream", "seed"}:
            await self.answer(send, 400, [], b'{"error": "unknown argument"}')
        else:
            await self.good(body, send, receive)

    async def limited(self, _body, send, _receive):
        await self.answer(send, 429, [(b"retry-after", b"7")], b'{"error": "slow down"}')

    async def html(self, _body, send, _receive):
        await self.answer(send, 200, [(b"content-type", b"text/html")], b"<html>login</html>")

    async def broken(self, body, send, _receive):
        head = [(b"content-type", b"text/event-stream" if body.get("stream") else b"application/json")]
        event = b"data: " + json.dumps(next(events(body))).encode() + b"\n\n"
        await self.answer(send, 200, head, event if body.get("stream") else b'{"choices": [', more=True)
        await asyncio.sleep(0.05)  # and the answer never ends: the connection is cut

    async def slow(self, body, send, receive):
        await self.answer(send, 200, [(b"content-type", b"text/event-stream")], b"", more=True)
        event = b"data: " + json.dumps(next(events(body))).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancelled.set()


@contextmanager
def recording(tmp_path, server=None, upstream=None, **options):
    server = server or Server()
    with ExitStack() as stack:
        address = upstream or stack.enter_context(serving(server))
        app = stack.enter_context(recorder(address, tmp_path / "log.jsonl", **options))
        proxy = stack.enter_context(serving(with_client(app)))
        yield stack.enter_context(httpx.Client(base_url=proxy, trust_env=False, timeout=20)), server, app


def lines(tmp_path, name="log.jsonl"):
    return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


def ask(client, model="good", **body):
    return client.post("/v1/completions", json={"model": model, "prompt": "x", **body})


def direct(model="good", **body):
    """What the client would get from the server without anything in between."""
    with serving(Server()) as address, httpx.Client(base_url=address, trust_env=False) as client:
        return ask(client, model, **body)


def test_answer_is_the_servers_and_the_log_has_the_ids(tmp_path):
    with recording(tmp_path) as (client, server, app):
        answer = client.post(
            "/v1/completions?key=secret-in-query",
            json={"model": "good", "prompt": "x", "seed": 7},
            headers={"authorization": "Bearer secret-key", "x-api-key": "secret-too", "x-own": "kept"},
        )
    plain = direct(seed=7)
    assert answer.json() == plain.json()
    assert dict(answer.headers) == {**plain.headers, "content-length": str(len(answer.content))}
    _path, headers, raw = server.seen[0]
    assert (headers[b"authorization"], headers[b"x-own"]) == (b"Bearer secret-key", b"kept")
    assert json.loads(raw)["return_token_ids"] is True
    (trace,) = read_traces(tmp_path / "log.jsonl")
    assert (trace.output_token_ids, trace.prompt_token_ids, trace.seed) == ((5, 6, 2), (1, 4), 7)
    assert trace.timing["received"].endswith("Z")
    assert trace.extra["openai"]["line"]["recorded"]["added"] == ["return_token_ids"]
    assert "secret" not in (tmp_path / "log.jsonl").read_text()
    assert app.tally.recorded == 1


def test_client_that_asks_for_ids_itself_gets_every_byte(tmp_path):
    with recording(tmp_path) as (client, _, _app):
        answer = ask(client, return_token_ids=True)
    assert answer.content == direct(return_token_ids=True).content


@pytest.mark.parametrize("own_usage", [False, True])
def test_stream_passes_event_by_event_without_what_was_asked_for(tmp_path, own_usage):
    options = {"stream_options": {"include_usage": True}} if own_usage else {}
    with recording(tmp_path) as (client, _server, _app):
        answer = ask(client, stream=True, **options)
    plain = direct(stream=True, **options)
    assert [json.loads(e[6:]) for e in answer.text.split("\n\n") if e.startswith("data: {")] == [
        json.loads(e[6:]) for e in plain.text.split("\n\n") if e.startswith("data: {")
    ]
    assert answer.text.startswith(": hello\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.headers["x-request"] == "9"
    (trace,) = read_traces(tmp_path / "log.jsonl")
    assert (trace.output_token_ids, trace.text) == ((5, 6, 2), "t0t1t2")
    assert trace.usage.completion_tokens == 3
    assert trace.timing["first_token"] is not None


def test_log_line_is_there_before_the_answer_ends(tmp_path):
    with recording(tmp_path) as (client, _, _app):
        body = {"model": "good", "prompt": "x", "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    assert len(lines(tmp_path)) == 1
        assert ask(client).status_code == 200
        assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_compressed_answers_stay_compressed(tmp_path, stream):
    with recording(tmp_path) as (client, server, _app):
        answer = client.post(
            "/v1/completions",
            json={"model": "zipped", "prompt": "x", "stream": stream},
            headers={"accept-encoding": "br, gzip"},
        )
    assert server.seen[0][1][b"accept-encoding"] == b"gzip"
    assert answer.headers["content-encoding"] == "gzip"
    assert "token_ids" not in answer.text
    (trace,) = read_traces(tmp_path / "log.jsonl")
    assert trace.output_token_ids == (5, 6, 2)


def test_server_that_refuses_the_question_is_asked_as_the_client_did(tmp_path):
    with recording(tmp_path) as (client, server, _app):
        assert ask(client, "strict").status_code == 200
        assert ask(client, "strict").status_code == 200
        assert ask(client, "strict", temperature=3).status_code == 400
    # Refused, asked again, from then on not asked for ids.
    assert [b"return_token_ids" in raw for _, _, raw in server.seen] == [True, False, False, False]
    found = list(read_traces(tmp_path / "log.jsonl"))
    assert [(trace.grade, trace.output_token_ids) for trace in found] == [("C", None)] * 2
    (failure,) = lines(tmp_path, "log.jsonl.failures")
    assert (failure["failure"], failure["status"]) == ("the server answered 400", 400)


def test_what_is_no_generation_passes_and_is_counted_with_its_reason(tmp_path):
    with recording(tmp_path) as (client, _server, app):
        limited = ask(client, "limited")
        html = ask(client, "html")
        garbage = client.post("/v1/completions", content=b"{nonsense")
        models = client.get("/v1/models")
        upload = client.post("/v1/files", content=iter([b"x" * 100_000] * 20))
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
    assert html.text == "<html>login</html>"
    assert (garbage.status_code, garbage.text) == (400, "bad json")
    assert models.headers.get_list("x-two") == ["1", "2"]
    assert upload.text == "2000000 bytes"
    assert lines(tmp_path) == []
    reasons = [line["failure"] for line in lines(tmp_path, "log.jsonl.failures")]
    assert reasons[0] == "the server answered 429"
    assert reasons[1].startswith("the answer cannot be read")
    assert reasons[2].startswith("the request cannot be read")
    assert (app.tally.passed, sum(app.tally.missed.values())) == (2, 3)


def test_request_or_answer_too_large_to_record_passes(tmp_path):
    with recording(tmp_path) as (client, _, app):
        app.max_body_bytes = 150
        small = ask(client)  # its answer has more than 150 bytes
        big = ask(client, padding="x" * 200)
    assert small.json()["choices"][0]["text"] == " Hé"
    assert big.json()["choices"][0]["text"] == " Hé"
    assert set(app.tally.missed) == {
        "the request is too large to record",
        "the answer is too large to record",
    }


@pytest.mark.parametrize("stream", [False, True])
def test_answer_that_breaks_off_breaks_off_for_the_client_too(tmp_path, stream):
    with recording(tmp_path) as (client, _, _app), pytest.raises(httpx.RemoteProtocolError):
        ask(client, "broken", stream=stream)
    if stream:
        (trace,) = read_traces(tmp_path / "log.jsonl")
        assert trace.output_token_ids == (5,)
        assert "the answer is not whole: the answer broke off" in trace.extra["notes"]
    else:
        assert lines(tmp_path, "log.jsonl.failures")[0]["failure"] == "the answer broke off"


def test_client_that_leaves_ends_the_request_and_what_had_come_is_logged(tmp_path):
    with recording(tmp_path) as (client, server, app):
        body = {"model": "slow", "prompt": "x", "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_raw())
        assert server.cancelled.wait(10)
        deadline = time.monotonic() + 10
        while not app.tally.recorded and time.monotonic() < deadline:
            time.sleep(0.02)
    (trace,) = read_traces(tmp_path / "log.jsonl")
    assert (trace.output_token_ids, trace.finish_reason) == ((5,), None)
    assert "the answer is not whole: the client left" in trace.extra["notes"]


def test_server_that_is_not_there_is_a_502_and_noted(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with recording(tmp_path, upstream=f"http://127.0.0.1:{port}") as (client, _, _app):
        answer = ask(client)
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_unreachable")
        assert client.get("/v1/models").status_code == 502
    assert lines(tmp_path, "log.jsonl.failures")[0]["failure"].startswith("the server cannot be reached")


def test_concurrent_requests_are_logged_each_on_its_line(tmp_path):
    with recording(tmp_path) as (client, _, _app), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(client, seed=n, stream=n % 2 == 0), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    traces = list(read_traces(tmp_path / "log.jsonl"))
    assert sorted(trace.seed for trace in traces) == list(range(24))
    assert {trace.output_token_ids for trace in traces} == {(5, 6, 2)}


def test_seeds_are_given_only_when_asked_for_and_only_where_none_is_sent(tmp_path):
    key = SeedKey(bytes(32), 32)
    write_key(tmp_path / "run.key", key)
    with recording(tmp_path, seed_key=tmp_path / "run.key") as (client, _, _app):
        ask(client)
        ask(client, seed=3)
        ask(client)
    assert [trace.seed for trace in read_traces(tmp_path / "log.jsonl")] == [key.seed(0), 3, key.seed(1)]
    added = [line["recorded"]["added"] for line in lines(tmp_path)]
    assert added == [["return_token_ids", "seed"], ["return_token_ids"], ["return_token_ids", "seed"]]


def test_full_disk_does_not_stop_the_client_and_is_not_silent(tmp_path):
    told = []
    with recording(tmp_path, on_loss=told.append) as (client, _, app):
        full = os.open("/dev/full", os.O_WRONLY)
        descriptor, app.log._descriptor = app.log._descriptor, full
        assert ask(client).status_code == 200
        app.log._descriptor = descriptor
        os.close(full)
        assert ask(client).status_code == 200
    assert (app.tally.lost, app.tally.recorded, len(lines(tmp_path))) == (1, 1, 1)
    assert isinstance(told[0], AuditError)


def test_a_log_has_one_writer_and_a_torn_line_spoils_no_other(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"torn": ')
    with LineLog(path) as log:
        log.write(b'{"whole": 1}\n')
        with pytest.raises(TraceFileError, match="another process"), LineLog(path):
            pass
    assert path.read_bytes() == b'{"torn": \n{"whole": 1}\n'


@pytest.mark.parametrize(
    "url", ["ftp://x", "127.0.0.1:80", "http://", "http://u:p@h", "http://h/?a=b", "http://h:x"]
)
def test_bad_server_address_is_refused(url):
    with pytest.raises(OptionError, match="--upstream"):
        server_url(url, option="--upstream")


@pytest.mark.parametrize("listen", ["", "8000", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x"])
def test_bad_listen_address_is_refused(listen):
    with pytest.raises(OptionError, match="--listen"):
        bound_socket(listen)


def test_taken_port_is_one_clear_line():
    with bound_socket("127.0.0.1:0") as taken, pytest.raises(OptionError, match="cannot listen"):
        bound_socket(f"127.0.0.1:{taken.getsockname()[1]}")


def test_loopback_is_told_from_the_world():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "example.com")))
