"""Somebody's generator as an ONNX file -> a graph of ours: `z` (and `label` or `controls`) -> `image` in [-1, 1].

What lies between the file's inputs and outputs and ours (casts, shapes, a one-hot label, the range of the pixels) is
put into the graph, so that no engine has to know. Its weights move into a safetensors file, as every network's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from hotloop.engines import Context, ContextPool, Engine
from hotloop.errors import InputError
from hotloop.files import read_file
from hotloop.spec import FAMILIES, GeneratorFamily, Network, resolve
from hotloop.weights import Weights, refuse_non_finite, save

if TYPE_CHECKING:
    import onnx

__all__ = ["RANGES", "FileEngine", "OnnxGenerator", "open_onnx"]

_PLACE = "export"
# The pixels' range as it is given -> what turns a pixel into one of [-1, 1]: times, plus.
RANGES: Mapping[str, tuple[float, float]] = {"-1,1": (1.0, 0.0), "0,1": (2.0, -1.0)}
_SLACK = 0.02  # of a range, by which pixels may leave it: networks end in tanh or sigmoid, or nearly
_OLDEST = 7  # opset
_PROBES = 4
_ROW = {"B": 1}


@dataclass(frozen=True)
class OnnxGenerator:
    """A checked file. names: of its own latent, label or condition (or None), and image.

    one_hot: the condition is a class as one-hot numbers
    latent, told: the file's own shapes of one row, without the batch
    files: those that it lies in
    """

    path: Path
    model: onnx.ModelProto
    family: GeneratorFamily
    names: tuple[str, str | None, str]
    one_hot: bool
    latent: tuple[int, ...]
    told: tuple[int, ...]
    value_range: str
    files: tuple[Path, ...]

    def write(self, folder: Path) -> str:
        """`model.onnx` and `model.safetensors` in the folder; what the weights are stored in. Raises InputError and
        BundleError for weights that are not finite or cannot be named."""
        import onnx
        from onnx import TensorProto, numpy_helper

        folder.mkdir(parents=True)
        made = _wrapped(self)
        floats = {t.name: t for t in made.graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)}
        file = save({name: numpy_helper.to_array(t) for name, t in floats.items()}, folder / "model.safetensors")
        weights = Weights.open(file)
        refuse_non_finite(weights)
        for name, tensor in floats.items():
            begin, end = weights.span(name)
            bare = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
            bare.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file.name), ("offset", begin), ("length", end - begin)):
                bare.external_data.add(key=key, value=str(value))
            tensor.CopyFrom(bare)
        graph = folder / "model.onnx"
        graph.write_bytes(made.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(graph), full_check=True)
        return "fp32" if any(weights.dtype(name) == "F32" for name in weights) else "fp16"

    def engine(self, network: Network) -> FileEngine:
        """The file itself in ONNX Runtime, with no optimisation: what the others are compared with."""
        return FileEngine(self, network)


def open_onnx(
    path: Path, *, value_range: str | None, size: tuple[int, int] | None, classes: int, controls: int
) -> OnnxGenerator:
    """Read, check and try a file.

    value_range  of `RANGES`
    size         (width, height), for a flat output
    classes      how many the label tells apart; controls: how many numbers of the condition were named, 0 for none

    Raises InputError, one line, for a file that is no generator, weights outside of its folder, or what has to be said
    and was not.
    """
    model, files = _read(path)
    latent, told = _inputs(path, model)
    output = model.graph.output[0].name if len(model.graph.output) == 1 else ""
    if not output:
        raise InputError(_PLACE, f"{path.name} must have one output, an image", [o.name for o in model.graph.output])
    shape = _row(path, latent)
    if not shape:
        raise InputError(_PLACE, f"the latent {latent.name} of {path.name} must be [B, Z]", _dims(latent))
    discrete = told is not None and _elem(told) in _INTEGERS
    width = 0 if told is None or discrete else math.prod(_row(path, told))
    one_hot = bool(width and classes)
    if (discrete and not classes) or (told is None and classes) or (one_hot and width != classes):
        takes = "no label" if told is None else f"{told.name}{_dims(told)}"
        rule = f"labels (--labels NAME=A,B,C, or how many) must fit {path.name}, which takes {takes}"
        raise InputError(_PLACE, rule, classes or None)
    if controls and controls != (width if not classes else 0):
        raise InputError(_PLACE, f"names of controls must be as many as {path.name} takes numbers", controls)
    if value_range is None or value_range not in RANGES:
        rule = f"say which range the pixels of {path.name} have with --range: {' or '.join(RANGES)}"
        raise InputError(_PLACE, rule, value_range)
    names = (latent.name, told.name if told is not None else None, output)
    run = _session(path)
    drawn = []
    for i in range(_PROBES):
        z = np.random.default_rng(i).standard_normal((1, *shape))
        say = None if told is None else _example(told, _row(path, told), i, classes, one_hot)
        drawn.append(_tried(path, run, names, z, say))
    channels, picture = _picture(path, drawn[0].shape, size)
    _check_range(path, np.stack(drawn), value_range)
    row = FAMILIES["generator"]
    assert isinstance(row, GeneratorFamily)
    family = replace(
        row, default_size=picture, image_channels=channels, z_width=math.prod(shape), classes=classes,
        controls=0 if one_hot else width,
    )  # fmt: skip
    own = () if told is None else _row(path, told)
    return OnnxGenerator(path, model, family, names, one_hot, shape, own, value_range, files)


# Reading.


_MOST = 1 << 31  # bytes that protobuf reads; weights beside a graph do not count


def _read(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model with its weights, and the files that it lies in."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(read_file(path, most=_MOST))
        bare = [tensor for tensor in _tensors(model.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
        beside = {_beside(path, tensor) for tensor in bare}
        onnx.checker.check_model(str(path), full_check=True)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except InputError:
        raise
    except OSError as error:
        raise InputError(_PLACE, f"{path.name} must be readable ({error.strerror})", str(path)) from error
    except Exception as error:  # protobuf's and the checker's own
        reason = str(error).strip().splitlines()
        rule = f"{path.name} must be a valid ONNX file ({reason[0] if reason else type(error).__name__})"
        raise InputError(_PLACE, rule) from error
    oldest = min((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if oldest < _OLDEST:
        raise InputError(_PLACE, f"{path.name} must be of opset {_OLDEST} or newer", oldest)
    return model, (path, *sorted(beside))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)


def _beside(path: Path, tensor: onnx.TensorProto) -> Path:
    """The file of a weight, which must lie beside the graph or below."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    inside, found = PurePosixPath(location), (path.parent / location).resolve()
    if not location or inside.is_absolute() or ".." in inside.parts or path.parent.resolve() not in found.parents:
        raise InputError(_PLACE, f"weights of {path.name} must lie in files beside it", location)
    if not found.is_file():
        raise InputError(_PLACE, f"{path.name} keeps weights in a file that is not there", location)
    return found


_FLOATS, _INTEGERS = (1, 10, 11), (6, 7)  # FLOAT, FLOAT16, DOUBLE; INT32, INT64 of onnx.proto
_DTYPES = {1: np.float32, 10: np.float16, 11: np.float64, 6: np.int32, 7: np.int64}


def _elem(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _row(path: Path, value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """A value's shape without the batch, which must be 1 or free. Raises InputError for other sizes that are free."""
    dims = _dims(value)
    if not dims or (isinstance(dims[0], int) and dims[0] != 1):
        raise InputError(_PLACE, f"{value.name} of {path.name} must have a batch that is free, or 1, in front", dims)
    if free := [dim for dim in dims[1:] if not isinstance(dim, int) or dim < 1]:
        raise InputError(_PLACE, f"sizes of {value.name} of {path.name} must be fixed but for the batch", free)
    return tuple(int(dim) for dim in dims[1:])


def _inputs(path: Path, model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto | None]:
    """The latent, which is the first input of floats, and what else there is."""
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in constants]
    floats = [value for value in given if _elem(value) in _FLOATS]
    if not floats or len(given) > 2 or any(_elem(value) not in (*_FLOATS, *_INTEGERS) for value in given):
        rule = f"{path.name} must take a latent of floats and at most one label or condition"
        raise InputError(_PLACE, rule, {value.name: _dims(value) for value in given})
    return floats[0], next((value for value in given if value is not floats[0]), None)


# Trying.


def _session(path: Path) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        rule = f"{path.name} must open in ONNX Runtime ({str(error).splitlines()[0]})"
        raise InputError(_PLACE, rule) from error
    kinds = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8", "tensor(int32)": "i4",
             "tensor(int64)": "i8"}  # fmt: skip
    types = {one.name: np.dtype(kinds[one.type]) for one in session.get_inputs()}
    return lambda given: session.run(None, {name: np.asarray(v).astype(types[name]) for name, v in given.items()})


def _example(told: onnx.ValueInfoProto, row: tuple[int, ...], i: int, classes: int, one_hot: bool) -> np.ndarray:
    """A label or condition of one row: first and last class among them."""
    number = [0, classes - 1][i] if i < 2 else i % max(classes, 1)
    if one_hot:
        return np.eye(classes)[number].reshape(1, *row)
    if _elem(told) in _INTEGERS:
        return np.full((1, *row), number)
    return np.zeros((1, *row))


def _tried(
    path: Path, run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]], names: tuple[str, str | None, str],
    z: np.ndarray, told: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    given = {names[0]: z} | ({names[1]: told} if names[1] is not None and told is not None else {})
    try:
        (drawn,) = run(given)
    except Exception as error:
        raise InputError(_PLACE, f"{path.name} does not run ({str(error).splitlines()[0]})") from error
    if not np.issubdtype(drawn.dtype, np.floating) or not np.isfinite(drawn).all():
        raise InputError(_PLACE, f"{path.name} must draw finite floats", str(drawn.dtype))
    return drawn


def _picture(path: Path, drawn: tuple[int, ...], size: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """(channels, (width, height)) of what it draws."""
    if len(drawn) == 4 and drawn[0] == 1 and drawn[1] in (1, 3):
        found = (drawn[3], drawn[2])
        if size not in (None, found):
            raise InputError(_PLACE, f"{path.name} draws {found[0]}x{found[1]}; leave --size out", size)
        return drawn[1], found
    if len(drawn) == 2 and drawn[0] == 1:
        if size is None:
            raise InputError(_PLACE, f"{path.name} draws flat rows: say --size WIDTHxHEIGHT", drawn[1])
        for channels in (1, 3):
            if channels * size[0] * size[1] == drawn[1]:
                return channels, size
        raise InputError(_PLACE, f"--size must fit the {drawn[1]} numbers that {path.name} draws", size)
    rule = f"{path.name} must draw [B, C, H, W] of 1 or 3 channels, or flat rows [B, C * H * W]"
    raise InputError(_PLACE, rule, drawn)


def _check_range(path: Path, drawn: np.ndarray, value_range: str) -> None:
    low, high = map(float, value_range.split(","))
    slack = _SLACK * (high - low)
    if drawn.min() < low - slack or drawn.max() > high + slack:
        rule = f"pixels of {path.name} must lie in {low:g}..{high:g}, as --range says"
        raise InputError(_PLACE, rule, f"{drawn.min():.3g}..{drawn.max():.3g}")


# Ours.


def _wrapped(source: OnnxGenerator) -> onnx.ModelProto:
    """The file's graph under names of its own, between our inputs and our output."""
    from onnx import TensorProto, compose, helper, numpy_helper

    made = compose.add_prefix(source.model, prefix="net/")
    graph, family = made.graph, source.family
    types = {value.name: _elem(value) for value in graph.input}
    before: list[Any] = []

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"hotloop/{name}"))
        return f"hotloop/{name}"

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        before.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def connect(ours: str, theirs: str, row: Sequence[int]) -> None:
        """Our input in the shape and type that theirs has."""
        shape = constant(f"shape.{ours}", np.array([-1, *row], np.int64))
        node("Cast", [node("Reshape", [ours, shape], f"{theirs}/shaped")], theirs, to=types[theirs])

    connect("z", f"net/{source.names[0]}", source.latent)
    inputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", family.z_width])]
    if family.classes:
        inputs.append(helper.make_tensor_value_info("label", TensorProto.INT32, ["B"]))
        told = "label"
        if source.one_hot:
            column = node("Reshape", ["label", constant("column", np.array([-1, 1], np.int64))], "hotloop/label")
            classes = constant("classes", np.arange(family.classes, dtype=np.int32)[None])
            told = node("Cast", [node("Equal", [column, classes], "hotloop/equal")], "hotloop/one_hot", to=1)
        connect(told, f"net/{source.names[1]}", source.told)
    elif family.controls:
        inputs.append(helper.make_tensor_value_info("controls", TensorProto.FLOAT, ["B", family.controls]))
        connect("controls", f"net/{source.names[1]}", source.told)
    nodes = [*before, *graph.node]
    before.clear()
    width, height = family.default_size
    image = (family.image_channels, height, width)
    drawn = node("Cast", [f"net/{source.names[2]}"], "hotloop/drawn", to=TensorProto.FLOAT)
    drawn = node("Reshape", [drawn, constant("shape.image", np.array([-1, *image], np.int64))], "hotloop/picture")
    times, plus = RANGES[source.value_range]
    if times != 1:
        drawn = node("Mul", [drawn, constant("times", np.array([times], np.float32))], "hotloop/scaled")
        drawn = node("Add", [drawn, constant("plus", np.array([plus], np.float32))], "hotloop/moved")
    node("Identity", [drawn], "image")
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*nodes, *before])
    graph.input.extend(inputs)
    graph.output.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", *image]))
    graph.name, graph.doc_string = "network", ""
    made.producer_name, made.producer_version, made.doc_string = "hotloop", "", ""
    made.ClearField("metadata_props")
    return made


class _FileContext:
    def __init__(self, engine: FileEngine) -> None:
        network = engine.network
        self.inputs: Mapping[str, Any] = {t.name: np.zeros(resolve(t.shape, _ROW), t.dtype) for t in network.inputs}
        self.outputs: Mapping[str, Any] = {t.name: np.zeros(resolve(t.shape, _ROW), t.dtype) for t in network.outputs}
        self._source, self._call = engine.source, engine.call

    def run(self, stream: int | None = None) -> None:
        source = self._source
        given = {source.names[0]: self.inputs["z"].reshape(1, *source.latent)}
        if source.names[1] is not None:
            if source.one_hot:
                told = np.eye(source.family.classes)[self.inputs["label"]]
            else:
                told = self.inputs["label" if source.family.classes else "controls"]
            given[source.names[1]] = told.reshape(1, *source.told)
        (drawn,) = self._call(given)
        times, plus = RANGES[source.value_range]
        self.outputs["image"][...] = times * drawn.reshape(self.outputs["image"].shape) + plus


class FileEngine:
    """The file as it came, as an Engine: one row at a time."""

    kind, device = "onnx", "cpu"

    def __init__(self, source: OnnxGenerator, network: Network) -> None:
        self.source, self.network, self.call = source, network, _session(source.path)
        self.contexts = ContextPool(self)

    def context(self, **dims: int) -> Context:
        if dims != _ROW:
            raise InputError(_PLACE, "the file is asked one row at a time", dims)
        return _FileContext(self)

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        """Nothing to warm."""

    def patched(self, tensors: Mapping[str, np.ndarray]) -> Engine:
        raise NotImplementedError("the reference is what it is")
