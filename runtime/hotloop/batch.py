"""Several runs at once, each on its own row: what live sessions and served requests share their engines through.

    with Batch() as batch:
        batch.admit("a", cond, table, x, weights=pipe.networks, guidance=2.5)
        ...                                   # others come and go between any two steps
        while "a" not in batch.step(): ...
        latents = batch.retire("a")[0]        # [1, C, h, w]

No arithmetic crosses rows: a slot's result never depends on what its neighbours hold. Slots are of one group where they
can share a call: the same weights, shape and conditions, so also guidance on or off. How a group runs depends on its
denoiser:

* side by side: a small network on the CPU runs every slot in a batch-1 context of its own, which is the one that the
  slot would have alone; the result is that of `loop.run` bit for bit.
* in a bucket: others run in one call of 1, 2, 4 or 8 images, free places padded with zeros. The tables of the slots
  stand one after another, and a slot's row is its table's first + its own. A slot keeps its place; in one bucket and
  place its bits are the same whoever the neighbours are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hotloop_kernels import cfg_step, usable_cores

from .checks import check_array
from .denoiser import Denoiser, DeviceDenoiser, Inpaint
from .errors import InputError
from .process import after_fork
from .samplers.table import K, StepTable, stacked

__all__ = ["BUCKETS", "Batch", "Place", "Weights"]

F32 = NDArray[np.float32]
BUCKETS = (1, 2, 4, 8)


class Weights(Protocol):
    """What denoisers are made from; the very same object is the same weights. `Networks` is one."""

    def denoiser(self) -> Denoiser: ...


class Place(NamedTuple):
    """Where a slot runs: images in its group's call, and which of them it is."""

    bucket: int
    slot: int


@dataclass(eq=False)
class _Run:
    """A slot: what `loop.run` holds of one image, and how far it is."""

    slot: Hashable
    cond: Mapping[str, np.ndarray]
    table: StepTable
    state: F32  # [K + 1, 1, C, h, w]
    guidance: F32  # [1]
    noise: F32 | None
    blend: Mapping[str, Any]
    deadline: float
    row: int = 0
    draws: int = 0

    @property
    def ended(self) -> bool:
        return self.row == len(self.table)

    def take(self, m_c: F32, m_u: F32 | None) -> None:
        """One row: m_c, m_u [1, C, h, w]."""
        table, z = self.table, None
        if table.draws[self.row]:
            assert self.noise is not None, "admit() has seen to it"
            z = self.noise[self.draws]
            self.draws += 1
        cfg_step(
            self.state, m_c, m_u, np.array([self.row], np.int32), self.guidance, table.update, table.p_x, table.p_m,
            z=z, residual=table.residual, **self.blend,
        )  # fmt: skip
        self.row += 1


class _Group(Protocol):
    runs: list[_Run]
    turn: int

    def room(self) -> bool: ...

    def add(self, run: _Run) -> None: ...

    def remove(self, run: _Run) -> None: ...

    def place(self, run: _Run) -> Place: ...

    def step(self) -> None: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class _SideBySide:
    """Every run has a denoiser, and with it a context, of its own."""

    weights: Weights
    spare: list[Denoiser]
    runs: list[_Run] = field(default_factory=list)
    turn: int = 0
    own: dict[_Run, Denoiser] = field(default_factory=dict)

    def room(self) -> bool:
        return True

    def add(self, run: _Run) -> None:
        denoiser = self.spare.pop() if self.spare else self.weights.denoiser()
        try:
            denoiser.begin(run.cond, run.table, run.state.shape[1:])
        except BaseException:
            self.spare.append(denoiser)
            raise
        self.own[run] = denoiser
        self.runs.append(run)

    def remove(self, run: _Run) -> None:
        self.runs.remove(run)
        self.spare.append(self.own.pop(run))

    def place(self, run: _Run) -> Place:
        return Place(1, 0)

    def step(self) -> None:
        _in_lanes([lambda run=run: self._one(run) for run in self.runs if not run.ended])  # type: ignore[misc]

    def _one(self, run: _Run) -> None:
        run.take(*self.own[run].step(run.state[0], np.array([run.row], np.int32)))

    def close(self) -> None:
        for denoiser in (*self.spare, *self.own.values()):
            _release(denoiser)


@dataclass(eq=False)
class _Bucket:
    """One denoiser for as many runs as the largest bucket holds."""

    denoiser: Denoiser
    runs: list[_Run] = field(default_factory=list)
    turn: int = 0
    places: list[_Run | None] = field(default_factory=list)
    firsts: dict[int, int] = field(default_factory=dict)  # id of a table -> its first row
    changed: bool = True

    def room(self) -> bool:
        return len(self.runs) < BUCKETS[-1]

    def add(self, run: _Run) -> None:
        if None not in self.places:
            size = next(size for size in BUCKETS if size > len(self.places))
            self.places += [None] * (size - len(self.places))
        self.places[self.places.index(None)] = run
        self.runs.append(run)
        self.changed = True

    def remove(self, run: _Run) -> None:
        self.runs.remove(run)
        self.places[self.places.index(run)] = None
        if not self.runs:
            self.places = []
        self.changed = True

    def place(self, run: _Run) -> Place:
        return Place(len(self.places), self.places.index(run))

    def step(self) -> None:
        if self.changed:
            self._begin()
        shape = self.runs[0].state.shape[2:]
        x, rows = np.zeros((len(self.places), *shape), np.float32), np.zeros(len(self.places), np.int32)
        for i, run in enumerate(self.places):
            if run is not None:
                x[i] = run.state[0, 0]
                rows[i] = self.firsts[id(run.table)] + min(run.row, len(run.table) - 1)
        m_c, m_u = self.denoiser.step(x, rows)
        for i, run in enumerate(self.places):
            if run is not None and not run.ended:
                run.take(m_c[i : i + 1], None if m_u is None else m_u[i : i + 1])

    def _begin(self) -> None:
        tables = list({id(run.table): run.table for run in self.runs}.values())
        starts = np.cumsum([0, *map(len, tables)])
        self.firsts = {id(table): int(first) for table, first in zip(tables, starts, strict=False)}
        some = self.runs[0].cond
        cond = {
            name: np.concatenate([np.zeros_like(some[name]) if run is None else run.cond[name] for run in self.places])
            for name in some
        }
        self.denoiser.begin(cond, stacked(tables), (len(self.places), *self.runs[0].state.shape[2:]))
        self.changed = False

    def close(self) -> None:
        _release(self.denoiser)


class Batch:
    """Slots come and go between steps; a step takes one row of every slot of one group.

    Groups take turns by the earliest deadline of their slots; of equals the one that has waited longest goes first.
    Use it in a `with` block: it returns its contexts to the engines at the end. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, list[_Group]] = {}
        self._runs: dict[Hashable, tuple[_Run, _Group]] = {}
        self._steps = 0

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for groups in self._groups.values():
            for group in groups:
                group.close()
        self._groups.clear()
        self._runs.clear()

    def __contains__(self, slot: Hashable) -> bool:
        return slot in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def admit(
        self, slot: Hashable, cond: Mapping[str, np.ndarray], table: StepTable, x: F32, *, weights: Weights,
        guidance: float = 1.0, noise: F32 | None = None, inpaint: Inpaint | None = None,
        saved: Mapping[int, F32] | None = None, deadline: float = math.inf,
    ) -> Place:  # fmt: skip
        """Begin a run in a slot of this name, from the next step on. Arguments as for `loop.run`, of one image.

        x         f32 [1, C, h, w]; saved: what its saved states begin with, {i: f32 [1, C, h, w]}, else zeros
        cond      a row per image, so one
        noise     f32 [table.noises, 1, C, h, w], from the slot's own stream
        deadline  on the caller's clock, whose turns it decides

        Raises InputError for a shape that does not fit, a slot that is taken, and weights whose denoiser keeps the
        state on its device.
        """
        if slot in self._runs:
            raise InputError("batch", "a slot must be retired before it is taken again", slot)
        run = _checked(slot, cond, table, x, guidance, noise, inpaint, saved or {}, deadline)
        key = (weights, x.shape, tuple(sorted((name, value.shape) for name, value in cond.items())))
        groups = self._groups.setdefault(key, [])
        group = next((one for one in groups if one.room()), None)
        if group is None:
            group = _group(weights)
            groups.append(group)
        group.add(run)
        self._runs[slot] = run, group
        return group.place(run)

    def place(self, slot: Hashable) -> Place:
        """Where a slot runs now."""
        run, group = self._runs[slot]
        return group.place(run)

    def row(self, slot: Hashable) -> int:
        """How many rows a slot has taken."""
        return self._runs[slot][0].row

    def latents(self, slot: Hashable) -> F32:
        """f32 [1, C, h, w] as they are now, a view that is valid until the next step; copy it to keep it."""
        return self._runs[slot][0].state[0]

    def step(self) -> list[Hashable]:
        """One row for every slot of the group whose turn it is -> the slots that have ended with it."""
        self._steps += 1
        waiting: dict[_Group, float] = {}
        for run, group in self._runs.values():
            if not run.ended:
                waiting[group] = min(run.deadline, waiting.get(group, math.inf))
        if not waiting:
            return []
        group = min(waiting, key=lambda one: (waiting[one], one.turn))
        before = [run for run in group.runs if not run.ended]
        group.step()
        group.turn = self._steps
        return [run.slot for run in before if run.ended]

    def retire(self, slot: Hashable) -> F32:
        """Take a slot out, ended or not: its state f32 [K + 1, 1, C, h, w], whose first are the latents."""
        run, group = self._runs.pop(slot)
        group.remove(run)
        return run.state

    def forget(self, weights: Weights) -> None:
        """Let go of what is kept for weights that no slot runs with any more."""
        for key in [key for key in self._groups if isinstance(key, tuple) and key[0] is weights]:
            if not any(group.runs for group in self._groups[key]):
                for group in self._groups.pop(key):
                    group.close()


def _group(weights: Weights) -> _Group:
    denoiser = weights.denoiser()
    if isinstance(denoiser, DeviceDenoiser):
        _release(denoiser)
        rule = "runs whose denoiser keeps the state on its device cannot join a batch: draw them one by one"
        raise InputError("batch", rule, type(denoiser).__name__)
    return _SideBySide(weights, [denoiser]) if getattr(denoiser, "small", False) else _Bucket(denoiser)


def _checked(
    slot: Hashable, cond: Mapping[str, np.ndarray], table: StepTable, x: F32, guidance: float, noise: F32 | None,
    inpaint: Inpaint | None, saved: Mapping[int, F32], deadline: float,
) -> _Run:  # fmt: skip
    shape = (1, *x.shape[1:]) if x.ndim == 4 else (1, "C", "h", "w")
    check_array("batch.x", x, shape)
    for name, value in cond.items():
        if len(value) != 1:
            raise InputError("batch", f"{name} must have the one row of the slot's image", value.shape)
    if table.noises:
        check_array("batch.noise", noise, (table.noises, *x.shape))
    blend: dict[str, Any] = {}
    if inpaint is not None:
        check_array("batch.mask", inpaint.mask, (1, 1, *x.shape[2:]))
        check_array("batch.known", inpaint.known, x.shape)
        check_array("batch.eps", inpaint.eps, x.shape)
        blend = {"mask": inpaint.mask, "known": inpaint.known, "eps": inpaint.eps}
        blend |= {"k_img": table.k_img, "k_eps": table.k_eps}
    state = np.zeros((K + 1, *x.shape), np.float32)
    state[0] = x
    for i, value in saved.items():
        check_array(f"batch.saved[{i}]", value, x.shape)
        state[i] = value
    return _Run(slot, cond, table, state, np.array([guidance], np.float32), noise, blend, deadline)


def _release(denoiser: Denoiser) -> None:
    if isinstance(denoiser, contextlib.AbstractContextManager):
        denoiser.__exit__(None, None, None)


def _in_lanes(runs: Sequence[Callable[[], object]]) -> None:
    """Do them on as many threads as there are cores, the caller's among them. Raises the first error when all ended.

    Each lane takes the next that is left: a run may itself put its parts side by side on other threads.
    """
    lanes = min(len(runs), usable_cores())
    if lanes < 2:
        for run in runs:
            run()
        return
    left = iter(runs)  # a list's iterator hands each item out once, whichever thread asks

    def lane() -> None:
        for run in left:
            run()

    waiting = [_threads().submit(lane) for _ in range(lanes - 1)]
    failed: BaseException | None = None
    try:
        lane()
    except BaseException as error:
        failed = error
    errors = [failed, *(one.exception() for one in waiting)]  # each when it has ended
    if first := next(filter(None, errors), None):
        raise first


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="hotloop-slots")


after_fork(_threads.cache_clear)
