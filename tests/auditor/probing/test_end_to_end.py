"""The whole way over HTTP: probe, recording proxy, provider; and the verdict on what both logs hold."""

from __future__ import annotations

import pytest

from auditor.commands.options import log_source
from auditor.demo_provider import DemoProvider
from auditor.generation import Provider
from auditor.listening import serving
from auditor.probing.plan import plan_from_toml
from auditor.probing.run import probe
from auditor.profiles import profile_finder
from auditor.recording.record import recorder, with_client
from auditor.reference.demo.prompts import TARGET
from auditor.reference.deviations import deviation
from auditor.replay import Reference
from auditor.trace_files import read_traces
from auditor.verification import verify

PLAN = """
model = "target"
requests = {requests}
[[sampling]]
max_tokens = [100, 120]
[pace]
per_minute = 1000000
concurrency = 32
"""


@pytest.fixture(scope="module")
def provider():
    return Provider.load(TARGET)


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


def probed(provider, name, requests, folder):
    """Probe a provider through the proxy; what the client logged, and what the proxy did."""
    served = DemoProvider(provider, deviation(name))
    with (
        serving(served.application()) as address,
        recorder(address, folder / "proxy.jsonl") as proxy,
        serving(with_client(proxy)) as front,
    ):
        plan = plan_from_toml(PLAN.format(requests=requests), where="plan")
        report = probe(front, plan, folder / "client.jsonl")
    assert (report.recorded, proxy.tally.recorded, proxy.tally.lost) == (requests, requests, 0)
    return folder / "client.jsonl", folder / "proxy.jsonl"


def verdict(log, provider, reference):
    source = log_source((str(log),), "auto", provider.recipe, None)
    return verify(source, reference, find_profile=profile_finder(()), alpha=0.001)


def test_honest_provider_is_consistent(provider, reference, tmp_path):
    client, proxy = probed(provider, "honest", 30, tmp_path)
    result = verdict(proxy, provider, reference)
    assert (result.outcome, result.errors) == ("consistent", ())
    assert result.outside == 0
    by_seed = {trace.seed: trace for trace in read_traces(proxy)}
    for trace in read_traces(client):
        twin = by_seed[trace.seed]
        assert (trace.output_token_ids, trace.text) == (twin.output_token_ids, twin.text)
        assert trace.prompt_token_ids == twin.prompt_token_ids
        assert trace.usage.completion_tokens == len(trace.output_token_ids)


def test_deviating_provider_is_inconsistent_in_both_logs(provider, reference, tmp_path):
    for log in probed(provider, "seed/wrong", 6, tmp_path):
        assert verdict(log, provider, reference).outcome == "inconsistent"
