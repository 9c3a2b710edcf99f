"""An OpenAI-compatible provider on the reference engine: seeded, streaming, honest or with one deviation.

For trying out recording, probing and verdicts without another engine. It answers completions and chat
completions with `gumbel-pos-v1` noise and gives token ids when asked (`return_token_ids`, as vLLM does). Like
any dishonest provider it never says what it did. What it cannot serve exactly it refuses with status 400.

Requests that wait together are decoded as one batch of at most `Provider.batch_size`, by one thread.
"""

from __future__ import annotations

import asyncio
import json
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from auditor.errors import AuditError, OptionError, SamplingUnsupportedError
from auditor.generation import Provider
from auditor.openai_logs import requested_features, requested_sampling
from auditor.openai_wire import RequestWire
from auditor.reference.decode import Ask
from auditor.reference.decode import generate as decode
from auditor.reference.deviations import Deviation, Prompt
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec
from auditor.strict_json import load_object
from auditor.trace_format import validate

MAX_REQUEST_BYTES = 1 << 20
DEFAULT_MAX_TOKENS = 200
_REFUSED = ("n", "best_of", "echo", "logprobs", "top_logprobs", "prompt_logprobs", "tools", "suffix")
_COUNTS = ("n", "best_of")  # for which 1 is the default
_UNFINISHED = "\ufffd"  # what a decoder shows for the first bytes of a character


@dataclass(frozen=True, slots=True)
class _Job:
    ask: Ask
    done: Callable[[BaseException | None], None]


class _Decoder:
    """One thread that decodes whatever waits, a batch at a time."""

    def __init__(self, model: ReferenceModel, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def submit(self, job: _Job) -> None:
        self._jobs.put(job)

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            batch = [first]
            while len(batch) < self._batch_size:
                try:
                    waiting = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if waiting is None:
                    self._jobs.put(None)
                    break
                batch.append(waiting)
            failure: BaseException | None = None
            try:
                for _ in decode(self._model, [job.ask for job in batch], batch_size=self._batch_size):
                    pass
            except Exception as error:  # noqa: BLE001  # the requests learn of it, the thread lives on
                failure = error
            for job in batch:
                job.done(failure)


@dataclass(frozen=True, slots=True)
class _Generation:
    """One request, checked: what is declared, and how it is shown."""

    ask: Ask
    prompt_ids: tuple[int, ...]
    chat: bool
    stream: bool
    wants_ids: bool
    wants_usage: bool
    skip_special: bool
    identity: str
    created: int


class DemoProvider:
    """The application's state: a loaded provider, what it does instead of serving honestly, its name."""

    def __init__(
        self,
        provider: Provider,
        deviation: Deviation,
        *,
        other_model: ReferenceModel | None = None,
        name: str | None = None,
    ) -> None:
        self.provider, self._deviation = provider, deviation
        self.name = name or provider.model.directory.name
        self._decoder = _Decoder(deviation.model(provider.model, other_model), provider.batch_size)

    def application(self) -> Starlette:
        """The ASGI application; its decoder runs from start-up to shutdown."""

        @asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncIterator[None]:
            self._decoder.start()
            yield
            await asyncio.to_thread(self._decoder.stop)

        routes = [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    async def _models(self, _request: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "auditor"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        try:
            body = await _body(request)
            loop = asyncio.get_running_loop()
            tokens: asyncio.Queue[int | BaseException | None] = asyncio.Queue()

            def put(item: int | BaseException | None) -> None:
                loop.call_soon_threadsafe(tokens.put_nowait, item)

            generation = self._checked(body, chat=chat, emit=put)
        except AuditError as error:
            status = 404 if isinstance(error, _ModelUnknownError) else 400
            problem = {"message": str(error), "type": "BadRequestError", "code": status}
            return JSONResponse({"error": problem}, status_code=status)
        self._decoder.submit(_Job(generation.ask, put))
        if generation.stream:
            return StreamingResponse(self._events(generation, tokens), media_type="text/event-stream")
        output = [token async for token in _tokens(generation.ask, tokens)]
        return JSONResponse(self._whole(generation, output))

    def _checked(
        self, body: dict[str, Any], *, chat: bool, emit: Callable[[int | BaseException | None], None]
    ) -> _Generation:
        """Check a request and turn it into something to decode.

        Raises:
            AuditError: it is malformed, or asks for what cannot be served exactly.
        """
        wire = validate(RequestWire, body, where="request")
        if wire.model != self.name:
            raise _ModelUnknownError(f"model {wire.model!r} does not exist", fix=f"ask for {self.name!r}")
        spec = requested_sampling(wire, body, where="request")
        _refuse_unserved(wire, body, spec)
        tokenizer = self.provider.tokenizer
        messages = tuple(wire.messages or ())
        if chat and not messages:
            raise OptionError("a chat has messages")
        ids = tuple(tokenizer.encode_chat(messages)) if chat else self._prompt_ids(wire)
        room = self.provider.model.config.context_length - len(ids)
        most = min(DEFAULT_MAX_TOKENS, room) if spec.max_tokens is None else spec.max_tokens
        if not ids or most < 1 or most > room:
            raise OptionError(f"{len(ids)} prompt tokens and {most} output tokens do not fit the context")
        deviation = self._deviation
        stops = frozenset(tokenizer.eos_ids) | frozenset(spec.stop_token_ids)
        seed = secrets.randbits(63) if wire.seed is None else wire.seed
        ask = Ask(
            prompt=tuple(deviation.prompt(Prompt(ids, messages if chat else None, tokenizer))),
            noise_prompt_tokens=len(ids),
            spec=deviation.sampling(spec),
            seed=deviation.seed(seed),
            scheme=noise_scheme("gumbel-pos-v1"),
            max_tokens=most,
            stop_ids=stops,
            emit=emit,
        )
        options = body.get("stream_options")
        return _Generation(
            ask=ask,
            prompt_ids=ids,
            chat=chat,
            stream=body.get("stream") is True,
            wants_ids=body.get("return_token_ids") is True,
            wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
            skip_special=body.get("skip_special_tokens") is not False,
            identity=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
        )

    def _prompt_ids(self, wire: RequestWire) -> tuple[int, ...]:
        prompts = wire.prompt or []
        if len(prompts) != 1:
            raise OptionError("give one prompt")
        (prompt,) = prompts
        if isinstance(prompt, str):
            return tuple(self.provider.tokenizer.encode(prompt, add_special_tokens=True))
        vocabulary = self.provider.model.config.vocab_size
        if not isinstance(prompt, list) or not all(type(i) is int and 0 <= i < vocabulary for i in prompt):
            raise OptionError("the prompt is neither a text nor a list of token ids")
        return tuple(prompt)

    def _text(self, generation: _Generation, output: list[int]) -> str:
        shown = output[:-1] if output and output[-1] in generation.ask.stop_ids else output
        return self.provider.tokenizer.decode(shown, skip_special=generation.skip_special)

    def _whole(self, generation: _Generation, output: list[int]) -> dict[str, Any]:
        text = self._text(generation, output)
        shown = {"message": {"role": "assistant", "content": text}} if generation.chat else {"text": text}
        choice: dict[str, Any] = {"index": 0, **shown, "logprobs": None}
        choice["finish_reason"] = _finish(generation, output)
        answer = self._head(generation, "text_completion", "chat.completion")
        if generation.wants_ids:
            choice["token_ids"] = output
            (answer if generation.chat else choice)["prompt_token_ids"] = list(generation.prompt_ids)
        return {**answer, "choices": [choice], "usage": _usage(generation, output)}

    def _head(self, generation: _Generation, plain: str, chat: str) -> dict[str, Any]:
        return {
            "id": generation.identity,
            "object": chat if generation.chat else plain,
            "created": generation.created,
            "model": self.name,
        }

    async def _events(
        self, generation: _Generation, tokens: asyncio.Queue[int | BaseException | None]
    ) -> AsyncIterator[bytes]:
        """The chunks of a stream. A token whose text is no whole character yet waits for the next one."""
        head = self._head(generation, "text_completion", "chat.completion.chunk")
        output: list[int] = []
        told, pending = "", list[int]()
        first = True
        async for token in _tokens(generation.ask, tokens):
            output.append(token)
            pending.append(token)
            text, finish = self._text(generation, output), _finish(generation, output)
            if text.endswith(_UNFINISHED) and finish is None:
                continue
            piece, told = text[len(told) :], text
            shown = {"delta": {"content": piece}} if generation.chat else {"text": piece}
            if generation.chat and first:
                shown = {"delta": {"role": "assistant", "content": piece}}
            choice: dict[str, Any] = {"index": 0, **shown, "logprobs": None, "finish_reason": finish}
            chunk = {**head, "choices": [choice]}
            if generation.wants_ids:
                choice["token_ids"] = pending
                if first:
                    (chunk if generation.chat else choice)["prompt_token_ids"] = list(generation.prompt_ids)
            pending, first = [], False
            yield _event(chunk)
        if generation.wants_usage:
            yield _event({**head, "choices": [], "usage": _usage(generation, output)})
        yield b"data: [DONE]\n\n"


class _ModelUnknownError(OptionError):
    """A model that is not served here."""


async def _body(request: Request) -> dict[str, Any]:
    parts, size = [], 0
    try:
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > MAX_REQUEST_BYTES:
                raise OptionError(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
    except ClientDisconnect:
        raise OptionError("the client left") from None
    return load_object(b"".join(parts), where="request")


def _refuse_unserved(wire: RequestWire, body: dict[str, Any], spec: SamplingSpec) -> None:
    """Refuse what the decoder does not do, rather than do something else.

    Raises:
        SamplingUnsupportedError: one sentence with every such parameter.
    """
    off = SamplingSpec()
    served = ("temperature", "top_k", "top_p", "min_p", "max_tokens", "stop_token_ids", "ignore_eos")
    named = [
        name
        for name in SamplingSpec.__dataclass_fields__
        if name not in served and getattr(spec, name) != getattr(off, name)
    ]
    named += [name for name in _REFUSED if body.get(name) and not (name in _COUNTS and body[name] == 1)]
    named += requested_features(wire, body)
    if named:
        raise SamplingUnsupportedError(f"{', '.join(sorted(set(named)))} cannot be served here")


async def _tokens(ask: Ask, tokens: asyncio.Queue[int | BaseException | None]) -> AsyncIterator[int]:
    """The tokens of one request as they are drawn, to its own end: others of its batch may go on.

    Raises:
        BaseException: what the decoder failed with.
    """
    count = 0
    while count < ask.max_tokens:
        item = await tokens.get()
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        count += 1
        yield item
        if item in ask.stop_ids and not ask.spec.ignore_eos:
            return


def _finish(generation: _Generation, output: list[int]) -> str | None:
    ask = generation.ask
    if output and output[-1] in ask.stop_ids and not ask.spec.ignore_eos:
        return "stop"
    return "length" if len(output) >= ask.max_tokens else None


def _usage(generation: _Generation, output: list[int]) -> dict[str, int]:
    prompt = len(generation.prompt_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": len(output),
        "total_tokens": prompt + len(output),
    }


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
