"""formula: what NumPy gives for the same lines on arrays, bit for bit, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hotloop_kernels import KernelError, backend
from hotloop_kernels.formula import Program, bump, formula, ramp, rise, take, written
from hotloop_kernels.testing import BACKENDS, use, ways

compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")
TABLE = np.sin(np.linspace(0, 3, 256)).astype(np.float32)
F = np.float32

Given = Mapping[str, Any]


def everything(x: Any, y: Any, n: Given) -> list[Any]:
    """Every operation, every kind of operand, and values that are used again much later."""
    a = x * n["k"] + F(2) * y - 1
    at = np.floor(ramp(a) * F(255))
    c = take(TABLE, at) + take(n["curve"], at)
    r = np.sqrt(np.abs(x * x - y)) / n["k"]
    chosen = np.where(a > c, rise(r), bump(c))
    ends = [np.where(y < x, 1.0, n["k"]), np.where(y < x, c, 0.5), np.where(y < x, n["k"], c), np.where(n["k"], c, a)]
    bounds = [np.minimum(a, n["k"]), np.maximum(F(0.3), a), np.minimum(c, r), np.clip(r, -0.2, 0.5)]
    return [chosen, *ends, *bounds, 1 - (y < x) * r**2, -a, n["k"] - c, 2 / (r + 1), 0.0, n["k"], x, x, a]


KINDS: list[Callable[..., Any]] = [
    lambda n, a, b, c, number: a + b, lambda n, a, b, c, number: a - number, lambda n, a, b, c, number: number * b,
    lambda n, a, b, c, number: np.minimum(a, b), lambda n, a, b, c, number: np.maximum(a, n["j"]),
    lambda n, a, b, c, number: np.where(a > b, c, number), lambda n, a, b, c, number: a / (np.abs(b) + 1),
    lambda n, a, b, c, number: rise(a), lambda n, a, b, c, number: bump(a - b),
    lambda n, a, b, c, number: take(n["curve"], ramp(a) * F(255)), lambda n, a, b, c, number: np.sqrt(np.abs(a)),
]  # fmt: skip


def random_formula(seed: int) -> Callable[[Any, Any, Given], list[Any]]:
    """Some hundred operations on values drawn from all that were made before."""

    def field(x: Any, y: Any, n: Given) -> list[Any]:
        rng = np.random.default_rng(seed)
        made = [x, y, x * n["k"], y - n["j"]]
        for _ in range(150):
            of = [made[i] for i in rng.integers(max(len(made) - 20, 0), len(made), 3)]
            made.append(KINDS[rng.integers(len(KINDS))](n, *of, F(rng.uniform(-1, 1))))
        return made[-12:]

    return field


def nodes(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    columns, rows = (rng.uniform(-1, 2, n).astype(F) for n in (width, height))
    return columns, rows, {"k": F(0.7), "j": F(-0.2), "curve": rng.uniform(-1, 1, 256).astype(F)}


def write(field: Callable[..., list[Any]]) -> Program:
    return written(field, numbers=("k", "j"), curves={"curve": 256})


def by_numpy(field: Callable[..., list[Any]], columns: np.ndarray, rows: np.ndarray, given: Given) -> np.ndarray:
    """The same lines on whole arrays."""
    shape = (len(rows), len(columns))
    values = field(np.broadcast_to(columns, shape), np.broadcast_to(rows[:, None], shape), given)
    return np.stack([np.broadcast_to(np.asarray(value, F), shape) for value in values])


FORMULAS = [everything, *(random_formula(seed) for seed in range(3))]


@pytest.mark.parametrize("size", [(97, 53), (256, 1), (1, 1), (3, 200), (511, 2)], ids=str)
@pytest.mark.parametrize("field", FORMULAS, ids=["everything", "random 0", "random 1", "random 2"])
def test_it_gives_the_bits_that_numpy_gives(field: Any, size: tuple[int, int]) -> None:
    columns, rows, given = nodes(*size)
    program, want = write(field), by_numpy(field, columns, rows, given)
    for name in BACKENDS:
        with use(name):
            got = formula(program, columns, rows, program.given(given))
            np.testing.assert_array_equal(got, want)


@compiled
def test_every_instruction_set_gives_the_same_bits() -> None:
    columns, rows, given = nodes(70, 41)
    for field in FORMULAS:
        program, outs = write(field), []
        for way in ways("cpu"):
            with way:
                outs.append(formula(program, columns, rows, program.given(given)).tobytes())
        assert len(set(outs)) == 1


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_not_a_number_stays_none_and_finds_a_tables_first_entry(name: str) -> None:
    def field(x: Any, y: Any, n: Given) -> list[Any]:
        return [ramp(x), rise(x), bump(x), np.minimum(x, y), np.maximum(y, x), x + y, take(n["curve"], x)]

    columns, rows = np.array([np.nan, np.inf, -np.inf, 300], F), np.array([0.5, np.nan], F)
    curve = np.arange(256, dtype=F)
    program = written(field, curves={"curve": 256})
    with use(name), np.errstate(invalid="ignore"):
        got = formula(program, columns, rows, program.given({"curve": curve}))
    assert np.isnan(got[:3, :, 0]).all() and np.isnan(got[3:6, 1]).all() and np.isnan(got[3:6, :, 0]).all()
    np.testing.assert_array_equal(got[6, 0], [0, 255, 0, 255])


def test_a_result_is_written_where_it_is_wanted_and_steps_that_lead_nowhere_are_left_out() -> None:
    columns, rows, given = nodes(5, 4)

    def field(x: Any, y: Any, n: Given) -> list[Any]:
        np.sqrt(np.abs(x) * n["k"])
        return [x * n["k"], x * n["k"]]

    program = write(field)
    assert len(program.steps) == 3 and program.registers <= 3
    out = np.full((2, 4, 5), -1, F)
    assert formula(program, columns, rows, program.given(given), out=out) is out
    np.testing.assert_array_equal(out, by_numpy(field, columns, rows, given))


def test_parts_of_one_table_are_kept_once() -> None:
    table = np.arange(64, dtype=F).reshape(8, 8)

    def field(x: Any, y: Any, n: Given) -> list[Any]:
        flat = table.reshape(-1)
        return [take(flat, x), take(flat[1:], x), take(flat[8:20], x), take(np.flip(flat), x)]

    program = written(field)
    assert len(program.constants) == 2 * 64
    columns, rows = np.array([0, 3.5, 100], F), np.zeros(2, F)
    np.testing.assert_array_equal(
        formula(program, columns, rows, program.given({}))[:, 0],
        [[0, 3, 63], [1, 4, 63], [8, 11, 19], [63, 60, 0]],
    )


def test_what_breaks_a_rule_is_one_line() -> None:
    columns, rows, given = nodes(5, 4)
    program = write(everything)
    right = program.given(given)
    for wrong, message in (
        ((columns.astype(np.float64), rows, right), "columns must be float32"),
        ((columns, rows[:0], right), "sizes must lie in 1..16384"),
        ((columns, rows, right[:-1]), "given must be float32"),
    ):
        with pytest.raises(KernelError, match=message):
            formula(program, *wrong)
    with pytest.raises(KernelError, match="out must be float32"):
        formula(program, columns, rows, right, out=np.zeros((1, 4, 5), F))
    with pytest.raises(KernelError, match="values must have 'j'"):
        program.given({"k": 1.0})
    with pytest.raises(KernelError, match="curve must be float32"):
        program.given(given | {"curve": np.zeros(3, F)})
    with pytest.raises(KernelError, match="at least one channel"):
        written(lambda x, y, n: [])
    with pytest.raises(TypeError):
        written(lambda x, y, n: [np.cosh(x)])


@compiled
@pytest.mark.parametrize(
    "step",
    [(99, 2, 0, 0, 0), (-1, 2, 0, 0, 0), (1, 2, 0, 3, 0), (1, 3, 0, 1, 0), (1, 2, -1, 0, 0), (0, 1, 0, 0, 0),
     (8, 2, 0, 1, -1), (9, 2, 0, 1, 3), (13, 2, -1, 0, 0), (19, 2, 0, 0, 1), (19, 2, 0, -1, 1), (19, 2, 0, 0, 0)],
    ids=str,
)  # fmt: skip
def test_steps_that_name_what_is_not_there_touch_no_memory(step: tuple[int, ...]) -> None:
    columns, rows, none = np.zeros(3, F), np.zeros(2, F), np.zeros(0, F)
    with pytest.raises(KernelError, match="steps must name"):
        backend.ops.formula(np.array([step], np.int32), none, none, columns, rows, np.zeros((1, 2, 3), F), 3)
