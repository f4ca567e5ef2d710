"""TensorRT and TensorRT for RTX, which share one API: plans built ahead, run through cuda-python, without torch.

A plan `unet.plan` lies beside `unet.plan.json`, its `PlanInfo`: what it was built for, its profiles, and where its
weights are. A plan without weights ("strip") takes them from the bundle's safetensors files when it is opened, through
the library's Refitter, which is also how weights are replaced; a plan with weights ("embed") can do neither.
"""

from __future__ import annotations

import math
import mmap
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ..errors import BundleError, HotloopError, InputError
from ..spec import Network, Tensor, resolve
from ..weights import Weights
from . import ContextPool
from .tensorrt_plan import PlanInfo

__all__ = ["TensorRtContext", "TensorRtEngine", "TensorRtRtxEngine", "compute_capability", "make_logger"]

_PLACE = "engine.tensorrt"
# What a weight can be built as -> what a safetensors file calls it.
_STORED = {"FLOAT": "F32", "HALF": "F16", "BF16": "BF16"}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


class _Cuda:
    """cuda.bindings.runtime, every return code checked: `cuda("cudaMalloc", size)` gives the value or raises."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.lib = runtime

    def __call__(self, name: str, *args: Any) -> Any:
        error, *values = getattr(self.lib, name)(*args)
        if int(error) != 0:
            raise HotloopError(_PLACE, f"{name}{self._shown(name, args)} failed: {self._text(error)}")
        return values[0] if values else None

    def _text(self, error: Any) -> str:
        _, text = self.lib.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)

    @staticmethod
    def _shown(name: str, args: tuple[Any, ...]) -> str:
        return f" of {args[0]:,} bytes" if name in ("cudaMalloc", "cudaHostAlloc") else ""


def compute_capability(device: int = 0) -> tuple[int, int]:
    """(major, minor) of a GPU. Raises ImportError without cuda-python, HotloopError without a usable GPU."""
    cuda = _Cuda()
    if device >= cuda("cudaGetDeviceCount"):
        raise HotloopError(_PLACE, "no such GPU", device)
    names = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
    major, minor = (cuda("cudaDeviceGetAttribute", getattr(cuda.lib.cudaDeviceAttr, name), device) for name in names)
    return int(major), int(minor)


def make_logger(trt: ModuleType) -> Any:
    """A logger of this library that keeps errors for `why()` and shows nothing."""

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=32)

        def log(self, severity: Any, msg: str) -> None:
            if severity == trt.ILogger.ERROR:
                self.errors.append(" ".join(msg.split()))

        def why(self) -> str:
            """The first error since the last call, in one line."""
            text = self.errors[0] if self.errors else "the library gives no reason"
            self.errors.clear()
            return text if len(text) <= 400 else text[:400] + "…"

    return Logger()


def _converted(value: np.ndarray, dtype: str) -> np.ndarray:
    """A flat copy in one of TensorRT's dtypes; bfloat16, which numpy lacks, as its bits, rounded to nearest even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(value, np.float32).reshape(-1).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value, _DTYPES[dtype]).reshape(-1)


class _Pinned:
    """Page-locked host memory as an array's base: freed when the last array that looks into it is gone."""

    def __init__(self, cuda: _Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        self._address = cuda("cudaHostAlloc", max(math.prod(shape) * dtype.itemsize, 1), 0)
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": dtype.str, "data": (int(self._address), False),
        }  # fmt: skip

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._cuda.lib.cudaFreeHost(self._address)


class TensorRtContext:
    """One shape's buffers at fixed addresses, in page-locked host memory and on the device, and a stream of its own.

    The first run goes kernel by kernel, the second is captured into a CUDA graph (copies included), later ones replay
    it. Where capture is not possible a warning says so once and runs stay as the first.
    """

    def __init__(self, engine: TensorRtEngine, dims: Mapping[str, int]) -> None:
        index = engine.profile(dims)
        self._engine = engine  # its weights and its lock live as long as a context does
        self._cuda = cuda = engine.cuda
        self._ran, self._graph, self._capturable = False, None, engine.graphs
        with ExitStack() as stack:
            self._stream = cuda("cudaStreamCreateWithFlags", cuda.lib.cudaStreamNonBlocking)
            stack.callback(cuda.lib.cudaStreamDestroy, self._stream)
            self._context = engine.execution_context()
            if not self._context.set_optimization_profile_async(index, int(self._stream)):
                raise engine.failed("its profile cannot be set")
            cuda("cudaStreamSynchronize", self._stream)
            self.inputs, self._given = self._bind(engine.network.inputs, dims, stack)
            for name, array in self.inputs.items():
                if not self._context.set_input_shape(name, array.shape):
                    raise engine.failed(f"{name} cannot have the shape {array.shape}")
            if unknown := self._context.infer_shapes():
                raise engine.failed(f"shapes are not determined by the inputs: {', '.join(unknown)}")
            for tensor in engine.network.outputs:
                made, told = tuple(self._context.get_tensor_shape(tensor.name)), resolve(tensor.shape, dims)
                if made != told:
                    raise BundleError(_PLACE, f"{tensor.name} must have the shape {told}", made)
            self.outputs, self._made = self._bind(engine.network.outputs, dims, stack)
            scratch = int(self._context.update_device_memory_size_for_shapes())
            if scratch:
                address = cuda("cudaMalloc", scratch)
                stack.callback(cuda.lib.cudaFree, address)
                self._context.set_device_memory(int(address), scratch)
            # First of all callbacks: nothing is freed under a kernel that still runs.
            stack.callback(cuda.lib.cudaStreamSynchronize, self._stream)
            self._resources = stack.pop_all()
        self.close = weakref.finalize(self, self._resources.close)

    def _bind(
        self, tensors: Iterable[Tensor], dims: Mapping[str, int], stack: ExitStack
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """(host arrays, device addresses) by name; the addresses are set in the execution context."""
        host: dict[str, np.ndarray] = {}
        device: dict[str, int] = {}
        for tensor in tensors:
            array = np.asarray(_Pinned(self._cuda, resolve(tensor.shape, dims), np.dtype(tensor.dtype)))
            array[...] = 0
            address = int(self._cuda("cudaMalloc", max(array.nbytes, 1)))
            stack.callback(self._cuda.lib.cudaFree, address)
            if not self._context.set_tensor_address(tensor.name, address):
                raise self._engine.failed(f"{tensor.name} cannot be bound")
            host[tensor.name], device[tensor.name] = array, address
        return host, device

    def run(self, stream: int | None = None) -> None:
        """Copy the inputs to the device, run, copy the outputs back and wait. Raises HotloopError when CUDA fails."""
        on = self._stream if stream is None else stream
        if self._ran and self._capturable and self._graph is None:
            self._capture()
        if self._graph is not None:
            self._cuda("cudaGraphLaunch", self._graph, on)
        else:
            self._enqueue(on)
        self._cuda("cudaStreamSynchronize", on)
        if not self._ran:
            self._ran = True
            self._engine.keep_compiled()

    def _enqueue(self, stream: Any) -> None:
        kinds = self._cuda.lib.cudaMemcpyKind
        for name, array in self.inputs.items():
            self._cuda("cudaMemcpyAsync", self._given[name], array.ctypes.data, array.nbytes,
                       kinds.cudaMemcpyHostToDevice, stream)  # fmt: skip
        if not self._context.execute_async_v3(int(stream)):
            raise self._engine.failed("it does not run")
        for name, array in self.outputs.items():
            self._cuda("cudaMemcpyAsync", array.ctypes.data, self._made[name], array.nbytes,
                       kinds.cudaMemcpyDeviceToHost, stream)  # fmt: skip

    def _capture(self) -> None:
        """Record one run as a CUDA graph; on any failure warn, once, and let runs go as before."""
        self._capturable = False
        cuda = self._cuda
        try:
            asked = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX tells beforehand
            if asked is not None and not asked(int(self._stream)):
                raise self._engine.failed("it cannot be captured")
            # Thread-local: other threads may allocate meanwhile.
            mode = cuda.lib.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            cuda("cudaStreamBeginCapture", self._stream, mode)
            try:
                self._enqueue(self._stream)
            except BaseException:
                # The stream must leave capture whatever happened; a broken capture gives no graph.
                error, graph = cuda.lib.cudaStreamEndCapture(self._stream)
                if int(error) == 0 and graph:
                    cuda.lib.cudaGraphDestroy(graph)
                raise
            graph = cuda("cudaStreamEndCapture", self._stream)
            try:
                self._graph = cuda("cudaGraphInstantiate", graph, 0)
            finally:
                cuda.lib.cudaGraphDestroy(graph)
            # Destroyed before the buffers that it names: callbacks run last in, first out.
            self._resources.callback(cuda.lib.cudaGraphExecDestroy, self._graph)
            self._resources.callback(cuda.lib.cudaStreamSynchronize, self._stream)
        except HotloopError as error:
            cuda.lib.cudaGetLastError()  # a failed capture stays as the thread's last error until it is read
            warnings.warn(f"CUDA graph capture failed, running without: {error}", RuntimeWarning, stacklevel=3)


class TensorRtEngine:
    """One network as a TensorRT plan.

    path     the plan; its `PlanInfo` lies beside it and is checked against this machine and `network` first
    cache    a folder where code compiled for this GPU is kept (TensorRT for RTX)
    adapters changes nothing: a plan is refitted in the same time either way
    graphs   capture CUDA graphs

    Several contexts share one set of weights. Raises InputError for a device or a precision that the plan has not,
    BundleError for a plan of another library version, GPU or network.
    """

    kind = "tensorrt"
    # Compute capabilities this library runs on at all; TensorRT itself: from Turing on.
    supported: ClassVar[tuple[str, ...] | None] = None

    def __init__(
        self, path: Path, network: Network, *, device: str = "cuda", threads: int | None = None,
        precision: str | None = None, cache: Path | None = None, adapters: bool = False,
        graphs: bool = True, patches: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        self.trt = self.import_library()
        if device != "cuda":
            raise InputError(f"engine.{self.kind}", "device must be cuda", device)
        info = PlanInfo.read(path)
        self._check(path, info, network)
        if precision not in (None, info.precision):
            raise InputError(f"engine.{self.kind}", f"precision of {path.name} is {info.precision}", precision)
        self.path, self.info, self.network, self.device, self.graphs = path, info, network, device, graphs
        self.cuda = _Cuda()
        self._cache, self._patches = cache, dict(patches or {})
        self._lock = threading.Lock()
        self.logger = make_logger(self.trt)
        if self._patches:
            self._check_patches(self._patches)
        self._open()
        self.contexts = ContextPool(self)

    @classmethod
    def import_library(cls) -> ModuleType:
        """tensorrt itself. Raises ImportError when it or cuda-python is not installed."""
        import cuda.bindings.runtime  # noqa: F401
        import tensorrt

        return tensorrt

    @classmethod
    def devices(cls) -> list[str]:
        """["cuda"] where a GPU is that this library runs on, else []."""
        try:
            return ["cuda"] if cls.runs_on(compute_capability()) else []
        except (ImportError, HotloopError):
            return []

    @classmethod
    def precisions(cls, device: str) -> list[str]:
        """What the arithmetic can run in."""
        return ["fp16", "bf16", "fp32"] if device == "cuda" else []

    @classmethod
    def runs_on(cls, capability: tuple[int, int]) -> bool:
        if cls.supported is None:
            return capability >= (7, 5)
        return "{}.{}".format(*capability) in cls.supported

    # Opening.

    def _check(self, path: Path, info: PlanInfo, network: Network) -> None:
        """Everything that can be known without giving the library a byte of the plan."""
        place, name = f"engine.{self.kind}", path.name
        again = "build it again with `hotloop build`"
        if info.kind != self.kind:
            raise BundleError(place, f"{name} was built with {info.kind}; {again}")
        if info.version != self.trt.__version__:
            rule = f"{name} opens only with {self.kind} {info.version}; {again}"
            raise BundleError(place, rule, self.trt.__version__)
        capability = "{}.{}".format(*compute_capability())
        if not self._fits(info, capability):
            rule = f"{name} was built for compute capability {', '.join(info.targets)}; {again}"
            raise BundleError(place, rule, capability)
        size = path.stat().st_size if path.is_file() else "no file"
        if size != info.plan_bytes:
            raise BundleError(place, f"{name} must have {info.plan_bytes:,} bytes", size)
        for told, tensors in ((info.inputs, network.inputs), (info.outputs, network.outputs)):
            want = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
            for odd in sorted({*told, *want}):
                if told.get(odd) != want.get(odd):
                    rule = f"{odd} of {name} must be {want.get(odd, 'absent')} as {network.name} has it"
                    raise BundleError(place, rule, told.get(odd, "absent"))

    def _fits(self, info: PlanInfo, capability: str) -> bool:
        if info.compatibility == "ampere_plus":
            return float(capability) >= 8.0
        return capability in info.targets

    def _open(self) -> None:
        trt, info = self.trt, self.info
        sources = self._sources() if info.weights == "strip" else {}
        self._runtime = trt.Runtime(self.logger)
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            if hasattr(self._runtime, "get_engine_validity"):  # TensorRT for RTX
                self._check_validity(plan)
            self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise self.failed("it does not open")
        self._check_engine()
        if info.weights == "strip":
            self._refit(sources)
        self._config = self._runtime_config()

    def _check_validity(self, plan: Any) -> None:
        trt = self.trt
        validity, diagnostics = self._runtime.get_engine_validity(plan)
        if validity == trt.EngineValidity.VALID:
            return
        known = trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = ", ".join(name.lower().replace("_", " ") for name, bit in known if int(diagnostics) & int(bit))
        if validity == trt.EngineValidity.INVALID:
            rule = f"{self.path.name} is not valid here ({reasons or self.logger.why()})"
            raise BundleError(f"engine.{self.kind}", f"{rule}; build it again with `hotloop build`")
        warnings.warn(f"{self.path.name} is not the best for this machine: {reasons}", RuntimeWarning, stacklevel=5)

    def _check_engine(self) -> None:
        """The plan's own borders and profiles are those of its record."""
        engine, place, name = self.engine, f"engine.{self.kind}", self.path.name
        modes = {"inputs": self.trt.TensorIOMode.INPUT, "outputs": self.trt.TensorIOMode.OUTPUT}
        have = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for rule, told in (("inputs", self.info.inputs), ("outputs", self.info.outputs)):
            found = {n: _DTYPES.get(engine.get_tensor_dtype(n).name) for n in have
                     if engine.get_tensor_mode(n) == modes[rule]}  # fmt: skip
            want = {n: dtype for n, (dtype, _) in told.items()}
            if found != want:
                raise BundleError(place, f"{rule} of {name} must be {want}", found)
        if engine.num_optimization_profiles != len(self.info.profiles):
            rule = f"{name} must have {len(self.info.profiles)} profiles"
            raise BundleError(place, rule, engine.num_optimization_profiles)
        for i, profile in enumerate(self.info.profiles):
            for tensor in self.network.inputs:
                found_shapes = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, i))
                if found_shapes != profile.shapes(tensor):
                    rule = f"{tensor.name} in profile {profile.name} of {name} must be {profile.shapes(tensor)}"
                    raise BundleError(place, rule, found_shapes)

    # Weights.

    def _sources(self) -> dict[str, Weights]:
        """The file of every weight. Raises BundleError for one that is not there."""
        sources: dict[str, Weights] = {}
        for file, names in self.info.refit.items():
            weights = Weights.open(self.path.parent / file)
            if missing := sorted(set(names) - set(weights)):
                rule = f"{file} must hold every weight of {self.path.name}"
                raise BundleError(f"engine.{self.kind}", rule, missing[0])
            sources |= dict.fromkeys(names, weights)
        return sources

    def _check_patches(self, patches: Mapping[str, np.ndarray]) -> None:
        place, name = f"engine.{self.kind}", self.path.name
        if self.info.weights != "strip":
            rule = f"weights of {name} cannot be replaced: it holds them itself; build it with a GPU at hand"
            raise InputError(place, rule, next(iter(patches), None))
        if unknown := sorted(set(patches) - {n for names in self.info.refit.values() for n in names}):
            raise InputError(place, f"weights to replace must be {name}'s", unknown[0])

    def _refit(self, sources: Mapping[str, Weights]) -> None:
        """Give the engine all its weights. What get_missing_weights() reports is not relied on: TensorRT for RTX may
        leave out weights that depend on no other, so every name of get_all_weights() is set.
        """
        refitter = self.trt.Refitter(self.engine, self.logger)
        names = list(refitter.get_all_weights())
        if unknown := sorted(set(names) - set(sources)):
            raise BundleError(f"engine.{self.kind}", f"{self.path.name} asks for a weight its record lacks", unknown[0])
        if unused := sorted(set(self._patches) - set(names)):
            raise InputError(f"engine.{self.kind}", f"{self.path.name} does not use the weight", unused[0])
        kept = []  # the library reads the arrays until refit_cuda_engine() is done
        for name in names:
            prototype = refitter.get_weights_prototype(name)
            array = self._as_built(name, prototype, sources[name])
            kept.append(array)
            if not refitter.set_named_weights(name, self.trt.Weights(prototype.dtype, array.ctypes.data, array.size)):
                raise self.failed(f"the weight {name} is not taken")
        if missing := list(refitter.get_missing_weights()):
            raise self.failed(f"it needs {len(missing)} more weights, {missing[0]} first")
        if not refitter.refit_cuda_engine():
            raise self.failed("its weights are not taken")

    def _as_built(self, name: str, prototype: Any, source: Weights) -> np.ndarray:
        """A weight, flat, of the dtype and size that the plan was built with."""
        place, dtype = f"engine.{self.kind}", prototype.dtype.name
        if dtype not in _STORED:
            raise BundleError(place, f"{name} must be one of {', '.join(_STORED)}", dtype)
        patch = self._patches.get(name)
        if patch is not None:
            if patch.shape != source.shape(name):
                raise InputError(place, f"{name} must have the shape {source.shape(name)}", patch.shape)
            array = _converted(patch, dtype)
            if not np.isfinite(array if dtype != "BF16" else patch).all():
                raise InputError(place, f"weights must be finite in {dtype}", name)
        elif source.dtype(name) == _STORED[dtype]:
            array = source.bits(name).view("u2" if dtype == "BF16" else _DTYPES[dtype])
        else:
            array = _converted(source[name], dtype)
        if array.size != prototype.size:
            raise BundleError(place, f"{name} must have {prototype.size} values", array.size)
        return array

    def patched(self, tensors: Mapping[str, np.ndarray]) -> TensorRtEngine:
        """A second engine from the same plan, these weights in place of the bundle's; this one stays as it is.

        Both hold all their weights on the device: the switch needs no copy, and going back none either.
        """
        self._check_patches(tensors)
        return type(self)(
            self.path, self.network, device=self.device, precision=self.info.precision, cache=self._cache,
            graphs=self.graphs, patches=self._patches | dict(tensors),
        )  # fmt: skip

    # Running.

    def profile(self, dims: Mapping[str, int]) -> int:
        """The index of the first profile that covers `dims`. Raises InputError with those there are."""
        for i, profile in enumerate(self.info.profiles):
            if profile.covers(dims):
                return i
        rule = f"shape of {self.network.name} must fit a profile: {'; '.join(map(str, self.info.profiles))}"
        raise InputError(f"engine.{self.kind}", rule, dict(dims))

    def context(self, **dims: int) -> TensorRtContext:
        return TensorRtContext(self, dims)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        """Run every shape twice: the second run captures its CUDA graph."""
        for dims in shapes:
            with self.contexts.lease(**dims) as context:
                context.run()
                context.run()

    def execution_context(self) -> Any:
        """A context of the library whose scratch memory its caller provides."""
        with self._lock:
            context = self._new_context()
        if context is None:
            raise self.failed("it gives no execution context")
        return context

    def _new_context(self) -> Any:
        managed = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.engine.create_execution_context(strategy=managed)

    def _runtime_config(self) -> Any:
        return None

    def keep_compiled(self) -> None:
        """Store what the library compiled for this GPU, where it does."""

    def failed(self, what: str) -> HotloopError:
        """The error to raise, with the library's own reason."""
        return BundleError(f"engine.{self.kind}", f"{self.path.name}: {what} ({self.logger.why()})")


class TensorRtRtxEngine(TensorRtEngine):
    """One network as a plan of TensorRT for RTX, which compiles for the GPU at hand when a shape first runs.

    Compiled code is kept in `cache`; the library itself refuses it on another GPU, driver or version.
    """

    kind = "tensorrt_rtx"
    supported = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")

    @classmethod
    def import_library(cls) -> ModuleType:
        """tensorrt_rtx itself. Raises ImportError when it or cuda-python is not installed."""
        import cuda.bindings.runtime  # noqa: F401
        import tensorrt_rtx

        return tensorrt_rtx

    def _runtime_config(self) -> Any:
        trt = self.trt
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Eager: a captured graph must hold the kernels of its shape, not those that stand in while they compile.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # contexts capture their own
        self._kept = b""
        if self._cache is not None:
            compiled = config.create_runtime_cache()
            file = self._compiled_file()
            if file.is_file():
                self._kept = file.read_bytes()
                compiled.deserialize(self._kept)  # refused when of another driver or GPU, and replaced after a run
            if not config.set_runtime_cache(compiled):
                raise self.failed("it takes no runtime cache")
            self._compiled = compiled
        return config

    def _new_context(self) -> Any:
        return self.engine.create_execution_context(runtime_config=self._config)

    def _compiled_file(self) -> Path:
        assert self._cache is not None
        capability = "{}{}".format(*compute_capability())
        return self._cache / f"{self.path.stem}-{self.info.precision}-{self.info.version}-sm{capability}.jit"

    def keep_compiled(self) -> None:
        if self._cache is None:
            return
        with self._lock:
            compiled = bytes(memoryview(self._compiled.serialize()))
            if compiled == self._kept:
                return
            file = self._compiled_file()
            work = file.with_name(f".{file.name}.{threading.get_ident()}.tmp")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                work.write_bytes(compiled)
                work.replace(file)
            except OSError as error:
                rule = f"compiled code is not kept in {file.parent}: {error.strerror}"
                warnings.warn(rule, RuntimeWarning, stacklevel=3)
            finally:
                with suppress(OSError):
                    work.unlink(missing_ok=True)
            self._kept = compiled
