"""What LoRAs on a running pipeline cost: seconds until the new style shows, memory, and speed per step.

    python benchmarks/adapters.py sd15 --engine openvino-bf16 --size 512x512

A seeded LoRA of rank 16 on every matrix of the UNet's transformers is loaded, scaled, unloaded and loaded again, on a
pipeline as it opens by default and on one opened for adapters. Then a step of both is timed in turns, without the LoRA:
what runs with it is the same compiled network, so that ratio is the price per step.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from engines import step_of
from harness import Case, compare, cosine_at_least

import hotloop
from hotloop.bundle import builtin
from hotloop.weights import Weights, keys, save
from hotloop_kernels import usable_cores

RESULTS = Path(__file__).parent / "results" / "local" / "adapters.jsonl"
RANK, SIZE = 16, 0.05
COSINE = 0.99
ROW = "{:<20}{:>12}{:>12}"


def write_lora(bundle: hotloop.Bundle, path: Path) -> Path:
    """Noise of rank 16 in diffusers' keys."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return (SIZE * rng.standard_normal(shape, np.float32)).astype(np.float16)

    weights = Weights.open(bundle.file(bundle.manifest["weights"]["unet"]["path"]))
    tensors: dict[str, np.ndarray] = {}
    for key in filter(keys.LORA_TARGETS.fullmatch, weights):
        out, inner, *one = weights.shape(key)
        stem = f"unet.{key.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = noise(RANK, inner, *one)
        tensors[f"{stem}.lora_B.weight"] = noise(out, RANK, *(1 for _ in one))
    return save(tensors, path)


def anonymous() -> float:
    """GB of memory that is this process's alone (Linux; else nan)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, nargs="?", help="the built-in model by default")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--size", default="512x512", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--batch", type=int, default=1, help="images; guidance evaluates twice as many")
    cores = usable_cores()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = hotloop.Bundle.open(options.bundle or builtin())
        lora = write_lora(bundle, Path(folder) / "style.safetensors")
        plain, ready = (measured(bundle.path, adapters, lora, options) for adapters in (False, True))
    print(ROW.format("", "by default", "for adapters"))
    for name, value in plain.figures.items():
        print(ROW.format(name, f"{value:.3f}", f"{ready.figures[name]:.3f}"))
    report = compare(
        [Case("by default", plain.step), Case("for adapters", ready.step)],
        benchmark="adapters",
        check=cosine_at_least(COSINE),
        rounds=options.rounds,
        params={
            "bundle": bundle.path.name,
            "engine": plain.engine,
            "size": list(options.size),
            "batch": options.batch,
            "threads": options.threads,
        },
    )
    for name, one in (("by default", plain), ("for adapters", ready)):
        report[name].extra.update(one.figures)
    print(report.table())
    report.append(options.out)
    print(f"added to {options.out}")


@dataclass(frozen=True)
class Measured:
    """A pipeline's engine and figures, and a step of it without adapters."""

    engine: str
    figures: dict[str, float]
    step: Callable[[], np.ndarray]


def measured(bundle: Path, adapters: bool, lora: Path, options: argparse.Namespace) -> Measured:
    """Open and change; raises when unloading does not give the first step back, bit for bit."""
    gc.collect()
    before, began = anonymous(), time.perf_counter()
    pipe = hotloop.load(bundle, engine=options.engine, threads=options.threads, adapters=adapters)
    figures = {"open_seconds": time.perf_counter() - began}
    first = step_of(pipe, options)()
    figures["open_gb"] = anonymous() - before
    figures["load_seconds"] = pipe.load_lora(lora, 0.5, name="style").seconds
    step_of(pipe, options)()
    figures["loaded_gb"] = anonymous() - before
    figures["set_seconds"] = pipe.set_lora("style", 0.3).seconds
    figures["unload_seconds"] = pipe.unload_lora("style").seconds
    figures["load_again_seconds"] = pipe.load_lora(lora, 0.4, name="style").seconds
    pipe.unload_lora("style")
    step = step_of(pipe, options)
    if not np.array_equal(step(), first):
        raise SystemExit("unloading did not give the original step back")
    return Measured(pipe.engine, figures, step)


if __name__ == "__main__":
    main()
