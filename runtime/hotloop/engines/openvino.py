"""OpenVINO: the fastest engine on CPUs, in float32, bfloat16 or int8, from the same ONNX graphs as ONNX Runtime.

Weights can be *live*: inputs of the compiled model instead of constants in it. Compiling takes from half a second
(avatar-tiny) to several (SD 1.5); handing a compiled model other arrays takes no time, so an adapter that is switched,
scaled or stacked among the same weights shows at the next step, and all its versions share one compiled model.
Live weights cost SD 1.5 in bfloat16 2.6 % of its speed (benchmarks/adapters.py); an engine that was not opened for
adapters has none.

In a UNet hotloop's own attention and group normalisation stand in for OpenVINO's where they are faster
(`hotloop.engines.openvino_operators`). In the time of one core SD 1.5's guided evaluation at 512x512 takes 1.25 times
less with them in bfloat16, and in int8 1.94 times less than OpenVINO's bfloat16 (all rewrites against the plain graph).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import inspect
import json
import math
import shutil
import tempfile
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hotloop_kernels import usable_cores

from ..errors import BundleError, InputError
from ..files import MOST_TEXT, read_file, sha256
from ..process import Origin, keep_in_children
from ..spec import Network, resolve
from ..weights.keys import LORA_TARGETS
from . import ContextPool
from .batch_split import SMALL, cut, part_of, parts

__all__ = ["OpenVinoContext", "OpenVinoEngine", "devices", "import_library", "precisions", "speeds"]

_PLACE = "engine.openvino"
# hotloop's name -> what OpenVINO's OPTIMIZATION_CAPABILITIES calls it.
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# Below this many weights a graph is compiled once per shape, and a batch runs as parts side by side. With fixed shapes
# OpenVINO runs the built-in UNet 30 % faster (10.5 instead of 14.1 ms at 64x64 in fp32), and SD 1.5's 5 % in bf16 and
# 10 % in int8, with our operators 18 %; but each shape keeps its own copy of the weights. So a large UNet is compiled
# for the shape it is first used at and, when others come, once more for all of those. Other large graphs gain nothing
# and are compiled for all shapes.
_SMALL = SMALL
_SHAPES = 8
# Symbols of the shape that a graph for all shapes is run at first; every other symbol is 2, not 1: when the first run
# has a single token, OpenVINO 2026.4 runs a UNet with a shared prefix wrongly ever after, without a word.
_FIRST = {"N": 1, "B": 1, "h": 8, "w": 8, "H": 64, "W": 64}
_Key = tuple[Any, frozenset[str], int]
# The convolution that precisions are timed by: channels, cells per side, and how often.
_TIMED = (256, 16, 5)


def import_library() -> ModuleType:
    """openvino itself. Raises ImportError when it is not installed."""
    import openvino

    return openvino


def devices() -> list[str]:
    """The devices OpenVINO sees here, fastest first. "gpu" is an Intel GPU."""
    present = {name.split(".")[0] for name in _core().available_devices}
    return [device for device in ("gpu", "cpu") if device.upper() in present]


def precisions(device: str) -> list[str]:
    """What `device` computes in; a processor without bfloat16 instructions does not list bf16."""
    able = _core().get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    return [precision for precision, name in _CAPABILITIES.items() if name in able]


@functools.cache
def speeds(device: str) -> Mapping[str, float]:
    """Of a precision that `device` lists, how many times as fast as in float32 a convolution runs in it, as timed here.

    Having the instructions is not being fast: on an Intel processor whose matrix unit is hidden from a virtual machine
    bfloat16 runs at half of float32's speed. Timed once a process on one thread, which takes some 0.2 s.
    """
    if device != "cpu" or "bf16" not in precisions(device):
        return {}
    wide, low = (_convolution(_HINTS[precision]) for precision in ("fp32", "bf16"))
    best = {"fp32": math.inf, "bf16": math.inf}
    for _ in range(_TIMED[2]):
        for name, request in (("fp32", wide), ("bf16", low)):
            began = time.perf_counter()
            request.infer()
            best[name] = min(best[name], time.perf_counter() - began)
    return {"bf16": best["fp32"] / best["bf16"]}


def _convolution(hint: str) -> Any:
    """A request that is ready to run."""
    from openvino import Model, Type, opset13

    channels, side, _ = _TIMED
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((channels, channels, 3, 3), np.float32)
    x = opset13.parameter((1, channels, side, side), Type.f32)
    y = opset13.convolution(x, opset13.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1])
    model = Model([opset13.result(y)], [x], "convolution")
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1})
    request = compiled.create_infer_request()
    cells = rng.standard_normal((1, channels, side, side), np.float32)
    request.set_input_tensor(import_library().Tensor(cells))  # a copy, which is the request's own
    request.infer()
    return request


def _operators() -> ModuleType:
    """hotloop's own, in OpenVINO's classes: to be imported where OpenVINO is."""
    from . import openvino_operators

    return openvino_operators


_lock = threading.Lock()
_made: list[tuple[Any, Origin]] = []


def _core() -> Any:
    """The one Core of the process: it holds the plugins and their threads, which live as long as the process does.

    Raises InputError in a child of the process that made it: another Core there waits for the same threads.
    """
    if _made:  # before the lock, which a fork may have caught
        _made[0][1].check(_PLACE, library="openvino")
    with _lock:
        if not _made:
            core = import_library().Core()
            for operator in (_operators().Attention, _operators().GroupNorm):  # for compiled models that hold them
                core.add_extension(operator)
            keep_in_children(core)
            _made.append((core, Origin()))
        return _made[0][0]


class _Graph:
    """The graph as read from the file and all that was compiled from it: an engine and its patched ones share it."""

    def __init__(
        self, path: Path, network: Network, *, device: str, threads: int | None, precision: str, cache: Path | None,
        operators: Collection[str] | None, spread: bool,
    ) -> None:  # fmt: skip
        self.path, self.network, self.device, self.precision, self.threads = path, network, device, precision, threads
        hint = precision
        if precision == "int8":  # what is not quantised
            hint = "bf16" if speeds(device).get("bf16", 0.0) >= 1 else "fp32"
        # Without a hint OpenVINO would take bf16 wherever the processor has it.
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[hint], "PERFORMANCE_HINT": "LATENCY"}
        if device == "cpu":
            # Threads stay where the system puts them: the machine is shared with capture, encoding and a game.
            self._config |= {"INFERENCE_NUM_THREADS": threads or usable_cores(), "ENABLE_CPU_PINNING": False}
        self._cache = cache
        self._lock = threading.RLock()
        self._weights: Mapping[str, Any] | None = None
        # (shape or None, names of the live weights, parts) -> compiled model; the engines and contexts in use keep it.
        self._compiled: weakref.WeakValueDictionary[_Key, Any] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[_Key, Any] = OrderedDict()
        self._first: dict[str, tuple[int, ...]] | None = None  # the shape of a large graph
        try:
            self._model = _core().read_model(str(path))
        except Exception as error:  # OpenVINO raises RuntimeError with a trace of its own source lines
            raise BundleError(_PLACE, f"{path.name} does not open: {_reason(error)}") from error
        for rule, want, have in (
            ("inputs", network.inputs, self._model.inputs),
            ("outputs", network.outputs, self._model.outputs),
        ):
            found = sorted((port.any_name, str(port.get_element_type().to_dtype())) for port in have)
            if found != sorted((tensor.name, tensor.dtype) for tensor in want):
                expected = [f"{tensor.name} {tensor.dtype}" for tensor in want]
                raise BundleError(_PLACE, f"{rule} of {path.name} must be {expected}", [" ".join(one) for one in found])
        self.small = sum(math.prod(node.get_output_shape(0)) for node in _constants(self._model)) < _SMALL
        self._side_by_side = (threads or usable_cores()) if spread and self.small and device == "cpu" else 1
        self._half = hint == "bf16"
        self.fixes = device == "cpu" and network.name == "unet" and not self.small
        # Small graphs go without: a call through Python takes some 30 us. A VAE's decoder gained less than 2 %.
        at_hand = _operators().at_hand() if self.fixes and hint in ("fp32", "bf16") else ()
        self.operators = tuple(at_hand if operators is None else operators)

    @property
    def weights(self) -> Mapping[str, Any]:
        """The float constants by their names in the file, in float32: widened once, shared by all that is compiled."""
        with self._lock:
            if self._weights is None:
                self._weights = self._widened()
            return self._weights

    def _widened(self) -> dict[str, Any]:
        keys: dict[str, str] = {}
        converts = []
        for constant in _constants(self._model):
            for target in constant.output(0).get_target_inputs():
                node = target.get_node()
                if node.get_type_name() == "Convert":
                    keys[node.get_friendly_name()] = constant.get_friendly_name()
                    converts.append(node)
        if converts:
            from openvino import Model, opset13, passes

            # Folding this stub, which has no nodes but the graph's own, folds them in the graph and nothing else.
            stub = Model([opset13.result(node) for node in converts], [], "weights")
            manager = passes.Manager()
            manager.register_pass(passes.ConstantFolding())
            manager.run_passes(stub)
            del stub, converts
        found = {}
        for constant in _constants(self._model):
            name = constant.get_friendly_name()
            if constant.get_element_type() == import_library().Type.f32:
                constant.set_friendly_name(keys.get(name, name))
                found[constant.get_friendly_name()] = constant
        return found

    def parts(self, dims: Mapping[str, int]) -> int:
        """How many runs side by side a run at this shape is cut into."""
        return parts(self.network, dims, self._side_by_side)

    def compiled(self, dims: Mapping[str, int], live: frozenset[str], parts: int = 1) -> Any:
        """The compiled model that runs this shape as often at once, with these weights as inputs."""
        shape: dict[str, tuple[int, ...]] | None = None
        if self.small or self.fixes:
            shape = {tensor.name: resolve(tensor.shape, dims) for tensor in self.network.inputs}
        with self._lock:
            if not self.small:
                if self.fixes and not any(fixed for fixed, *_ in list(self._compiled)):
                    self._first = shape  # the first, or the first since nothing holds the one before
                shape = shape if shape == self._first else None
            key = (shape and tuple(shape.items()), live, parts)
            model = self._compiled.get(key)
            if model is None:
                model = self._compiled[key] = self._compile(shape, live, parts)
                if shape is None:
                    self._pack(model, live)
            if self.small:  # cheap to keep, and a shape or an adapter comes back
                self._recent[key] = model
                self._recent.move_to_end(key)
                while len(self._recent) > 2 * _SHAPES:
                    self._recent.popitem(last=False)
            return model

    def usual(self) -> frozenset[str]:
        """The weights that LoRAs usually change."""
        return frozenset() if self.precision == "int8" else frozenset(filter(LORA_TARGETS.fullmatch, self.weights))

    def live(self, names: frozenset[str]) -> frozenset[str]:
        """The smallest set of live weights that holds `names` and is compiled already; else with all the usual ones."""
        with self._lock:
            compiled = (live for _, live, _ in list(self._compiled) if live and names <= live)
            return min(compiled, key=len, default=names | self.usual() if names else names)

    def _compile(self, shape: Mapping[str, tuple[int, ...]] | None, live: frozenset[str], parts: int) -> Any:
        if not self.small and not live and self._cache is not None:
            return self._from_cache(self._cache, shape)
        if self.precision != "int8":
            _ = self.weights  # an int8 graph stays as it is: OpenVINO looks for its quantisers
        model = self._model.clone()
        if live:
            self._open_weights(model, live)
        if shape is not None:
            model.reshape(shape)
        return self._call(model, self._config | ({"NUM_STREAMS": parts} if parts > 1 else {}))

    def _call(self, model: Any, config: Mapping[str, Any]) -> Any:
        fused = _operators()
        held: list[Any] = []
        try:
            with fused.holding(held):
                if self.operators:
                    fused.fuse(model, self.operators, half=self._half)
                compiled = _core().compile_model(model, self.device.upper(), dict(config))
        except Exception as error:
            raise BundleError(_PLACE, f"{self.path.name} does not compile: {_reason(error)}") from error
        if held:
            weakref.finalize(compiled, held.clear)
        return compiled

    def _pack(self, model: Any, live: frozenset[str]) -> None:
        """Run once at a small shape: OpenVINO packs the weights then (1.6 s for SD 1.5), not in the first step."""
        dims = {symbol: _FIRST.get(symbol, 2) for symbol in self.network.symbols}
        given = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in self.network.inputs}
        request = model.create_infer_request()
        for name, array in (given | {name: self.weights[name].data for name in live}).items():
            request.set_tensor(name, _tensor(array))
        request.infer()

    def _open_weights(self, model: Any, live: frozenset[str]) -> None:
        from openvino import Type, opset13

        parameters = []
        for constant in _constants(model):
            name = constant.get_friendly_name()
            if name in live:
                parameter = opset13.parameter(constant.get_output_shape(0), Type.f32, name=name)
                parameter.output(0).set_names({name})
                for target in constant.output(0).get_target_inputs():
                    target.replace_source_output(parameter.output(0))
                parameters.append(parameter)
        model.add_parameters(parameters)

    # The cache holds a folder per compiled model: OpenVINO's blob (all weights in float32, memory-mapped when it is
    # loaded) and our seal. OpenVINO takes a blob with a flipped bit as it is, so the seal is checked before.

    def _from_cache(self, cache: Path, shape: Mapping[str, tuple[int, ...]] | None) -> Any:
        folder = cache / self._key(shape)
        model: Any = str(self.path)  # by its path OpenVINO knows a model at once; one that we change it has to read
        if shape is not None or self.operators:
            model = self._model.clone()
            if shape is not None:
                model.reshape(shape)
        if _sealed(folder):
            return self._call(model, self._config | {"CACHE_DIR": str(folder)})
        try:
            cache.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            making = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
        except OSError as error:
            warnings.warn(f"compiled models are not kept: {error}", RuntimeWarning, stacklevel=2)
            return self._call(model, self._config)
        try:
            compiled = self._call(model, self._config | {"CACHE_DIR": str(making)})
            with contextlib.suppress(OSError):  # a full disk, or another process was first
                _seal(making)
                making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return compiled

    def _key(self, shape: Mapping[str, tuple[int, ...]] | None) -> str:
        """Of all that a compiled model depends on. The folder itself stands for the weights' content."""
        files = sorted(p for p in self.path.parent.iterdir() if p.is_file() and not p.name.startswith("."))
        facts = [
            import_library().__version__, _core().get_property(self.device.upper(), "FULL_DEVICE_NAME"),
            str(self.path.resolve()), sorted(self._config.items()), sorted(self.operators),
            shape and sorted(shape.items()),
            hashlib.sha256(inspect.getsource(_operators()).encode() + self.path.read_bytes()).hexdigest(),
            [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


class OpenVinoContext:
    """One shape's buffers. OpenVINO reads and writes these very arrays; a run copies nothing."""

    def __init__(self, engine: OpenVinoEngine, dims: Mapping[str, int]) -> None:
        network = engine.network
        self._name, self._origin = network.name, Origin()
        self.inputs = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in network.inputs}
        self.outputs = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in network.outputs}
        count = engine.parts(dims)
        self._compiled = engine.compiled(part_of(dims, count), count)
        self._requests = [self._compiled.create_infer_request() for _ in range(count)]
        self._held = (engine.graph, engine.values)  # the memory that the requests read
        for part, request in zip(cut(self.inputs | self.outputs, count), self._requests, strict=True):
            for name, array in (part | engine.values).items():
                request.set_tensor(name, _tensor(array))

    def run(self, stream: int | None = None) -> None:
        self._origin.check(_PLACE)
        graph, fused = self._held[0], _operators()
        failed = len(fused.failures)
        try:
            with fused.threads(graph.threads) if graph.operators else contextlib.nullcontext():
                if len(self._requests) == 1:
                    self._requests[0].infer()
                else:
                    self._run_side_by_side()
        except Exception as error:  # no memory, or a graph that is not of the manifest's constants
            raise BundleError(_PLACE, f"{self._name} does not run: {_reason(error)}") from error
        if len(fused.failures) > failed:
            raise BundleError(_PLACE, f"{self._name} does not run: {fused.failures[-1]}")

    def _run_side_by_side(self) -> None:
        for request in self._requests:
            request.start_async()
        failed: Exception | None = None
        for request in self._requests:  # all of them: none may still write when an error is told
            try:
                request.wait()
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed


class OpenVinoEngine:
    """One network, read from an ONNX graph or an OpenVINO IR (.xml with its .bin) and compiled for this machine.

    threads: all usable cores by default. precision: "int8" is for a graph that was quantised; what it leaves
    unquantised runs in bf16 where that is faster than fp32. cache: a folder for compiled models that belongs to these
    very weights (a bundle's id is in its name). Small graphs are compiled when a shape is first used and not cached.
    operators: those of hotloop's own that stand in for OpenVINO's (`openvino_operators.OPERATORS`), by default all that
    are faster here, for a UNet that is not small. spread: rows of a batch of a small network run side by side
    (`hotloop.engines.batch_split`).
    adapters: the weights that LoRAs usually change are live from the start; what is compiled so is not cached either.
    Raises InputError for a device or a precision that this machine has not, BundleError for a graph that does not open
    or whose inputs or outputs are not the network's.
    """

    kind = "openvino"
    import_library = staticmethod(import_library)
    devices = staticmethod(devices)
    precisions = staticmethod(precisions)
    speeds = staticmethod(speeds)

    def __init__(
        self, path: Path, network: Network, *, device: str = "cpu", threads: int | None = None,
        precision: str = "fp32", cache: Path | None = None, adapters: bool = False,
        operators: Collection[str] | None = None, spread: bool = True,
    ) -> None:  # fmt: skip
        if device not in devices():
            raise InputError(_PLACE, f"device must be one of {', '.join(devices())} here", device)
        if precision not in precisions(device):
            rule = f"precision on this {device} must be one of {', '.join(precisions(device))}"
            raise InputError(_PLACE, rule, precision)
        graph = _Graph(path, network, device=device, threads=threads, precision=precision, cache=cache,
                       operators=operators, spread=spread)  # fmt: skip
        self._share(graph, {}, graph.usual() if adapters else frozenset())

    def _share(self, graph: _Graph, patches: Mapping[str, np.ndarray], live: frozenset[str]) -> None:
        self.graph, self.device, self.network = graph, graph.device, graph.network
        self._patches = dict(patches)
        # Chosen once: contexts of one engine run one compiled model per shape.
        self._live = live
        self.values: dict[str, np.ndarray] = {
            name: patches[name] if name in patches else graph.weights[name].data for name in self._live
        }
        self._kept: dict[int, Any] = {}
        if not (graph.small or graph.fixes):
            self.compiled({})
        self._used: OrderedDict[tuple[tuple[str, int], ...], None] = OrderedDict()
        # A proxy, or the pool and the engine would hold each other: gigabytes until the garbage collector comes by.
        self.contexts = ContextPool(self, shapes=_SHAPES, clearing=self._kept.clear if graph.fixes else None)

    @property
    def small(self) -> bool:
        return self.graph.small and self.device == "cpu"

    def parts(self, dims: Mapping[str, int]) -> int:
        """How many runs side by side a run at this shape is cut into."""
        return self.graph.parts(dims)

    def compiled(self, dims: Mapping[str, int], parts: int = 1) -> Any:
        model = self.graph.compiled(dims, self._live, parts)
        if not self.graph.small:  # it took seconds: to live as long as the engine
            self._kept[id(model)] = model
        return model

    def context(self, **dims: int) -> OpenVinoContext:
        shape = tuple(sorted(dims.items()))
        self._used[shape] = None
        self._used.move_to_end(shape)
        while len(self._used) > _SHAPES:
            self._used.popitem(last=False)
        return OpenVinoContext(self, dims)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        for dims in shapes:
            with self.contexts.lease(**dims) as context:
                context.run()

    def patched(self, tensors: Mapping[str, np.ndarray]) -> OpenVinoEngine:
        """A second engine with these weights live, ready at every shape that this one has been used at.

        The first call for a set of names compiles; later ones with the same names, or fewer, are ready at once.
        Raises InputError for a name that is no weight of the graph, another shape, or an int8 graph: its activations'
        ranges were measured with the weights it has.
        """
        if self.graph.precision == "int8":
            rule = "weights of an int8 graph cannot be replaced; merge before the export"
            raise InputError(_PLACE, rule, next(iter(tensors), None))
        patches = dict(self._patches)
        for name, value in tensors.items():
            if name not in self.graph.weights:
                raise InputError(_PLACE, f"weights to replace must be initializers of {self.graph.path.name}", name)
            shape = tuple(self.graph.weights[name].get_output_shape(0))
            if value.shape != shape:
                raise InputError(_PLACE, f"{name} must have the shape {shape}", value.shape)
            patches[name] = np.ascontiguousarray(value, np.float32)
        engine = OpenVinoEngine.__new__(OpenVinoEngine)
        engine._share(self.graph, patches, self.graph.live(self._live | frozenset(patches)))
        shapes = [dict(shape) for shape in self._used]
        if self.graph.small:
            engine.prepare(shapes)
        else:  # a run of a large one takes as long as a step
            for dims in shapes:
                engine.compiled(dims)
        return engine


def _constants(model: Any) -> list[Any]:
    return [node for node in model.get_ops() if node.get_type_name() == "Constant"]


def _tensor(array: np.ndarray) -> Any:
    """The array's own memory as a tensor. OpenVINO asks for a writable one even where it only reads."""
    ov = import_library()
    if not array.flags.writeable:
        memory: Any = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
        array = np.frombuffer(memory, array.dtype).reshape(array.shape)
    return ov.Tensor(array, shared_memory=True)


def _seal(folder: Path) -> None:
    hashes = {path.name: sha256(path) for path in folder.iterdir()}
    (folder / "seal.json").write_text(json.dumps(hashes), "utf-8")


def _sealed(folder: Path) -> bool:
    """Whether the folder holds exactly the files that were sealed, unaltered."""
    try:
        hashes = json.loads(read_file(folder / "seal.json", most=MOST_TEXT))
        present = {path.name for path in folder.iterdir()} - {"seal.json"}
        return bool(present) and present == set(hashes) and all(sha256(folder / n) == hashes[n] for n in present)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message: before it stand places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
