"""formula: elementary steps for every node of a grid, written down once by the functions that NumPy has.

A function that computes fields of places, out of NumPy's functions and operators, is called once with `Value`s in place
of arrays (`written`). What it does to them becomes a list of steps; numbers and curves that change from call to call
have names in it. `formula` then goes through the steps, 256 nodes at a time, without one array of all nodes in between.
Each step is rounded to float32 as it stands, so what comes is what NumPy gives, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import backend
from .checks import KernelError, tensor

__all__ = ["Curve", "Program", "Value", "bump", "formula", "ramp", "reference", "rise", "take", "written"]

_OP = "formula"
MAX_STEPS = 1 << 16
LARGEST = 16384
# In the order of formula.cpp's. store: to a channel; less: 1 or 0; select: b where a is not 0, else c; multiply_add and
# the next two: a b + c, a b - c, c - a b; difference_times: (a - b) c; ramp, rise and bump: x held in 0..1, then
# x^2 (3 - 2 x); (1 - x^2)^2 where that is positive; take: of a table, nearest below.
OPERATIONS = (
    "store", "add", "subtract", "multiply", "divide", "minimum", "maximum", "less", "select", "multiply_add",
    "multiply_subtract", "subtract_product", "difference_times", "absolute", "sqrt", "floor", "ramp", "rise", "bump",
    "take",
)  # fmt: skip
_NUMBER = {name: i for i, name in enumerate(OPERATIONS)}
_UFUNCS = {
    np.add: "add", np.subtract: "subtract", np.multiply: "multiply", np.true_divide: "divide",
    np.minimum: "minimum", np.maximum: "maximum", np.less: "less", np.absolute: "absolute", np.sqrt: "sqrt",
    np.floor: "floor",
}  # fmt: skip

_Operand = tuple[str, int]  # "node", "constant" or "given", and its index


@dataclass(frozen=True, eq=False)
class Curve:
    """A table whose values come with every call."""

    name: str
    size: int


class Value(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for an array of all nodes, or for a number that comes with every call, while a formula is written."""

    def __init__(self, sheet: _Sheet, operand: _Operand) -> None:
        self._sheet, self.operand = sheet, operand

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
        if method != "__call__" or more:
            return NotImplemented
        if ufunc is np.greater:
            return np.less(inputs[1], inputs[0])
        if ufunc is np.negative:
            return self * np.float32(-1)
        if ufunc is np.power and inputs[0] is self and inputs[1] == 2:
            return self * self
        if ufunc not in _UFUNCS:
            return NotImplemented
        return self._sheet.step(_UFUNCS[ufunc], *inputs)

    def __array_function__(self, function: Any, types: Any, inputs: Any, more: Any) -> Any:
        if function is np.where and len(inputs) == 3:
            return self._sheet.step("select", *inputs)
        if function is np.clip and len(inputs) == 3:
            return np.minimum(np.maximum(inputs[0], inputs[1]), inputs[2])
        return NotImplemented

    def apply(self, operation: str) -> Value:
        """One of the operations that NumPy has no function for: ramp, rise, bump."""
        return self._sheet.step(operation, self)

    def take(self, table: np.ndarray | Curve) -> Value:
        return self._sheet.take(table, self)


def take(table: Any, at: Any) -> Any:
    """The entries of a table float32 [n] at places in 0..n - 1, rounded down and held within; of a `Value` too."""
    if isinstance(at, Value):
        return at.take(table)
    at = np.asarray(at, np.float32)
    index = np.minimum(np.where(at > 0, np.minimum(at, np.float32(len(table) - 1)), 0).astype(np.int64), len(table) - 1)
    return np.take(table, index)


class _Sheet:
    """What is being written: the same step is written once."""

    def __init__(self, numbers: Sequence[str], curves: Mapping[str, int]) -> None:
        self.steps: list[tuple[str, tuple[Any, ...]]] = [("column", ()), ("row", ())]
        self._known: dict[tuple[Any, ...], int] = {}
        self.constants: list[float] = []
        self._constants: dict[bytes, int] = {}
        self.tables: list[np.ndarray] = []
        self._tables: dict[int, int] = {}
        self._kept: list[np.ndarray] = []
        self.given: dict[str, Value | Curve] = {name: Value(self, ("given", i)) for i, name in enumerate(numbers)}
        self.given |= {name: Curve(name, size) for name, size in curves.items()}

    def step(self, operation: str, *inputs: Any) -> Value:
        operands = tuple(self._operand(one) for one in inputs)
        if len(operands) == 1:
            operands = (self._node(operands[0]),)
        return self._written(operation, operands)

    def take(self, table: np.ndarray | Curve, at: Value) -> Value:
        if isinstance(table, Curve):
            return self._written("take", (self._node(at.operand), table.name))
        whole, first = _whole_of(table)
        if id(whole) not in self._tables:
            self._tables[id(whole)] = len(self.tables)
            self._kept.append(whole)  # so that no other one gets its id
            self.tables.append(np.ascontiguousarray(whole, np.float32).reshape(-1))
        return self._written("take", (self._node(at.operand), (self._tables[id(whole)], first, len(table))))

    def _node(self, operand: _Operand) -> _Operand:
        """A register with it, where one is needed."""
        return operand if operand[0] == "node" else self._written("maximum", (operand, operand)).operand

    def _written(self, operation: str, operands: tuple[Any, ...]) -> Value:
        key = (operation, *operands)
        if (at := self._known.get(key)) is None:
            at = self._known[key] = len(self.steps)
            self.steps.append((operation, operands))
        return Value(self, ("node", at))

    def _operand(self, one: Any) -> _Operand:
        if isinstance(one, Value):
            return one.operand
        number = np.float32(one)
        if number.tobytes() not in self._constants:
            self._constants[number.tobytes()] = len(self.constants)
            self.constants.append(float(number))
        return "constant", self._constants[number.tobytes()]

    def outputs(self, values: Sequence[Any]) -> list[_Operand]:
        return [self._operand(one) for one in values]


def _whole_of(table: np.ndarray) -> tuple[np.ndarray, int]:
    """The array that a table is a part of, and where in it: parts of one array are kept once."""
    whole = table
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not all(one.dtype == np.float32 and one.flags.c_contiguous for one in (whole, table)):
        return table, 0
    return whole, (table.ctypes.data - whole.ctypes.data) // table.itemsize


@dataclass(frozen=True, eq=False)
class Program:
    """A written formula. numbers: the names of what comes with every call, curves: theirs and their sizes.

    steps      int32 [n, 5]: operation, register or channel, operands (registers; numbers where negative: ~index)
    constants  float32: numbers, then tables; channels: how many it gives; registers: how many it needs
    """

    steps: np.ndarray
    constants: np.ndarray
    numbers: tuple[str, ...]
    curves: Mapping[str, int]
    channels: int
    registers: int

    @cached_property
    def size(self) -> int:
        """Of what is given with a call."""
        return len(self.numbers) + sum(self.curves.values())

    def given(self, values: Mapping[str, Any]) -> np.ndarray:
        """Numbers and curves by name -> float32, as `formula` takes them. Raises KernelError."""
        try:
            numbers = np.array([values[name] for name in self.numbers], np.float32)
            parts = [values[name] for name in self.curves]
        except KeyError as error:
            raise KernelError(_OP, f"values must have {error}", f"{len(values)} others") from None
        for part, (name, size) in zip(parts, self.curves.items(), strict=True):
            if part.dtype != np.float32 or part.shape != (size,):
                tensor(_OP, name, part, (size,))
        return np.concatenate([numbers, *parts]) if parts else numbers


def written(
    field: Callable[..., Sequence[Any]], *, numbers: Sequence[str] = (), curves: Mapping[str, int] | None = None
) -> Program:
    """field(column, row, given) -> one value for each channel: `Value`s, or numbers.

    column, row  a node's place, as `formula` has them; given: by name `Value`s for numbers, `Curve`s for curves
    curves       the sizes of tables that change. Other tables, of `take`, are arrays float32: kept as they are now

    Raises KernelError for what is no such formula.
    """
    sheet = _Sheet(numbers, curves or {})
    outputs = sheet.outputs(field(Value(sheet, ("node", 0)), Value(sheet, ("node", 1)), sheet.given))
    if not outputs or len(sheet.steps) + len(outputs) > MAX_STEPS:
        raise KernelError(_OP, f"a formula has at least one channel and at most {MAX_STEPS} steps", len(sheet.steps))
    return _compiled(sheet, outputs, tuple(numbers), dict(curves or {}))


def _fused(sheet: _Sheet, outputs: list[_Operand]) -> None:
    """Two steps in one pass, each still rounded by itself, where nothing else wants what the first gives."""
    steps = sheet.steps
    uses = [0] * len(steps)
    for operand in (*outputs, *(operand for _, operands in steps for operand in operands)):
        if isinstance(operand, tuple) and operand[0] == "node":
            uses[operand[1]] += 1

    def inner(operand: _Operand, operation: str) -> tuple[Any, ...] | None:
        """The operands of a step that is this operation and wanted here alone."""
        kind, at = operand
        return steps[at][1] if kind == "node" and uses[at] == 1 and steps[at][0] == operation else None

    for i, (operation, operands) in enumerate(steps):
        if operation not in ("add", "subtract", "multiply"):
            continue
        a, b = operands
        first = inner(a, "subtract" if operation == "multiply" else "multiply")
        second = inner(b, "subtract" if operation == "multiply" else "multiply")
        if operation == "multiply" and (first or second):
            steps[i] = "difference_times", (*first, b) if first else (*second, a)  # type: ignore[misc]
        elif operation == "add" and (first or second):
            steps[i] = "multiply_add", (*first, b) if first else (*second, a)  # type: ignore[misc]
        elif operation == "subtract" and first:
            steps[i] = "multiply_subtract", (*first, b)
        elif operation == "subtract" and second:
            steps[i] = "subtract_product", (*second, a)


def _compiled(sheet: _Sheet, outputs: list[_Operand], numbers: tuple[str, ...], curves: dict[str, int]) -> Program:
    """Steps that lead nowhere left out; registers given out anew after their last use."""
    _fused(sheet, outputs)
    places, constants = {}, len(sheet.constants)
    tables = [constants]  # where each begins
    for table in sheet.tables:
        tables.append(tables[-1] + len(table))
    at = tables[-1] + len(numbers)
    for name, size in curves.items():
        places[name] = at, size
        at += size
    if at > np.iinfo(np.int32).max:
        raise KernelError(_OP, "tables must be small", at)
    stores: dict[int, list[int]] = {}  # node -> its channels
    for channel, (kind, node) in enumerate(outputs):
        if kind == "node":
            stores.setdefault(node, []).append(channel)
    last = dict[int, int]()  # node -> the last step that reads it
    for i in range(len(sheet.steps) - 1, 1, -1):
        if i in last or i in stores:
            last.setdefault(i, i)
            for operand in sheet.steps[i][1]:
                if isinstance(operand, tuple) and operand[0] == "node":
                    last.setdefault(operand[1], i)
    steps, registers = list[list[int]](), {0: 0, 1: 1}
    free, count = list[int](), 2

    def word(operand: _Operand) -> int:
        kind, index = operand
        if kind == "node":
            return registers[index]
        return ~(index if kind == "constant" else tables[-1] + index)

    for i, (operation, operands) in enumerate(sheet.steps):
        if i >= 2 and i not in last:
            continue
        if i >= 2:
            if operation == "take":
                begin, size = places[operands[1]] if isinstance(operands[1], str) else (
                    tables[operands[1][0]] + operands[1][1], operands[1][2]
                )  # fmt: skip
                words = [word(operands[0]), begin, size]
            else:
                words = [word(one) for one in operands]
            for one in dict.fromkeys(one for one in operands if isinstance(one, tuple) and one[0] == "node"):
                if last[one[1]] == i:
                    free.append(registers[one[1]])
            if free:
                registers[i] = free.pop()
            else:
                registers[i], count = count, count + 1
            steps.append([_NUMBER[operation], registers[i], *words, *[0] * (3 - len(words))])
        for channel in stores.get(i, ()):
            steps.append([_NUMBER["store"], channel, registers[i], 0, 0])
        if last.get(i) == i:
            free.append(registers[i])
    for channel, operand in enumerate(outputs):
        if operand[0] != "node":
            steps.append([_NUMBER["store"], channel, word(operand), 0, 0])
    kept = np.concatenate([np.array(sheet.constants, np.float32), *sheet.tables])
    return Program(np.array(steps, np.int32), kept, numbers, curves, len(outputs), count)


def formula(
    program: Program, columns: np.ndarray, rows: np.ndarray, given: np.ndarray, *, out: np.ndarray | None = None
) -> np.ndarray:
    """The fields float32 [C, h, w] of a grid of nodes, by a written formula.

    columns, rows  float32 [w], [h]: the nodes' places
    given          `program.given(..)` of this call's numbers and curves
    out            like the result, without gaps; a new array when None

    On the CPU, on NumPy's arrays. The same bits on every CPU, and what the lines give on arrays float32. Raises
    KernelError.
    """
    for name, line, size in (("columns", columns, "w"), ("rows", rows, "h"), ("given", given, program.size)):
        known = type(line) is np.ndarray and line.dtype == np.float32 and line.ndim == 1
        if not known or size not in ("w", "h", len(line)):
            tensor(_OP, name, line, (size,))
    if not (1 <= len(columns) <= LARGEST and 1 <= len(rows) <= LARGEST):
        raise KernelError(_OP, f"sizes must lie in 1..{LARGEST}", f"{len(rows)} x {len(columns)}")
    shape = (program.channels, len(rows), len(columns))
    out = np.empty(shape, np.float32) if out is None else tensor(_OP, "out", out, shape)
    if backend.ops is None:
        out[...] = reference(program, columns, rows, given)
    else:
        backend.ops.formula(program.steps, program.constants, given, columns, rows, out, program.registers)
    return out


def reference(program: Program, columns: np.ndarray, rows: np.ndarray, given: np.ndarray) -> np.ndarray:
    """formula in NumPy, step by step, without checks."""
    out = np.empty((program.channels, len(rows), len(columns)), np.float32)
    numbers = np.concatenate([program.constants, given])
    shape = out.shape[1:]
    registers: list[Any] = [None] * program.registers
    registers[0], registers[1] = np.broadcast_to(columns, shape), np.broadcast_to(rows[:, None], shape)

    def operand(word: int) -> Any:
        return registers[word] if word >= 0 else numbers[~word]

    for operation, to, a, b, c in program.steps.tolist():
        name = OPERATIONS[operation]
        if name == "store":
            out[to] = operand(a)
        elif name == "take":
            registers[to] = take(numbers[b : b + c], operand(a))
        elif name == "select":
            registers[to] = np.where(operand(a) != 0, operand(b), operand(c))
        elif name in _FUSED:
            registers[to] = np.asarray(_FUSED[name](operand(a), operand(b), operand(c)), np.float32)
        elif name in _APPLIED:
            registers[to] = _APPLIED[name](operand(a))
        elif name in _UNARY:
            registers[to] = getattr(np, name)(operand(a))
        else:
            registers[to] = np.asarray(getattr(np, name)(operand(a), operand(b)), np.float32)
    return out


def ramp(x: Any) -> Any:
    """x held in 0..1."""
    if isinstance(x, Value):
        return x.apply("ramp")
    return np.minimum(np.maximum(x, np.float32(0)), np.float32(1))


def rise(x: Any) -> Any:
    """0 below 0, 1 above 1, smooth between them: x^2 (3 - 2 x)."""
    if isinstance(x, Value):
        return x.apply("rise")
    x = ramp(x)
    return x * x * (np.float32(3) - np.float32(2) * x)


def bump(x: Any) -> Any:
    """1 at 0, falling to 0 at 1 and -1, smooth: (1 - x^2)^2."""
    if isinstance(x, Value):
        return x.apply("bump")
    inside = np.maximum(np.float32(1) - x * x, np.float32(0))
    return inside * inside


_UNARY = ("absolute", "sqrt", "floor")
_FUSED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "multiply_add": lambda a, b, c: a * b + c, "multiply_subtract": lambda a, b, c: a * b - c,
    "subtract_product": lambda a, b, c: c - a * b, "difference_times": lambda a, b, c: (a - b) * c,
}  # fmt: skip
_APPLIED = {"ramp": ramp, "rise": rise, "bump": bump}
