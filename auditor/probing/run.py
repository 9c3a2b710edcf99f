"""`probe`: a plan, an endpoint and a log in; what was asked and answered out. Goes on where it stopped."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from auditor.errors import OptionError, TraceSyntaxError
from auditor.probing.plan import Plan
from auditor.probing.probe import Prober, ProbeReport, output_tokens
from auditor.probing.prompts import prompts_of
from auditor.probing.schedule import Probe, schedule
from auditor.recording.line_log import LineLog
from auditor.recording.record import new_client, server_url
from auditor.seed_files import read_key, write_key
from auditor.seeds import SECRET_BYTES, SeedKey
from auditor.strict_json import load_object
from auditor.trace_streams import lines_of

ANSWER_SECONDS = 600.0


def probe(
    endpoint: str,
    plan: Plan,
    out: Path,
    *,
    api_key: str | None = None,
    on_start: Callable[[SeedKey, int, int], None] = lambda _key, _total, _done: None,
    on_answer: Callable[[], None] = lambda: None,
) -> ProbeReport:
    """Question an endpoint.

    The seed key of the run lies in `OUT.key`; its commitment can be published before the first request.

    Args:
        endpoint: base address, with or without `/v1`.
        out: log; what it already answers is not asked again. Failures go to `OUT.failures`.
        api_key: sent as bearer token, never logged.
        on_start: told the key, how many requests there are and how many of them are answered.
        on_answer: told of each request that is over.

    Raises:
        OptionError: the endpoint refuses, the log is of another plan, or its key is missing.
        TraceFileError: a file cannot be read or written.
    """
    url = server_url(endpoint, option="--endpoint")
    key = _key_of(out, plan)
    probes = schedule(plan, prompts_of(plan, int.from_bytes(key.secret[:4], "big")), key)
    with LineLog(out) as log, LineLog(out.with_name(out.name + ".failures")) as failures:
        done = dict(_answered(out, plan))
        on_start(key, len(probes), len(done))
        return asyncio.run(_run(url, plan, probes, log, failures, done, api_key, on_answer))


async def _run(
    url: httpx.URL,
    plan: Plan,
    probes: list[Probe],
    log: LineLog,
    failures: LineLog,
    done: dict[int, int],
    api_key: str | None,
    on_answer: Callable[[], None],
) -> ProbeReport:
    async with new_client(url, answer_seconds=ANSWER_SECONDS) as client:
        client.headers.update(plan.headers)
        if api_key:
            client.headers["authorization"] = f"Bearer {api_key}"
        prober = Prober(client, url, plan, log, failures, done, on_answer)
        return await prober.run(probes)


def _key_of(out: Path, plan: Plan) -> SeedKey:
    path = out.with_name(out.name + ".key")
    if path.exists():
        key = read_key(path)
        if key.bits != plan.seed_bits or key.run != plan.digest:
            raise OptionError("is the key of another plan", where=str(path), fix="choose another --out")
        return key
    if out.exists() and out.stat().st_size:
        raise OptionError(f"holds a log, but its key {path.name} is gone", where=str(out))
    key = SeedKey(secrets.token_bytes(SECRET_BYTES), plan.seed_bits, plan.digest)
    write_key(path, key)
    return key


def _answered(out: Path, plan: Plan) -> Iterator[tuple[int, int]]:
    """Indices of the probes that the log answers, with their output tokens; torn lines answer none.

    Raises:
        OptionError: a line is of another plan.
    """
    with out.open("rb") as stream:
        for line in lines_of(iter(lambda: stream.read(1 << 16), b""), max_bytes=1 << 26):
            try:
                value = load_object(line.raw or b"", where=f"{out}:{line.number}")
            except TraceSyntaxError:
                continue
            mark, response = value.get("probe"), value.get("response")
            if not isinstance(mark, dict) or mark.get("plan") != plan.digest:
                raise OptionError("is no answer to this plan", where=f"{out}:{line.number}")
            if type(mark.get("index")) is int and isinstance(response, dict):
                yield mark["index"], output_tokens(response)
