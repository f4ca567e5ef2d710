"""Hugging Face's diffusers: stock, or compiled by torch as its documentation advises.

Compiled: channels_last, fused QKV projections, `torch.compile` of the UNet and the VAE's decoder for fixed shapes;
on a CPU with the weights frozen into the code (prepacked), on a GPU tuned and captured ("max-autotune").
"""

from __future__ import annotations

import os
from typing import Any

from peers.work import Setup

__all__ = ["Adapter"]


class Adapter:
    """dtype: a torch dtype's name, of weights and latents."""

    def __init__(self, setup: Setup, *, dtype: str, compiled: bool) -> None:
        # Compiled here, on the threads that draw: a pool of compilers would stay and count as this peer's memory.
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(setup.cache / "inductor")
        import diffusers
        import torch
        import transformers

        from .torch_pipeline import Pipeline

        self.versions = {
            "torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
        }  # fmt: skip
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        kind = getattr(torch, dtype)
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            setup.model, torch_dtype=kind, safety_checker=None, local_files_only=True
        ).to(setup.device)
        if compiled:
            _compile(pipe, setup.device)
        self._pipeline = Pipeline(pipe, device=setup.device, dtype=kind)
        self.ready, self.draw, self.found = self._pipeline.ready, self._pipeline.draw, self._pipeline.found


def _compile(pipe: Any, device: str) -> None:
    import torch

    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.fuse_qkv_projections()
    options: dict[str, Any] = {"mode": "max-autotune"} if device == "cuda" else {"options": {"freezing": True}}
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, dynamic=False, **options)
    pipe.vae.decoder = torch.compile(pipe.vae.decoder, fullgraph=True, dynamic=False, **options)
