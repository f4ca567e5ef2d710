"""What each tuning of the native engine brings: one evaluation of a UNet, tuned against plain, in turns.

    python benchmarks/tunings.py --unet sd15/unet --family sd15 --cells 64x64 --precision bf16 --rounds 3

Without --unet the built-in model's. Guidance is on (two rows), and the UNet is split (kv, time, prefix). A speed-up is
printed only where the outputs agree (cosine >= 0.999).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Case, compare, cosine_at_least

from hotloop.bundle import builtin
from hotloop.engines.native import NativeEngine, default_tunings
from hotloop.nets.tunings import TUNINGS, tune
from hotloop.spec import cells, family
from hotloop_kernels import usable_cores

RESULTS = Path(__file__).parent / "results" / "local" / "tunings.jsonl"
ROW = "{:<44}{:>12}{:>12}  {}"


def evaluation(plain: NativeEngine, tunings: tuple[str, ...], dims: dict[str, int]) -> Callable[[], np.ndarray]:
    """One run of the network on seeded inputs."""
    engine = copy.copy(plain)
    if tunings:
        engine.call = tune(copy.deepcopy(plain.call), tunings)
    network = engine.network
    context = engine.context(**network.pick(dims))
    rng = np.random.default_rng(1)
    for array in context.inputs.values():
        array[:] = rng.standard_normal(array.shape)

    def run() -> np.ndarray:
        context.run()
        return context.outputs["out"].copy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", type=Path, help="a folder with config.json and the weights")
    parser.add_argument("--family", default="avatar-tiny")
    parser.add_argument("--cells", default="16x16", help="height x width of the latents")
    parser.add_argument("--precision", default="fp32")
    cores = usable_cores()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    options = parser.parse_args()
    network = family(options.family).split(("kv", "time", "prefix"), ())["unet"]
    folder = options.unet or builtin() / "unet"
    plain = NativeEngine(folder, network, precision=options.precision, threads=options.threads, tunings=())
    dims = {"N": 1, "B": 2, "T": 77, **cells(*map(int, options.cells.split("x")))}
    default = tuple(default_tunings("cpu"))
    print(ROW.format("tunings", "plain ms", "tuned ms", "speed-up [95 %]"))
    for tunings in dict.fromkeys([*((name,) for name in TUNINGS), default, tuple(TUNINGS)]):
        name = "+".join(tunings)
        report = compare(
            [Case("plain", evaluation(plain, (), dims)), Case(name, evaluation(plain, tunings, dims))],
            benchmark="tunings", check=cosine_at_least(0.999), rounds=options.rounds, warmup=2,
            params={"family": options.family, "cells": options.cells, "precision": options.precision,
                    "threads": options.threads, "default": tunings == default},
        )  # fmt: skip
        report.append(options.out)
        tuned = report[name]
        ratio = "differs" if tuned.speedup is None else "{:.2f} [{:.2f}, {:.2f}]".format(*tuned.speedup)
        times = [f"{one.median * 1e3:.1f}" for one in (report["plain"], tuned)]
        print(ROW.format(name + (" (default)" if tunings == default else ""), *times, ratio), flush=True)
    print(f"added to {options.out}")


if __name__ == "__main__":
    main()
