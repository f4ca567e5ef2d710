"""Networks in int8, weights and activations, calibrated on what they see while a pipeline draws.

OpenVINO graphs are quantised by NNCF, ONNX Runtime graphs by its own tools. Weights get a scale per output channel,
activations one range per tensor, found on the calibration inputs. Norms and softmax stay in floating point; of the
products inside attention NNCF quantises those that are still products in the graph, ONNX Runtime none. Inputs and
outputs of a graph stay what they are.

A *layer* is an operation with a weight, named as in the checkpoint: `down_blocks.0.resnets.0.conv1`. Names to keep in
floating point may be layers or modules above them: `down_blocks.0` keeps all it holds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hotloop.engines import Context, ContextPool, Engine
from hotloop.errors import InputError

from . import portraits

if TYPE_CHECKING:
    import onnx

    from hotloop.generator import Generator
    from hotloop.pipeline import Pipeline

__all__ = ["Inputs", "calibration_inputs", "float_copy", "kept", "latent_inputs", "onnx_layers", "openvino_layers",
           "quantize_onnx", "quantize_openvino"]  # fmt: skip

Inputs = Mapping[str, np.ndarray]

_PLACE = "quantize"
_WEIGHTED = {"onnx": ("Conv", "Gemm", "MatMul"), "openvino": ("Convolution", "MatMul")}
# Constants pass through these on their way to the operation that uses them as its weight.
_ON_THE_WAY = ("Cast", "Convert", "Transpose", "Reshape", "Unsqueeze", "FakeQuantize", "Multiply", "Subtract")
_WEIGHT = ".weight"
_COUNTED = re.compile(r"([A-Z]\w*)_\d+")


# Calibration.


class _RecordingPool(ContextPool):
    """Lends an engine's contexts, keeping a copy of the inputs of every run."""

    def __init__(self, pool: ContextPool, network: str, seen: list[dict[str, np.ndarray]]) -> None:
        self._pool, self._network, self._seen = pool, network, seen

    def acquire(self, **dims: int) -> Context:
        return _Recorded(self._pool.acquire(**dims), self._seen)

    def release(self, context: Context, **dims: int) -> None:
        assert isinstance(context, _Recorded)
        self._pool.release(context.context, **dims)


class _Recorded:
    def __init__(self, context: Context, seen: list[dict[str, np.ndarray]]) -> None:
        self.context, self._seen = context, seen
        self.inputs, self.outputs = context.inputs, context.outputs

    def run(self, stream: int | None = None) -> None:
        self._seen.append({name: np.array(array) for name, array in self.inputs.items()})
        self.context.run(stream)


@contextmanager
def _recording(engines: Mapping[str, Engine]) -> Iterator[dict[str, list[dict[str, np.ndarray]]]]:
    seen: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in engines}
    pools = {name: engine.contexts for name, engine in engines.items()}
    try:
        for name, engine in engines.items():
            engine.contexts = _RecordingPool(pools[name], name, seen[name])
        yield seen
    finally:
        for name, engine in engines.items():
            engine.contexts = pools[name]


def calibration_inputs(
    pipe: Pipeline, prompts: Sequence[str], *, steps: int, size: tuple[int, int], seed: int = 0
) -> dict[str, list[dict[str, np.ndarray]]]:
    """The inputs of every network of `pipe`, in the order of its runs, while it draws each prompt with its defaults.

    The UNet's come from all `steps` timesteps of every prompt; those of networks around a model of faces from its
    pictures. size: (width, height). The pipeline must have no other user meanwhile; a network of 9 input channels
    (inpainting) repaints the middle of a grey image.
    """
    around = portraits.shown_in(pipe.family, list(pipe.entry.networks))
    names = [name for name in pipe.entry.networks if name != "image_encoder" and name not in around]
    pipe.networks.forget()  # or networks that have answered before would not be asked
    with _recording({name: pipe.networks[name] for name in names}) as seen:
        for i, prompt in enumerate(prompts):
            options: dict[str, Any] = {"num_inference_steps": steps, "width": size[0], "height": size[1]}
            if pipe.family.inpaint_channels:
                image = np.full((size[1], size[0], 3), 128, np.uint8)
                mask = np.zeros(image.shape[:2], np.uint8)
                mask[size[1] // 4 : -size[1] // 4, size[0] // 4 : -size[0] // 4] = 255
                pipe.inpaint(prompt, image=image, mask_image=mask, seed=seed + i, **options)
            else:
                pipe.txt2img(prompt, seed=seed + i, **options)
    return seen | _around_inputs(pipe, around, seen, seed=seed)


def _around_inputs(
    pipe: Pipeline, names: Sequence[str], seen: Mapping[str, Sequence[Inputs]], *, seed: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What these networks see of the pictures whose latents the decoder has seen."""
    made: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in names}

    def run(name: str, inputs: Inputs, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
        with pipe.networks[name].contexts.lease(**dims) as context:
            for key, array in inputs.items():
                context.inputs[key][...] = array
            context.run()
            return {key: np.array(array) for key, array in context.outputs.items()}

    rng = np.random.default_rng(seed)
    vocabulary = 1 + max(int(one["input_ids"].max()) for one in seen["text_encoder"])
    for inputs in seen["vae_decoder"] if names else ():
        n, _, h, w = inputs["latents"].shape
        sized = pipe.family.dims(width=w * pipe.family.vae_factor, height=h * pipe.family.vae_factor, batch=n)
        dims = pipe.family.networks["vae_decoder"].pick(sized)
        pictures = run("vae_decoder", inputs, dims)["image"]
        for name, given in portraits.chain(pipe.family, names, pictures, run, rng=rng, vocabulary=vocabulary):
            made[name].append(given)
    return made


def latent_inputs(generator: Generator, count: int, *, seed: int = 1 << 20) -> dict[str, list[dict[str, np.ndarray]]]:
    """The inputs of every network of a generator while it draws `count` pictures, of its classes in turn."""
    classes = generator.family.classes
    labels = [i % classes for i in range(count)] if classes else None
    with _recording({name: generator.networks[name] for name in generator.entry.networks}) as seen:
        generator.generate(seed, count, label=labels)
    return seen


def kept(layer: str, keep: Iterable[str]) -> bool:
    """Whether a layer is among the names to keep in floating point, or below one of them."""
    return any(layer == name or layer.startswith(name + ".") for name in keep)


def _check(graph: Path, layers: Mapping[str, str], inputs: Sequence[Inputs], keep: Sequence[str]) -> list[str]:
    """The nodes to keep. Raises InputError for a name that keeps nothing, or when there is nothing to calibrate on."""
    if not inputs:
        raise InputError(_PLACE, "calibration needs at least one set of inputs", graph.name)
    for name in keep:
        if not any(kept(layer, [name]) for layer in layers.values()):
            raise InputError(_PLACE, f"layers to keep must be modules of {graph.name}", name)
    return sorted(node for node, layer in layers.items() if kept(layer, keep))


# OpenVINO, by NNCF.


def openvino_layers(model: Any) -> dict[str, str]:
    """Name of the node -> layer, for every operation with a weight in an OpenVINO model that was read from our ONNX."""
    found = {}
    for constant in model.get_ops():
        key = constant.get_friendly_name()
        if constant.get_type_name() != "Constant" or not key.endswith(_WEIGHT):
            continue
        for node, port in _users(constant):
            if node.get_type_name() in _WEIGHTED["openvino"] and port == 1:
                found[node.get_friendly_name()] = key.removesuffix(_WEIGHT)
    return found


def _users(constant: Any) -> Iterator[tuple[Any, int]]:
    for target in constant.output(0).get_target_inputs():
        node = target.get_node()
        if node.get_type_name() in _ON_THE_WAY and target.get_index() == 0:
            yield from _users(node)
        else:
            yield node, target.get_index()


def quantize_openvino(graph: Path, out: Path, inputs: Iterable[Inputs], *, keep: Sequence[str] = ()) -> None:
    """Write `out` (.xml, and its .bin beside it): `graph` in int8, by NNCF's post-training quantisation.

    inputs: calibration inputs by name, as `calibration_inputs` collects them. Layers under `keep` stay as they are.
    The files' bytes depend only on graph, inputs and the versions of openvino and nncf. The UNet of SD 1.5 takes 148 s
    on two busy cores and 7.6 GB, with 4 inputs of 16x16 latents; the tensors of larger ones come on top.
    Raises InputError for no inputs or an unknown name to keep.
    """
    import nncf
    import openvino
    from openvino import passes

    given = list(inputs)
    model = openvino.Core().read_model(str(graph))
    ignored = _check(graph, openvino_layers(model), given, keep)
    # Weights become plain float32 constants. Behind a transposition NNCF would take them for activations: of the
    # built-in UNet's 83 linear layers 70 would stay in floating point.
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    parameters = nncf.quantization.advanced_parameters
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    # The whole range of all timesteps, and no SmoothQuant: on the built-in UNet the lowest cosine over held-out
    # timesteps is 0.9946 with these, 0.9804 with NNCF's mean of ranges and 0.9904 with SmoothQuant.
    advanced = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=ranges.MINMAX,
        smooth_quant_alphas=parameters.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
    )
    with _quiet("nncf"):
        quantised = nncf.quantize(
            model, nncf.Dataset([dict(one) for one in given]), subset_size=len(given),
            model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None, advanced_parameters=advanced,
        )  # fmt: skip
    _number(quantised)
    out.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantised, str(out), compress_to_fp16=False)


def _number(model: Any) -> None:
    """Nodes that our graph does not name (`Reshape_213`) carry a count of all the process has made: count anew."""
    for i, node in enumerate(model.get_ordered_ops()):
        if found := _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{found[1]}_{i}")


# ONNX Runtime, by its own tools.


def onnx_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Name of the node -> layer, for every operation with a weight in one of our ONNX graphs."""
    weight = {tensor.name: tensor.name for tensor in model.graph.initializer if tensor.name.endswith(_WEIGHT)}
    found = {}
    for node in model.graph.node:  # in topological order
        if node.op_type in _ON_THE_WAY and node.input[0] in weight:
            weight[node.output[0]] = weight[node.input[0]]
        elif node.op_type in _WEIGHTED["onnx"] and node.input[1] in weight:
            found[node.name] = weight[node.input[1]].removesuffix(_WEIGHT)
    return found


def float_copy(graph: Path, folder: Path) -> Path:
    """The same graph in `folder` with every weight a float32 initializer where it is used: no casts, no transpositions.

    ONNX Runtime's quantiser takes only initializers for weights. Node names stay.
    """
    import onnx
    from onnx import external_data_helper, numpy_helper

    model = onnx.load(str(graph), load_external_data=False)
    values: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(graph.parent))
        values[tensor.name] = numpy_helper.to_array(tensor)
    halves = {name for name, value in values.items() if value.dtype == np.float16}
    nodes = []
    for node in model.graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type == "Cast" and source in halves:
            values[node.output[0]] = values[source].astype(np.float32)
        elif node.op_type == "Transpose" and source in values and values[source].dtype == np.float32:
            (perm,) = (attribute.ints for attribute in node.attribute if attribute.name == "perm")
            values[node.output[0]] = np.ascontiguousarray(values[source].transpose(tuple(perm)))
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    for name in [name for name in values if name in used]:
        model.graph.initializer.append(numpy_helper.from_array(values.pop(name), name))
    file = folder / graph.name
    onnx.save(model, str(file), save_as_external_data=True, location=f"{graph.name}.data", size_threshold=1024)
    return file


def quantize_onnx(graph: Path, out: Path, inputs: Iterable[Inputs], *, keep: Sequence[str] = ()) -> None:
    """Write `out` (.onnx, its weights in `<out>.data` beside it): `graph` in int8, as ONNX Runtime's static QDQ.

    Activations are unsigned, weights signed, which is exact on processors with VNNI (without it, sums of products may
    saturate). inputs and keep: as in `quantize_openvino`. Memory: about four times the weights in float32.
    Raises InputError for no inputs or an unknown name to keep.
    """
    import onnx
    from onnxruntime import quantization

    given = list(inputs)
    # The names of layers are those of the graph as it was: in the copy a linear layer's weight has its output's name.
    skipped = _check(graph, onnx_layers(onnx.load(str(graph), load_external_data=False)), given, keep)
    with tempfile.TemporaryDirectory(prefix="hotloop-int8-") as temporary:
        folder = Path(temporary)
        copy = float_copy(graph, folder)
        with _quiet("root"):
            quantization.quantize_static(
                str(copy), str(folder / "int8.onnx"), _Reader(given), quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_WEIGHTED["onnx"]), per_channel=True, nodes_to_exclude=skipped,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
                use_external_data_format=True, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
        model = onnx.load(str(folder / "int8.onnx"))
    model.producer_name, model.producer_version, model.doc_string = "hotloop", "", ""
    model.ClearField("metadata_props")
    out.parent.mkdir(parents=True, exist_ok=True)
    data = out.with_name(out.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save(model, str(out), save_as_external_data=True, location=data.name, size_threshold=1024)
    shutil.copymode(out, data)


class _Reader:
    """What ONNX Runtime's calibration pulls its inputs from."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        one = next(self._inputs, None)
        return None if one is None else dict(one)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Progress bars and advice for people who tune a quantisation by hand are not for the user of an export."""
    logger = logging.getLogger(name) if name != "root" else logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
