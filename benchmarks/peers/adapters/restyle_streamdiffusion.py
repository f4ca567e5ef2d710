"""StreamDiffusion's loop redrawing a picture: its own class on this Python's diffusers, its clock alone stood in for.

It is given the noise that a session of hotloop draws, so that both redraw to the same picture; a call takes a picture
and gives the one that has had all its steps. `compiled`: its UNet and VAE through torch.compile.
"""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace
from typing import Any

import numpy as np

from hotloop.noise import SeededNoise
from peers.work import Found, Setup, Work

__all__ = ["SUB_STEPS", "Adapter", "picture"]

# Of LCM's 50 timesteps, those that half strength leaves of twice as many.
SUB_STEPS = {1: [25], 2: [25, 37], 4: [25, 31, 37, 43]}


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """uint8 [H, W, 3] without a model or a file: a face of discs on a ground of slopes."""
    width, height = size
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    shift = 0.05 * (seed % 5)
    ground = np.stack([x, y, 0.5 + 0 * x], -1)
    face = ((x - 0.4 - shift) ** 2 + (y - 0.5) ** 2 < 0.1)[..., None]
    eyes = ((np.abs(y - 0.42) < 0.04) & (np.abs(np.abs(x - 0.4 - shift) - 0.12) < 0.04))[..., None]
    made = np.where(eyes, 0.1, np.where(face, [0.9, 0.7, 0.6], ground))
    return (255 * made.clip(0, 1)).astype(np.uint8)


class _Event:
    def __init__(self, enable_timing: bool) -> None: ...

    def record(self) -> None: ...

    def elapsed_time(self, other: _Event) -> float:
        return 0.0


class _KnownPosterior:
    """A VAE whose posteriors are sampled with the noise that it is given."""

    def __init__(self, vae: Any, noise: Any) -> None:
        self.vae, self.noise = vae, noise
        self.dtype, self.config, self.decode = vae.dtype, vae.config, vae.decode

    def encode(self, pixels: Any) -> Any:
        posterior = self.vae.encode(pixels).latent_dist
        sampled = posterior.mean + posterior.std * self.noise
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator: sampled))


class Adapter:
    """form: its cfg_type."""

    def __init__(self, setup: Setup, *, form: str = "none", compiled: bool = False) -> None:
        import diffusers
        import torch

        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        if not torch.cuda.is_available():
            torch.cuda.Event, torch.cuda.synchronize = _Event, lambda *_: None  # type: ignore[assignment,misc]
        self.versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "streamdiffusion")}
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            setup.model, dtype=torch.float32, safety_checker=None, local_files_only=True
        )
        if compiled:
            pipe.unet.compile()
            pipe.vae.encoder.compile()
            pipe.vae.decoder.compile()
        self._pipe, self._form = pipe, form
        self._asked: dict[str, Any] = {}

    def ready(self, work: Work) -> None:
        import torch
        from PIL import Image
        from streamdiffusion import StreamDiffusion

        if work.header() == self._asked:
            return
        self._asked, (width, height) = work.header(), work.size
        stream = StreamDiffusion(
            self._pipe, SUB_STEPS[work.steps], torch_dtype=torch.float32, width=width, height=height,
            cfg_type=self._form,
        )  # fmt: skip
        stream.prepare(work.prompt, work.negative_prompt, 50, work.guidance, generator=torch.Generator())
        drawn, shape = SeededNoise(list(work.seeds)), work.noise.shape[1:]
        posterior = torch.from_numpy(drawn.normal(shape))
        noises = np.concatenate([drawn.normal(shape) for _ in range(work.steps)])
        stream.init_noise, stream.vae = torch.from_numpy(noises), _KnownPosterior(stream.vae, posterior)
        self._stream, self._picture = stream, Image.fromarray(picture(work.size, work.seeds[0]))
        for _ in range(work.steps):  # fills the pipe
            self._stream(self._picture)

    def draw(self) -> Any:
        return self._pipe.image_processor.postprocess(self._stream(self._picture), output_type="pil")

    def found(self) -> Found:
        return Found(evaluations=1)
