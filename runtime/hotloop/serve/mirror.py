"""The control bus of a session, in the listening process: what is put into it is put into the worker's as well.

So a frame samples controls at its own time without a question to another process, and a worker that has been started
again is told what still counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..live.bus import Bus

__all__ = ["Mirror", "replay"]

_FRESH = 1.0  # seconds: what is older is lost anyway, unless its source has no timeout


class Mirror(Bus):
    """forward: called with every deed, a message for `replay`."""

    def __init__(self, forward: Callable[[dict[str, Any]], object], *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._forward = forward
        self._said: dict[str, dict[str, Any]] = {}  # joins, by source
        self._values: dict[tuple[str, str], dict[str, tuple[float, Any, float]]] = {}  # name -> when, value, weight

    def join(self, source: str, *, priority: int = 0, smooth: bool = True, timeout: float | None = None) -> None:
        super().join(source, priority=priority, smooth=smooth, timeout=timeout)
        lasting = timeout == math.inf
        told = {"bus": "join", "source": source, "priority": priority, "smooth": smooth,
                "timeout": None if lasting else timeout, "lasting": lasting}  # fmt: skip
        self._said[source] = told
        self._forward(told)

    def put(
        self, source: str, t: float, values: Mapping[str, Any], *,
        mode: str = "set", weights: Mapping[str, float] | None = None, captured: bool = False,
    ) -> str | None:  # fmt: skip
        """captured: t is when the sender sent it, not when it came."""
        line = super().put(source, t, values, mode=mode, weights=weights)
        kept = self._values.setdefault((source, mode), {})
        if len(kept) < 512:
            kept.update({name: (t, value, (weights or {}).get(name, 1.0)) for name, value in values.items()})
        self._forward({"bus": "put", "source": source, "t": t, "values": dict(values), "mode": mode,
                       "weights": dict(weights) if weights else None, "captured": captured})  # fmt: skip
        return line

    def release(self, source: str) -> None:
        super().release(source)
        self._said.pop(source, None)
        self._values = {key: values for key, values in self._values.items() if key[0] != source}
        self._forward({"bus": "release", "source": source})

    def repeat(self, now: float) -> None:
        """Forward all that still counts."""
        for told in self._said.values():
            self._forward(told)
        for (source, mode), kept in self._values.items():
            lasting = self._said.get(source, {}).get("lasting", False)
            live = {name: one for name, one in kept.items() if lasting or now - one[0] < _FRESH}
            if live:
                self._forward({
                    "bus": "put", "source": source, "t": max(one[0] for one in live.values()), "mode": mode,
                    "captured": False, "values": {name: one[1] for name, one in live.items()},
                    "weights": {name: one[2] for name, one in live.items()},
                })  # fmt: skip


def replay(bus: Bus, told: Mapping[str, Any]) -> None:
    """In the worker: the deed that a message tells of."""
    if told["bus"] == "join":
        timeout = math.inf if told["lasting"] else told["timeout"]
        bus.join(told["source"], priority=told["priority"], smooth=told["smooth"], timeout=timeout)
    elif told["bus"] == "put":
        bus.put(told["source"], told["t"], told["values"], mode=told["mode"], weights=told["weights"])
    else:
        bus.release(told["source"])
