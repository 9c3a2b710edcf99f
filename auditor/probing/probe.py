"""`probe`: send a schedule to an endpoint at its pace, within its budget, and log what comes back.

1. Probes that the log already answers are skipped. 2. Each leaves after its gap, at most so many at once.
3. A failure that may pass is tried again, the same request with the same seed. 4. Every answer is a line on
disk before it counts as spent; every request without one is a line of the failures. 5. The run stops before
tokens or time exceed the budget, and at once when the endpoint refuses the credentials or the model.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from auditor.errors import AuditError, OptionError, TraceSyntaxError
from auditor.probing.plan import Plan
from auditor.probing.schedule import Probe
from auditor.recording.events import EventSplitter, StreamAssembler, event_data
from auditor.recording.exchange import Sent, Timing, amended, exchange_line, failure_line
from auditor.recording.line_log import LineLog
from auditor.strict_json import MAX_LINE_BYTES, load_object

_MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504}
_HOPELESS = {401, 403, 404, 405}
_REFUSED = {400, 422}


@dataclass(slots=True)
class ProbeReport:
    """What a run did.

    Attributes:
        recorded, skipped: answers logged now, and by an earlier run.
        failed: requests given up, by reason.
        output_tokens: tokens billed, or counted where no bill came; earlier runs' included.
        stopped: why not every probe was sent; empty when all were.
    """

    recorded: int = 0
    skipped: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    output_tokens: int = 0
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    sent: Sent
    response: Mapping[str, Any]
    ended: str
    notes: Sequence[str]
    timing: Timing


class _GivenUpError(Exception):
    def __init__(self, reason: str, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.status, self.wait = reason, status, wait

    @property
    def may_pass(self) -> bool:
        return self.status is None or self.status in _MAY_PASS


@dataclass(slots=True)
class Prober:
    """One run. `probe` drives it.

    Attributes:
        client: with the credentials and headers to send.
        url: base address of the endpoint; `/v1/...` is put behind it unless it ends in `/v1`.
        done: indices already answered, with their output tokens.
        sleep, now, clock: time, for tests.
    """

    client: httpx.AsyncClient
    url: httpx.URL
    plan: Plan
    log: LineLog
    failures: LineLog
    done: Mapping[int, int] = field(default_factory=dict)
    on_answer: Callable[[], None] = lambda: None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    report: ProbeReport = field(default_factory=ProbeReport)
    _reserved: int = 0
    _mute: bool = False
    _hopeless: AuditError | None = None

    @property
    def path(self) -> str:
        """Path of the requests."""
        base = self.url.path.rstrip("/")
        version = "" if base.endswith("/v1") else "/v1"
        return f"{base}{version}/{'chat/completions' if self.plan.api == 'chat' else 'completions'}"

    async def run(self, probes: Sequence[Probe]) -> ProbeReport:
        """Send all probes.

        Raises:
            OptionError: the endpoint refuses credentials, model or path.
            TraceFileError: the log cannot be written.
        """
        self.report.skipped = sum(probe.index in self.done for probe in probes)
        self.report.output_tokens = sum(self.done.values())
        deadline = self.clock() + 60 * self.plan.budget.minutes
        mean_gap = 60 / self.plan.pace.per_minute
        running: set[asyncio.Task[None]] = set()
        try:
            for probe in probes:
                if probe.index in self.done:
                    continue
                await self.sleep(probe.gap_seconds * mean_gap)
                while running and (len(running) >= self.plan.pace.concurrency or self._over(probe)):
                    finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    _raise_of(finished)
                if self._hopeless:
                    break
                if self._over(probe):
                    self.report.stopped = "the token budget is spent"
                    break
                if self.clock() > deadline:
                    self.report.stopped = "the time is over"
                    break
                self._reserved += probe.max_tokens
                running.add(asyncio.ensure_future(self._one(probe)))
            while running:
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                _raise_of(finished)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if self._hopeless:
            raise self._hopeless
        return self.report

    def _over(self, probe: Probe) -> bool:
        spent = self.report.output_tokens + self._reserved
        return spent + probe.max_tokens > self.plan.budget.output_tokens

    async def _one(self, probe: Probe) -> None:
        try:
            answer = await self._tried(probe)
        except _GivenUpError as failure:
            self.report.failed[failure.reason] += 1
            request = load_object(probe.body, where="probe")
            line = failure_line(
                failure.reason, path=self.path, status=failure.status, when=self.now(), request=request
            )
            self.failures.write(line)
            return
        else:
            self.report.output_tokens += output_tokens(answer.response)
        finally:
            self._reserved -= probe.max_tokens
            self.on_answer()
        line = exchange_line(
            answer.sent,
            answer.response,
            timing=answer.timing,
            path=self.path,
            status=200,
            ended=answer.ended,
            notes=answer.notes,
            probe={"index": probe.index, "plan": self.plan.digest},
        )
        self.log.write(line)
        self.report.recorded += 1
        await asyncio.to_thread(self.log.sync)

    async def _tried(self, probe: Probe) -> _Answer:
        retries = self.plan.retries
        for attempt in range(retries.attempts):
            try:
                return await self._asked(probe)
            except _GivenUpError as failure:
                if failure.status in _HOPELESS:
                    self._hopeless = self._hopeless or OptionError(
                        failure.reason, where=str(self.url), fix="check --endpoint, model and key"
                    )
                if not failure.may_pass or attempt + 1 == retries.attempts or self._hopeless:
                    raise
                grown = retries.first_wait * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311
                wait = grown if failure.wait is None else failure.wait
                await self.sleep(min(wait, retries.longest_wait))
        raise AssertionError("attempts are at least 1")

    async def _asked(self, probe: Probe) -> _Answer:
        sent = amended(probe.body, ask=self.plan.token_ids and not self._mute, seed=None)
        try:
            return await self._sent(sent)
        except _GivenUpError as failure:
            if failure.status not in _REFUSED or not sent.added:
                raise
        answer = await self._sent(amended(probe.body, ask=False, seed=None))
        self._mute = True  # the endpoint does not take the question for token ids
        return answer

    async def _sent(self, sent: Sent) -> _Answer:
        received = self.now()
        url = self.url.copy_with(path=self.path)
        headers = {"content-type": "application/json"}
        try:
            async with self.client.stream("POST", url, content=sent.body, headers=headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
                if kind == "text/event-stream":
                    return await self._streamed(response, sent, received)
                parts, size = [], 0
                async for piece in response.aiter_bytes():
                    parts.append(piece)
                    size += len(piece)
                    if size > MAX_LINE_BYTES // 2:
                        raise _GivenUpError("the answer is too large", 200)
        except httpx.HTTPError as error:
            raise _GivenUpError(f"the endpoint cannot be reached: {type(error).__name__}") from None
        try:
            whole = load_object(b"".join(parts), where="response")
        except TraceSyntaxError as error:
            raise _GivenUpError(f"the answer cannot be read: {error.message}", 200) from None
        if not isinstance(whole.get("choices"), list) or not whole["choices"]:
            raise _GivenUpError("the answer has no choices", 200)
        return _Answer(sent, whole, "complete", (), Timing(received, None, self.now()))

    async def _streamed(self, response: httpx.Response, sent: Sent, received: datetime) -> _Answer:
        splitter, whole = EventSplitter(), StreamAssembler()
        first, ended, size = None, "complete", 0
        try:
            async for piece in response.aiter_bytes():
                size += len(piece)
                if size > MAX_LINE_BYTES // 2:
                    raise _GivenUpError("the answer is too large", 200)
                for event in splitter.feed(piece):
                    data = event_data(event)
                    if data is not None and data.strip() != b"[DONE]":
                        whole.add(load_object(data, where="response"))
                if first is None and whole.started:
                    first = self.now()
        except httpx.HTTPError:
            ended = "the answer broke off"
        except TraceSyntaxError as error:
            raise _GivenUpError(f"a chunk cannot be read: {error.message}", 200) from None
        if whole.error:
            ended = f"the server reported an error: {str(whole.error)[:120]}"
        if not whole.started:
            # Nothing was generated, so asking again wastes nothing.
            raise _GivenUpError(ended if ended != "complete" else "the stream has no choices")
        answer, notes = whole.response(tools=bool(sent.request.get("tools")))
        return _Answer(sent, answer, ended, notes, Timing(received, first, self.now()))


def output_tokens(response: Mapping[str, Any]) -> int:
    """Output tokens of an answer: as billed, else as many ids as came."""
    usage = response.get("usage")
    billed = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if type(billed) is int and 0 <= billed < 2**63:
        return billed
    choices = [choice for choice in response.get("choices") or () if isinstance(choice, dict)]
    return sum(len(c.get("token_ids") or c.get("token_ids_incomplete") or ()) for c in choices)


def _refusal(response: httpx.Response) -> _GivenUpError:
    after = response.headers.get("retry-after", "")
    wait = float(after) if after.isascii() and after.isdecimal() else None
    return _GivenUpError(f"the endpoint answered {response.status_code}", response.status_code, wait)


def _raise_of(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.result()
