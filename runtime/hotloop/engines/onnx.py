"""ONNX Runtime: the portable engine, on the CPU or (with onnxruntime-gpu) on CUDA."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import BundleError, InputError
from ..spec import Network, Tensor, resolve
from . import Context, ContextPool

__all__ = ["CudaContext", "HostContext", "OnnxEngine", "devices", "import_library"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# What the arithmetic may run in. Half precision on the CPU is storage only: ONNX Runtime widens it and computes fp32.
_PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16", "int8")}


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


class HostContext:
    """One shape's buffers in host memory, bound once."""

    def __init__(self, engine: OnnxEngine, dims: Mapping[str, int]) -> None:
        self._session, self._name = engine.session, engine.network.name
        self._binding = engine.session.io_binding()
        self.inputs: Mapping[str, Any] = {t.name: _zeros(t, dims) for t in engine.network.inputs}
        self.outputs: Mapping[str, Any] = {t.name: _zeros(t, dims) for t in engine.network.outputs}
        for name, array in self.inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self.outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self, stream: int | None = None) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # a graph that is not of the manifest's constants, or no memory
            raise BundleError("engine.onnx", f"{self._name} does not run: {str(error).splitlines()[0]}") from error


class CudaContext:
    """One shape's buffers on the device and in host memory; the second run captures a CUDA graph, later ones replay it.

    ONNX Runtime keeps one captured graph per `gpu_graph_id` and replays are not safe side by side, hence the engine's
    lock.
    """

    _ids = itertools.count(1)

    def __init__(self, engine: OnnxEngine, dims: Mapping[str, int]) -> None:
        ort = import_library()
        self._session, self._lock = engine.session, engine.lock
        self._binding = engine.session.io_binding()
        self.inputs: Mapping[str, Any] = {t.name: _zeros(t, dims) for t in engine.network.inputs}
        self.outputs: Mapping[str, Any] = {t.name: _zeros(t, dims) for t in engine.network.outputs}
        place = ort.OrtValue.ortvalue_from_shape_and_type
        self._given = {name: place(a.shape, a.dtype, "cuda", 0) for name, a in self.inputs.items()}
        self._made = {name: place(a.shape, a.dtype, "cuda", 0) for name, a in self.outputs.items()}
        for name, value in self._given.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._made.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(next(self._ids)))

    def run(self, stream: int | None = None) -> None:
        with self._lock:
            for name, value in self._given.items():
                value.update_inplace(self.inputs[name])
            self._session.run_with_iobinding(self._binding, self._options)
            for name, value in self._made.items():
                self.outputs[name][...] = value.numpy()


class OnnxEngine:
    """One network in one ONNX Runtime session.

    threads: intra-op threads, all usable cores by default. Idle threads do not spin: a runtime that shares its
    machine with capture, encoding and a game must not burn the cores it waits on.
    Raises InputError for a device or a precision that this ONNX Runtime has not, BundleError for a graph whose inputs
    or outputs are not the network's.
    """

    kind = "onnx"
    import_library = staticmethod(import_library)
    devices = staticmethod(devices)

    @staticmethod
    def precisions(device: str) -> list[str]:
        return list(_PRECISIONS[device])

    def __init__(
        self, path: Path, network: Network, *, device: str = "cpu", threads: int | None = None,
        precision: str = "fp32", cache: Path | None = None, patches: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        ort = import_library()
        if device not in devices():
            raise InputError("engine.onnx", f"device must be one of {devices()} with this onnxruntime", device)
        if precision not in _PRECISIONS[device]:
            rule = f"precision on {device} must be one of {', '.join(_PRECISIONS[device])}"
            raise InputError("engine.onnx", rule, precision)
        self._path, self._threads, self._precision = path, threads, precision
        # ONNX Runtime reads these very arrays: they must live as long as the session.
        self._patches = {name: np.ascontiguousarray(array, np.float32) for name, array in (patches or {}).items()}
        self.device, self.network = device, network
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors reach the caller as exceptions
        options.intra_op_num_threads = threads or _cores()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        providers: list[Any] = [_PROVIDERS[device]]
        if device == "cuda":
            # The rest of the list serves shape arithmetic that ONNX Runtime keeps on the host.
            providers = [(_PROVIDERS["cuda"], {"enable_cuda_graph": "1"}), _PROVIDERS["cpu"]]
        try:
            model: str | bytes = str(path)
            if self._patches:
                model = _with_patches(path, self._patches, options, ort)
            self.session = ort.InferenceSession(model, options, providers=providers)
        except InputError:
            raise
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise BundleError("engine.onnx", f"{path.name} does not open: {str(error).splitlines()[0]}") from error
        if self.session.get_providers()[0] != _PROVIDERS[device]:
            raise BundleError("engine.onnx", f"{device} was asked for but its libraries do not load; install CUDA's")
        for rule, want, have in (
            ("inputs", network.inputs, self.session.get_inputs()),
            ("outputs", network.outputs, self.session.get_outputs()),
        ):
            names = sorted(t.name for t in have)
            if names != sorted(t.name for t in want):
                raise BundleError("engine.onnx", f"{rule} of {path.name} must be {[t.name for t in want]}", names)
        self.lock = threading.Lock()
        self.contexts = ContextPool(self)

    def context(self, **dims: int) -> Context:
        return HostContext(self, dims) if self.device == "cpu" else CudaContext(self, dims)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        for dims in shapes:
            with self.contexts.lease(**dims) as context:
                context.run()

    def patched(self, tensors: Mapping[str, np.ndarray]) -> OnnxEngine:
        """A second session of the same graph, these initializers replaced (in float32, whatever the file stores)."""
        if self._precision == "int8":
            raise InputError("engine.onnx", "weights of an int8 graph cannot be replaced; merge before the export",
                             next(iter(tensors), None))  # fmt: skip
        return OnnxEngine(
            self._path, self.network, device=self.device, threads=self._threads, precision=self._precision,
            patches=self._patches | dict(tensors),
        )  # fmt: skip


def _zeros(tensor: Tensor, dims: Mapping[str, int]) -> np.ndarray:
    return np.zeros(resolve(tensor.shape, dims), dtype=tensor.dtype)


# Replacing weights. ONNX Runtime takes values for initializers whose data lie in another file, of the dtype that the
# graph states. Ours may state FLOAT16, followed by a Cast to FLOAT; a replaced weight states FLOAT, which turns its
# Cast into nothing. dtype is one byte of the graph's protobuf, so the bytes keep their lengths.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_DTYPE, _TENSOR_NAME = 7, 5, 2, 8
_FLOAT = 1


def _with_patches(path: Path, patches: Mapping[str, np.ndarray], options: Any, ort: ModuleType) -> bytes:
    raw = bytearray(path.read_bytes())
    places = {}
    for field, begin, end in _fields(raw, 0, len(raw)):
        if field == _MODEL_GRAPH:
            for inner, start, stop in _fields(raw, begin, end):
                if inner == _GRAPH_INITIALIZER:
                    entries = {f: (b, e) for f, b, e in _fields(raw, start, stop) if f in (_TENSOR_DTYPE, _TENSOR_NAME)}
                    name = bytes(raw[slice(*entries[_TENSOR_NAME])]).decode()
                    places[name] = entries[_TENSOR_DTYPE][0]
    if unknown := sorted(set(patches) - set(places)):
        raise InputError("engine.onnx", f"weights to replace must be initializers of {path.name}", unknown[0])
    for name in patches:
        raw[places[name]] = _FLOAT
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in patches.values()]
    options.add_external_initializers(list(patches), values)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return bytes(raw)


def _fields(raw: bytearray, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, begin, end) of the values of a protobuf message's fields (the wire format of protobuf.dev)."""
    while at < end:
        tag, at = _varint(raw, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _, after = _varint(raw, at)
        elif wire == 2:
            size, at = _varint(raw, at)
            after = at + size
        else:
            after = at + {1: 8, 5: 4}[wire]
        yield field, at, after
        at = after


def _varint(raw: bytearray, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
