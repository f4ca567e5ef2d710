"""Compare ways of doing one piece of work: outputs first, then time, interleaved, with the spread in view.

    report = compare([Case("diffusers", stock), Case("hotloop", ours)], benchmark="txt2img", check=psnr_at_least(50))
    print(report.table())
    report.append(Path("benchmarks/results/local/txt2img.jsonl"))

The first case is the baseline. Each round times every case once, so drift of the machine meets all of them, and each
round begins with another case. A ratio is printed only for a case whose output agrees with the baseline's, before and
after the timing. The ratio is the median over rounds of the round's own ratio, so that drift cancels; its interval is a
bootstrap over rounds.

A case may do its work in another process: it then returns `Timed`, with seconds that were taken there, and gives the
harness its own ways to read its peak memory and to stand still while others are timed.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hotloop.evaluation.metrics import psnr
from hotloop.evaluation.records import append, block, environment, finite, record, run_id

__all__ = [
    "Agreement",
    "Case",
    "Check",
    "Measurement",
    "Report",
    "Timed",
    "Unmeasured",
    "close_to",
    "compare",
    "cosine_at_least",
    "psnr_at_least",
    "ratio_of",
]

CONFIDENCE = 0.95
_RESAMPLES = 2000
_EVICTED = 256 << 20  # bytes walked over to empty the caches: more than any last level here


class Unmeasured(RuntimeError):
    """A case that cannot be measured; its message is the one line that the report prints in its place."""


@dataclass(frozen=True)
class Timed:
    """What a case that keeps its own time returns.

    seconds  of the whole call
    stages   seconds of its parts, by name, such as {"text": 0.01, "loop": 0.2}
    """

    output: Any
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One way of doing the work.

    run     does it once and returns its output, or `Timed`; waits until it is really done (synchronise a device
            inside); may raise Unmeasured
    work    items per call: times are reported per item
    params  what else tells this case apart (threads, precision...), kept in the record
    turn    entered while the case runs, such as one that wakes its process; not timed
    peak    a call that gives {"peak_rss_bytes": ..., "peak_device_bytes": ..., "alone": ...} of the last run
    load    seconds that opening it took, when known: the first call's time is added to give the first image's
    """

    name: str
    run: Callable[[], Any]
    work: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext
    peak: Callable[[], Mapping[str, Any]] | None = None
    load: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How an output stands to the baseline's: `what` measured `value`, which had to reach or stay within `limit`."""

    ok: bool
    what: str
    value: float
    limit: float


Check = Callable[[Any, Any], Agreement]


def psnr_at_least(decibels: float, *, peak: float = 255.0) -> Check:
    """The outputs are pictures (arrays or lists of PIL images) at least this close."""

    def check(expected: Any, got: Any) -> Agreement:
        a, b = (np.stack([np.asarray(one, np.float64) for one in images]) for images in (expected, got))
        if a.shape != b.shape:
            return Agreement(False, "PSNR dB", -math.inf, decibels)
        value = psnr(b, a, peak=peak)
        return Agreement(value >= decibels, "PSNR dB", value, decibels)

    return check


def close_to(tolerance: float) -> Check:
    """The outputs are arrays whose largest absolute difference is at most this."""

    def check(expected: Any, got: Any) -> Agreement:
        a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
        value = float(np.abs(a - b).max(initial=0)) if a.shape == b.shape else math.inf
        return Agreement(value <= tolerance, "max |difference|", value, tolerance)

    return check


def cosine_at_least(bound: float) -> Check:
    """The outputs are arrays that point in nearly the same direction: for lower precisions."""

    def check(expected: Any, got: Any) -> Agreement:
        a, b = (np.asarray(one, np.float64).ravel() for one in (expected, got))
        norms = float(np.linalg.norm(a) * np.linalg.norm(b)) if a.shape == b.shape else math.nan
        value = float(a @ b) / norms if norms > 0 else math.nan
        return Agreement(value >= bound, "cosine", value, bound)

    return check


@dataclass
class Measurement:
    """What one case showed. seconds: per item, one value per round, in order; empty when it could not be measured.

    `floor`, `quality` and `extra` are for the benchmark to fill in.
    """

    case: Case
    seconds: np.ndarray
    agreement: Agreement | None = None  # None for the baseline
    speedup: tuple[float, float, float] | None = None  # baseline / case: median over rounds, and its interval
    stages: dict[str, np.ndarray] = field(default_factory=dict)  # as seconds
    first: float | None = None  # seconds of the very first call
    memory: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    floor: Mapping[str, Any] | None = None
    quality: Mapping[str, float | None] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p5(self) -> float:
        return float(np.percentile(self.seconds, 5))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.seconds, 95))

    @property
    def p99(self) -> float:
        return float(np.percentile(self.seconds, 99))

    @property
    def spread(self) -> float:
        """(p95 - p5) / median."""
        return (self.p95 - self.p5) / self.median if self.median else 0.0

    @property
    def verdict(self) -> str:
        """baseline, failed, differs (no ratio is given), faster, slower, or same when the interval holds 1."""
        if self.error is not None:
            return "failed"
        if self.agreement is None:
            return "baseline"
        if self.speedup is None:
            return "differs"
        _, low, high = self.speedup
        return "faster" if low > 1 else "slower" if high < 1 else "same"

    def metrics(self) -> dict[str, dict[str, Any]]:
        """The blocks of a record: latency, stage.*, load, first_image, throughput."""
        if self.error is not None:
            return {}
        blocks = {"latency": block("s", self.seconds)}
        blocks |= {f"stage.{name}": block("s", values) for name, values in self.stages.items()}
        if self.case.load is not None:
            blocks["load"] = block("s", [self.case.load])
            if self.first is not None:
                blocks["first_image"] = block("s", [self.case.load + self.first])
        if self.case.work != 1:
            blocks["throughput"] = block("1/s", 1 / self.seconds, keep=False)
        return blocks


@dataclass(frozen=True)
class Report:
    """One run of `compare`; the first measurement is the baseline."""

    benchmark: str
    params: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    warmup: int
    environment: Mapping[str, Any]
    run: str
    scenario: str = "SingleStream"
    cold_cache: bool = False

    def __getitem__(self, name: str) -> Measurement:
        return next(m for m in self.measurements if m.case.name == name)

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times as fast as one case another is: median over rounds, and its interval."""
        return ratio_of(self[slow].seconds, self[fast].seconds)

    def table(self) -> str:
        """Fixed-width text, one line per case."""
        head = ["case", "median", "p5", "p95", "p99", "speed-up [95 %]", "output", "peak MB", "floor"]
        lines = [head, *(self._line(m) for m in self.measurements)]
        widths = [max(len(line[i]) for line in lines if len(line) > 2) for i in range(len(head))]
        env = self.environment
        where = f"{self.benchmark}: {env['cpu']}, {env['cores']} cores, {env['date']}, commit {env['commit']}"
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) for line in lines]
        return "\n".join([where, *(row.rstrip() for row in rows)])

    @staticmethod
    def _line(m: Measurement) -> list[str]:
        if m.error is not None:
            return [m.case.name, f"not measured: {m.error}"]
        ratio = "{:.3f}x [{:.3f}, {:.3f}]".format(*m.speedup) if m.speedup else "-"
        output = "baseline" if m.agreement is None else f"{m.agreement.what} {m.agreement.value:.3g}"
        if m.verdict == "differs":
            output = f"DIFFERS: {output}, limit {m.agreement.limit:.3g}" if m.agreement else output
        times = [_seconds(value) for value in (m.median, m.p5, m.p95, m.p99)]
        peak = m.memory.get("peak_rss_bytes")
        share = "-" if m.floor is None else f"{m.floor['share']:.0%}"
        return [m.case.name, *times, ratio, output, "-" if peak is None else f"{peak / 1e6:.0f}", share]

    def records(self) -> list[dict[str, Any]]:
        """One JSON object per measurement, as in result.schema.json."""
        return [self._record(m) for m in self.measurements]

    def _record(self, m: Measurement) -> dict[str, Any]:
        check = None
        if m.agreement is not None and m.error is None:
            a = m.agreement
            check = {"ok": a.ok, "what": a.what, "value": finite(a.value), "limit": a.limit}
        speedup = None
        if m.speedup is not None:
            middle, low, high = m.speedup
            speedup = {"median": middle, "low": low, "high": high, "confidence": CONFIDENCE}
        return record(
            run=self.run,
            benchmark=self.benchmark,
            scenario=self.scenario,
            case=m.case.name,
            baseline=self.measurements[0].case.name,
            params={**self.params, **m.case.params},
            metrics=m.metrics(),
            memory=m.memory,
            rounds=len(m.seconds),
            warmup=self.warmup,
            work=m.case.work,
            cold_cache=self.cold_cache,
            check=check,
            speedup=speedup,
            floor=m.floor,
            quality=m.quality,
            error=m.error,
            extra=m.extra,
            environment=self.environment,
        )

    def append(self, path: Path) -> None:
        """Add one JSON line per measurement to a file, made with its folder when missing."""
        append(path, self.records())


def compare(
    cases: Sequence[Case],
    *,
    benchmark: str,
    check: Check | Mapping[str, Check],
    rounds: int = 20,
    warmup: int = 2,
    params: Mapping[str, Any] | None = None,
    scenario: str = "SingleStream",
    cold_cache: bool = False,
    failed: Mapping[str, str] | None = None,
    model_hash: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Report:
    """Time the cases in interleaved rounds, the first being the baseline.

    check       (baseline's output, case's output) -> Agreement, on the outputs of the last warm-up and of the last
                round; or one for each case by name
    cold_cache  the processor's caches are emptied before every timed call
    failed      cases that could not even be opened, and why: they are in the report
    clock       seconds, monotonic. seed: of the bootstrap

    A case that raises Unmeasured is reported with its reason and the others go on. Raises ValueError for no cases,
    equal names, rounds or warmup below 1; Unmeasured when the baseline is what cannot be measured.
    """
    failed = failed or {}
    names = [*(case.name for case in cases), *failed]
    if len(set(names)) != len(names) or not cases:
        raise ValueError(f"[harness] cases must have different names, got {names}")
    if rounds < 1 or warmup < 1:
        raise ValueError(f"[harness] rounds and warmup must be at least 1, got {rounds} and {warmup}")

    # Warm up.
    rows = [Measurement(case, np.full(rounds, np.nan)) for case in cases]
    first: dict[str, Any] = {}
    for row in rows:
        try:
            first[row.case.name] = _warm(row, warmup, clock)
        except Unmeasured as error:
            row.error = str(error)
    if rows[0].error is not None:
        raise Unmeasured(f"{rows[0].case.name}: {rows[0].error}")

    # Time.
    last: dict[str, Any] = {}
    collecting = gc.isenabled()
    try:
        for r in range(rounds):
            gc.collect()
            gc.disable()  # a collection inside would be charged to whoever happens to run
            for i in range(len(rows)):
                row = rows[(r + i) % len(rows)]
                if row.error is not None:
                    continue
                if cold_cache:
                    _evict()
                try:
                    last[row.case.name] = _time(row, r, clock)
                except Unmeasured as error:
                    row.error = str(error)
    finally:
        if collecting:
            gc.enable()
    if rows[0].error is not None:
        raise Unmeasured(f"{rows[0].case.name}: {rows[0].error}")

    known = cases[0].name
    for row in rows[1:]:
        name = row.case.name
        if row.error is None:
            by = check[name] if isinstance(check, Mapping) else check
            row.agreement = _worse(by(first[known], first[name]), by(last[known], last[name]))
            row.speedup = ratio_of(rows[0].seconds, row.seconds, seed) if row.agreement.ok else None
    rows += [Measurement(Case(name, lambda: None), np.empty(0), error=why) for name, why in failed.items()]
    for row in rows:
        if row.error is not None:
            row.seconds, row.stages = np.empty(0), {}
    return Report(
        benchmark, dict(params or {}), tuple(rows), warmup, environment(model_hash=model_hash), run_id(benchmark),
        scenario, cold_cache,
    )  # fmt: skip


def ratio_of(baseline: np.ndarray, case: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median ratio of a round, with its percentile interval over resampled rounds (Efron & Tibshirani 1993, ch. 13)."""
    ratios = baseline / case
    resampled = np.random.default_rng(seed).choice(ratios, (_RESAMPLES, len(ratios)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(resampled, axis=1), [tail, 1 - tail])
    return float(np.median(ratios)), float(low), float(high)


def _warm(row: Measurement, calls: int, clock: Callable[[], float]) -> Any:
    """The warm-up calls; the output of the last one, whose peak memory is kept."""
    case = row.case
    with case.turn():
        for i in range(calls):
            if i == calls - 1 and case.peak is None:
                made, seconds = _with_peak_rss(row, clock)
            else:
                made, seconds = _call(case, clock)
            row.first = seconds if i == 0 else row.first
        if case.peak is not None:
            row.memory = case.peak()
    return made


def _time(row: Measurement, r: int, clock: Callable[[], float]) -> Any:
    case = row.case
    with case.turn():
        began = clock()
        made = case.run()
        seconds = clock() - began
    if isinstance(made, Timed):
        seconds = made.seconds
        if not row.stages:
            row.stages = {name: np.full_like(row.seconds, np.nan) for name in made.stages}
        for name, value in made.stages.items():
            row.stages[name][r] = value / case.work
        made = made.output
    row.seconds[r] = seconds / case.work
    return made


def _call(case: Case, clock: Callable[[], float]) -> tuple[Any, float]:
    began = clock()
    made = case.run()
    seconds = clock() - began
    return (made.output, made.seconds) if isinstance(made, Timed) else (made, seconds)


def _with_peak_rss(row: Measurement, clock: Callable[[], float]) -> tuple[Any, float]:
    """A call, with this process's peak resident bytes during it where the peak can be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _call(row.case, clock)
    called = _call(row.case, clock)
    status = Path("/proc/self/status").read_text()
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    if peak:
        row.memory = {"peak_rss_bytes": int(peak.split()[1]) * 1024}
    return called


def _evict() -> None:
    """Walk over more memory than the caches hold."""
    np.ones(_EVICTED // 8).sum()


def _worse(a: Agreement, b: Agreement) -> Agreement:
    return a if not a.ok else b


def _seconds(value: float) -> str:
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e3)) if value * s >= 1), ("us", 1e6))
    return f"{value * scale:.3g} {unit}"
