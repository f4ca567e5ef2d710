"""A pipeline whose networks are a few lines of NumPy and whose time is a number: for live sessions without a clock.

Latents are pictures at a quarter of their size, the UNet is nonlinear in latents, time and words, and every evaluation
takes `cost` seconds of `clock`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from hotloop import samplers
from hotloop.errors import NonFiniteError
from hotloop.pipeline import Pipeline
from hotloop.samplers.schedule import Schedule
from hotloop.spec import family

WIDTH = 5


def words(text: str) -> np.ndarray:
    """[1, 3, WIDTH]"""
    return np.random.default_rng(zlib.crc32(text.encode())).standard_normal((1, 3, WIDTH)).astype(np.float32)


def network(u: np.ndarray, timesteps: np.ndarray, context: np.ndarray) -> np.ndarray:
    """The output for u [N, C, h, w] at timesteps [N] and words [N, T, WIDTH], in u's precision."""
    c = context.astype(u.dtype).mean(axis=(1, 2))[:, None, None, None]
    t = timesteps.astype(u.dtype)[:, None, None, None] / 1000
    return np.tanh(0.7 * u + c + t) + 0.1 * np.sin(3 * u * (1 + c))


class Clock:
    """Seconds, which pass when someone says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Unet:
    small = True

    def __init__(self, double: PipelineDouble) -> None:
        self.double = double

    def begin(self, cond, table, shape):
        self.cond, self.table = cond, table

    def step(self, x, rows):
        double = self.double
        double.clock.now += double.cost * len(x)
        double.evaluations += len(x) * (1 + ("negative_context" in self.cond))
        u, t = self.table.c_in[rows][:, None, None, None] * x, self.table.timesteps[rows]
        negative = self.cond.get("negative_context")
        m_c = network(u, t, self.cond["context"])
        return m_c * double.spoil, None if negative is None else network(u, t, negative)


@dataclass
class Conditioning:
    encoded: list[str] = field(default_factory=list)

    def encode(self, networks, request):
        self.encoded += request.prompts
        cond = {"context": words(request.prompts[0])}
        if request.negatives is not None:
            cond["negative_context"] = words(request.negatives[0])
        return cond


class Autoencoder:
    """latents: of every frame, as they left the loop."""

    def __init__(self) -> None:
        self.latents: list[np.ndarray] = []

    def latent_shape(self, width, height):
        return 4, height // 4, width // 4

    def encode(self, networks, pixels, noise):
        small = pixels[:, :, ::4, ::4]
        known = np.concatenate([small, small[:, :1]], axis=1)
        return (known + 0.05 * noise.normal(known.shape[1:])).astype(np.float32)

    def decode(self, networks, latents):
        if not np.isfinite(latents).all():
            raise NonFiniteError("vae_decoder", "image must be finite")
        self.latents.append(latents.copy())
        pixels = np.clip(127.5 * (1 + np.tanh(latents[:, :3])), 0, 255).astype(np.uint8)
        return pixels.repeat(4, axis=2).repeat(4, axis=3).transpose(0, 2, 3, 1)


class PipelineDouble:
    """What a stage asks of a Pipeline. spoil: what the UNet's outputs are multiplied by."""

    def __init__(self, *, cost: float = 0.0) -> None:
        self.clock, self.cost, self.evaluations, self.spoil = Clock(), cost, 0, 1.0
        self.family = family("avatar-tiny")
        self.schedule = Schedule.from_config({"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False})
        self.conditioning, self.autoencoder = Conditioning(), Autoencoder()
        self.entry, self.engine = SimpleNamespace(grid=1, name="double-fp32"), "double-fp32"
        self.networks = self.others()

    def others(self):
        """Engines like these, another object."""
        return SimpleNamespaceById(denoiser=lambda: Unet(self), told_guidance=False)

    def table(self, sampler, steps, *, start=0, options=None):
        return samplers.build(sampler, self.schedule, steps, start=start, **(options or {}))


class SimpleNamespaceById(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__  # type: ignore[assignment]


assert all(hasattr(Pipeline, name) for name in ("networks", "entry", "engine", "table"))
