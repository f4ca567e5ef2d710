"""Holds the deadline: one ladder of cheaper and cheaper ways to make a frame, and the rules of going down and up.

Down one rung: 2 misses in 30 frames. Up one: 3 s without a move or a miss, and the rung above is predicted to cost less
than 70 % of the interval. A rung that was left again soon after it was taken must wait twice as long each time, so that
a wrong prediction does not make the picture swing. A rung that was not warmed is never taken. Every move is counted and
has a reason.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import InputError

__all__ = ["Governor", "Move", "Rung", "animate_ladder", "restyle_ladder"]

MISSES, FRAMES = 2, 30
QUIET, SHARE = 3.0, 0.7
_PATIENCE = 64  # times QUIET at most
_KEPT = 64


@dataclass(frozen=True)
class Rung:
    """A way to make frames: what it changes of the settings, and the intervals that a frame of it may take."""

    name: str
    changes: Mapping[str, Any]
    intervals: int = 1


class Move(NamedTuple):
    at: float
    left: str
    taken: str
    reason: str


def restyle_ladder(
    steps: int, side: int, *, tiny: bool = False, sides: Sequence[int] = (128, 96, 64)
) -> tuple[Rung, ...]:
    """From what was asked for down: evaluations 4 -> 2 -> 1, size 128 -> 96 -> 64, the tiny VAE, half the frame rate.

    Each rung keeps what the ones above it have given up.
    """
    changes: dict[str, Any] = {"num_inference_steps": steps, "width": side, "height": side}
    rungs = [Rung("asked", dict(changes))]
    for fewer in (n for n in (4, 2, 1) if n < steps):
        changes["num_inference_steps"] = fewer
        rungs.append(Rung(f"rows {fewer}", dict(changes)))
    for smaller in (n for n in sides if n < side):
        changes |= {"width": smaller, "height": smaller}
        rungs.append(Rung(f"size {smaller}", dict(changes)))
    if tiny:
        changes["vae"] = "tiny"
        rungs.append(Rung("tiny VAE", dict(changes)))
    rungs.append(Rung("half rate", dict(changes), intervals=2))
    return tuple(rungs)


def animate_ladder(side: int, *, painting: bool, smaller: int = 384) -> tuple[Rung, ...]:
    """From what was asked for down: keyframes paused (where some are drawn), 512 -> 384, half the frame rate.

    Each rung keeps what the ones above it have given up.
    """
    changes: dict[str, Any] = {"side": side}
    rungs = [Rung("asked", dict(changes))]
    if painting:
        changes["paused"] = True
        rungs.append(Rung("keyframes paused", dict(changes)))
    if side > smaller:
        changes["side"] = smaller
        rungs.append(Rung(f"size {smaller}", dict(changes)))
    return (*rungs, Rung("half rate", dict(changes), intervals=2))


class Governor:
    """Of one session. interval: seconds between frames.

    `warm` tells what a rung cost when it was tried; `frame` tells of every frame and gives a move if one is due.
    Raises InputError for a ladder without rungs, or whose first is cold when the first frame comes.
    """

    def __init__(self, ladder: Sequence[Rung], interval: float) -> None:
        if not ladder:
            raise InputError("live.governor", "a ladder must have a rung", 0)
        self.ladder, self.interval = tuple(ladder), interval
        self._costs: dict[int, float] = {}
        self._at = 0
        self._recent: deque[bool] = deque(maxlen=FRAMES)
        self._seen: deque[tuple[float, float]] = deque()  # (when, cost) since the last move, of the last QUIET seconds
        self._quiet_since: float | None = None
        self._patience: dict[int, int] = {}  # rung -> how many times QUIET it must wait for
        self._taken_at: float | None = None  # when it was gone up to where we are
        self.moves: deque[Move] = deque(maxlen=_KEPT)
        self.counts: Counter[tuple[str, str]] = Counter()

    @property
    def rung(self) -> Rung:
        return self.ladder[self._at]

    def stand(self, name: str) -> None:
        """Take the rung of this name because someone else decided so."""
        self._at = next(i for i, rung in enumerate(self.ladder) if rung.name == name)

    def warm(self, rung: Rung, cost: float) -> None:
        """This rung has been run, and a frame took so many seconds."""
        self._costs[self.ladder.index(rung)] = cost

    def frame(self, now: float, cost: float, *, missed: bool | None = None) -> Move | None:
        """A frame was made: the seconds it cost, and whether it missed its deadline (by default: cost > interval)."""
        if self._at not in self._costs:
            raise InputError("live.governor", "a rung must be warmed before frames are made on it", self.rung.name)
        allowed = self.interval * self.rung.intervals
        late = cost > allowed if missed is None else missed
        self._recent.append(late)
        self._seen.append((now, cost))
        while self._seen[0][0] < now - QUIET:
            self._seen.popleft()
        if self._quiet_since is None or late:
            self._quiet_since = now
        if sum(self._recent) >= MISSES:
            return self._down(now)
        return self._up(now)

    def _down(self, now: float) -> Move | None:
        below = next((i for i in range(self._at + 1, len(self.ladder)) if i in self._costs), None)
        if below is None:
            return None
        patience = self._patience.get(self._at, 1)
        if self._taken_at is not None:  # gone up to, and now left again
            lasted = now - self._taken_at
            soon = lasted < 2 * QUIET * patience
            self._patience[self._at] = min(2 * patience, _PATIENCE) if soon else 1
        reason = f"{sum(self._recent)} of the last {len(self._recent)} frames missed their deadline"
        self._taken_at = None
        return self._move(now, below, reason)

    def _up(self, now: float) -> Move | None:
        above = next((i for i in range(self._at - 1, -1, -1) if i in self._costs), None)
        if above is None or self._quiet_since is None:
            return None
        if now - self._quiet_since < QUIET * self._patience.get(above, 1):
            return None
        costs = sorted(cost for _, cost in self._seen)
        usual = costs[math.ceil(0.9 * len(costs)) - 1]
        predicted = usual * self._costs[above] / self._costs[self._at]
        allowed = self.interval * self.ladder[above].intervals
        if predicted >= SHARE * allowed:
            return None
        self._taken_at = now
        return self._move(now, above, f"predicted {1e3 * predicted:.1f} ms of {1e3 * allowed:.1f} ms")

    def _move(self, now: float, to: int, reason: str) -> Move:
        move = Move(now, self.rung.name, self.ladder[to].name, reason)
        self._at, self._quiet_since = to, now
        self._recent.clear()
        self._seen.clear()
        self.moves.append(move)
        self.counts[move.left, move.taken] += 1
        return move
