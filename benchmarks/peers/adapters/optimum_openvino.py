"""Optimum's pipeline over OpenVINO, exported by optimum itself, compiled for one shape as its documentation advises."""

from __future__ import annotations

from peers.work import Setup

__all__ = ["Adapter", "prepare"]


def prepare(setup: Setup) -> None:
    """Export the networks to OpenVINO's form with float16 weights, its default; they run in the adapter's precision."""
    from optimum.intel import OVStableDiffusionPipeline

    pipe = OVStableDiffusionPipeline.from_pretrained(setup.model, export=True, compile=False, local_files_only=True)
    pipe.save_pretrained(setup.cache / "openvino")


class Adapter:
    """precision: OpenVINO's name of what it computes in, f32 or bf16."""

    def __init__(self, setup: Setup, *, precision: str) -> None:
        import diffusers
        import openvino
        import torch
        from optimum.intel import OVStableDiffusionPipeline
        from optimum.intel.version import __version__ as optimum_intel_version

        from .torch_pipeline import Pipeline

        versions = {"optimum-intel": optimum_intel_version, "openvino": openvino.__version__}
        self.versions = {**versions, "diffusers": diffusers.__version__}
        config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
            config["INFERENCE_NUM_THREADS"] = str(setup.threads)
        pipe = OVStableDiffusionPipeline.from_pretrained(
            setup.cache / "openvino", compile=False, ov_config=config, local_files_only=True
        )
        width, height = setup.size
        # Its fixed shapes are for guidance; without it the number of images stays open.
        images = (1, setup.batch) if setup.guided else (-1, -1)
        pipe.reshape(batch_size=images[0], height=height, width=width, num_images_per_prompt=images[1])
        pipe.compile()
        self._pipeline = Pipeline(pipe, device="cpu")
        self.ready, self.draw, self.found = self._pipeline.ready, self._pipeline.draw, self._pipeline.found
