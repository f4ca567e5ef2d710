"""The control bus: many sources put values, a frame samples all controls at its own time.

No thread and no clock: every time is passed in, seconds on one monotonic clock. What a source gives for a control is
smoothed when it comes (`one_euro`) and, at a frame's time, interpolated between its last two values or extrapolated,
at most by `Control.ahead` and by the distance of these two.

**Who holds a control.** Sources stand one over another: by priority, then by who began last. A source begins when it
gives a control that it had not given, or had lost. The top one holds the control (mode "set"; with a weight below 1 the
next shows through); values of mode "add", of any number of sources, are added to that. Below all lies idle life.

**Lost.** A value is kept for the timeout (1 s), then its source no longer counts. Whenever who holds a control changes,
what was shown fades into what is to be shown: nothing jumps.

**Bad values.** Not a finite number: refused. Outside its range: clamped. Unknown name: left out. Older than what is
there: refused; older by the timeout or more: the sender's clock is taken to have been set anew. Each is counted, `put`
answers with one line, and the rest of the message counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from .controls import ALIASES, CONTROLS, INDEX, NAMES
from .idle import Idle
from .one_euro import one_euro

__all__ = ["MOST_SOURCES", "Bus"]

MOST_SOURCES = 24
_FORGET = 10.0  # seconds after which a silent source makes room for another
_MOST_NAMES = 32  # unknown ones that are remembered, a source
_TAKE, _LEAVE = 0.15, 0.6  # seconds of the fade to a source, and to idle life

_LOW, _HIGH, _CUTOFF, _BETA, _AHEAD, _EASE, _TIMEOUT = np.array(
    [(c.low, c.high, c.cutoff, c.beta, c.ahead, c.ease, c.timeout) for c in CONTROLS]
).T
# A name -> the controls that it stands for, by index, and factors.
_PARTS = {name: ((i, 1.0),) for name, i in INDEX.items()} | {
    name: tuple((INDEX[other], factor) for other, factor in parts) for name, parts in ALIASES.items()
}


class _Source:
    """One source in one mode: for every control [CONTROLS] its last two values and when they are reached."""

    def __init__(self, name: str, mode: str, bit: int, priority: int, smooth: bool, timeout: float | None) -> None:
        n = len(CONTROLS)
        self.name, self.mode, self.bit, self.priority = name, mode, bit, priority
        self.cutoff = _CUTOFF if smooth else np.zeros(n)
        self.timeout = _TIMEOUT if timeout is None else np.full(n, timeout)
        self.low, self.high = (_LOW, _HIGH) if mode == "set" else (_LOW - _HIGH, _HIGH - _LOW)
        self.ranges = list(zip(self.low.tolist(), self.high.tolist(), strict=True))
        self.given, self.begun = np.full(n, -np.inf), np.zeros(n)  # when, and the how manieth to begin
        self.t0, self.t1, self.v0, self.v1, self.speed = np.zeros((5, n))
        self.weight, self.spacing = np.ones(n), np.full(n, np.inf)
        self.counts = dict.fromkeys(("messages", "values", "clamped", "refused", "unknown", "late"), 0)
        self.unknown: dict[str, int] = {}
        self.latest, self.said = -math.inf, ""

    def holds(self, t: float) -> np.ndarray:
        """Which controls [CONTROLS] it gave within the timeout; a time that is as far ahead holds nothing either."""
        return (np.abs(t - self.given) <= self.timeout) & (self.given > -np.inf)

    def at(self, t: float) -> np.ndarray:
        """float64 [CONTROLS], within range: between the last two values, or a little beyond them."""
        span = self.t1 - self.t0
        beyond = np.clip(t - self.t1, -span, np.minimum(_AHEAD, span))
        slope = np.divide(self.v1 - self.v0, span, out=np.zeros(len(span)), where=span > 0)
        return np.clip(self.v1 + slope * beyond, self.low, self.high)

    def read(self, values: Mapping[str, Any]) -> tuple[dict[int, float], list[str]]:
        """Values by index of their control, each finite and in range, and what was wrong with others."""
        told: dict[int, float] = {}
        clamped, refused, unknown = [], [], []
        for name, value in values.items():
            if (parts := _PARTS.get(name)) is None:
                unknown.append(name)
            elif value is None:
                self.given[[i for i, _ in parts]] = -np.inf
            elif (number := _number(value)) is None:
                refused.append(name)
            else:
                for i, factor in parts:
                    asked, (low, high) = factor * number, self.ranges[i]
                    told[i] = asked if low <= asked <= high else low if asked < low else high
                    if told[i] != asked:
                        clamped.append(name)
        for name in unknown:
            if name in self.unknown or len(self.unknown) < _MOST_NAMES:
                self.unknown[name[:64]] = self.unknown.get(name[:64], 0) + 1
        faults = []
        for kind, rule, names in (
            ("clamped", "held in their range", clamped), ("refused", "not finite numbers", refused),
            ("unknown", "no controls", unknown),
        ):  # fmt: skip
            self.counts[kind] += len(names)
            if names:
                faults.append(f"{rule}: {', '.join(name[:40] for name in names[:4])}" + ", ..." * (len(names) > 4))
        self.counts["values"] += len(told)
        return told, faults

    def take(self, t: float, i: np.ndarray, x: np.ndarray, weight: np.ndarray, began: int) -> None:
        """Values x of the controls i, at t seconds, not older than what is there but where the clock was set anew."""
        dt = t - self.given[i]
        anew = (dt > self.timeout[i]) | (dt < 0) | np.isinf(dt)
        onward = ~anew & (dt > 0)
        now = self.at(t)[i]
        past, step = self.v1[i], np.where(onward, dt, 1.0)
        eased = _EASE[i] * onward
        smoothed, speed = one_euro(x, past, self.speed[i], step, self.cutoff[i], _BETA[i])
        value = np.where(onward, smoothed, x)
        self.v0[i] = np.where(anew, x, np.where(eased > 0, now, np.where(onward, past, self.v0[i])))
        self.t0[i] = np.where(anew | (eased > 0), t, np.where(onward, self.t1[i], self.t0[i]))
        self.v1[i], self.t1[i] = value, t + eased
        self.speed[i] = np.where(onward, speed, np.where(anew, 0.0, self.speed[i]))
        self.begun[i] = np.where(anew | np.isinf(self.timeout[i]), began, self.begun[i])
        self.spacing[i] = np.where(
            onward, np.where(np.isinf(self.spacing[i]), step, 0.9 * self.spacing[i] + 0.1 * step), self.spacing[i]
        )
        self.given[i], self.weight[i] = t, weight


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


class Bus:
    """seed: of idle life. With idle=False, what nobody holds rests at 0."""

    def __init__(self, *, seed: int = 0, idle: bool = True) -> None:
        n = len(CONTROLS)
        self._idle = Idle(seed) if idle else None
        self._sources: dict[tuple[str, str], _Source] = {}
        self._joined: dict[str, tuple[int, bool, float | None]] = {}
        self._began = self._bit = 0
        self._last, self._shown, self._held = -math.inf, np.zeros(n), np.zeros(n, np.int64)
        self._offset, self._since, self._fade = np.zeros(n), np.full(n, -np.inf), np.full(n, _TAKE)

    def join(self, source: str, *, priority: int = 0, smooth: bool = True, timeout: float | None = None) -> None:
        """Say, before its first value, what a source is like; one that never joined has priority 0 and is smoothed.

        timeout  seconds instead of the table's; `math.inf` for a source whose values stay until it gives others or is
                 released: such a source begins anew with every value.
        """
        if timeout is not None and not timeout > 0:
            raise InputError("controls", "timeout must be a positive number of seconds", timeout)
        if source not in self._joined and len(self._joined) >= MOST_SOURCES:
            raise InputError("controls", f"at most {MOST_SOURCES} sources at once may join", source)
        self._joined[source] = (priority, smooth, timeout)

    def put(
        self, source: str, t: float, values: Mapping[str, Any], *,
        mode: str = "set", weights: Mapping[str, float] | None = None,
    ) -> str | None:  # fmt: skip
        """Values that a source gives at t seconds. None, or one line saying what of them was not taken as it came.

        values   by name; None lets go of the control: it goes to the next source
        mode     set, or add: a value of -range..range added to what the holder gives. Others raise InputError
        weights  of mode set, in 0..1 by name: how much of a value counts over what is below; 1 where not given
        """
        if mode not in ("set", "add"):
            raise InputError("controls", "mode must be set or add", mode)
        if _number(t) is None:
            return f"[controls] {source[:40]}: times must be finite numbers, got {str(t)[:40]}"
        one = self._sources.get((source, mode)) or self._enter(source, mode, t)
        if one is None:
            return f"[controls] {source[:40]}: there are {MOST_SOURCES} sources, and none is silent"
        told, faults = one.read(values)
        i, x = np.array(list(told), np.intp), np.array(list(told.values()))
        older = one.given[i] - t
        if (late := (older > 0) & (older < np.minimum(one.timeout[i], 1.0))).any():
            one.counts["late"] += int(late.sum())
            faults.append(f"older than what is there: {int(late.sum())}")
            i, x = i[~late], x[~late]
        if i.size:
            self._began += 1
            one.take(t, i, x, _weights(weights, i), self._began)
        one.counts["messages"] += 1
        one.latest = t
        one.said = f"[controls] {source[:40]}: {'; '.join(faults)}" if faults else ""
        return one.said or None

    def release(self, source: str) -> None:
        """The source is gone: what it held goes to the next one."""
        for mode in ("set", "add"):
            self._sources.pop((source, mode), None)
        self._joined.pop(source, None)

    def sample(self, t: float) -> np.ndarray:
        """All controls at t seconds: float32 [CONTROLS]. Times of samples do not go back (InputError)."""
        if not t >= self._last:
            raise InputError("controls", f"a frame is not before the last one, {self._last} s", t)
        active = [(one, on) for one in self._sources.values() if (on := one.holds(t)).any()]
        target, held = self._stack(t, active)
        if (changed := held != self._held).any() and math.isfinite(self._last):
            before, _ = self._stack(self._last, active)
            self._offset = np.where(changed, self._shown - before, self._offset)
            self._since = np.where(changed, self._last, self._since)
            self._fade = np.where(changed, np.where(held == 0, _LEAVE, _TAKE), self._fade)
        self._shown = target + self._offset * (1 - _smooth((t - self._since) / self._fade))
        self._last, self._held = t, held
        return np.clip(self._shown, _LOW, _HIGH).astype(np.float32)

    def snapshot(self, t: float) -> dict[str, Any]:
        """What a monitor shows at t seconds: every control's value, who holds it, the age and rate (1/s) of that; every
        source's counts, unknown names and last line. Changes nothing."""
        holding = [(one, one.holds(t)) for one in self._sources.values()]
        values = np.clip(self._shown, _LOW, _HIGH)
        rows = []
        for i, control in enumerate(CONTROLS):
            here = [one for one, on in holding if on[i]]
            sets = [one for one in here if one.mode == "set"]
            top = max(sets, key=lambda one: (one.priority, one.begun[i]), default=None)
            rows.append({
                "name": control.name, "value": float(values[i]), "low": control.low, "high": control.high,
                "source": top.name if top else None, "added": [one.name for one in here if one.mode == "add"],
                "age": t - float(top.given[i]) if top else None, "rate": 1 / float(top.spacing[i]) if top else 0.0,
            })  # fmt: skip
        sources = [
            {"name": one.name, "mode": one.mode, "priority": one.priority, "age": t - one.latest, **one.counts,
             "names": dict(one.unknown), "said": one.said}
            for one, _ in holding
        ]  # fmt: skip
        return {"controls": rows, "sources": sources}

    def _enter(self, source: str, mode: str, t: float) -> _Source | None:
        if len(self._sources) >= MOST_SOURCES:
            oldest = min(self._sources, key=lambda key: self._sources[key].latest)
            if oldest[0] in self._joined or t - self._sources[oldest].latest < _FORGET:
                return None
            del self._sources[oldest]
        used = {one.bit for one in self._sources.values()}
        while 1 << self._bit in used:
            self._bit = (self._bit + 1) % 60
        one = _Source(source, mode, 1 << self._bit, *self._joined.get(source, (0, True, None)))
        self._bit = (self._bit + 1) % 60
        self._sources[source, mode] = one
        return one

    def _stack(self, t: float, active: Iterable[tuple[_Source, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """[CONTROLS]: what is to be shown at t, and the bits of the sources that it is made of."""
        shown = self._idle.at(t) if self._idle else np.zeros(len(CONTROLS))
        held = np.zeros(len(CONTROLS), np.int64)
        sets = [(one, on) for one, on in active if one.mode == "set"]
        if len(sets) == 1:  # as most often: nothing to sort
            one, on = sets[0]
            shown = np.where(on, shown + one.weight * (one.at(t) - shown), shown)
            held = np.where(on, one.bit, held)
        elif sets:
            rank = np.stack([np.where(on, one.priority * 1e12 + one.begun, -np.inf) for one, on in sets])
            values, weights = np.stack([one.at(t) for one, _ in sets]), np.stack([one.weight for one, _ in sets])
            bits, every = np.array([one.bit for one, _ in sets]), np.arange(len(CONTROLS))
            for row in np.argsort(rank, axis=0):  # [CONTROLS]: of each control one source, the lowest first
                on, weight = rank[row, every] > -np.inf, weights[row, every]
                shown = np.where(on, shown + weight * (values[row, every] - shown), shown)
                held = np.where(on, np.where(weight >= 1, bits[row], held | bits[row]), held)
        for one, on in active:
            if one.mode == "add":
                shown = shown + on * one.at(t)
                held = held | on * one.bit
        return shown, held


def _weights(weights: Mapping[str, float] | None, i: np.ndarray) -> np.ndarray:
    """Of the controls i; what is no number in 0..1 counts as 1."""
    if not weights:
        return np.ones(len(i))
    given = (_number(weights.get(NAMES[k], 1.0)) for k in i)
    return np.array([min(max(1.0 if w is None else w, 0.0), 1.0) for w in given])
