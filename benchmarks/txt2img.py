"""How long one picture takes: hotloop against stock diffusers on the same files, in one interleaved run.

    make bench            or    python benchmarks/txt2img.py --rounds 30 --batch 4

Prints seconds per picture, the share of the loop outside the engine, and each side's peak memory in a process of its
own; a speed-up only if the pictures agree (PSNR >= 50 dB).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Case, compare, peak_rss_of, psnr_at_least

PROMPT = "A cute anime girl with pink hair, wearing a school uniform, smiling"
NEGATIVE = "blurry, watermark, low quality"
SEED = 7
RESULTS = Path(__file__).parent / "results" / "local" / "txt2img.jsonl"


def stock(options: argparse.Namespace) -> Callable[[], list[Any]]:
    """Stock diffusers: one seeded generator per picture, PLMS as its PNDMScheduler without Runge-Kutta steps."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers
    import torch

    from hotloop.bundle import builtin

    torch.set_num_threads(options.threads)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        options.model or builtin(), safety_checker=None, torch_dtype=torch.float32, local_files_only=True
    )
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> list[Any]:
        images: list[Any] = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            num_images_per_prompt=options.batch,
            generator=[torch.Generator().manual_seed(SEED + i) for i in range(options.batch)],
        ).images
        return images

    return draw


def ours(options: argparse.Namespace, timings: list[dict[str, float]]) -> Callable[[], list[Any]]:
    """hotloop; the stages' seconds of every call are added to `timings`."""
    import hotloop

    pipe = hotloop.load(options.model, threads=options.threads)

    def draw() -> list[Any]:
        result = pipe.txt2img(
            PROMPT,
            NEGATIVE,
            sampler="plms",
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            num_images_per_prompt=options.batch,
            seed=SEED,
            prompt_syntax="plain",
        )
        timings.append(result.timings)
        return result.images

    return draw


def stages(timings: list[dict[str, float]]) -> dict[str, Any]:
    """Median seconds of every stage of a call, and the share of a call that its loop spends outside the engine."""
    medians = {name: statistics.median(t[name] for t in timings) for name in timings[0]}
    overhead = statistics.median((t["loop"] - t["engine"]) / t["total"] for t in timings)
    return {"stage_seconds": medians, "loop_overhead_share": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a bundle; the built-in model by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=1, help="pictures per call")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    parser.add_argument("--only", choices=("diffusers", "hotloop"), help="draw once and leave, to weigh one side alone")
    options = parser.parse_args()

    if options.only:
        (stock(options) if options.only == "diffusers" else ours(options, []))()
        return

    timings: list[dict[str, float]] = []
    report = compare(
        [
            Case("diffusers", stock(options), work=options.batch),
            Case("hotloop", ours(options, timings), work=options.batch),
        ],
        benchmark="txt2img",
        check=psnr_at_least(50),
        rounds=options.rounds,
        warmup=options.warmup,
        params={
            "model": options.model.name if options.model else "built-in",
            "sampler": "plms",
            "steps": options.steps,
            "guidance": options.guidance,
            "batch": options.batch,
            "threads": options.threads,
        },
    )
    report["hotloop"].extra.update(stages(timings[options.warmup :]))
    for name in ("diffusers", "hotloop"):
        report[name].extra["peak_rss_alone_bytes"] = peak_rss_of([sys.executable, *sys.argv, "--only", name])

    print(report.table())
    print(f"loop outside the engine: {report['hotloop'].extra['loop_overhead_share']:.2%} of a call")
    for name in ("diffusers", "hotloop"):
        print(f"peak memory of a process with {name} alone: {report[name].extra['peak_rss_alone_bytes'] / 1e6:.0f} MB")
    report.append(options.out)
    print(f"added to {options.out}")


if __name__ == "__main__":
    main()
