"""warp_blend on the CPU against OpenVINO's GridSample and against the operator's own loop in plain C++.

    python benchmarks/bench_warp.py --threads 1

Two frames: a keyframe and its reveal texture everywhere; the keyframe, and both in two boxes over eyes and mouth. Each
with warm caches and right after they were emptied. Prints one line per frame: milliseconds of the three, the speed-ups
with their intervals, and the largest difference in levels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, close_to, compare

import hotloop_kernels as kernels
from hotloop_kernels.testing import use_isa

RESULTS = Path(__file__).parent / "results" / "local" / "warp.jsonl"
ROW = "{:<34}{:>10}{:>12}{:>10}  {:<24}{:<24}{}"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
BOXES = np.array([[0.3, 0.44, 0.7, 0.6], [0.42, 0.63, 0.58, 0.73]])  # eyes and mouth of an avatar


@dataclass(frozen=True)
class Frame:
    """sources: premultiplied uint8 [size, size, 4]; whole [9, grid, grid]; parts [P, 9, grid, grid], boxes [P, 4]."""

    name: str
    sources: list[np.ndarray]
    whole: np.ndarray
    parts: np.ndarray
    boxes: np.ndarray


def smooth(rng: np.random.Generator, channels: int, grid: int) -> np.ndarray:
    """[channels, grid, grid] within about -1..1, as a head's motion is."""
    along = np.linspace(0, np.pi, grid)
    waves = np.stack([np.cos(k * along) for k in range(4)])  # [4, grid]
    return np.einsum("cjk,jy,kx->cyx", rng.normal(0, 0.3, (channels, 4, 4)), waves, waves)


def frames(size: int, grid: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (2, size, size, 1))
    pictures = np.concatenate([rng.integers(0, 256, (2, size, size, 3)) * alpha // 255, alpha], -1).astype(np.uint8)
    fields = np.zeros((4, 9, grid, grid), np.float32)
    for one in fields:
        one[:4], one[4] = 0.05 * smooth(rng, 4, grid), np.clip(0.5 + smooth(rng, 1, grid)[0], 0.05, 1)
    still = fields[1].copy()
    still[4] = 0
    none = np.zeros((0, 9, grid, grid), np.float32), np.zeros((0, 4))
    return [
        Frame("keyframe and reveal texture", list(pictures), fields[0], *none),
        Frame("keyframe, both in two boxes", list(pictures), still, fields[2:], BOXES),
    ]


def openvino_graph(frame: Frame, threads: int) -> Callable[[], np.ndarray]:
    """The frame by Interpolate and GridSample, in one graph: textures as float32 planes, which it need not convert."""
    import openvino as ov
    from openvino import opset14 as op

    size, count = frame.sources[0].shape[0], len(frame.parts)
    textures = [op.parameter([1, 4, size, size], np.float32) for _ in frame.sources]
    whole = op.parameter([1, *frame.whole.shape], np.float32)
    parts = [op.parameter([1, *part.shape], np.float32) for part in frame.parts]
    centres = (np.arange(size) + 0.5) / size

    def moved(texture: Any, values: Any, first: int, y: np.ndarray, x: np.ndarray) -> Any:
        flow = op.transpose(channels(values, first, 2), np.array([0, 2, 3, 1]))
        still = np.stack(np.broadcast_arrays(x[None], y[:, None]), -1)[None].astype(np.float32)
        at = op.subtract(op.multiply(op.add(flow, still), np.float32(2)), np.float32(1))
        linear = {"align_corners": False, "mode": "bilinear", "padding_mode": "zeros"}
        return op.grid_sample(texture, at, linear)

    def channels(values: Any, first: int, count: int) -> Any:
        return op.slice(values, *(np.array([n]) for n in (first, first + count, 1, 1)))

    def blended(values: Any, y: np.ndarray, x: np.ndarray, *, both: bool) -> Any:
        mixed = moved(textures[0], values, 0, y, x)
        if not both:
            return mixed
        step = op.subtract(moved(textures[1], values, 2, y, x), mixed)
        return op.add(mixed, op.multiply(channels(values, 4, 1), step))

    used = channels(whole, 0, 5 if count == 0 else 2)
    spread = op.interpolate(used, np.array([size, size]), "linear_onnx", "sizes", axes=np.array([2, 3]))  # half pixels
    picture = blended(spread, centres, centres, both=count == 0)
    for part, (x0, y0, x1, y1) in zip(parts, frame.boxes, strict=True):
        at, places = [], []
        for low, high in ((y0, y1), (x0, x1)):
            inside = np.flatnonzero((low <= centres) & (centres < high))
            nodes = np.clip((centres[inside] - low) / (high - low) * part.shape[2] - 0.5, 0, part.shape[2] - 1)
            hats = np.maximum(1 - np.abs(nodes[:, None] - np.arange(part.shape[2])), 0).astype(np.float32)
            at.append(inside)
            places.append(hats)
        values = op.matmul(op.matmul(places[0][None, None], part, False, False), places[1].T[None, None], False, False)
        patch = blended(values, centres[at[0]], centres[at[1]], both=True)
        before, after = (np.array([0, 0, *edge]) for edge in zip(*((i[0], size - 1 - i[-1]) for i in at), strict=True))
        covered = np.zeros((1, 1, size, size), bool)
        covered[0, 0, at[0][0] : at[0][-1] + 1, at[1][0] : at[1][-1] + 1] = True
        padded = op.pad(patch, before, after, "constant", np.float32(0))
        picture = op.select(covered, padded, picture)
    levels = op.clamp(op.round(picture, "half_to_even"), 0.0, 255.0)
    result = op.convert(op.transpose(levels, np.array([0, 2, 3, 1])), "u8")
    model = ov.Model([result], [*textures, whole, *parts], "warp_blend")
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    planes = [np.ascontiguousarray(s.transpose(2, 0, 1)[None], np.float32) for s in frame.sources]
    for i, array in enumerate([*planes, frame.whole[None], *(part[None] for part in frame.parts)]):
        request.set_input_tensor(i, ov.Tensor(np.ascontiguousarray(array)))

    def run() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data[0]

    return run


def ours(frame: Frame, isa: str) -> Callable[[], np.ndarray]:
    out = np.empty_like(frame.sources[0])

    def run() -> np.ndarray:
        with use_isa(isa):
            return kernels.warp_blend(frame.sources, frame.whole, parts=frame.parts, boxes=frame.boxes, out=out)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512, help="of the frame and the textures")
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: where others hold the cores")
    parser.add_argument("--isa", choices=["scalar", "avx2", "avx512"], help="a lower instruction set for hotloop's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    options = parser.parse_args()
    kernels.set_threads(options.threads)
    isa = options.isa or kernels.build_info()["isa"]

    print(f"{options.size} x {options.size}, {options.threads} threads, {isa}; milliseconds, {options.clock}")
    print(
        ROW.format("frame", "OpenVINO", "plain C++", "hotloop", "over OpenVINO [95 %]", "over plain [95 %]", "levels")
    )
    for frame in frames(options.size, options.grid):
        cases = [
            Case("openvino", openvino_graph(frame, options.threads)),
            Case("plain", ours(frame, "scalar")),
            Case("hotloop", ours(frame, isa)),
        ]
        for cold in (False, True):
            report = compare(
                cases, benchmark="warp", check=close_to(1), rounds=options.rounds, warmup=2, cold_cache=cold,
                clock=CLOCKS[options.clock],
                params={
                    "frame": frame.name, "size": options.size, "grid": options.grid, "threads": options.threads,
                    "isa": isa, "caches": "cold" if cold else "warm", "clock": options.clock,
                },
            )  # fmt: skip
            report.append(options.out)
            case = report["hotloop"]
            assert case.agreement is not None
            ratio = "differs" if case.speedup is None else "{:.1f} [{:.1f}, {:.1f}]".format(*case.speedup)
            plain = "{:.1f} [{:.1f}, {:.1f}]".format(*report.ratio("plain", "hotloop"))
            times = [f"{report[name].median * 1e3:.2f}" for name in ("openvino", "plain", "hotloop")]
            name = frame.name + (", cold" if cold else "")
            print(ROW.format(name, *times, ratio, plain, f"{case.agreement.value:.0f}"), flush=True)


if __name__ == "__main__":
    main()
