"""Prometheus metrics: requests of this service's processes, and its standing, which is read when asked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import Scope

from auditor.service.standing import standing

if TYPE_CHECKING:
    from auditor.api.service import Service

SHARED_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The library's: names the folder where processes that answer together count, each in files of its own."""
_requests = CollectorRegistry()
_answered = Counter("audit_http_requests", "Answers.", ["method", "route", "status"], registry=_requests)
_seconds = Histogram("audit_http_seconds", "Time to answer.", ["method", "route"], registry=_requests)


class _ServiceMetrics(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        with self._service.store.transaction() as connection:
            found = standing(connection)
        jobs = GaugeMetricFamily("audit_jobs", "Jobs by state.", labels=["state"])
        for state, count in found.jobs.items():
            jobs.add_metric([state], count)
        verdicts = CounterMetricFamily("audit_verdicts", "Verdicts given.", labels=["outcome"])
        for outcome, count in found.verdicts.items():
            verdicts.add_metric([outcome], count)
        yield jobs
        yield verdicts
        yield CounterMetricFamily("audit_lost_leases", "Leases lost.", value=found.lost_leases)
        yield CounterMetricFamily("audit_failed_attempts", "Attempts in error.", value=found.failed_attempts)
        yield GaugeMetricFamily(
            "audit_queue_age_seconds", "Wait of the oldest queued job.", found.oldest_due_seconds
        )
        yield GaugeMetricFamily(
            "audit_unplaced_log_entries", "Entries that no tree holds yet.", found.unplaced_entries
        )


class _Both(CollectorRegistry):
    """The process's own registry and one that is read from the database."""


def registry_of(service: Service) -> CollectorRegistry:
    """Everything to be told."""
    registry = _Both()
    registry.register(_ServiceMetrics(service))
    if SHARED_VARIABLE in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(_Requests())
    return registry


class _Requests(Collector):
    def collect(self) -> Iterator[Metric]:
        yield from _requests.collect()


def route_of(scope: Scope) -> str:
    """The route that answers a request, with its parameters' names instead of their values."""
    return str(getattr(scope.get("route"), "path", "none"))


def method_of(scope: Scope) -> str:
    """The method of a request, if it is one that is known."""
    return scope["method"] if scope["method"] in ("GET", "POST", "PUT", "PATCH", "DELETE") else "other"


def count_answer(scope: Scope, status: int, started: float) -> None:
    """Count and time an answer by route, never by path (a path names things of tenants)."""
    route, method = route_of(scope), method_of(scope)
    _answered.labels(method, route, str(status)).inc()
    _seconds.labels(method, route).observe(time.perf_counter() - started)
