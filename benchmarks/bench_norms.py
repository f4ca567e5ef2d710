"""layer_norm, group_norm_silu and geglu on the CPU against torch's eager operators, at the shapes of SD 1.5.

    python benchmarks/bench_norms.py --dtype bfloat16 --threads 2

Prints one line per shape: microseconds of both, the speed-up with its interval, and hotloop's error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Agreement, Case, Check, compare

import hotloop_kernels as kernels

RESULTS = Path(__file__).parent / "results" / "local" / "norms.jsonl"
ROW = "{:<34}{:>10}{:>10}  {:<22}{}"
F = torch.nn.functional
Run = Callable[[], torch.Tensor]

# Two images of 512 x 512 (guidance): the UNet's resolutions, the prompt, and the VAE's largest tensor.
ROWS = [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (2, 64, 1280), (2, 77, 768)]
IMAGES = [(2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 1280, 8, 8), (1, 128, 512, 512)]
FEED_FORWARD = [(2, 4096, 2560), (2, 1024, 5120), (2, 256, 10240), (2, 64, 10240)]


def layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Run, Run, Run]:
    """torch's, hotloop's, and the exact result; likewise below."""
    x, weight, bias = (torch.randn(size).to(dtype) for size in (shape, shape[-1:], shape[-1:]))
    return (
        lambda: F.layer_norm(x, shape[-1:], weight, bias),
        lambda: kernels.layer_norm(x, weight, bias),
        lambda: F.layer_norm(x.double(), shape[-1:], weight.double(), bias.double()),
    )


def group_norm_silu(shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool) -> tuple[Run, Run, Run]:
    """Both on torch's memory format for the layout; the result keeps it."""
    x, weight, bias = (torch.randn(size).to(dtype) for size in (shape, shape[1:2], shape[1:2]))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return (
        lambda: F.silu(F.group_norm(x, 32, weight, bias)),
        lambda: kernels.group_norm_silu(x, weight, bias, 32),
        lambda: F.silu(F.group_norm(x.contiguous().double(), 32, weight.double(), bias.double())),
    )


def geglu(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Run, Run, Run]:
    x = torch.randn(shape).to(dtype)

    def stock(x: torch.Tensor) -> torch.Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)

    return lambda: stock(x), lambda: kernels.geglu(x), lambda: stock(x.double())


def within(ulps: float, exact: torch.Tensor, dtype: torch.dtype) -> Check:
    """The largest error against float64, in units of the dtype's precision at the largest value.

    torch's own error may be larger: at 512 x 512 its channels-last group norm is 250 of these units off in float32.
    """
    unit = torch.finfo(dtype).eps * float(exact.abs().max())

    def check(expected: torch.Tensor, got: torch.Tensor) -> Agreement:
        value = float((exact - got.double()).abs().max()) / unit
        return Agreement(value <= ulps, "ulp of the largest value", value, ulps)

    return check


def main() -> None:
    cores = kernels.usable_cores()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--isa", choices=["scalar", "avx2", "avx512"], help="a lower instruction set for hotloop's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    kernels.set_threads(options.threads)
    if options.isa:
        kernels.backend.ops.set_isa(options.isa)

    torch.manual_seed(0)
    cases = [
        *((f"layer_norm {list(s)}", layer_norm(s, dtype)) for s in ROWS),
        *((f"group_norm_silu {list(s)} NHWC", group_norm_silu(s, dtype, channels_last=True)) for s in IMAGES),
        *((f"group_norm_silu {list(s)}", group_norm_silu(s, dtype, channels_last=False)) for s in IMAGES),
        *((f"geglu {list(s)}", geglu(s, dtype)) for s in FEED_FORWARD),
    ]
    print(f"{options.dtype}, {options.threads} threads, {kernels.build_info()['isa']}")
    print(ROW.format("op and shape", "torch us", "us", "speed-up [95 %]", "error"))
    for name, (stock, ours, exact) in cases:
        report = compare(
            [Case("torch", stock), Case("hotloop", ours)],
            benchmark="norms",
            check=within(4, exact(), dtype),
            rounds=options.rounds,
            warmup=3,
            params={"op": name, "dtype": options.dtype, "threads": options.threads},
        )
        report.append(options.out)
        base, case = report["torch"], report["hotloop"]
        assert case.agreement is not None
        ratio = "differs" if case.speedup is None else "{:.2f} [{:.2f}, {:.2f}]".format(*case.speedup)
        error = f"{case.agreement.value:.2f} ulp"
        print(ROW.format(name, f"{base.median * 1e6:.0f}", f"{case.median * 1e6:.0f}", ratio, error), flush=True)


if __name__ == "__main__":
    main()
