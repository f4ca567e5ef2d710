"""The Engine protocol: one network that can run, and the table of engine kinds.

    engine = open_engine("onnx", path, network, device="cpu")
    with engine.contexts.lease(B=2, h=64, w=64, T=77) as ctx:
        ctx.inputs["sample"][:] = ...
        ctx.run()
        ctx.outputs["out"]                      # valid until the next run of this context

Engines never import each other, and nothing above this package can tell them apart.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import proxy

import numpy as np

from ..errors import InputError
from ..process import Origin
from ..spec import Network

__all__ = ["KINDS", "Context", "ContextPool", "Engine", "Kind", "available", "devices", "open_engine",
           "precisions", "speeds", "version"]  # fmt: skip


class Kind(NamedTuple):
    """Where an engine kind's class is, the package it stands on, and what installs that.

    denoiser: "module:class" of the denoiser that keeps the loop's state where these engines run; by default the state
    is the loop's (`hotloop.denoiser.UNetDenoiser`).
    """

    module: str
    cls: str
    package: str
    install: str
    denoiser: str | None = None


KINDS: dict[str, Kind] = {
    "onnx": Kind(".onnx", "OnnxEngine", "onnxruntime", "pip install onnxruntime"),
    "openvino": Kind(".openvino", "OpenVinoEngine", "openvino", "pip install openvino"),
    "tensorrt": Kind(".tensorrt", "TensorRtEngine", "tensorrt", "pip install tensorrt cuda-python"),
    "tensorrt_rtx": Kind(".tensorrt", "TensorRtRtxEngine", "tensorrt_rtx", "pip install tensorrt_rtx cuda-python"),
    "native": Kind(
        ".native", "NativeEngine", "torch", "pip install torch", denoiser="hotloop.denoiser.resident:ResidentLoop"
    ),
}


class Context(Protocol):
    """Inputs and outputs bound at fixed addresses for one shape."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    def run(self, stream: int | None = None) -> None:
        """Read `inputs`, fill `outputs`; outputs are valid until the next run."""


class Engine(Protocol):
    """One network that can run. Several contexts share one set of weights.

    Classes are made with `Cls(path, network, *, device, threads, precision, cache, adapters)` and have three static
    or class methods: `import_library()` (the library itself; raises ImportError), `devices()` (those it can use here)
    and `precisions(device)` (what they compute in); where having a precision is not being fast in it also
    `speeds(device)` (precision -> its speed over float32's). An engine may have `small`: whether it is on the CPU with
    so few weights that the rows of a batch gain nothing from one run.
    """

    kind: str
    device: str
    network: Network
    contexts: ContextPool

    def context(self, **dims: int) -> Context:
        """A new context; `dims` gives every symbol of the network's shapes (B, T, h, w, H, W)."""

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        """Warm up: allocate and run once at each shape."""

    def patched(self, tensors: Mapping[str, np.ndarray]) -> Engine:
        """A second engine in which these weights (checkpoint keys -> f32) stand in place of the bundle's.

        The first stays as it is, bit for bit. Raises InputError for a weight that this engine cannot change.
        """


class ContextPool:
    """Idle contexts of one engine by shape, least recently used shapes dropped first. Safe across threads.

    clearing: called by `clear`, to let go of what else the engine keeps for the shapes that were used.
    """

    def __init__(self, engine: Engine, *, shapes: int = 8, clearing: Callable[[], None] | None = None) -> None:
        # Weakly: engine and pool would else keep gigabytes alive until the garbage collector looks.
        self._engine: Engine = proxy(engine)
        self._shapes, self._clearing = shapes, clearing
        self._idle: OrderedDict[tuple[tuple[str, int], ...], list[Context]] = OrderedDict()
        self._lock = threading.Lock()
        self._origin = Origin()

    def acquire(self, **dims: int) -> Context:
        """A context of this shape. Raises InputError in a process that was forked since the engine was loaded."""
        self._origin.check("engine")
        key = tuple(sorted(dims.items()))
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                self._idle.move_to_end(key)
                return idle.pop()
        return self._engine.context(**dims)

    def release(self, context: Context, **dims: int) -> None:
        key = tuple(sorted(dims.items()))
        with self._lock:
            self._idle.setdefault(key, []).append(context)
            self._idle.move_to_end(key)
            while len(self._idle) > self._shapes:
                self._idle.popitem(last=False)

    def clear(self) -> None:
        """Let the idle contexts go, and with them what an engine keeps for their shapes alone."""
        with self._lock:
            self._idle.clear()
            if self._clearing:
                self._clearing()

    def shapes(self) -> list[dict[str, int]]:
        """The shapes that were used last: what a second engine should be warm for."""
        with self._lock:
            return [dict(key) for key in self._idle]

    @contextmanager
    def lease(self, **dims: int) -> Iterator[Context]:
        context = self.acquire(**dims)
        try:
            yield context
        finally:
            self.release(context, **dims)


def available() -> dict[str, str | None]:
    """Each engine kind with None when its library is installed, else the command that installs what is missing."""
    return {kind: None if _installed(kind) else known.install for kind, known in KINDS.items()}


def version(kind: str) -> str:
    """The version of this kind's library. Raises InputError as `open_engine` does."""
    return str(_checked(kind).import_library().__version__)


def devices(kind: str) -> list[str]:
    """The devices this kind's library can use here, fastest first. Raises InputError as `open_engine` does."""
    found: list[str] = _checked(kind).devices()
    return found


def precisions(kind: str, device: str) -> list[str]:
    """What this kind can compute in on a device of `devices(kind)`. Raises InputError as `open_engine` does."""
    found: list[str] = _checked(kind).precisions(device)
    return found


def speeds(kind: str, device: str) -> Mapping[str, float]:
    """How many times as fast as float32 this kind runs a precision on a device, where it has timed that.

    Raises InputError as `open_engine` does.
    """
    timed = getattr(_checked(kind), "speeds", None)
    return timed(device) if timed else {}


def open_engine(
    kind: str, path: Path, network: Network, *, device: str = "cpu", threads: int | None = None,
    precision: str = "fp32", cache: Path | None = None, adapters: bool = False,
) -> Engine:  # fmt: skip
    """Open the engine file that runs `network`.

    precision: what the arithmetic runs in: "fp32", "bf16", "fp16" or "int8"; cache: a folder where the engine may
    keep what it compiles; adapters: open it so that `patched` is quick for the weights that LoRAs usually change
    (`weights.keys.LORA_TARGETS`), at the cost that the engine's module states. Raises InputError for an unknown kind,
    a missing library or a precision it does not have.
    """
    cls = _checked(kind)
    try:
        cls.import_library()
    except ImportError as error:
        rule = f"{kind} needs a library that does not load: {KINDS[kind].install}"
        raise InputError("engine", f"{rule} ({error})") from error
    engine: Engine = cls(
        path, network, device=device, threads=threads, precision=precision, cache=cache, adapters=adapters
    )
    return engine


def _installed(kind: str) -> bool:
    """Found, not imported: torch alone takes a second and 200 MB, and most calls only ask."""
    package = KINDS[kind].package
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None


def _checked(kind: str) -> Any:
    if kind not in KINDS:
        raise InputError("engine", "kind must be one of " + ", ".join(KINDS), kind)
    known = KINDS[kind]
    rule = f"{kind} needs a library that is not installed: {known.install}"
    if not _installed(kind):
        raise InputError("engine", rule)
    try:
        return getattr(import_module(known.module, __name__), known.cls)
    except ImportError as error:
        raise InputError("engine", f"{rule} ({error})") from error
