"""How requests come: MLPerf Inference's scenarios (Reddi et al. 2020, section 3) for pictures.

SingleStream  the next request when the last is done: latency. `harness.compare` with one item per call.
Offline       all requests at once, in batches: throughput. `harness.compare` with a batch per call.
Server        requests come by themselves, as a Poisson process; what counts is the time from a request's arrival to its
              picture, the wait in the queue included, and the highest rate at which its 99th percentile keeps a bound.

`serve` here is the third: one worker takes what waits, first come first served, up to a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotloop.evaluation.records import block

__all__ = ["Served", "arrivals", "serve"]


def arrivals(rate: float, count: int, *, seed: int = 0) -> np.ndarray:
    """Seconds at which requests come, from 0 on: a Poisson process of `rate` per second, the same for every seed."""
    if rate <= 0 or count < 1:
        raise ValueError(f"[scenarios] rate and count must be positive, got {rate} and {count}")
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return np.cumsum(gaps) - gaps[0]


@dataclass(frozen=True)
class Served:
    """What a worker made of a trace of requests.

    latencies  seconds from arrival to picture, in order of arrival
    span       seconds from the first arrival to the last picture
    longest    most requests that waited at once
    batches    calls made
    """

    rate: float
    latencies: np.ndarray
    span: float
    longest: int
    batches: int

    @property
    def achieved(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.span

    @property
    def p99(self) -> float:
        return float(np.percentile(self.latencies, 99))

    def keeps(self, bound: float) -> bool:
        """Whether the 99th percentile of the latency is within `bound` seconds."""
        return self.p99 <= bound

    def metrics(self) -> dict[str, dict[str, Any]]:
        return {
            "latency": block("s", self.latencies),
            "throughput": block("1/s", [self.achieved], keep=False),
        }

    def extra(self, bound: float) -> dict[str, Any]:
        """What a record of a Server run holds beside its metrics."""
        return {
            "offered_rate": self.rate,
            "achieved_rate": self.achieved,
            "bound_seconds": bound,
            "bound_met": self.keeps(bound),
            "longest_queue": self.longest,
            "calls": self.batches,
        }


def serve(
    draw: Callable[[int], Any],
    rate: float,
    count: int,
    *,
    max_batch: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """Let `count` requests come at `rate` per second to one worker.

    draw: makes this many pictures and returns when they are there. max_batch: the most it is given at once; fewer when
    fewer wait: a request never waits for company.
    """
    due = arrivals(rate, count, seed=seed)
    done = np.empty(count)
    began = clock()
    longest = batches = i = 0
    while i < count:
        now = clock() - began
        if now < due[i]:
            sleep(due[i] - now)
            now = due[i]
        waiting = int(np.searchsorted(due, now, side="right")) - i
        longest = max(longest, waiting)
        take = min(waiting, max_batch)
        draw(take)
        done[i : i + take] = clock() - began
        batches += 1
        i += take
    return Served(rate, done - due, float(done[-1] - due[0]), longest, batches)
