"""attention on the CPU against torch's scaled_dot_product_attention, at the shapes of SD 1.5 at 512 x 512.

    python benchmarks/bench_attention.py --dtype bfloat16 --threads 2

Prints one line per shape: milliseconds of both, the speed-up with its interval, hotloop's GFLOP/s and error.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from harness import Agreement, Case, Check, compare

import hotloop_kernels as kernels

RESULTS = Path(__file__).parent / "results" / "local" / "attention.jsonl"
ROW = "{:<32}{:>10}{:>10}  {:<22}{:>8}  {}"


class Shape(NamedTuple):
    name: str
    B: int
    Tq: int
    Tk: int
    H: int
    D: int
    causal: bool = False

    @property
    def flops(self) -> int:
        return 4 * self.B * self.H * self.Tq * self.Tk * self.D


LEVELS = [(4096, 40), (1024, 80), (256, 160), (64, 160)]  # tokens and head size of the UNet's resolutions, 8 heads
SHAPES = [
    *(Shape("self", B, T, T, 8, D) for T, D in LEVELS for B in (1, 2)),
    *(Shape("cross", B, T, 77, 8, D) for T, D in LEVELS for B in (1, 2)),
    Shape("VAE", 1, 4096, 4096, 1, 512),
    Shape("text encoder", 1, 77, 77, 12, 64, causal=True),
    Shape("text encoder", 2, 77, 77, 12, 64, causal=True),
]


def inputs(shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v [B, T, H, D] as projections leave them."""
    q, k, v = (torch.randn(shape.B, T, shape.H, shape.D).to(dtype) for T in (shape.Tq, shape.Tk, shape.Tk))
    return q, k, v


def stock(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """As diffusers calls it."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """In float64, a head at a time: all scores together are too large."""
    one_head = (t.double().split(1, dim=2) for t in (q, k, v))
    return torch.cat([stock(a, b, c, causal) for a, b, c in zip(*one_head, strict=True)], dim=2)


def as_close(want: torch.Tensor, dtype: torch.dtype) -> Check:
    """The largest error against float64 is at most twice torch's and two of the dtype's steps at the largest value."""
    step = torch.finfo(dtype).eps * float(want.abs().max())

    def check(expected: torch.Tensor, got: torch.Tensor) -> Agreement:
        theirs, ours = (float((want - one.double()).abs().max()) for one in (expected, got))
        return Agreement(ours <= 2 * theirs + 2 * step, "error in torch's errors", ours / theirs, 2 + 2 * step / theirs)

    return check


def main() -> None:
    cores = kernels.usable_cores()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=30, help="of the large shapes a third")
    parser.add_argument("--isa", choices=["scalar", "avx2", "avx512"], help="a lower instruction set for hotloop's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines are added to this file")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    kernels.set_threads(options.threads)
    if options.isa:
        kernels.backend.ops.set_isa(options.isa)

    torch.manual_seed(0)
    print(f"{options.dtype}, {options.threads} threads, {kernels.build_info()['isa']}")
    print(ROW.format("shape", "torch ms", "ms", "speed-up [95 %]", "GFLOP/s", "error"))
    for shape in SHAPES:
        q, k, v = inputs(shape, dtype)
        mask = torch.ones(shape.Tq, shape.Tk, dtype=torch.bool).tril() if shape.causal else None
        report = compare(
            [
                Case("torch", partial(stock, q, k, v, shape.causal)),
                Case("hotloop", partial(kernels.attention, q, k, v, mask=mask)),
            ],
            benchmark="attention",
            check=as_close(exact(q, k, v, shape.causal), dtype),
            rounds=options.rounds if shape.flops < 1e10 else (options.rounds + 2) // 3,
            warmup=3,
            params={"shape": shape._asdict(), "dtype": options.dtype, "threads": options.threads},
        )
        report.append(options.out)
        base, case = report["torch"], report["hotloop"]
        assert case.agreement is not None
        name = f"{shape.name} {shape.B} x {shape.H} x {shape.Tq} x {shape.Tk} x {shape.D}"
        ratio = "differs" if case.speedup is None else "{:.2f} [{:.2f}, {:.2f}]".format(*case.speedup)
        times = [f"{m.median * 1e3:.3f}" for m in (base, case)]
        speed, error = f"{shape.flops / case.median / 1e9:.0f}", f"{case.agreement.value:.2f} x torch's"
        print(ROW.format(name, *times, ratio, speed, error), flush=True)


if __name__ == "__main__":
    main()
