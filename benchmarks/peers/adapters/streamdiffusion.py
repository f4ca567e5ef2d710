"""StreamDiffusion's loop as its own examples run it: a batch of all denoising steps, one finished picture per call.

Its steps are those of a latent consistency model and its noise is its own, without guidance, so its pictures cannot be
another peer's: the speed of a loop, nothing more. A picture leaves as many calls after its noise entered as there are
steps; the calls that fill the pipe are not timed.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from peers.work import Found, Setup, Work

__all__ = ["Adapter"]

_SCHEDULE = 50  # LCM's timesteps, of which a call takes `steps`


class Adapter:
    """dtype: a torch dtype's name, of weights and latents."""

    def __init__(self, setup: Setup, *, dtype: str) -> None:
        import diffusers
        import torch

        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        packages = ("torch", "diffusers", "streamdiffusion")
        self.versions = {name: importlib.metadata.version(name) for name in packages}
        self._dtype = getattr(torch, dtype)
        self._pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            setup.model, torch_dtype=self._dtype, safety_checker=None, local_files_only=True
        ).to(setup.device)
        self._asked: dict[str, Any] = {}

    def ready(self, work: Work) -> None:
        from streamdiffusion import StreamDiffusion

        asked = work.header()
        if asked == self._asked:
            return
        if work.batch != 1:
            raise ValueError(f"[streamdiffusion] batch must be 1: a call makes one picture, got {work.batch}")
        self._asked, self._steps = asked, work.steps
        timesteps = [i * _SCHEDULE // work.steps for i in range(work.steps)]
        width, height = work.size
        self._stream = StreamDiffusion(
            self._pipe, timesteps, torch_dtype=self._dtype, width=width, height=height, cfg_type="none"
        )
        self._stream.prepare(work.prompt, num_inference_steps=_SCHEDULE, guidance_scale=0, seed=work.seeds[0])
        for _ in range(work.steps):
            self._stream.txt2img()

    def draw(self) -> Any:
        return self._pipe.image_processor.postprocess(self._stream.txt2img(), output_type="pil")

    def found(self) -> Found:
        return Found(evaluations=1)
