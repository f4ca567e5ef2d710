"""What a measurement is written down as: one JSON object a line, as benchmarks/result.schema.json says.

The harness of benchmarks/ and `hotloop compare` write the same lines, so that one report reads both.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SCENARIOS", "SCHEMA_VERSION", "append", "block", "command", "environment", "finite", "record", "run_id"]

SCHEMA_VERSION = 2
SCENARIOS = ("SingleStream", "Offline", "Server")  # MLPerf Inference's names (Reddi et al. 2020, section 3)
_PLACES = ("--out", "--json")
_VERSIONS = ("hotloop", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "openvino", "tensorrt")


def record(
    *,
    run: str,
    benchmark: str,
    case: str,
    environment: Mapping[str, Any],
    scenario: str = "SingleStream",
    baseline: str | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    memory: Mapping[str, Any] | None = None,
    rounds: int = 0,
    warmup: int = 0,
    work: float = 1.0,
    cold_cache: bool = False,
    check: Mapping[str, Any] | None = None,
    speedup: Mapping[str, float] | None = None,
    floor: Mapping[str, Any] | None = None,
    quality: Mapping[str, float | None] | None = None,
    error: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One line. metrics: name -> `block`. error: why there is nothing to show; the case is still a line."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "benchmark": benchmark,
        "scenario": scenario,
        "case": case,
        "baseline": baseline,
        "params": dict(params or {}),
        "metrics": {name: dict(one) for name, one in (metrics or {}).items()},
        "memory": {"peak_rss_bytes": None, "peak_device_bytes": None, "alone": False} | dict(memory or {}),
        "rounds": rounds,
        "warmup": warmup,
        "work": work,
        "cold_cache": cold_cache,
        "check": None if check is None else dict(check),
        "speedup": None if speedup is None else dict(speedup),
        "floor": None if floor is None else dict(floor),
        "quality": None if quality is None else dict(quality),
        "error": error,
        "extra": {"command": command()} | dict(extra or {}),
        "environment": dict(environment),
    }


def block(unit: str, samples: Sequence[float] | np.ndarray, *, keep: bool = True) -> dict[str, Any]:
    """The figures of one metric: count, average, extremes, percentiles, and the samples in order unless not kept."""
    values = np.asarray(samples, np.float64)
    percentiles = {f"p{q}": float(np.percentile(values, q)) for q in (5, 50, 95, 99)}
    figures = {
        "unit": unit,
        "count": len(values),
        "avg": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        **percentiles,
    }
    return figures | ({"samples": values.tolist()} if keep else {})


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add one line per record to a file, made with its folder when missing."""
    lines = [json.dumps(one, allow_nan=False) + "\n" for one in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def command() -> str:
    """The command line that this process runs, as one would type it in the repository, less where results go."""
    root = Path(__file__).parents[3]
    program = Path(sys.argv[0]).resolve()
    script = program.suffix == ".py" and program.is_relative_to(root)
    words, skip = ["python", str(program.relative_to(root))] if script else ["hotloop"], False
    for word in sys.argv[1:]:
        if not skip and word.partition("=")[0] not in _PLACES:
            words.append(word.removeprefix(f"{root}/"))
        skip = not skip and word in _PLACES
    return shlex.join(words)


def run_id(benchmark: str) -> str:
    """Names one interleaved run: its lines may be compared round by round."""
    return f"{benchmark}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def finite(value: float) -> float | None:
    """JSON has no infinity: identical pictures have no PSNR to write down."""
    return value if math.isfinite(value) else None


def environment(*, model_hash: str | None = None) -> dict[str, Any]:
    """What the numbers depend on beside the code: processor, GPU, library versions, commit, date, load, the model."""
    from hotloop_kernels import build_info, usable_cores

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
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
        "load": round(os.getloadavg()[0], 2),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "kernels": build_info(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "model_hash": model_hash,
    }


def _git(*arguments: str) -> str | None:
    return _said("git", "-C", str(Path(__file__).parent), *arguments)


def _gpu() -> dict[str, str] | None:
    told = _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if not told:
        return None
    name, _, driver = told.splitlines()[0].rpartition(", ")
    return {"name": name, "driver": driver}


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    """Its name, with the numbers behind it: virtual machines give very different processors one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else name
