"""The Server scenario against queueing theory and by hand, on a clock that does not tick by itself."""

from __future__ import annotations

import numpy as np
import pytest
from scenarios import arrivals, serve


class Worker:
    """Draws in a fixed time per call and per picture; sleeping and drawing move its clock on."""

    def __init__(self, per_call: float, per_picture: float = 0.0) -> None:
        self.now, self.per_call, self.per_picture = 100.0, per_call, per_picture
        self.batches: list[int] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def draw(self, count: int) -> None:
        self.batches.append(count)
        self.now += self.per_call + count * self.per_picture


def run(worker: Worker, rate: float, count: int, **keywords: object):
    return serve(worker.draw, rate, count, clock=worker.clock, sleep=worker.sleep, **keywords)  # type: ignore[arg-type]


def test_gaps_between_arrivals_are_exponential_and_the_trace_repeats():
    due = arrivals(4.0, 20_000, seed=3)
    gaps = np.diff(due)
    assert due[0] == 0 and np.array_equal(due, arrivals(4.0, 20_000, seed=3))
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.03) and gaps.std() == pytest.approx(1 / 4, rel=0.03)
    assert np.mean(gaps > 0.5) == pytest.approx(np.exp(-2), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_the_mean_wait_is_that_of_a_queue_with_one_server_and_fixed_service(load):
    """Pollaczek and Khinchine for M/D/1: the mean wait is load / (2 (1 - load)) services."""
    served = run(Worker(1.0), load, 40_000, seed=1)
    assert served.latencies.mean() - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.08)
    assert served.achieved == pytest.approx(load, rel=0.03)


def test_a_request_that_never_waits_takes_one_service():
    served = run(Worker(0.1), 0.001, 50)
    assert served.latencies == pytest.approx(np.full(50, 0.1), rel=1e-6)
    assert served.longest == 1 and served.batches == 50


def test_what_waits_is_drawn_together_up_to_the_largest_batch():
    alone, together = Worker(1.0), Worker(1.0)
    one, four = run(alone, 2.0, 200), run(together, 2.0, 200, max_batch=4)
    assert set(alone.batches) == {1} and max(together.batches) == 4 and sum(together.batches) == 200
    assert four.p99 < one.p99 / 5


def test_the_bound_is_on_the_99th_percentile():
    served = run(Worker(1.0), 0.5, 1000)
    assert served.keeps(served.p99) and not served.keeps(served.p99 * 0.999)
    assert served.metrics()["latency"]["p99"] == served.p99
    assert served.extra(2.0)["bound_met"] == (served.p99 <= 2.0)


@pytest.mark.parametrize(("rate", "count"), [(0, 5), (-1, 5), (1, 0)])
def test_a_rate_or_a_count_that_is_not_positive_is_refused(rate, count):
    with pytest.raises(ValueError, match=r"\[scenarios\] rate and count must be positive"):
        arrivals(rate, count)
