"""When the frames of an animated session begin."""

from __future__ import annotations

import math

__all__ = ["Beat"]


class Beat:
    """When frames begin: on the beat of a rate, which follows the signals that come.

    A signal begins a frame at once where the last one is three quarters of an interval ago, and after a frame with a
    signal the next one waits a quarter longer for the next signal: signals at the frames' rate so find a frame that
    waits for them, not one that has just begun. Frames may be an interval ahead of the rate in all, which is forgotten
    slowly: on the long run they come at most a thirtieth faster.
    """

    _SLACK, _FORGET = 0.25, 1 / 32  # of an interval; of what they are ahead, with each frame

    def __init__(self, interval: float) -> None:
        self.interval, self.due = interval, -math.inf
        self._last = -math.inf
        self._ahead = 0.0  # seconds

    def next(self, called: bool) -> float:
        """When the next frame begins; called: a signal waits for it."""
        if not called:
            return self.due
        return min(self.due, self._last + max(self._ahead, (1 - self._SLACK) * self.interval))

    def began(self, now: float, called: bool) -> None:
        """A frame has; late ones are left out, not caught up with."""
        interval = self.interval
        at = now if now < self.due else max(self.due, now - interval / 2)
        ahead = self._ahead * (1 - self._FORGET) + interval - (at - self._last)
        self._ahead = min(max(ahead, 0.0), interval)
        self._last, self.due = at, at + interval * (1 + self._SLACK * called)
