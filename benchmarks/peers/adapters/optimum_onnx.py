"""Optimum's pipeline over ONNX Runtime on the CPU, exported by optimum itself, in float32."""

from __future__ import annotations

from peers.work import Setup

__all__ = ["Adapter", "prepare"]


def prepare(setup: Setup) -> None:
    """Export the four networks to ONNX."""
    from optimum.exporters.onnx import main_export

    main_export(str(setup.model), output=setup.cache / "onnx", task="text-to-image", local_files_only=True)


class Adapter:
    def __init__(self, setup: Setup) -> None:
        import diffusers
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTStableDiffusionPipeline
        from optimum.version import __version__ as optimum_version

        from .torch_pipeline import Pipeline

        self.versions = {
            "optimum": optimum_version, "onnxruntime": onnxruntime.__version__, "diffusers": diffusers.__version__,
        }  # fmt: skip
        session = onnxruntime.SessionOptions()
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
            session.intra_op_num_threads = setup.threads
        pipe = ORTStableDiffusionPipeline.from_pretrained(
            setup.cache / "onnx", provider="CPUExecutionProvider", session_options=session, local_files_only=True
        )
        self._pipeline = Pipeline(pipe, device="cpu")
        self.ready, self.draw, self.found = self._pipeline.ready, self._pipeline.draw, self._pipeline.found
