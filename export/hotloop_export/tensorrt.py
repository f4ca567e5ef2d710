"""ONNX graphs to TensorRT plans, for TensorRT and for TensorRT for RTX, which share one API.

TensorRT for RTX needs no GPU to build a plan with its weights inside ("embed"); a plan without them ("strip"), whose
weights are refitted when it is opened, it builds only where a GPU is, as TensorRT does every plan.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from hotloop.engines import KINDS
from hotloop.engines.tensorrt import TensorRtEngine, TensorRtRtxEngine, compute_capability, make_logger
from hotloop.engines.tensorrt_plan import PlanInfo, Profile
from hotloop.errors import BundleError, InputError
from hotloop.spec import Family, Network, Tensor
from hotloop.weights import Weights

from .progress import Progress

__all__ = ["TOKEN_WINDOWS", "build_plan", "can_strip", "profiles"]

# Long prompts are encoded in windows of the text encoder's length: a plan takes up to so many.
TOKEN_WINDOWS = 3
_IDENTITY_TOKENS = 16
_TUNED_STEPS = 20

_PLACE = "export.tensorrt"
_ENGINES: Mapping[str, type[TensorRtEngine]] = {e.kind: e for e in (TensorRtEngine, TensorRtRtxEngine)}
# The spec's dtypes by the library's names; every network's border is made of these.
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}
_ARITHMETIC = {"HALF": "fp16", "BF16": "bf16", "FLOAT": "fp32"}
# Architectures before this one have no float32 matrix products in TensorRT for RTX ("FP32 GEMM is not supported").
_TURING = "7.5"

Report = Callable[[str, float], None]


def profiles(
    family: Family, network: Network, *, shapes: Sequence[tuple[int, int]], batches: tuple[int, int],
    guidance: bool = True,
) -> tuple[Profile, ...]:  # fmt: skip
    """The optimisation profiles of a network: one for every (width, height) in pixels, named "512x512".

    batches   (least, most) images of a call; plans are tuned for the least
    guidance  the UNet's batch is N or 2N rows for N images: both fit, and 2N is what it is tuned for

    A network that sees no sizes gets one profile, "any". Raises InputError for sizes the family does not take.
    """
    least, most = batches
    if not 1 <= least <= most:
        raise InputError(_PLACE, "batches must be (least, most) with 1 <= least <= most", batches)
    if not shapes:
        raise InputError(_PLACE, "shapes must name one (width, height) at least", shapes)
    symbols = [dim for tensor in network.inputs for dim in tensor.shape if isinstance(dim, str)]
    known = _rows(family, least, most, halves=2 if guidance else 1)
    if network.name not in known:
        raise InputError(_PLACE, f"network must be one of {', '.join(known)}", network.name)
    rows = known[network.name]
    made: dict[str, Profile] = {}
    for width, height in shapes:
        _check_size(family, width, height)
        sized = family.dims(width=width, height=height, batch=1)
        dims = {symbol: rows.get(symbol, (sized[symbol],) * 3) for symbol in dict.fromkeys(symbols)}
        name = f"{width}x{height}" if {"h", "w", "H", "W"} & set(symbols) else "any"
        made[name] = Profile(name, dims)
    return tuple(made.values())


def _rows(family: Family, least: int, most: int, *, halves: int) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What each network's symbols range over, beyond sizes: (smallest, tuned for, largest)."""
    window = family.vocab_tokens
    tokens = (window, window, TOKEN_WINDOWS * window)
    # One image is encoded for all that are drawn from it.
    encoder, decoder = {"B": (1, 1, most)}, {"B": (least, least, most)}
    return dict.fromkeys((network.name for network in family.faces.networks()), encoder) | {
        # One text at a time, a row for each of its windows.
        "text_encoder": {"B": (1, 1, TOKEN_WINDOWS), "T": (window,) * 3},
        "image_encoder": encoder,
        "prompt": {"B": (1, halves * least, halves * most), "T": tokens},
        # One row for every step of a schedule.
        "time": {"B": (1, _TUNED_STEPS, family.schedule.num_train_timesteps)},
        "unet": {
            "N": (least, least, most), "B": (least, halves * least, halves * most), "T": tokens,
            "Ti": (1, 1, _IDENTITY_TOKENS),
        },
        "vae_encoder": encoder, "tiny_vae_encoder": encoder, "vae_decoder": decoder, "tiny_vae_decoder": decoder,
    }  # fmt: skip


def _check_size(family: Family, width: int, height: int) -> None:
    lowest = max(family.grid, family.min_cells * family.vae_factor)
    if not all(lowest <= side <= family.max_size and side % family.grid == 0 for side in (width, height)):
        rule = f"sizes of {family.name} must be multiples of {family.grid} from {lowest} to {family.max_size}"
        raise InputError(_PLACE, rule, f"{width}x{height}")


def can_strip(kind: str) -> bool:
    """Whether a plan of this kind without weights (so with weights that can be replaced) can be built here."""
    return bool(_ENGINES[kind].devices())


def build_plan(
    kind: str, graph: Path, network: Network, out: Path, *, family: Family, shapes: Sequence[tuple[int, int]],
    batches: tuple[int, int], guidance: bool = True, weights: str = "strip", targets: Sequence[str] | None = None,
    compatibility: str = "none", precision: str | None = None, cache: Path | None = None,
    progress: Report | None = None,
) -> PlanInfo:  # fmt: skip
    """Build the plan `out` from an ONNX graph of `network`, with its record beside it; returns the record.

    kind      "tensorrt" or "tensorrt_rtx"
    graph     its inputs and outputs are the network's; its weights lie in safetensors files, under the names of the
              initializers
    shapes, batches, guidance   see `profiles`
    weights   "strip": a plan of kernels alone, which takes its weights from those safetensors files when it is opened
              and can have them replaced; "embed": weights inside, for ever
    targets   compute capabilities a tensorrt_rtx plan shall run on, by default all it can; tensorrt: the GPU's here
    compatibility   tensorrt's hardware compatibility level: "none" (the GPU here), "same_compute_capability" or
              "ampere_plus", each slower than the one before
    precision what the record shall say; by default, what the graph's convolutions and matrix products run in
    cache     a folder for TensorRT's timing cache
    progress  called with a stage's name and the part of it that is done, 0 to 1; what it raises ends the build

    The network is strongly typed: every tensor has the dtype that the graph gives it, and float32 means float32 (no
    TF32). Raises InputError for arguments, BundleError for a graph that is not the network's or does not build.
    """
    if kind not in _ENGINES:
        raise InputError(_PLACE, f"kind must be one of {', '.join(_ENGINES)}", kind)
    if weights not in ("strip", "embed"):
        raise InputError(_PLACE, "weights must be strip or embed", weights)
    if not graph.is_file():
        raise BundleError(_PLACE, "no such graph", str(graph))
    planned = profiles(family, network, shapes=shapes, batches=batches, guidance=guidance)
    try:
        trt = _ENGINES[kind].import_library()
    except ImportError as error:
        rule = f"{kind} needs a library that is not installed: {KINDS[kind].install} ({error})"
        raise InputError(_PLACE, rule) from error
    if not can_strip(kind) and (weights == "strip" or kind == "tensorrt"):
        other = "; weights='embed' needs none" if kind == "tensorrt_rtx" else ""
        raise BundleError(_PLACE, f"{kind} builds a plan with weights='{weights}' only where its GPU is{other}")
    build = _Build(trt, kind, graph, network, report=progress)
    watch, began = Progress(), time.perf_counter()
    with watch.stage("build"):
        held = _initializers(graph)
        build.parse()
        build.name_weights([name for names in held.values() for name in names], refit=weights == "strip")
        build.add_profiles(planned)
        aimed = build.aim(targets, compatibility)
        serialized = build.run(cache)
        _write(out, serialized, build.report)
    info = PlanInfo(
        kind=kind, version=str(trt.__version__), network=network.name, targets=aimed, compatibility=compatibility,
        precision=precision or build.arithmetic(), profiles=planned, inputs=_border(network.inputs),
        outputs=_border(network.outputs), weights=weights,
        refit={os.path.relpath(file, out.parent).replace(os.sep, "/"): tuple(names) for file, names in held.items()},
        flags=build.flags, plan_bytes=out.stat().st_size, seconds=round(time.perf_counter() - began, 2),
        peak_bytes=int(watch.peak),
    )  # fmt: skip
    info.write(out)
    return info


def _border(tensors: Sequence[Tensor]) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


def _initializers(graph: Path) -> dict[Path, list[str]]:
    """safetensors file -> names of the graph's weights in it. Raises BundleError where graph and file disagree."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    held: dict[Path, list[str]] = {}
    opened: dict[Path, Weights] = {}
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = ExternalDataInfo(tensor)
        file = graph.parent / place.location
        if file not in opened:
            opened[file] = Weights.open(file)
        begin = place.offset or 0
        span = begin, begin + (place.length or 0)
        if tensor.name not in opened[file] or opened[file].span(tensor.name) != span:
            rule = f"{file.name} must hold the initializer {tensor.name} of {graph.name} where the graph says"
            raise BundleError(_PLACE, rule, span)
        held.setdefault(file, []).append(tensor.name)
    return held


class _Build:
    """One build, step by step: parse, name_weights, add_profiles, aim, run."""

    def __init__(self, trt: ModuleType, kind: str, graph: Path, network: Network, *, report: Report | None) -> None:
        self.trt, self.kind, self.graph, self.spec = trt, kind, graph, network
        self.report: Report = report or (lambda stage, done: None)
        self.logger = make_logger(trt)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.config = self.builder.create_builder_config()
        self.flags: tuple[str, ...] = ()
        # TF32 is on unless it is cleared, and rounds what is called float32 to ten bits.
        self.config.clear_flag(trt.BuilderFlag.TF32)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX: needed to capture CUDA graphs
            self._set("REQUIRE_USER_ALLOCATION")

    def _set(self, flag: str) -> None:
        self.config.set_flag(getattr(self.trt.BuilderFlag, flag))
        self.flags = (*self.flags, flag)

    def parse(self) -> None:
        """Read the graph and its weights, and hold its border against the spec."""
        self.report("parse", 0.0)
        # The parser owns the weights: it lives as long as the build.
        self.parser = self.trt.OnnxParser(self.network, self.logger)
        if not self.parser.parse_from_file(str(self.graph)):
            found = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
            why = self.logger.why()
            if found:
                why = f"{found[0].node_name()} ({found[0].node_operator()}): {found[0].desc()}"
            raise BundleError(_PLACE, f"{self.graph.name} does not parse: {' '.join(why.split())}")
        network, spec = self.network, self.spec
        given = [network.get_input(i) for i in range(network.num_inputs)]
        made = [network.get_output(i) for i in range(network.num_outputs)]
        for tensors, wanted in ((given, spec.inputs), (made, spec.outputs)):
            names = [tensor.name for tensor in tensors]
            if sorted(names) != sorted(want.name for want in wanted):
                rule = f"{self.graph.name} must have {[want.name for want in wanted]}"
                raise BundleError(_PLACE, rule, names)
            for want in wanted:
                self._check(tensors[names.index(want.name)], want)
        self.report("parse", 1.0)

    def _check(self, tensor: Any, want: Tensor) -> None:
        shape: list[int | str] = [int(dim) for dim in tensor.shape]
        if tensor.is_network_input:  # symbols are known of inputs only; outputs show -1
            names = [tensor.get_dimension_name(i) for i in range(len(shape))]
            shape = [name or dim if dim == -1 else dim for name, dim in zip(names, shape, strict=True)]
            fits = shape == list(want.shape)
        else:
            told = [dim if isinstance(dim, int) else -1 for dim in want.shape]
            fits = len(shape) == len(told) and all(have in (dim, -1) for have, dim in zip(shape, told, strict=True))
        if tensor.dtype.name != _DTYPES[want.dtype] or not fits:
            rule = f"{want.name} of {self.graph.name} must be {want.dtype} {list(want.shape)}"
            raise BundleError(_PLACE, rule, f"{tensor.dtype.name} {shape}")

    def name_weights(self, names: Sequence[str], *, refit: bool) -> None:
        """Every weight is known to TensorRT by its name; with `refit` exactly these, and no constant of the graph, can
        be refitted and are left out of the plan. (The plain REFIT flag would take the constants too.)
        """
        for name in names:
            if not self.network.mark_weights_refittable(name):
                raise BundleError(_PLACE, f"weights of {self.graph.name} must keep their names in {self.kind}", name)
            if not refit:
                self.network.unmark_weights_refittable(name)
        if refit:
            self._set("REFIT_INDIVIDUAL")
            self._set("STRIP_PLAN")

    def add_profiles(self, planned: Sequence[Profile]) -> None:
        for i, profile in enumerate(planned):
            made = self.builder.create_optimization_profile()
            for tensor in self.spec.inputs:
                if any(isinstance(dim, str) for dim in tensor.shape):
                    made.set_shape(tensor.name, *profile.shapes(tensor))
            if self.config.add_optimization_profile(made) != i:
                raise BundleError(_PLACE, f"profile {profile} is not taken ({self.logger.why()})")

    def _products(self) -> set[str]:
        """dtypes of the convolutions and matrix products."""
        types = self.trt.LayerType
        heavy = (types.CONVOLUTION, types.DECONVOLUTION, types.MATRIX_MULTIPLY)
        layers = (self.network.get_layer(i) for i in range(self.network.num_layers))
        return {layer.get_output(0).dtype.name for layer in layers if layer.type in heavy}

    def arithmetic(self) -> str:
        """The lowest precision that convolutions and matrix products run in; "fp32" where there are none."""
        found = self._products()
        return next((_ARITHMETIC[name] for name in _ARITHMETIC if name in found), "fp32")

    def aim(self, targets: Sequence[str] | None, compatibility: str) -> tuple[str, ...]:
        """Set what the plan shall run on; returns the compute capabilities."""
        levels = ("none", "same_compute_capability", "ampere_plus") if self.kind == "tensorrt" else ("none",)
        if compatibility not in levels:
            raise InputError(_PLACE, f"compatibility of {self.kind} must be one of {', '.join(levels)}", compatibility)
        if self.kind == "tensorrt":
            level = getattr(self.trt.HardwareCompatibilityLevel, compatibility.upper())
            self.config.hardware_compatibility_level = level
            if targets is not None:
                raise InputError(_PLACE, "targets of tensorrt are the GPU it builds on", list(targets))
            return ("{}.{}".format(*compute_capability()),)
        known = TensorRtRtxEngine.supported or ()
        if targets is None:
            # Turing joins where nothing large is float32.
            targets = [target for target in known if target != _TURING or "FLOAT" not in self._products()]
        if not targets or not set(targets) <= set(known):
            raise InputError(_PLACE, f"targets must be among {', '.join(known)}", list(targets))
        self.config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            wanted = getattr(self.trt.ComputeCapability, "SM" + target.replace(".", ""))
            if not self.config.set_compute_capability(wanted, i):
                raise BundleError(_PLACE, f"compute capability {target} is not taken ({self.logger.why()})")
        return tuple(targets)

    def run(self, cache: Path | None) -> Any:
        """The serialised plan. Raises BundleError with the library's reason."""
        monitor = _monitor(self.trt, self.report)
        self.config.progress_monitor = monitor
        # TensorRT for RTX times nothing when it builds.
        timings = _Timings(self.config, cache, self.trt) if self.kind == "tensorrt" and cache else None
        serialized = self.builder.build_serialized_network(self.network, self.config)
        if monitor.failure is not None:
            raise monitor.failure
        if serialized is None:
            raise BundleError(_PLACE, f"{self.graph.name} does not build with {self.kind}: {self.logger.why()}")
        if timings:
            timings.keep()
        return serialized


def _monitor(trt: ModuleType, report: Report) -> Any:
    """Hands the library's phases on as stages, a hundredth of a phase at a time."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self.steps: dict[str, tuple[int, int]] = {}  # phase -> (steps, last hundredth told)

        def _tell(self, phase: str, done: float) -> None:
            # The library cannot carry an exception: it is kept, the build cancelled, and the caller raises it.
            if self.failure is None:
                try:
                    report(phase, done)
                except BaseException as error:
                    self.failure = error

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = (max(num_steps, 1), 0)
            self._tell(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps, told = self.steps.get(phase_name, (1, 0))
            hundredth = min(100 * (step + 1) // steps, 100)
            if hundredth > told:
                self.steps[phase_name] = (steps, hundredth)
                self._tell(phase_name, hundredth / 100)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            if self.steps.pop(phase_name, (1, 0))[1] < 100:
                self._tell(phase_name, 1.0)

    return Monitor()


class _Timings:
    """TensorRT's timing cache in a file: what was measured for one network serves the next."""

    def __init__(self, config: Any, folder: Path, trt: ModuleType) -> None:
        self._config = config
        self._file = folder / f"timings-{trt.__version__}.cache"
        stored = self._file.read_bytes() if self._file.is_file() else b""
        # A cache of another GPU is not attached: the build then starts from an empty one.
        self._cache = config.create_timing_cache(stored)
        if not config.set_timing_cache(self._cache, False):
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    def keep(self) -> None:
        """Write the cache; a disk that is full costs only the next build's time."""
        work = self._file.with_name(f".{self._file.name}.{os.getpid()}.tmp")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            work.write_bytes(bytes(memoryview(self._config.get_timing_cache().serialize())))
            work.replace(self._file)
        except OSError:
            with suppress(OSError):
                work.unlink(missing_ok=True)


def _write(out: Path, serialized: Any, report: Report) -> None:
    """The plan appears whole or not at all."""
    report("write", 0.0)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with work.open("wb") as file:
            file.write(memoryview(serialized))
        work.replace(out)
    except OSError as error:
        raise BundleError(_PLACE, f"plan must be writable ({error.strerror})", str(out)) from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)
    report("write", 1.0)
