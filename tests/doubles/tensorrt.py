"""CUDA and TensorRT on host memory, for the engine's logic where there is no GPU.

They behave as the real ones do where it matters here: work is queued until a stream is synchronised, captured work
runs when its graph is launched, weights are an engine's and shared by its contexts. They cannot drift from the real
packages: names and parameters of every method are compared with theirs.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorrt_rtx
from cuda.bindings import runtime as cudart

__all__ = ["OK", "Cuda", "Library", "Stream", "parameters"]


def parameters(function: Any) -> list[list[str]]:
    """Parameter names of a compiled function's overloads, from its docstring."""
    overloads = []
    for line in (function.__doc__ or "").splitlines():
        found = re.match(r"\s*(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$", line)
        if found and "*args" not in line:
            inner = re.sub(r"\[[^]]*\]|<[^>]*>", "", found[1])
            parts = [part.split("=")[0].split(":")[0].split() for part in inner.split(",")]
            overloads.append([part[-1] for part in parts if part and part[-1] != "self"])
    return overloads


def stands_for(real: Any) -> Callable[[type], type]:
    """A class of the double, held to the real one's names and parameters."""

    def check(double: type) -> type:
        for name, member in vars(double).items():
            if name.startswith("_"):
                continue
            there = getattr(real, name)
            if inspect.isfunction(member):
                mine = [p for p in inspect.signature(member).parameters if p != "self"]
                assert mine in parameters(there), f"{real.__name__}.{name}{mine} is not {parameters(there)}"
            elif isinstance(member, property):
                assert isinstance(there, property), f"{real.__name__}.{name} is no property"
        for name in getattr(double, "_attributes", ()):
            assert isinstance(getattr(real, name), property), f"{real.__name__}.{name} is no property"
        return double

    return check


OK = cudart.cudaError_t.cudaSuccess


class Stream:
    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.graph: list[Callable[[], None]] | None = None
        self.broken = False
        self.synchronised = 0

    def __int__(self) -> int:
        return id(self)


class Cuda:
    """cuda.bindings.runtime on host memory. `fail` makes a function fail once it was called so many times."""

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.capability = capability
        self.memory: dict[int, Any] = {}
        self.objects: set[Any] = set()
        self.streams: dict[int, Stream] = {}
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        for name in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr", "cudaStreamNonBlocking"):
            setattr(self, name, getattr(cudart, name))

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or inspect.isclass(value):
            return value

        def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.fail:
                self.fail[name] -= 1
                if self.fail[name] < 0:
                    return (cudart.cudaError_t.cudaErrorMemoryAllocation, None)
            return value(*args)

        return call

    def _stream(self, stream: Any) -> Stream:
        return stream if isinstance(stream, Stream) else self.streams[stream]

    def _enqueue(self, stream: Any, work: Callable[[], None]) -> None:
        on = self._stream(stream)
        (on.queue if on.graph is None else on.graph).append(work)

    def _allocate(self, size: int) -> int:
        buffer = (ctypes.c_uint8 * size)(*([0xCD] * min(size, 64)))
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cudaGetDeviceCount(self):
        if self.capability == (0, 0):
            return (cudart.cudaError_t.cudaErrorInsufficientDriver, None)
        return (OK, 1)

    def cudaDeviceGetAttribute(self, attr, device):
        major = attr == cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return (OK, self.capability[0 if major else 1])

    def cudaGetErrorString(self, error):
        return cudart.cudaGetErrorString(error)

    def cudaGetLastError(self):
        return (OK,)

    def cudaMalloc(self, size):
        return (OK, self._allocate(size))

    def cudaFree(self, devPtr):
        del self.memory[devPtr]
        return (OK,)

    def cudaHostAlloc(self, size, flags):
        assert flags == cudart.cudaHostAllocDefault
        return (OK, self._allocate(size))

    def cudaFreeHost(self, ptr):
        del self.memory[ptr]
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == cudart.cudaStreamNonBlocking
        stream = Stream()
        self.streams[int(stream)] = stream
        self.objects.add(stream)
        return (OK, stream)

    def cudaStreamDestroy(self, stream):
        assert not stream.queue, "destroyed while work is queued"
        self.objects.remove(stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        on = self._stream(stream)
        assert on.graph is None, "synchronised while capturing"
        on.synchronised += 1
        while on.queue:
            on.queue.pop(0)()
        return (OK,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        device = dst if kind == cudart.cudaMemcpyKind.cudaMemcpyHostToDevice else src
        assert device in self.memory and count <= len(self.memory[device])
        self._enqueue(stream, lambda: ctypes.memmove(dst, src, count))
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert not stream.queue and mode == cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        stream.graph = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        graph, stream.graph = stream.graph, None
        if stream.broken:
            stream.broken = False
            return (cudart.cudaError_t.cudaErrorStreamCaptureInvalidated, None)
        made = SimpleNamespace(work=graph)
        self.objects.add(id(made))
        return (OK, made)

    def cudaGraphInstantiate(self, graph, flags):
        made = SimpleNamespace(work=list(graph.work))
        self.objects.add(id(made))
        return (OK, made)

    def cudaGraphLaunch(self, graphExec, stream):
        for work in graphExec.work:
            self._enqueue(stream, work)
        return (OK,)

    def cudaGraphDestroy(self, graph):
        self.objects.remove(id(graph))
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec):
        self.objects.remove(id(graphExec))
        return (OK,)


class Library:
    """tensorrt or tensorrt_rtx: plans are JSON, the network is `out = a * sample + b`, row by row."""

    def __init__(self, cuda: Cuda, *, rtx: bool) -> None:
        self.cuda, self.rtx = cuda, rtx
        self.__version__ = tensorrt_rtx.__version__
        self.opened: list[SimpleNamespace] = []
        self.unstable = False  # the GPU changed: stored code is refused
        self.capturable = True
        self.compiled = b"code"
        lib = self

        class Logger:
            ERROR = tensorrt_rtx.ILogger.ERROR

            def log(self, severity: Any, msg: str) -> None: ...

        @stands_for(tensorrt_rtx.Weights)
        class Weights:
            def __init__(self, type, ptr, count):
                self._type, self._size = type, count
                kind = {"HALF": np.uint16, "BF16": np.uint16, "FLOAT": np.uint32}[type.name]
                self._bits = np.frombuffer(ctypes.string_at(ptr, count * np.dtype(kind).itemsize), kind)

            def _value(self) -> np.ndarray:
                if self._type == tensorrt_rtx.DataType.BF16:
                    return (self._bits.astype(np.uint32) << 16).view(np.float32)
                return self._bits.view(np.float16 if self._bits.itemsize == 2 else np.float32)

        @stands_for(tensorrt_rtx.Refitter)
        class Refitter:
            def __init__(self, engine: Any, logger: Any) -> None:
                self._engine, self._logger, self._given = engine, logger, {}

            def get_all_weights(self):
                return sorted(self._engine.plan["weights"])

            def get_weights_prototype(self, weights_name):
                plan = self._engine.plan
                dtype = getattr(tensorrt_rtx.DataType, plan.get("dtype", "HALF"))
                return SimpleNamespace(dtype=dtype, size=plan["weights"][weights_name])

            def set_named_weights(self, name, weights):
                told = self.get_weights_prototype(name)
                fits = (weights._type, weights._size) == (told.dtype, told.size)
                self._given[name] = weights._value() if fits else None
                return fits

            def get_missing_weights(self):
                return []  # as TensorRT for RTX may say although some are

            def refit_cuda_engine(self):
                assert not self._engine.contexts, "refitted under its contexts"
                self._engine.weights = {n: v.astype(np.float32) for n, v in self._given.items()}
                return self._given.keys() == self._engine.plan["weights"].keys()

        @stands_for(tensorrt_rtx.IExecutionContext)
        class ExecutionContext:
            def __init__(self, engine: Any) -> None:
                self._engine, self._addresses, self._shapes = engine, {}, {}
                self._profile = self._scratch = None

            def set_optimization_profile_async(self, profile_index, stream_handle):
                self._profile = self._engine.plan["profiles"][profile_index]
                return stream_handle in lib.cuda.streams

            def set_input_shape(self, name, shape):
                least, _, most = self._profile[name]
                self._shapes[name] = shape
                return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

            def infer_shapes(self):
                return [name for name in ("sample", "gain") if name not in self._shapes]

            def get_tensor_shape(self, name):
                return self._shapes["sample"] if name == "out" else self._shapes[name]

            def set_tensor_address(self, name, memory):
                self._addresses[name] = memory
                return memory in lib.cuda.memory

            def update_device_memory_size_for_shapes(self):
                assert self._shapes
                return 256

            def set_device_memory(self, memory, size):
                assert memory in lib.cuda.memory and size == 256
                self._scratch = memory

            def execute_async_v3(self, stream_handle):
                stream = lib.cuda.streams[stream_handle]
                if stream.graph is not None and self._engine.plan.get("breaks_capture"):
                    stream.broken = True
                    lib.logger.log(Logger.ERROR, "operation not permitted\nwhile capturing")
                    return False
                assert self._scratch in lib.cuda.memory and self._engine.weights is not None
                lib.cuda._enqueue(stream, self._work)
                return True

            def _work(self) -> None:
                view = {
                    name: np.ctypeslib.as_array(
                        (ctypes.c_float * int(np.prod(self.get_tensor_shape(name)))).from_address(address)
                    ).reshape(self.get_tensor_shape(name))
                    for name, address in self._addresses.items()
                }  # fmt: skip
                a, b = self._engine.weights["a.weight"], self._engine.weights["b.bias"]
                view["out"][...] = view["sample"] * view["gain"][:, None, None] * a[:, None] + b[:, None]

        @stands_for(tensorrt_rtx.IExecutionContext)
        class RtxExecutionContext(ExecutionContext):
            def is_stream_capturable(self, stream):
                return lib.capturable

        @stands_for(tensorrt_rtx.IRuntimeCache)
        class RuntimeCache:
            def __init__(self) -> None:
                self._blob = b""

            def deserialize(self, blob):
                self._blob = b"" if lib.unstable else blob
                return not lib.unstable

            def serialize(self):
                return self._blob + (b"" if self._blob.endswith(lib.compiled) else lib.compiled)

        @stands_for(tensorrt_rtx.IRuntimeConfig)
        class RuntimeConfig:
            _attributes = ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")

            def set_execution_context_allocation_strategy(self, strategy):
                self._managed = strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED

            def create_runtime_cache(self):
                return RuntimeCache()

            def set_runtime_cache(self, cache):
                self._cache = cache
                return True

        @stands_for(tensorrt_rtx.ICudaEngine)
        class Engine:
            _attributes = ("num_io_tensors", "num_optimization_profiles")

            def __init__(self, plan: dict[str, Any]) -> None:
                self._plan = plan
                self._io = [*plan["inputs"], *plan["outputs"]]

            @property
            def num_io_tensors(self):
                return len(self._io)

            @property
            def num_optimization_profiles(self):
                return len(self._plan["profiles"])

            def get_tensor_name(self, index):
                return self._io[index]

            def get_tensor_mode(self, name):
                modes = tensorrt_rtx.TensorIOMode
                return modes.INPUT if name in self._plan["inputs"] else modes.OUTPUT

            def get_tensor_dtype(self, name):
                return tensorrt_rtx.DataType.FLOAT

            def get_tensor_profile_shape(self, name, profile_index):
                return [tuple(shape) for shape in self._plan["profiles"][profile_index][name]]

        @stands_for(tensorrt_rtx.ICudaEngine)
        class PlainEngine(Engine):
            def create_execution_context(self, strategy):
                assert strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
                return lib._context(self, ExecutionContext)

        @stands_for(tensorrt_rtx.ICudaEngine)
        class RtxEngine(Engine):
            def create_runtime_config(self):
                return RuntimeConfig()

            def create_execution_context(self, runtime_config):
                assert runtime_config._managed
                strategies = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy
                assert runtime_config.dynamic_shapes_kernel_specialization_strategy == strategies.EAGER
                assert runtime_config.cuda_graph_strategy == tensorrt_rtx.CudaGraphStrategy.DISABLED
                return lib._context(self, RtxExecutionContext)

        @stands_for(tensorrt_rtx.Runtime)
        class Runtime:
            def __init__(self, logger: Any) -> None:
                lib.logger = logger

            def deserialize_cuda_engine(self, serialized_engine):
                plan = json.loads(bytes(serialized_engine))
                engine = (RtxEngine if lib.rtx else PlainEngine)(plan)
                engine.plan, engine.contexts = plan, []
                engine.weights = None if plan["weights"] else {"a.weight": np.ones(3), "b.bias": np.zeros(3)}
                lib.opened.append(engine)
                return engine

        @stands_for(tensorrt_rtx.Runtime)
        class RtxRuntime(Runtime):
            def get_engine_validity(self, buffer):
                told = json.loads(bytes(buffer)).get("validity", "VALID")
                diagnostics = tensorrt_rtx.EngineInvalidityDiagnostics.OLD_CUDA_DRIVER
                return getattr(tensorrt_rtx.EngineValidity, told), 0 if told == "VALID" else int(diagnostics)

        self.ILogger, self.Weights, self.Refitter = Logger, Weights, Refitter
        self.Runtime = RtxRuntime if rtx else Runtime
        names = ["ExecutionContextAllocationStrategy", "TensorIOMode"]
        if rtx:
            names += ["DynamicShapesKernelSpecializationStrategy", "CudaGraphStrategy", "EngineValidity",
                      "EngineInvalidityDiagnostics"]  # fmt: skip
        for name in names:
            setattr(self, name, getattr(tensorrt_rtx, name))

    @staticmethod
    def _context(engine: Any, cls: type) -> Any:
        context = cls(engine)
        engine.contexts.append(context)
        return context
