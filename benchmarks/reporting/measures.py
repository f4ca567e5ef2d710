"""Quality figures: what they are called, which way is better, and what no other case beats in both time and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hotloop.evaluation.comparison import front as pareto_front

from .results import Line

__all__ = ["Measure", "front", "measure", "measures", "quality"]


@dataclass(frozen=True)
class Measure:
    """digits: after the point."""

    title: str
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 3

    def write(self, value: float) -> str:
        if math.isinf(value):
            return "infinite"
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


KNOWN = {
    "attribute_accuracy": Measure("attribute accuracy"),
    "converged_psnr_db": Measure("PSNR to the converged picture", "dB", digits=1),
    "converged_ssim": Measure("SSIM to the converged picture", digits=4),
    "cosine": Measure("cosine", digits=5),
    "fid_p": Measure("FID-p", higher_is_better=False, digits=0),
    "kid_p": Measure("KID-p", higher_is_better=False),
    "latents_cosine": Measure("cosine of latents", digits=5),
    "psnr_db": Measure("PSNR", "dB", digits=1),
    "ssim": Measure("SSIM", digits=4),
}


def measure(name: str) -> Measure:
    """By its name in the lines; of an unknown one more is better, and a name that ends in _db is in dB."""
    if name in KNOWN:
        return KNOWN[name]
    words = name.removesuffix("_db").replace("_", " ").replace("psnr", "PSNR").replace("ssim", "SSIM")
    return Measure(words, "dB", digits=1) if name.endswith("_db") else Measure(words)


def measures(lines: Sequence[Line]) -> list[str]:
    """Every measure that some line has, in order of appearance."""
    return list(dict.fromkeys(name for line in lines for name in line["quality"] or {}))


def quality(line: Line, name: str) -> float | None:
    """None when it was not measured; what the lines write as null is infinite (PSNR of equal pictures)."""
    values = line["quality"] or {}
    if line["error"] is not None or name not in values:
        return None
    return math.inf if values[name] is None else float(values[name])


def front(lines: Sequence[Line], name: str) -> list[Line]:
    """The Pareto front, fastest first: lines that no other one beats in both latency and the measure."""
    sign = 1 if measure(name).higher_is_better else -1
    values = [quality(line, name) for line in lines]
    points = [(line.p50() or math.inf, None if v is None else sign * v) for line, v in zip(lines, values, strict=True)]
    return sorted((line for line, on in zip(lines, pareto_front(points), strict=True) if on), key=Line.latency)
