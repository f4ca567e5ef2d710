"""What every peer is asked, and what it answers: the same for all, so that their outputs can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SAMPLERS", "Drawn", "Found", "Opened", "Setup", "Work"]

# hotloop's name of a sampler -> (the diffusers scheduler, its options). Timesteps are spaced as most users of that
# sampler have them: Euler as stable-diffusion.cpp's "discrete" does it, PLMS and DDIM as published with SD 1.
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "plms": (
        "PNDMScheduler",
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True},
    ),
    "ddim": (
        "DDIMScheduler",
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
    ),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
}


@dataclass(frozen=True)
class Setup:
    """What a process is opened for.

    model    a folder in diffusers' layout
    bundle   hotloop's bundle of the same weights; the built-in model's by default
    threads  of the library, all usable cores by default
    device   "cpu" or "cuda"
    cache    where a peer keeps what it makes of the model (an export, compiled kernels)
    size     (width, height) in pixels, batch images per call, with guidance or not: peers that compile for one shape
             do so for this one
    """

    model: Path
    bundle: Path | None = None
    threads: int | None = None
    device: str = "cpu"
    cache: Path = Path("benchmarks/results/local/peers")
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    guided: bool = True

    def header(self) -> dict[str, Any]:
        """As JSON data, paths absolute."""
        paths = {
            "model": str(self.model.absolute()),
            "bundle": None if self.bundle is None else str(self.bundle.absolute()),
            "cache": str(self.cache.absolute()),
        }
        return {**asdict(self), **paths}

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Setup:
        bundle = header["bundle"]
        given = {
            "model": Path(header["model"]),
            "bundle": None if bundle is None else Path(bundle),
            "cache": Path(header["cache"]),
            "size": tuple(header["size"]),
        }
        return cls(**{**header, **given})


@dataclass(frozen=True)
class Work:
    """One call: `batch` images of one prompt, image i from noise[i].

    noise    float32 [N, C, h, w] of unit normal numbers: the start of every peer that can be given one
    seeds    the seeds that `hotloop.noise` (and torch's CPU generator) made the noise from, for those that cannot
    sampler  a name of SAMPLERS
    size     (width, height) in pixels
    """

    prompt: str
    noise: np.ndarray = field(repr=False)
    seeds: tuple[int, ...]
    negative_prompt: str = ""
    sampler: str = "euler"
    steps: int = 20
    guidance: float = 7.5
    size: tuple[int, int] = (512, 512)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"[work] sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler}")
        if self.noise.dtype != np.float32 or self.noise.ndim != 4 or len(self.noise) != len(self.seeds):
            got = f"{self.noise.dtype} {list(self.noise.shape)} and {len(self.seeds)} seeds"
            raise ValueError(f"[work] noise must be float32 [N, C, h, w] with a seed for every image, got {got}")

    @property
    def batch(self) -> int:
        return len(self.seeds)

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    def header(self) -> dict[str, Any]:
        """As JSON data, without the noise."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "noise"}

    @classmethod
    def of(cls, header: Mapping[str, Any], noise: np.ndarray) -> Work:
        return cls(**{**header, "seeds": tuple(header["seeds"]), "size": tuple(header["size"])}, noise=noise)


@dataclass(frozen=True)
class Found:
    """What an adapter knows of its last call beside the images.

    evaluations  of the UNet; with guidance both halves are one
    stages       seconds: text (prompts to hidden states), loop, step (UNet time / evaluations), vae_decoder,
                 host_copy (pixels to images on the host); only those that this peer lets see
    latents      float32 [N, C, h, w] as they left the loop, before the division by the VAE's scaling factor
    """

    evaluations: int
    stages: Mapping[str, float] = field(default_factory=dict)
    latents: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Opened:
    """load: seconds from the first import to a model that can draw; versions: package -> version."""

    load: float
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Drawn:
    """One call's result.

    images             uint8 [N, H, W, 3]
    latents, stages, evaluations as in `Found`
    seconds            of the call
    peak_device_bytes  the accelerator's memory at most during it, None without one
    """

    images: np.ndarray = field(repr=False)
    latents: np.ndarray | None = field(repr=False)
    seconds: float
    stages: Mapping[str, float]
    evaluations: int
    peak_device_bytes: int | None = None
