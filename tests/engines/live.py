"""A real server, honest and not: vLLM behind HTTP with the recorder, 32 requests at once, its log audited.

The dishonest server runs a 4-bit copy. Its log, as the recorder writes it, declares the copy, and so cannot be
audited as the model that was sold; with that declaration forged, it can, and must be convicted.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from auditor.reference.checkpoint.digests import template_digest, tokenizer_digest, weights_digest
from auditor.reference.demo.prompts import TARGET
from tests.engines.cases import Case, requests_of
from tests.engines.quantized import write_rounded, write_w4a16

HERE = Path(__file__).parent
START_SECONDS = 400
REQUESTS = 32
CASE = Case("live", {"max_tokens": 200}, REQUESTS)


@dataclass(frozen=True)
class Served:
    """One server's log and what `audit verify` says of it."""

    name: str
    requests: int
    tokens: int
    as_returned: int
    exit_status: int
    result: dict


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_ready(url, server, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def serve(python, model, requests, folder):
    """Serve the requests once; returns what the API answered. The trace file is `folder/traces.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    traces, job, report, log = (folder / n for n in ("traces.jsonl", "job.json", "report.json", "server.log"))
    traces.unlink(missing_ok=True)
    job.write_text(json.dumps(requests))
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {
        "AUDITOR_CAPTURE": str(traces),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "demo", "--dtype", "bfloat16", "--enforce-eager"]
    command += [
        "--max-num-seqs",
        str(REQUESTS),
        "--shutdown-timeout",
        "30",
        "--host",
        "127.0.0.1",
        "--port",
        url.rpartition(":")[2],
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until_ready(url, server, log)
            client = [str(python), str(HERE / "live_client.py"), url, str(job), str(report)]
            subprocess.run(client, check=True, env=environment, timeout=600)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    return json.loads(report.read_text())


def audit(traces):
    """`audit verify` on a trace file, with the shipped profiles: exit status and result."""
    command = [str(Path(sys.executable).parent / "audit"), "verify", str(traces), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3):
        raise RuntimeError(done.stderr)
    return done.returncode, json.loads(done.stdout)


def forged(lines):
    """What a dishonest provider hands over: its log, declared as the model and recipe that it sold."""
    for line in lines:
        line["model_digest"] = weights_digest(TARGET)
        line["tokenizer_digest"], line["template_digest"] = tokenizer_digest(TARGET), template_digest(TARGET)
        line["engine"]["recipe"] = line["engine"]["recipe"].replace("/compressed-tensors", "")
    return lines


def judged(name, lines, returned, path):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, result = audit(path)
    same = sum(returned.get(line["audit_id"]) == line["output_token_ids"] for line in lines)
    return Served(
        name, len(lines), sum(len(line["output_token_ids"]) for line in lines), same, status, result
    )


def run_live(python, folder):
    """Both servers, three logs: honest; int4 as recorded; int4 forged."""
    requests = requests_of("live", CASE)
    answers = serve(python, TARGET, requests, folder / "honest")
    honest = [json.loads(line) for line in (folder / "honest" / "traces.jsonl").read_text().splitlines()]
    # vllm-cpu's build for processors without AVX-512 has no 4-bit product (`_C.cpu_gemm_wna16` is missing).
    packed = "avx512f" in Path("/proc/cpuinfo").read_text()
    copy = folder / ("w4a16" if packed else "rounded-to-int4")
    if not copy.exists():
        (write_w4a16 if packed else write_rounded)(TARGET, copy)
    cheated = serve(python, copy, requests, folder / "int4")
    int4 = [json.loads(line) for line in (folder / "int4" / "traces.jsonl").read_text().splitlines()]
    form = "W4A16" if packed else "in bfloat16"
    return [
        judged("honest", honest, answers, folder / "honest.jsonl"),
        judged(f"int4 weights ({form}), as recorded", int4, cheated, folder / "int4.jsonl"),
        judged(
            f"int4 weights ({form}), declared as the model sold",
            forged(int4),
            cheated,
            folder / "int4-forged.jsonl",
        ),
    ]
