"""The networks of `hotloop.nets` in torch, on the CPU or CUDA, with the tunings that pay there (`nets.tunings`)."""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

import hotloop_kernels

from ..errors import BundleError, HotloopError, InputError
from ..process import Origin
from ..spec import Network, resolve
from . import ContextPool

if TYPE_CHECKING:
    from torch import nn

    from ..nets.base import Net
    from ..nets.parts import Call

__all__ = ["NativeContext", "NativeEngine", "default_tunings", "runs", "settings"]

_PLACE = "engine.native"
_PRECISIONS = ["fp32", "bf16", "fp16"]


_began: list[Origin] = []


def import_library() -> ModuleType:
    """torch itself. Raises ImportError when it is not installed."""
    import torch

    return torch


def devices() -> list[str]:
    """The devices torch can use here, fastest first.

    Raises InputError in a child of a process in which torch worked for hotloop: OpenMP's threads are not there.
    """
    if _began:
        _began[0].check(_PLACE, library="torch")
    return ["cuda", "cpu"] if _gpus() and import_library().cuda.is_available() else ["cpu"]


@cache
def _gpus() -> int:
    """How many GPUs the CUDA driver sees: asked of the driver, since torch takes a second to import."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if found else 0


class NativeContext:
    """One shape's buffers in host memory; on CUDA they are copied there and back."""

    def __init__(self, engine: NativeEngine, dims: Mapping[str, int]) -> None:
        network = engine.network
        # Not the engine: it keeps its contexts, and would be kept by them.
        self._run = partial(_run, engine.call, network, engine.device, engine.threads)
        self.inputs = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in network.inputs}
        self.outputs = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in network.outputs}

    def run(self, stream: int | None = None) -> None:
        self._run(self.inputs, self.outputs)


class NativeEngine:
    """One network in torch, made from config.json and safetensors.

    path       the network's folder in a bundle (config.json and the weights), or a file in it; the network's own
               `rewrites` decide what is made of them
    threads    of torch, set while a network runs; by default its own choice, at most the usable cores
    precision  "fp32", or "bf16" or "fp16" with norms and the time embedding in float32
    adapters   changes nothing: `patched` is quick without
    tunings    of `nets.tunings.TUNINGS`; by default those that make a network faster on this device

    Raises InputError for an unknown device or precision, BundleError for files that do not hold the network.
    """

    kind = "native"
    import_library = staticmethod(import_library)
    devices = staticmethod(devices)

    @staticmethod
    def precisions(device: str) -> list[str]:
        return list(_PRECISIONS)

    def __init__(
        self, path: Path, network: Network, *, device: str = "cpu", threads: int | None = None,
        precision: str = "fp32", cache: Path | None = None, adapters: bool = False,
        tunings: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        if device not in devices():
            raise InputError(_PLACE, f"device must be one of {devices()} with this torch", device)
        if precision not in _PRECISIONS:
            raise InputError(_PLACE, f"precision must be one of {', '.join(_PRECISIONS)}", precision)
        _begin()
        folder = path if path.is_dir() else path.parent
        self.device, self.network, self.threads = device, network, threads
        self._net, call = _load(folder, network)
        self.tunings = tuple(default_tunings(device) if tunings is None else tunings)
        self.call = _tune(call.lower(precision).to(device).eval(), self.tunings)
        self.contexts = ContextPool(self)

    def context(self, **dims: int) -> NativeContext:
        return NativeContext(self, dims)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        for dims in shapes:
            with self.contexts.lease(**dims) as context:
                context.run()

    def patched(self, tensors: Mapping[str, np.ndarray]) -> NativeEngine:
        """Another engine with these weights in place of its own, by their names in the files; it shares the others."""
        torch, changed = import_library(), set[str]()
        other = copy.copy(self)
        shared = [*self.call.parameters(), *self.call.buffers()]
        other.call = copy.deepcopy(self.call, {id(tensor): tensor for tensor in shared})
        for name, array in tensors.items():
            owner, _, leaf = name.removeprefix(self._net.prefix).rpartition(".")
            try:
                module: nn.Module = other.call.net.get_submodule(owner)
                old = module.get_parameter(leaf)
            except AttributeError as error:
                raise InputError(_PLACE, f"weights to replace must be of {self.network.name}", name) from error
            if array.shape != tuple(old.shape):
                raise InputError(_PLACE, f"{name} must have the shape {tuple(old.shape)}", array.shape)
            value = torch.empty_like(old)  # laid out as the old one
            value.copy_(torch.from_numpy(np.array(array, np.float32)))
            setattr(module, leaf, torch.nn.Parameter(value, requires_grad=False))
            if parent := owner.rpartition(".")[0]:
                changed.add(parent)
        _repack(other.call, changed)
        other.contexts = ContextPool(other)
        return other


def default_tunings(device: str) -> list[str]:
    """What is at hand on this device and makes networks faster there.

    On the CPU by measurement (benchmarks/tunings.py): fused norms cost SD 1.5 9 % in bf16, qkv and geglu change little.
    """
    from ..nets.tunings import at_hand

    return [name for name in at_hand(device) if device != "cpu" or name in ("channels_last", "attention")]


def _tune(call: Call, tunings: Collection[str]) -> Call:
    from ..nets.tunings import tune

    return tune(call, tunings)


def _repack(call: Call, changed: Collection[str]) -> None:
    """Make what was packed from weights anew where they were replaced below these modules."""
    from ..nets.tunings.packed_qkv import Packed

    for path in changed:
        module = call.net.get_submodule(path)
        if isinstance(module, Packed):
            module.repack()


def _run(
    call: Call, network: Network, device: str, threads: int | None, inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Fill `outputs` from `inputs`, both by the spec's names."""
    torch = import_library()
    with torch.inference_mode(), settings(threads), runs(network.name):
        given = (torch.from_numpy(inputs[tensor.name]).to(device) for tensor in network.inputs)
        for tensor, value in zip(network.outputs, call(*given), strict=True):
            torch.from_numpy(outputs[tensor.name]).copy_(value)


@contextmanager
def runs(name: str) -> Iterator[None]:
    """Raises BundleError where a network does not run: its files are not of the manifest's constants, or of each other.
    Out of device memory stays torch's own error, for whoever can free some."""
    torch = import_library()
    try:
        yield
    except (HotloopError, torch.cuda.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError) as error:
        raise BundleError(_PLACE, f"{name} does not run: {(str(error) or repr(error)).splitlines()[0]}") from error


def _load(folder: Path, network: Network) -> tuple[type[Net], Call]:
    """The class that holds the network's weights, and the network in float32; only the weights it uses are read."""
    torch = import_library()

    from ..nets.base import find_weights
    from ..nets.parts import PARTS, module_of
    from ..weights import Weights, derived

    part = PARTS[network.name]
    config = part.config(folder)
    net = part.choose(config)
    with torch.device("meta"):
        call = module_of(net(config), network)
    stored = Weights.open(find_weights(folder, net.stem))
    weights = {name.removeprefix(net.prefix): source for name, source in net.table(stored).items()}
    view = stored.view(weights)
    wanted = call.net.state_dict()
    sums = derived.derive(view) if any(map(derived.is_derived, wanted)) else {}
    filled = {}
    for name, empty in wanted.items():
        if name not in sums and name not in view:
            raise BundleError(_PLACE, f"{stored.path.name} must hold the weights of {network.name}", name)
        array = sums[name] if name in sums else view[name]
        if array.shape != tuple(empty.shape):
            raise BundleError(_PLACE, f"{name} in {stored.path.name} must be {tuple(empty.shape)}", array.shape)
        filled[name] = torch.from_numpy(np.array(array, np.float32 if empty.is_floating_point() else np.int64))
    call.net.load_state_dict(filled, assign=True)
    return net, call.requires_grad_(False)


def _begin() -> None:
    """Remember the process whose torch works for us. Raises InputError as `devices` does."""
    if not _began:
        _began.append(Origin())
    _began[0].check(_PLACE, library="torch")


@contextmanager
def settings(count: int | None) -> Iterator[None]:
    """Threads of torch and of the fused operators are the process's: they are set for the run and set back. So is
    cuDNN: it tries its algorithms at a shape's first run, and float32 is not cut to TF32."""
    _begin()
    torch = import_library()
    before = torch.get_num_threads()
    wanted = count or min(before, hotloop_kernels.usable_cores())  # torch knows nothing of a container's quota
    operators = hotloop_kernels.threads()
    if wanted != before:
        torch.set_num_threads(wanted)
    if wanted != operators:
        hotloop_kernels.set_threads(wanted)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False) if _gpus() else nullcontext():
            yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)
        if wanted != operators:
            hotloop_kernels.set_threads(operators)
