"""How many frames may be in flight: a rolling batch trades latency for frames a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..batch import Batch
from .conditions import Prepared

__all__ = ["choose_depth", "step_costs"]

_DEPTHS = (1, 2, 4)
_TIMES = 3
_WORTH = 0.05  # more frames a second that more latency would be worth


def choose_depth(costs: Mapping[int, float], evaluations: int, interval: float) -> tuple[int, float]:
    """The smallest depth that makes frames often enough -> (depth, the seconds of latency that it adds over depth 1).

    costs: rows in a step -> its seconds, with 1 among them. At depth d a frame comes every E / d steps of d rows, and
    each takes E of them. Where none is fast enough, the smallest that makes nearly as many frames as any.
    """
    periods = {d: evaluations / d * cost for d, cost in sorted(costs.items()) if 1 <= d <= evaluations}
    fast = [d for d, period in periods.items() if period <= interval]
    most = (1 + _WORTH) * min(periods.values())
    depth = fast[0] if fast else next(d for d, period in periods.items() if period <= most)
    return depth, evaluations * (costs[depth] - costs[1])


def step_costs(prepared: Prepared, clock: Callable[[], float]) -> dict[int, float]:
    """Rows in a step -> the seconds of the fastest of some, as timed now on the engines of these settings."""
    leg, costs = prepared.legs[-1], {}
    noise = prepared.mix.steps if leg.table.noises else None
    with Batch() as batch:
        for depth in (d for d in _DEPTHS if d <= prepared.evaluations):
            times = []
            for _ in range(_TIMES + 1):  # the first also allocates
                for slot in range(depth):
                    batch.admit(slot, prepared.cond(leg, prepared.mix), leg.table, prepared.mix.start,
                                weights=prepared.networks, guidance=prepared.guidance, noise=noise)  # fmt: skip
                began = clock()
                batch.step()
                times.append(clock() - began)
                for slot in range(depth):
                    batch.retire(slot)
            costs[depth] = min(times[1:])
    return costs
