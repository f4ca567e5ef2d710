"""What the adapters of diffusers' pipelines share, whoever runs the networks: calls, stages, latents."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch

from peers.work import SAMPLERS, Found, Work

__all__ = ["Pipeline"]


class Stages:
    """Seconds inside named functions. On a GPU they are marked in its own queue, so that nothing waits for a clock."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self._cuda else end - begin

    def watched(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = self.now()
            result = call(*args, **options)
            self.marks[stage].append((begin, self.now()))
            return result

        return timed

    def seconds(self, stage: str) -> float:
        return sum(self.between(*marks) for marks in self.marks[stage])


class Pipeline:
    """A diffusers pipeline, or one with its interface. dtype: of its latents.

    Watches encode_prompt, the UNet, the VAE's decode and the image processor.
    """

    def __init__(self, pipe: Any, *, device: str, dtype: torch.dtype = torch.float32) -> None:
        self._pipe, self._device, self._dtype = pipe, device, dtype
        self._stages = Stages(device)
        self._decoded: Any = None
        pipe.set_progress_bar_config(disable=True)
        self._scheduler = pipe.scheduler.config
        pipe.encode_prompt = self._stages.watched("text", pipe.encode_prompt)
        pipe.unet.forward = self._stages.watched("unet", pipe.unet.forward)
        pipe.vae.decode = self._stages.watched("vae_decoder", self._keeping(pipe.vae.decode))
        pipe.image_processor.postprocess = self._stages.watched("host_copy", pipe.image_processor.postprocess)

    def _keeping(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        def kept(latents: Any, *args: Any, **options: Any) -> Any:
            self._decoded = latents
            return decode(latents, *args, **options)

        return kept

    def ready(self, work: Work) -> None:
        name, options = SAMPLERS[work.sampler]
        self._pipe.scheduler = getattr(diffusers, name).from_config(self._scheduler, **options)
        self._options = dict(
            prompt=work.prompt,
            negative_prompt=work.negative_prompt,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance,
            num_images_per_prompt=work.batch,
            width=work.size[0],
            height=work.size[1],
            latents=torch.from_numpy(work.noise.copy()).to(self._device, self._dtype),
        )
        self._stages.marks.clear()

    def draw(self) -> Any:
        return self._pipe(**self._options).images

    def found(self) -> Found:
        if self._device == "cuda":
            torch.cuda.synchronize()
        marks, seconds = self._stages.marks, self._stages.seconds
        evaluations = len(marks["unet"])
        loop = self._stages.between(marks["unet"][0][0], marks["vae_decoder"][0][0])
        stages = {
            "text": seconds("text"),
            "loop": loop,
            "step": seconds("unet") / evaluations,
            "vae_decoder": seconds("vae_decoder"),
            "host_copy": seconds("host_copy"),
        }
        latents = torch.as_tensor(self._decoded).float().cpu().numpy() * np.float32(
            self._pipe.vae.config.scaling_factor
        )
        return Found(evaluations, stages, latents)
