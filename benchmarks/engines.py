"""Seconds per UNet evaluation of every engine of one or several bundles, against one of them, interleaved.

    python benchmarks/engines.py plain=sd15-plain split=sd15-split --against plain:onnx-fp32 --size 512x512 --rounds 3

Every engine is timed in turns with the same baseline, two open at a time, so that big ones fit and drift cancels; a
speed-up is printed only for an engine whose output points the baseline's way (cosine >= 0.99).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Case, compare, cosine_at_least

import hotloop
from hotloop_kernels import usable_cores

RESULTS = Path(__file__).parent / "results" / "local" / "engines.jsonl"
COSINE = 0.99
ROW = "{:<24}{:>9}  {:<20}{:>9}{:>9}"


def evaluation(bundle: Path, engine: str, options: argparse.Namespace) -> tuple[Callable[[], np.ndarray], float]:
    """(one step of the loop, seconds that opening took)."""
    began = time.perf_counter()
    pipe = hotloop.load(bundle, engine=engine, threads=options.threads)
    seconds = time.perf_counter() - began
    return step_of(pipe, options), seconds


def step_of(pipe: hotloop.Pipeline, options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """One step of the loop on seeded latents and prompts, with guidance."""
    family, rng = pipe.family, np.random.default_rng(0)
    width, height = options.size
    shape = (options.batch, family.latent_channels, height // family.vae_factor, width // family.vae_factor)
    x = rng.standard_normal(shape, np.float32)
    states = rng.standard_normal((2, options.batch, family.vocab_tokens, family.context_dim), np.float32)
    cond = {"negative_context": states[0], "context": states[1]}
    denoiser = pipe.networks.denoiser()
    denoiser.begin(cond, pipe.table("euler", 20), shape)
    rows = np.full(options.batch, 10, np.int32)

    def step() -> np.ndarray:
        made = denoiser.step(x, rows)
        return np.concatenate([part for part in made if part is not None])

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE")
    parser.add_argument("--against", help="NAME:ENGINE, the baseline; the first engine of the first bundle by default")
    parser.add_argument("--engines", nargs="*", help="only these, such as openvino-bf16")
    parser.add_argument("--size", default="512x512", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--batch", type=int, default=1, help="images; guidance evaluates twice as many")
    cores = usable_cores()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    options = parser.parse_args()

    places = {name: Path(path) for name, _, path in (text.partition("=") for text in options.bundles)}
    found = [
        (name, entry.name)
        for name, path in places.items()
        for entry in hotloop.Bundle.open(path, verify=False).entries
        if not options.engines or entry.name in options.engines
    ]
    chosen = options.against.partition(":")[::2] if options.against else found[0]
    baseline, _ = evaluation(places[chosen[0]], chosen[1], options)
    print(ROW.format("engine", "seconds", "speed-up", "cosine", "open s"))
    for name, engine in found:
        if (name, engine) != chosen:
            against(baseline, ":".join(chosen), places[name], name, engine, options)
            gc.collect()  # before the next one opens: two at a time are what fits
    print(f"added to {options.out}")


def against(
    baseline: Callable[[], np.ndarray], known: str, bundle: Path, name: str, engine: str, options: argparse.Namespace
) -> None:
    """Time an engine in turns with the baseline, print both and add the record."""
    step, opened = evaluation(bundle, engine, options)
    report = compare(
        [Case("baseline", baseline), Case(f"{name}:{engine}", step)],
        benchmark="engines",
        check=cosine_at_least(COSINE),
        rounds=options.rounds,
        warmup=options.warmup,
        params={
            "bundle": bundle.name,
            "baseline": known,
            "size": list(options.size),
            "batch": options.batch,
            "guidance": True,
            "threads": options.threads,
        },
    )
    base, case = report["baseline"], report[f"{name}:{engine}"]
    case.extra["open_seconds"] = opened
    report.append(options.out)
    assert case.agreement is not None
    ratio = "differs" if case.speedup is None else "{:.2f} [{:.2f}, {:.2f}]".format(*case.speedup)
    agreed = f"{case.agreement.value:.5f}"
    print(ROW.format(f"{name}:{engine}", f"{case.median:.3f}", ratio, agreed, f"{opened:.1f}"))
    print(ROW.format(f"  {known}", f"{base.median:.3f}", "", "", ""), flush=True)


if __name__ == "__main__":
    main()
