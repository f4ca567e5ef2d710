"""ONNX Runtime: the portable engine, on the CPU or (with onnxruntime-gpu) on CUDA by the same code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import BundleError, InputError
from ..spec import Network, Tensor, resolve
from . import ContextPool

__all__ = ["OnnxContext", "OnnxEngine", "devices", "import_library"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def import_library() -> ModuleType:
    """onnxruntime itself. Raises ImportError when it is not installed."""
    import onnxruntime

    return onnxruntime


def devices() -> list[str]:
    """The devices this onnxruntime was built for, fastest first."""
    present = import_library().get_available_providers()
    return [device for device in ("cuda", "cpu") if _PROVIDERS[device] in present]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxContext:
    """One shape's buffers, bound once; ONNX Runtime copies them to and from the device when there is one."""

    def __init__(self, engine: OnnxEngine, dims: Mapping[str, int]) -> None:
        self._session = engine.session
        self._binding = engine.session.io_binding()
        self.inputs = {t.name: _zeros(t, dims) for t in engine.network.inputs}
        self.outputs = {t.name: _zeros(t, dims) for t in engine.network.outputs}
        for name, array in self.inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self.outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self, stream: int | None = None) -> None:
        self._session.run_with_iobinding(self._binding)


class OnnxEngine:
    """One network in one ONNX Runtime session.

    threads: intra-op threads, all usable cores by default. Idle threads do not spin: a runtime that shares its
    machine with capture, encoding and a game must not burn the cores it waits on.
    Raises InputError for an unknown device, BundleError for a graph whose inputs or outputs are not the network's.
    """

    kind = "onnx"

    def __init__(self, path: Path, network: Network, *, device: str = "cpu", threads: int | None = None) -> None:
        ort = import_library()
        if device not in devices():
            raise InputError("engine.onnx", f"device must be one of {devices()} with this onnxruntime", device)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors reach the caller as exceptions
        options.intra_op_num_threads = threads or _cores()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        providers: list[Any] = [_PROVIDERS[device]]
        if device != "cpu":
            providers.append(_PROVIDERS["cpu"])  # shape arithmetic that ONNX Runtime keeps on the host
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise BundleError("engine.onnx", f"{path.name} does not open: {str(error).splitlines()[0]}") from error
        if self.session.get_providers()[0] != providers[0]:
            raise BundleError("engine.onnx", f"{device} was asked for but its libraries do not load; install CUDA's")
        for rule, want, have in (
            ("inputs", network.inputs, self.session.get_inputs()),
            ("outputs", network.outputs, self.session.get_outputs()),
        ):
            names = sorted(t.name for t in have)
            if names != sorted(t.name for t in want):
                raise BundleError("engine.onnx", f"{rule} of {path.name} must be {[t.name for t in want]}", names)
        self.device, self.network = device, network
        self.contexts = ContextPool(self)

    def context(self, **dims: int) -> OnnxContext:
        return OnnxContext(self, dims)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        for dims in shapes:
            with self.contexts.lease(**dims) as context:
                context.run()


def _zeros(tensor: Tensor, dims: Mapping[str, int]) -> np.ndarray:
    return np.zeros(resolve(tensor.shape, dims), dtype=tensor.dtype)
