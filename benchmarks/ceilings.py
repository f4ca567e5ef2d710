"""What this machine can do: the fastest large product or convolution in each dtype, the fastest large copy, measured.

    python benchmarks/ceilings.py --threads 2

A ceiling is the best run of the best library on the best of several shapes, at random values, so that what a network
does per second can come close to it but not beyond. It holds for the threads it was measured with and for a machine
that does nothing else: beside other work it comes out too low, and floors made of it too high.

Narrow numbers can be computed with as wider ones, so a dtype's ceiling is at least that of the dtypes that hold its
values (int8 in bf16, fp16 in fp32...). fp32 on CUDA may use TF32, as torch's convolutions do. The bandwidth is the
larger of a copy's, bytes read and written both counted, and of reading alone. The CUDA part has never run on a GPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from hotloop_kernels import usable_cores

__all__ = ["Ceiling", "Ceilings", "measure"]

Run = Callable[[], object]
Shape = tuple[int, int, int]
Timer = Callable[[Run], float]  # seconds of the best run

# Rows x inner x columns; channels, side, images, as in SD 1.5's UNet. Short runs: one of them is left undisturbed.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1280, 4096))
CONVOLUTIONS = ((320, 64, 1), (640, 32, 1))
COPY = 256 << 20  # bytes: beyond the caches
CUDA_PRODUCTS = ((8192, 8192, 8192), (16384, 4096, 4096))
CUDA_CONVOLUTIONS = ((320, 64, 64), (640, 32, 64), (512, 64, 32))
CUDA_COPY = 2 << 30
LAYERS = 4  # of a compiled model: its borders then cost little beside them

# dtype -> those that hold all its values
WIDER = {"fp32": (), "bf16": ("fp32",), "fp16": ("fp32",), "fp8": ("bf16", "fp16"), "int8": ("bf16", "fp16")}
_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OPENVINO = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}  # what the border of an int8 model is computed in


@dataclass(frozen=True)
class Ceiling:
    """value: FLOPs (two per multiply-add) or bytes (read and written) per second; by: what reached it."""

    value: float
    by: str


@dataclass(frozen=True)
class Ceilings:
    """flops: by dtype; threads: of the processor, None for a GPU."""

    device: str
    threads: int | None
    flops: Mapping[str, Ceiling]
    bytes: Ceiling

    def highest(self, other: Ceilings) -> Ceilings:
        """The higher of each of two measurements on one machine: what else runs there can only lower them."""

        def best(a: Ceiling, b: Ceiling) -> Ceiling:
            return max(a, b, key=lambda one: one.value)

        flops = {dtype: best(one, other.flops[dtype]) for dtype, one in self.flops.items()}
        return replace(self, flops=flops, bytes=best(self.bytes, other.bytes))

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        rows = [("copy", self.bytes.value / 1e9, "GB/s", self.bytes.by)]
        rows += [(dtype, one.value / 1e9, "GFLOP/s", one.by) for dtype, one in self.flops.items()]
        return "\n".join(f"{name:<6}{value:>12,.1f} {unit:<9}{by}" for name, value, unit, by in rows)


def measure(*, device: str = "cpu", threads: int | None = None, seconds: float = 0.25) -> Ceilings:
    """Measure all of them, some ten seconds on two cores.

    device: torch's, "cpu" or "cuda"; threads: of the processor, every core at hand by default; seconds: for each way,
    after its first run.
    """
    if device == "cpu":
        cores = usable_cores()
        before, threads = torch.get_num_threads(), threads or cores
        torch.set_num_threads(threads)
        try:
            timer = _cpu_timer(seconds)
            return Ceilings("cpu", threads, _flops(_cpu_groups(threads), timer), _copy(_cpu_copies(threads), timer))
        finally:
            torch.set_num_threads(before)
    before_tf32 = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        timer = _cuda_timer(seconds)
        name = torch.cuda.get_device_name()
        return Ceilings(name, None, _flops(_cuda_groups(), timer), _copy(_cuda_copies(), timer))
    finally:
        torch.set_float32_matmul_precision(before_tf32)


@dataclass(frozen=True)
class _Way:
    """One way of doing `work` FLOPs or bytes; `make` gives what does it once."""

    by: str
    work: float
    make: Callable[[], Run]


def _flops(groups: Iterable[tuple[str, list[_Way]]], timer: Timer) -> dict[str, Ceiling]:
    """From (dtype, one library's ways), wider dtypes first."""
    found: dict[str, Ceiling] = {}
    for dtype, ways in groups:
        best = _fastest(ways, timer, [found[name] for name in (dtype, *WIDER[dtype]) if name in found])
        if best is not None:
            found[dtype] = best
    return found


def _fastest(ways: list[_Way], timer: Timer, known: Sequence[Ceiling] = ()) -> Ceiling | None:
    """The best of the ways and of what is known; None where there is neither."""
    best = max(known, key=lambda one: one.value, default=None)
    for way in ways:
        try:
            rate = way.work / timer(way.make())
        except (RuntimeError, NotImplementedError):  # this library has no such product on this machine
            continue
        if best is None or rate > best.value:
            best = Ceiling(rate, way.by)
        elif rate < best.value / 2:
            break  # computed as something else: its other shapes would only cost time
    return best


def _copy(ways: list[_Way], timer: Timer) -> Ceiling:
    return max((Ceiling(way.work / timer(way.make()), way.by) for way in ways), key=lambda one: one.value)


# The processor.


def _cpu_timer(seconds: float) -> Timer:
    def best(run: Run) -> float:
        run()
        fastest, end = math.inf, time.perf_counter() + seconds
        while fastest == math.inf or time.perf_counter() < end:
            began = time.perf_counter()
            run()
            fastest = min(fastest, time.perf_counter() - began)
        return fastest

    return best


def _cpu_groups(threads: int) -> Iterator[tuple[str, list[_Way]]]:
    with_openvino = importlib.util.find_spec("openvino") is not None
    for dtype in ("fp32", "bf16", "fp16", "int8"):
        yield dtype, _torch_ways(dtype, "cpu", PRODUCTS, CONVOLUTIONS)
        if with_openvino and dtype in _OPENVINO:
            yield dtype, _openvino_ways(dtype, threads)


def _openvino_ways(dtype: str, threads: int) -> list[_Way]:
    """LAYERS products or convolutions in a row, compiled."""
    rows, inner, _ = PRODUCTS[1]
    channels, side, images = CONVOLUTIONS[0]
    product = (rows, inner), (inner, inner)
    convolution = (images, channels, side, side), (channels, channels, 3, 3)
    return [
        _Way(f"OpenVINO {dtype} {name}", LAYERS * work, functools.partial(_openvino, dtype, threads, *shapes))
        for name, work, shapes in (
            (f"product {rows}x{inner}x{inner}", 2 * rows * inner**2, product),
            (f"convolution {channels} x {side}^2", 18 * channels**2 * side**2 * images, convolution),
        )
    ]


def _openvino(dtype: str, threads: int, shape: tuple[int, ...], weight: tuple[int, ...]) -> Run:
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    x = given = ops.parameter(shape, openvino.Type.f32)
    for _ in range(LAYERS):
        if dtype == "int8":
            x = ops.fake_quantize(x, *map(np.float32, (-4, 4 * 127 / 128, -4, 4 * 127 / 128)), 256)
            levels = ops.convert(ops.constant(rng.integers(-127, 128, weight, np.int8)), "f32")
            scale = np.full((len(weight) - 1) * (1,), 1 / 127 / math.sqrt(math.prod(weight[1:])), np.float32)
            w = ops.multiply(levels, np.broadcast_to(scale, (weight[0], *scale.shape)).copy())
        else:
            w = ops.constant(rng.standard_normal(weight, np.float32) / np.float32(math.sqrt(math.prod(weight[1:]))))
        x = ops.matmul(x, w, False, True) if len(weight) == 2 else ops.convolution(x, w, *4 * [[1, 1]])
    config = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _OPENVINO[dtype],
    }  # fmt: skip
    request = (
        openvino.Core().compile_model(openvino.Model([x], [given], "ceiling"), "CPU", config).create_infer_request()
    )
    request.get_input_tensor().data[:] = rng.standard_normal(shape, np.float32)
    return request.infer


def _cpu_copies(threads: int) -> list[_Way]:
    """Torch's; the C library's, a thread for each part; and reading alone, which some memory does faster."""
    source = torch.randn(COPY // 64).repeat(16)
    target = source.clone()
    parts = [(a.numpy(), b.numpy()) for a, b in zip(target.chunk(threads), source.chunk(threads), strict=True)]
    pool = ThreadPoolExecutor(threads)
    return [
        _Way("torch copy", 2 * COPY, lambda: lambda: target.copy_(source)),
        _Way(
            f"memcpy in {threads} threads", 2 * COPY, lambda: lambda: list(pool.map(lambda ab: np.copyto(*ab), parts))
        ),
        _Way("torch sum", COPY, lambda: source.sum),
    ]


# Torch, on either.


def _torch_ways(dtype: str, device: str, products: Sequence[Shape], convolutions: Sequence[Shape]) -> list[_Way]:
    ways = [
        _Way(f"torch {dtype} product {m}x{k}x{n}", 2 * m * k * n, functools.partial(_product, dtype, device, m, k, n))
        for m, k, n in products
    ]
    if dtype in _TORCH:
        ways += [
            _Way(f"torch {dtype} convolution {c} x {side}^2", 18 * c * c * side * side * images,
                 functools.partial(_convolution, dtype, device, c, side, images))
            for c, side, images in convolutions
        ]  # fmt: skip
    return ways


def _product(dtype: str, device: str, m: int, k: int, n: int) -> Run:
    if dtype == "int8":
        whole = (torch.randint(-128, 128, size, dtype=torch.int8, device=device) for size in ((m, k), (n, k)))
        a, b = whole
        return lambda: torch._int_mm(a, b.t())
    a, b = (torch.randn(size, device=device) for size in ((m, k), (n, k)))
    if dtype == "fp8":
        one = torch.ones((), device=device)
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    a, b = a.to(_TORCH[dtype]), b.to(_TORCH[dtype])
    return lambda: a @ b.t()


def _convolution(dtype: str, device: str, channels: int, side: int, images: int) -> Run:
    x, w = (
        torch.randn(size, device=device).to(_TORCH[dtype]).contiguous(memory_format=torch.channels_last)
        for size in ((images, channels, side, side), (channels, channels, 3, 3))
    )
    return lambda: torch.conv2d(x, w, padding=1)


# A GPU.


def _cuda_timer(seconds: float) -> Timer:
    def best(run: Run) -> float:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        fastest, end = math.inf, time.perf_counter() + seconds
        while fastest == math.inf or time.perf_counter() < end:
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            run()
            ended.record()
            ended.synchronize()
            fastest = min(fastest, began.elapsed_time(ended) / 1e3)
        return fastest

    return best


def _cuda_groups() -> Iterator[tuple[str, list[_Way]]]:
    for dtype in WIDER:
        yield dtype, _torch_ways(dtype, "cuda", CUDA_PRODUCTS, CUDA_CONVOLUTIONS)


def _cuda_copies() -> list[_Way]:
    source = torch.randn(CUDA_COPY // 4, device="cuda")
    target = torch.empty_like(source)
    return [
        _Way("torch copy", 2 * CUDA_COPY, lambda: lambda: target.copy_(source)),
        _Way("torch sum", CUDA_COPY, lambda: source.sum),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the processor; every core at hand by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(device=options.device, threads=options.threads)
    print(json.dumps(found.record()) if options.json else found.table())


if __name__ == "__main__":
    main()
