"""ONNX Runtime: the portable engine, on the CPU or (with onnxruntime-gpu) on CUDA.

On the CPU the weights that LoRAs usually change can be *live*: inputs of the session instead of constants in it. A
session of SD 1.5's UNet opens in 10 to 20 s; binding other arrays takes no time, so an adapter that is switched,
scaled or stacked shows at the next step. Measured in interleaved pairs, 160 live matrices cost SD 1.5's UNet nothing
(1.003) and the built-in one 1.5 % of its speed. Other weights (LoCon's 3x3 convolutions) are replaced in a session of
their own: as inputs they would lose ONNX Runtime's blocked layout.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hotloop_kernels import usable_cores

from ..errors import BundleError, InputError
from ..process import Origin, keep_in_children
from ..spec import Network, Tensor, resolve
from ..weights.keys import LORA_TARGETS
from . import Context, ContextPool
from .batch_split import SMALL, cut, parts, side_by_side
from .onnx_file import OnnxFile

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


class _Graph:
    """The graph's file and the sessions made from it: an engine and its patched ones share them."""

    def __init__(
        self, path: Path, network: Network, device: str, threads: int | None, precision: str, spread: bool
    ) -> None:
        self.path, self.network, self.device, self.precision = path, network, device, precision
        self._threads, self._spread = threads or usable_cores(), spread
        self._lock = threading.RLock()
        self._file: OnnxFile | None = None
        self._weights: dict[str, np.ndarray] = {}
        # (names of the live weights, parts) -> session; the engines that use one keep it
        self._sessions: weakref.WeakValueDictionary[tuple[frozenset[str], int], Any] = weakref.WeakValueDictionary()

    @property
    def file(self) -> OnnxFile:
        with self._lock:
            if self._file is None:
                self._file = OnnxFile(self.path)
            return self._file

    @cached_property
    def side_by_side(self) -> int:
        """Into how many parts a batch may be cut."""
        return self._threads if self._spread and self.small else 1

    @cached_property
    def small(self) -> bool:
        weights = sum(math.prod(one.shape) for one in self.file.initializers.values())
        return weights < SMALL and self.device == "cpu"

    def usual(self) -> frozenset[str]:
        """The weights that LoRAs usually change, as far as they can be live here."""
        if self.device != "cpu" or self.precision == "int8":
            return frozenset()
        known = self.file.initializers.items()
        return frozenset(name for name, one in known if LORA_TARGETS.fullmatch(name) and one.dtype)

    def weight(self, name: str) -> np.ndarray:
        """A live weight's own value in float32, widened once."""
        with self._lock:
            if name not in self._weights:
                self._weights[name] = np.ascontiguousarray(self.file.read(name))
            return self._weights[name]

    def session(self, live: frozenset[str], fixed: Mapping[str, np.ndarray], parts: int = 1) -> Any:
        """A session with these weights as inputs and these constants replaced; without such, one serves all.

        parts: how many runs of it share the threads.
        """
        with self._lock:
            session = None if fixed else self._sessions.get((live, parts))
            if session is None:
                session = self._open(live, fixed, parts)
                if not fixed:
                    self._sessions[live, parts] = session
            return session

    def _open(self, live: frozenset[str], fixed: Mapping[str, np.ndarray], parts: int) -> Any:
        ort = import_library()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors reach the caller as exceptions
        options.intra_op_num_threads = self._threads // parts
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        providers: list[Any] = [_PROVIDERS[self.device]]
        if self.device == "cuda":
            # The rest of the list serves shape arithmetic that ONNX Runtime keeps on the host.
            providers = [(_PROVIDERS["cuda"], {"enable_cuda_graph": "1"}), _PROVIDERS["cpu"]]
        model: str | bytes = str(self.path)
        if live or fixed:
            model = self.file.edited(inputs=sorted(live), widened=fixed)
            folder = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(folder, str(self.path.parent))
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in fixed.values()]
            if values:
                options.add_external_initializers(list(fixed), values)
        try:
            session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise BundleError("engine.onnx", f"{self.path.name} does not open: {str(error).splitlines()[0]}") from error
        keep_in_children(session)
        return session


class HostContext:
    """One shape's buffers in host memory, bound once."""

    def __init__(self, engine: OnnxEngine, dims: Mapping[str, int]) -> None:
        network = engine.network
        self._name, self._origin = network.name, Origin()
        self.inputs: Mapping[str, Any] = {t.name: _zeros(t, dims) for t in network.inputs}
        self.outputs: Mapping[str, Any] = {t.name: _zeros(t, dims) for t in network.outputs}
        self._held = engine.values  # the memory that the bindings read
        count = engine.parts(dims)
        session, self._runs = engine.session_of(count), []
        for part in cut({**self.inputs, **self.outputs}, count):
            binding = session.io_binding()
            for name, array in (part | engine.values).items():
                bind = binding.bind_output if name in self.outputs else binding.bind_input
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._runs.append(partial(session.run_with_iobinding, binding))

    def run(self, stream: int | None = None) -> None:
        self._origin.check("engine.onnx")
        try:
            side_by_side(self._runs)
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
    """One network in an ONNX Runtime session, and in another for batches whose rows run side by side.

    threads: intra-op threads, all usable cores by default. spread: rows of a batch of a small network run side by side
    (`hotloop.engines.batch_split`). Idle threads do not spin: a runtime that shares its
    machine with capture, encoding and a game must not burn the cores it waits on. adapters: the weights that LoRAs
    usually change are live from the start.
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
        precision: str = "fp32", cache: Path | None = None, adapters: bool = False, spread: bool = True,
    ) -> None:  # fmt: skip
        if device not in devices():
            raise InputError("engine.onnx", f"device must be one of {devices()} with this onnxruntime", device)
        if precision not in _PRECISIONS[device]:
            rule = f"precision on {device} must be one of {', '.join(_PRECISIONS[device])}"
            raise InputError("engine.onnx", rule, precision)
        graph = _Graph(path, network, device, threads, precision, spread)
        self._share(graph, {}, graph.usual() if adapters else frozenset())
        if self.session.get_providers()[0] != _PROVIDERS[device]:
            raise BundleError("engine.onnx", f"{device} was asked for but its libraries do not load; install CUDA's")
        for rule, want, have in (
            ("inputs", {t.name for t in network.inputs} | set(self.values), self.session.get_inputs()),
            ("outputs", {t.name for t in network.outputs}, self.session.get_outputs()),
        ):
            names = sorted(t.name for t in have)
            if names != sorted(want):
                raise BundleError("engine.onnx", f"{rule} of {path.name} must be {sorted(want)}", names)

    def _share(self, graph: _Graph, patches: Mapping[str, np.ndarray], live: frozenset[str]) -> None:
        self._graph, self.device, self.network, self._live = graph, graph.device, graph.network, live
        # ONNX Runtime reads these very arrays: they must live as long as the session.
        self._patches = dict(patches)
        self.values = {name: patches[name] if name in patches else graph.weight(name) for name in sorted(live)}
        self._fixed = {name: array for name, array in patches.items() if name not in live}
        self.session = graph.session(live, self._fixed)
        self._by_parts = {1: self.session}
        self.lock = threading.Lock()
        self.contexts = ContextPool(self)

    @property
    def small(self) -> bool:
        return self._graph.small

    def parts(self, dims: Mapping[str, int]) -> int:
        """How many runs side by side a run at this shape is cut into."""
        return parts(self.network, dims, self._graph.side_by_side)

    def session_of(self, parts: int) -> Any:
        """The session that so many runs share the threads of."""
        if parts not in self._by_parts:
            self._by_parts[parts] = self._graph.session(self._live, self._fixed, parts)
        return self._by_parts[parts]

    def context(self, **dims: int) -> Context:
        return HostContext(self, dims) if self.device == "cpu" else CudaContext(self, dims)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        for dims in shapes:
            with self.contexts.lease(**dims) as context:
                context.run()

    def patched(self, tensors: Mapping[str, np.ndarray]) -> OnnxEngine:
        """A second engine of the same graph, these initializers replaced (in float32, whatever the file stores).

        The first one with live weights opens a session; all that change no other weights share it. Raises InputError
        for a name that is no weight of the graph, another shape, or an int8 graph: its activations' ranges were
        measured with the weights it has.
        """
        graph = self._graph
        if graph.precision == "int8":
            raise InputError("engine.onnx", "weights of an int8 graph cannot be replaced; merge before the export",
                             next(iter(tensors), None))  # fmt: skip
        patches = dict(self._patches)
        for name, value in tensors.items():
            found = graph.file.initializers.get(name)
            if found is None or found.dtype is None:
                raise InputError("engine.onnx", f"weights to replace must be initializers of {graph.path.name}", name)
            if value.shape != found.shape:
                raise InputError("engine.onnx", f"{name} must have the shape {found.shape}", value.shape)
            patches[name] = np.ascontiguousarray(value, np.float32)
        usual = graph.usual()
        engine = OnnxEngine.__new__(OnnxEngine)
        engine._share(graph, patches, self._live | usual if usual & set(patches) else self._live)
        return engine


def _zeros(tensor: Tensor, dims: Mapping[str, int]) -> np.ndarray:
    return np.zeros(resolve(tensor.shape, dims), dtype=tensor.dtype)
