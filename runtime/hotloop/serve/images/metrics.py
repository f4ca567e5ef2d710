"""What a server of pictures tells Prometheus: names begin with hotloop_, times are in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .ledger import OUTCOMES, Ticket

if TYPE_CHECKING:
    from .part import Images

__all__ = ["FAMILIES", "Metrics"]

FAMILIES = ("openai", "a1111", "huggingface", "native")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STATES = ("starting", "ready", "down", "stopped", "ended")


class Metrics:
    """One server's own; nothing is kept in the module."""

    def __init__(self, part: Images) -> None:
        self.registry = CollectorRegistry()
        self._part = part
        self._whole, self._queued, self._drawn = (
            Histogram(f"hotloop_{name}_seconds", help, ["family"], registry=self.registry, buckets=_SECONDS)
            for name, help in (
                ("request", "From a request's arrival to its end"), ("queue", "That a request waited for a worker"),
                ("worker", "That a worker had a request"),
            )
        )  # fmt: skip
        self.registry.register(self)

    def ended(self, ticket: Ticket, now: float) -> None:
        times = ticket.times
        self._whole.labels(ticket.family).observe(now - ticket.begun)
        if "queued" in times:
            self._queued.labels(ticket.family).observe(times.get("running", now) - times["queued"])
        if "running" in times:
            self._drawn.labels(ticket.family).observe(times.get("answering", now) - times["running"])

    def collect(self) -> Iterator[Any]:
        part = self._part
        ledger, pool = part.ledger, part.pool
        received = CounterMetricFamily("hotloop_requests_received", "Requests for pictures", labels=["family"])
        outcomes = CounterMetricFamily("hotloop_requests_ended", "By outcome", labels=["family", "outcome"])
        for family in FAMILIES:
            received.add_metric([family], ledger.received[family])
            for outcome in OUTCOMES:
                outcomes.add_metric([family, outcome], ledger.outcomes[family, outcome])
        yield received
        yield outcomes
        balance = ledger.balance()
        for name, help in (("inflight", "Requests between arrival and end that do not wait"),
                           ("queued", "Requests that wait for a worker")):  # fmt: skip
            yield GaugeMetricFamily(f"hotloop_requests_{name}", help, value=balance[name])
        yield GaugeMetricFamily(
            "hotloop_requests_unaccounted", "received - ended - inflight - queued: always 0", balance["difference"]
        )
        yield CounterMetricFamily("hotloop_requests_ended_twice", "A fault: always 0", value=ledger.twice)
        yield GaugeMetricFamily("hotloop_service_seconds", "A request's time in a worker, lately", pool.seconds)
        yield GaugeMetricFamily("hotloop_draining", "Whether the server is ending", float(pool.draining))
        state = GaugeMetricFamily("hotloop_worker_state", "1 for the state it is in", labels=["worker", "state"])
        restarts = CounterMetricFamily("hotloop_worker_restarts", "Workers started again", labels=["worker"])
        memory = GaugeMetricFamily("hotloop_worker_resident_bytes", "Memory in use", labels=["worker"])
        cpu = CounterMetricFamily("hotloop_worker_cpu_seconds", "Processor time of the present one", labels=["worker"])
        waiting = GaugeMetricFamily("hotloop_worker_queued", "Requests that wait for it", labels=["worker"])
        running = GaugeMetricFamily("hotloop_worker_running", "Requests that it draws", labels=["worker"])
        for worker in pool.workers:
            label, one = [str(worker.number)], worker.supervisor
            for which in _STATES:
                state.add_metric([*label, which], float(one.state == which))
            restarts.add_metric(label, max(0, one.restarts))
            memory.add_metric(label, one.beat.get("rss", 0))
            cpu.add_metric(label, one.beat.get("cpu", 0))
            waiting.add_metric(label, len(worker.queue))
            running.add_metric(label, len(worker.running))
        yield from (state, restarts, memory, cpu, waiting, running)
