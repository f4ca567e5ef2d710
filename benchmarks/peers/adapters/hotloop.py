"""hotloop itself, behind the peers' interface, so that every case of a run is measured alike."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from peers.work import SAMPLERS, Found, Setup, Work

__all__ = ["Adapter"]

_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "native": "torch", "tensorrt": "tensorrt"}


class Adapter:
    """engine and settings: as `hotloop.load` takes them."""

    def __init__(self, setup: Setup, *, engine: str, **settings: Any) -> None:
        import hotloop

        self._pipe = hotloop.load(setup.bundle, engine=engine, device=setup.device, threads=setup.threads, **settings)
        self.versions = {"hotloop": hotloop.__version__}
        if package := _PACKAGES.get(self._pipe.entry.kind):
            self.versions[package] = importlib.metadata.version(package)

    def ready(self, work: Work) -> None:
        from hotloop import samplers

        known = samplers.options(work.sampler)
        given = {"spacing" if name == "timestep_spacing" else name: v for name, v in SAMPLERS[work.sampler][1].items()}
        options = {name: value for name, value in given.items() if name in known}
        self._evaluations = len(self._pipe.table(work.sampler, work.steps, options=options))
        self._options: dict[str, Any] = dict(
            prompt=work.prompt,
            negative_prompt=work.negative_prompt,
            sampler=work.sampler,
            sampler_options=options,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance,
            num_images_per_prompt=work.batch,
            width=work.size[0],
            height=work.size[1],
            latents=work.noise,
            seed=work.seeds[0],
            prompt_syntax="plain",
        )

    def draw(self) -> Any:
        self._result = self._pipe.txt2img(**self._options)
        return self._result.images

    def found(self) -> Found:
        seconds = self._result.timings
        stages = {
            "text": seconds["text"],
            "loop": seconds["loop"],
            "step": seconds["engine"] / self._evaluations,
            "vae_decoder": seconds["vae"],  # to images on the host
        }
        return Found(self._evaluations, stages, self._result.latents)
