"""Compare ways of doing one piece of work: outputs first, then time, interleaved, with the spread in view.

    report = compare([Case("diffusers", stock), Case("hotloop", ours)], benchmark="txt2img", check=psnr_at_least(50))
    print(report.table())
    report.append(Path("benchmarks/results/local/txt2img.jsonl"))

The first case is the baseline. Each round times every case once, so drift of the machine meets all of them, and each
round begins with another case. A ratio is printed only for a case whose output agrees with the baseline's, before and
after the timing. The ratio is the median over rounds of the round's own ratio, so that drift cancels; its interval is a
bootstrap over rounds.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "SCHEMA_VERSION",
    "Agreement",
    "Case",
    "Measurement",
    "Report",
    "close_to",
    "compare",
    "cosine_at_least",
    "environment",
    "peak_rss_of",
    "psnr_at_least",
]

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
_RESAMPLES = 2000
_VERSIONS = ("hotloop", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "openvino", "tensorrt")


@dataclass(frozen=True)
class Case:
    """One way of doing the work.

    run     does it once and returns its output; waits until it is really done (synchronise a device inside)
    work    items per call: times are reported per item
    params  what else tells this case apart (threads, precision...), kept in the record
    """

    name: str
    run: Callable[[], Any]
    work: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)


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
        mse = float(np.mean((a - b) ** 2))
        value = math.inf if mse == 0 else 10 * math.log10(peak**2 / mse) if mse > 0 else math.nan
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


@dataclass(frozen=True)
class Measurement:
    """What one case showed. seconds: per item, one value per round, in order."""

    case: Case
    seconds: np.ndarray
    agreement: Agreement | None  # None for the baseline
    speedup: tuple[float, float, float] | None  # baseline / case: median over rounds, and its interval
    peak_rss: int | None  # bytes, the process's peak during one call
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
    def spread(self) -> float:
        """(p95 - p5) / median."""
        return (self.p95 - self.p5) / self.median if self.median else 0.0

    @property
    def verdict(self) -> str:
        """baseline, differs (no ratio is given), faster, slower, or same when the interval holds 1."""
        if self.agreement is None:
            return "baseline"
        if self.speedup is None:
            return "differs"
        _, low, high = self.speedup
        return "faster" if low > 1 else "slower" if high < 1 else "same"


@dataclass(frozen=True)
class Report:
    """One run of `compare`; the first measurement is the baseline."""

    benchmark: str
    params: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    warmup: int
    environment: Mapping[str, Any]

    def __getitem__(self, name: str) -> Measurement:
        return next(m for m in self.measurements if m.case.name == name)

    def table(self) -> str:
        """Fixed-width text, one line per case."""
        head = ["case", "median", "p5", "p95", "spread", "speed-up [95 %]", "output", "peak MB"]
        lines = [head, *(self._line(m) for m in self.measurements)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        env = self.environment
        where = f"{self.benchmark}: {env['cpu']}, {env['cores']} cores, {env['date']}, commit {env['commit']}"
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([where, *(row.rstrip() for row in rows)])

    @staticmethod
    def _line(m: Measurement) -> list[str]:
        ratio = "{:.3f}x [{:.3f}, {:.3f}]".format(*m.speedup) if m.speedup else "-"
        output = "baseline" if m.agreement is None else f"{m.agreement.what} {m.agreement.value:.3g}"
        if m.verdict == "differs":
            output = f"DIFFERS: {output}, limit {m.agreement.limit:.3g}" if m.agreement else output
        times = [_seconds(value) for value in (m.median, m.p5, m.p95)]
        peak = "-" if m.peak_rss is None else f"{m.peak_rss / 1e6:.0f}"
        return [m.case.name, *times, f"{m.spread:.1%}", ratio, output, peak]

    def records(self) -> list[dict[str, Any]]:
        """One JSON object per measurement, as in result.schema.json."""
        return [self._record(m) for m in self.measurements]

    def _record(self, m: Measurement) -> dict[str, Any]:
        check = None
        if m.agreement is not None:
            a = m.agreement
            check = {"ok": a.ok, "what": a.what, "value": _finite(a.value), "limit": a.limit}
        speedup = None
        if m.speedup is not None:
            middle, low, high = m.speedup
            speedup = {"median": middle, "low": low, "high": high, "confidence": CONFIDENCE}
        return {
            "schema_version": SCHEMA_VERSION,
            "benchmark": self.benchmark,
            "case": m.case.name,
            "baseline": self.measurements[0].case.name,
            "params": {**self.params, **m.case.params},
            "seconds": {
                "median": m.median, "p5": m.p5, "p95": m.p95, "spread": m.spread, "samples": m.seconds.tolist(),
            },
            "rounds": len(m.seconds),
            "warmup": self.warmup,
            "work": m.case.work,
            "check": check,
            "speedup": speedup,
            "peak_rss_bytes": m.peak_rss,
            "extra": m.extra,
            "environment": dict(self.environment),
        }  # fmt: skip

    def append(self, path: Path) -> None:
        """Add one JSON line per measurement to a file, made with its folder when missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in self.records()]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def compare(
    cases: Sequence[Case],
    *,
    benchmark: str,
    check: Check,
    rounds: int = 20,
    warmup: int = 2,
    params: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Report:
    """Time the cases in interleaved rounds, the first being the baseline.

    check(baseline's output, case's output) -> Agreement, on the outputs of the last warm-up and of the last round.
    clock: seconds, monotonic. seed: of the bootstrap. Raises ValueError for no cases, equal names, rounds or
    warmup below 1.
    """
    if len({case.name for case in cases}) != len(cases) or not cases:
        raise ValueError(f"[harness] cases must have different names, got {[case.name for case in cases]}")
    if rounds < 1 or warmup < 1:
        raise ValueError(f"[harness] rounds and warmup must be at least 1, got {rounds} and {warmup}")

    # Warm up.
    first: list[Any] = []
    peaks: list[int | None] = []
    for case in cases:
        for _ in range(warmup - 1):
            case.run()
        output, peak = _with_peak_rss(case.run)
        first.append(output)
        peaks.append(peak)

    # Time.
    seconds = np.empty((len(cases), rounds))
    last: list[Any] = [None] * len(cases)
    collecting = gc.isenabled()
    try:
        for r in range(rounds):
            gc.collect()
            gc.disable()  # a collection inside would be charged to whoever happens to run
            for i in range(len(cases)):
                at = (r + i) % len(cases)
                began = clock()
                last[at] = cases[at].run()
                seconds[at, r] = (clock() - began) / cases[at].work
    finally:
        if collecting:
            gc.enable()

    measurements = []
    for i, case in enumerate(cases):
        agreement = None if i == 0 else _worse(check(first[0], first[i]), check(last[0], last[i]))
        speedup = _speedup(seconds[0], seconds[i], seed) if agreement is not None and agreement.ok else None
        measurements.append(Measurement(case, seconds[i], agreement, speedup, peaks[i]))
    return Report(benchmark, dict(params or {}), tuple(measurements), warmup, environment())


def environment() -> dict[str, Any]:
    """What the numbers depend on beside the code: processor, cores, library versions, commit, date, load."""
    from hotloop_kernels import build_info

    versions = {}
    for name in _VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "--short=12", "HEAD")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 2),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "kernels": build_info(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def peak_rss_of(command: Sequence[str]) -> int:
    """Peak resident memory in bytes of a command run alone; raises CalledProcessError when it fails."""
    # By way of a small process: a child's peak starts at its parent's size, here that of everything imported.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _WATCH, *command], stdout=subprocess.PIPE, check=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


_WATCH = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _with_peak_rss(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """A call's output and the process's peak resident bytes during it; None where the peak cannot be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return run(), None
    output = run()
    status = Path("/proc/self/status").read_text()
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return output, int(peak.split()[1]) * 1024 if peak else None


def _worse(a: Agreement, b: Agreement) -> Agreement:
    return a if not a.ok else b


def _speedup(baseline: np.ndarray, case: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Median ratio of a round, with its percentile interval over resampled rounds (Efron & Tibshirani 1993, ch. 13)."""
    ratios = baseline / case
    resampled = np.random.default_rng(seed).choice(ratios, (_RESAMPLES, len(ratios)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(resampled, axis=1), [tail, 1 - tail])
    return float(np.median(ratios)), float(low), float(high)


def _seconds(value: float) -> str:
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e3)) if value * s >= 1), ("us", 1e6))
    return f"{value * scale:.3g} {unit}"


def _finite(value: float) -> float | None:
    """JSON has no infinity: identical pictures have no PSNR to write down."""
    return value if math.isfinite(value) else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
