"""Networks to ONNX graphs of a few hundred kilobytes whose weights stay in the safetensors files beside them.

A weight is an initializer under the checkpoint's own key, stored as external data (location, offset, length: a slice
of a safetensors file), and a Cast where it is stored in another type than the graph computes in; engines fold that
when they open the graph. So one set of weights serves stock diffusers, torch and every engine that reads ONNX, the
VAE's two halves share one file, and all variants of the UNet do. Only the sums of the rewrite `phase` are new weights,
in `derived.safetensors` beside.

Graphs are traced without a single weight in memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hotloop.errors import BundleError
from hotloop.nets.base import Net, find_weights
from hotloop.nets.parts import PARTS, Call, Part, module_of
from hotloop.nets.segmenter import Segmenter
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE
from hotloop.spec import Network, cells, resolve
from hotloop.weights import Weights, derived, save

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = [
    "PARTS", "Part", "difference", "export_graph", "graph_name", "load_part", "point_graph", "reference",
    "sample_inputs", "trace_graph",
]  # fmt: skip

# Opset 20 is the first with Gelu, the activation of every feed-forward layer; 22 the first with bfloat16 convolutions.
_OPSET = {"fp32": 20, "fp16": 20, "bf16": 22}
# Sizes at export: all different and, halved three times, still none of 0 and 1, which torch takes for constants.
_TRACED = {"B": 10, "N": 5, "T": 7, "Ti": 3, **cells(16, 24)}
_PREFIX = "net."
_TORCH_NAMES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}


def graph_name(network: str, rewrites: Sequence[str] = (), groups: Sequence[str] = (), compute: str = "fp32") -> str:
    """The file name of a network's graph in its folder; those that compute alike in all variants have one name.

    rewrites, groups: of the bundle's engine; compute: what the graph's arithmetic is in.
    """
    stem = PARTS[network].graph.removesuffix(".onnx")
    if network == "unet" and rewrites:
        stem = "-".join([stem, *rewrites])
    if network == "vae_decoder" and "phase" in rewrites:
        stem += "-phase"
    own = {"unet": [g for g in groups if g != "timestep_cond" or "time" not in rewrites],
           "time": [g for g in groups if g == "timestep_cond"]}  # fmt: skip
    stem = "+".join([stem, *own.get(network, [])])
    return f"{stem}.onnx" if compute == "fp32" or network == "time" else f"{stem}.{compute}.onnx"


def load_part(source: Path, part: Part) -> Net:
    """The module of a part, in float32. Raises BundleError for a missing or malformed folder or another class."""
    folder = source / part.folder
    return part.choose(part.config(folder)).from_dir(folder)


def sample_inputs(network: Network, dims: Mapping[str, int], *, seed: int, ids: int) -> dict[str, np.ndarray]:
    """Seeded inputs of a network: normal images and states, timesteps in [0, 1000), token ids below `ids`."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for tensor in network.inputs:
        shape = resolve(tensor.shape, dims)
        if tensor.dtype.startswith("int"):
            made[tensor.name] = rng.integers(0, ids, shape).astype(tensor.dtype)
        elif tensor.name == "timestep":
            made[tensor.name] = rng.uniform(0, 1000, shape).astype(tensor.dtype)
        else:
            made[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return made


@torch.no_grad()
def reference(net: Net, network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the torch modules give, by output name."""
    made = module_of(net, network)(*(torch.from_numpy(inputs[tensor.name]) for tensor in network.inputs))
    return {tensor.name: value.numpy() for tensor, value in zip(network.outputs, made, strict=True)}


def difference(graph: Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """max |ONNX Runtime - expected| over all outputs; NaN where either is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    got = session.run(list(expected), dict(inputs))
    return float(np.max([np.abs(a - b).max() for a, b in zip(got, expected.values(), strict=True)]))


def export_graph(
    net: Net, network: Network, file: Path, *, compute: str = "fp32", keep_fp32: Collection[str] = ()
) -> None:
    """Write `file`, a graph of `network` whose weights point into the safetensors files that lie beside it.

    net        the plain network; only its class and config matter
    network    the spec's row: inputs, outputs, dtypes and symbolic shapes are its, batch, tokens and sizes stay
               dynamic; its rewrites and groups decide what the graph holds
    compute    "fp32", or "fp16" or "bf16": then weights and arithmetic are in half, inputs and outputs are cast at the
               border, and norms, softmax, the time embedding and the layers below the modules `keep_fp32` stay float32

    With the rewrite `phase`, `derived.safetensors` beside is written unless it is there. The graph's bytes depend only
    on the architecture, the arguments and the versions of torch and onnxscript. It is checked, and its shapes inferred
    strictly, before this returns. Raises BundleError when a weight of the network is in none of the files.
    """
    point_graph(trace_graph(net, network, compute=compute, keep_fp32=keep_fp32), net, network, file)


def trace_graph(net: Net, network: Network, *, compute: str = "fp32", keep_fp32: Collection[str] = ()) -> bytes:
    """The part of `export_graph` that takes its time: a graph whose weights are inputs after the network's own.

    It knows the architecture, not the files: one serves every layout and precision that weights are stored in.
    """
    import onnx_ir
    from onnxscript import optimizer

    with torch.device("meta"):
        plain = type(net)(net.config)
    module = module_of(plain.eval(), network).lower(compute, keep=keep_fp32)
    model = _trace(module, factor=_factor(plain), opset=_OPSET[compute])
    _weights_as_inputs(model.graph)
    # Weights are inputs here, so the optimiser folds shapes and constants and cannot copy a weight.
    optimizer.optimize_ir(model)
    _widen_softmax(model.graph)
    proto = onnx_ir.to_proto(model)
    _strip(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def point_graph(traced: bytes, net: Net, network: Network, file: Path) -> None:
    """Write `file`: what `trace_graph` gave, over the weights that lie beside. Raises as `export_graph` does."""
    import onnx
    import onnx_ir

    files = [Weights.open(find_weights(file.parent, net.stem))]
    model = onnx_ir.from_proto(onnx.ModelProto.FromString(traced))
    held = {str(value.name): value for value in model.graph.inputs if str(value.name).startswith(_PREFIX)}
    if any(derived.is_derived(name) for name in held):
        files.append(_derived(file.parent, files[0]))
    _point_into(files, model.graph, held, prefix=net.prefix)
    _name_shapes(model.graph, network)
    proto = onnx_ir.to_proto(model)
    _strip(proto)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    file.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(file), full_check=False)


def _derived(folder: Path, weights: Weights) -> Weights:
    """The derived weights of a folder, made of the stored ones when they are not there yet."""
    path = folder / derived.FILE
    if not path.exists():
        save(derived.derive(weights), path)
    return Weights.open(path)


def _factor(net: Net) -> int:
    """Pixels per latent cell of a VAE; cells on the finest level per cell on the coarsest of others."""
    if isinstance(net, UNet):
        return int(2 ** (len(net.levels) - 1))
    return net.factor if isinstance(net, AutoencoderKL | TinyVAE | Segmenter) else 1


def _trace(module: Call, *, factor: int, opset: int) -> onnx_ir.Model:
    network = module.network
    dims = _TRACED | {"H": _TRACED["h"] * factor, "W": _TRACED["w"] * factor}
    inputs = tuple(
        torch.empty(resolve(t.shape, dims), dtype=getattr(torch, t.dtype), device="meta") for t in network.inputs
    )
    symbols: dict[str, Any] = dict.fromkeys(dims, torch.export.Dim.DYNAMIC)
    if network.name == "unet" and "phase" in network.rewrites:
        # Every halving comes out even: the rewrite asks for it, and the tracer's expressions stay short.
        for side in ("h", "w"):
            coarsest = torch.export.Dim(f"{side}_cells")
            halves = {f"{side}{by}" if by > 1 else side: factor // by for by in (1, 2, 4, 8, 16) if by <= factor}
            symbols |= {name: times * coarsest if times > 1 else coarsest for name, times in halves.items()}
    dynamic = tuple({i: symbols[d] for i, d in enumerate(t.shape) if isinstance(d, str)} for t in network.inputs)
    with _quiet(), torch.no_grad():
        # What holds for the spec's sizes (a residual is as large as its skip) need not be provable for all numbers.
        program = torch.export.export(
            module.eval(), inputs, dynamic_shapes=(dynamic,), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
        converted = torch.onnx.export(
            program, (), dynamo=True, optimize=False, verbose=False, opset_version=opset,
            input_names=[t.name for t in network.inputs], output_names=[t.name for t in network.outputs],
        )  # fmt: skip
    assert converted is not None
    return converted.model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages it does not need (torchvision) and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _weights_as_inputs(graph: onnx_ir.Graph) -> None:
    for name, value in [one for one in graph.initializers.items() if one[0].startswith(_PREFIX)]:
        graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def _widen_softmax(graph: onnx_ir.Graph) -> None:
    """Every softmax in float32, whatever stands around it."""
    import onnx_ir

    for node in [node for node in graph if node.op_type == "Softmax"]:
        half = node.outputs[0].dtype
        if half in (onnx_ir.DataType.FLOAT, None):
            continue
        widen = onnx_ir.node("Cast", [node.inputs[0]], {"to": onnx_ir.DataType.FLOAT})
        narrow = onnx_ir.node("Cast", [node.outputs[0]], {"to": half})
        for cast, label in ((widen, "scores"), (narrow, "weights")):
            cast.outputs[0].name = cast.name = f"{node.outputs[0].name}.{label}"
        graph.insert_before(node, widen)
        graph.insert_after(node, narrow)
        node.outputs[0].replace_all_uses_with(narrow.outputs[0])
        narrow.replace_input_with(0, node.outputs[0])
        node.replace_input_with(0, widen.outputs[0])
        node.outputs[0].dtype, narrow.outputs[0].dtype = onnx_ir.DataType.FLOAT, half


def _point_into(
    files: Sequence[Weights], graph: onnx_ir.Graph, held: Mapping[str, onnx_ir.Value], *, prefix: str
) -> None:
    """Every weight in use becomes an external initializer of the type stored and, where that is not float32 itself, a
    Cast to what the graph computes in: behind it an engine can put a float32 weight in the place of any stored one.

    A key may stand in its file with `prefix` or without.
    """
    import onnx_ir

    stored_as = {"F16": onnx_ir.DataType.FLOAT16, "BF16": onnx_ir.DataType.BFLOAT16, "F32": onnx_ir.DataType.FLOAT}
    del graph.inputs[-len(held) :]
    casts = []
    for name, value in held.items():
        if not value.uses():
            continue
        bare = name.removeprefix(_PREFIX)
        found = [(weights, key) for weights in files for key in (prefix + bare, bare) if key in weights]
        if not found or (dtype := found[0][0].dtype(found[0][1])) not in stored_as:
            names = " or ".join(weights.path.name for weights in files)
            raise BundleError("export", f"{names} must hold as {' or '.join(stored_as)}", prefix + bare)
        weights, key = found[0]
        begin, end = weights.span(key)
        tensor = onnx_ir.ExternalTensor(
            weights.path.name, begin, end - begin, stored_as[dtype],
            shape=onnx_ir.Shape(weights.shape(key)), name=key, base_dir=weights.path.parent,
        )  # fmt: skip
        stored = onnx_ir.Value(name=key, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(stored)
        wanted = value.dtype
        if wanted == tensor.dtype == onnx_ir.DataType.FLOAT:
            value.replace_all_uses_with(stored)
            continue
        assert wanted is not None
        cast = onnx_ir.node("Cast", [stored], {"to": wanted}, name=f"cast {key}")
        cast.outputs[0].name = f"{key}.{_TORCH_NAMES[wanted.name]}"
        value.replace_all_uses_with(cast.outputs[0])
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def _name_shapes(graph: onnx_ir.Graph, network: Network) -> None:
    """Inputs and outputs carry the spec's symbols instead of the tracer's expressions."""
    import onnx_ir

    for values, tensors in ((graph.inputs, network.inputs), (graph.outputs, network.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = onnx_ir.Shape(tensor.shape)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces, paths and intermediate shapes: the same network gives the same bytes on every machine."""
    proto.producer_name, proto.producer_version, proto.doc_string = "hotloop", "", ""
    graph = proto.graph
    graph.name, graph.doc_string = "network", ""
    for owner in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")
    graph.ClearField("value_info")
