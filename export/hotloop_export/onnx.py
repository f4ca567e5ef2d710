"""Networks to ONNX graphs of a few hundred kilobytes whose weights stay in the safetensors file beside them.

A weight is an initializer of dtype FLOAT16 stored as external data (location, offset, length: a slice of the
safetensors file) and a Cast to FLOAT, which ONNX Runtime folds when it opens the graph. So one set of weights serves
stock diffusers, torch and ONNX Runtime, and the VAE's two halves share one file.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hotloop.errors import BundleError
from hotloop.nets.base import Net, find_weights
from hotloop.nets.clip import CLIPText
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE
from hotloop.spec import Network, resolve

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = ["PARTS", "Part", "difference", "export_network", "load_part", "reference", "sample_inputs"]

# Opset 20 is the first with Gelu, the activation of every feed-forward layer.
_OPSET = 20
# Symbols at export: all different and, halved three times, still none of 0 and 1, which torch takes for constants.
_TRACED = {"B": 2, "T": 7, "h": 18, "w": 26}
_PREFIX = "net."


@dataclass(frozen=True)
class Part:
    """Where a network of the spec lives in a diffusers folder, and which method of which class it is."""

    folder: str
    graph: str
    classes: tuple[type[Net], ...]
    method: str = "forward"


PARTS: dict[str, Part] = {
    "text_encoder": Part("text_encoder", "model.onnx", (CLIPText,)),
    "unet": Part("unet", "model.onnx", (UNet,)),
    "vae_encoder": Part("vae", "encoder.onnx", (AutoencoderKL, TinyVAE), "encode"),
    "vae_decoder": Part("vae", "decoder.onnx", (AutoencoderKL, TinyVAE), "decode"),
}


class _Call(torch.nn.Module):
    """One method of a network as a module of its own, which is what the tracer takes."""

    def __init__(self, net: Net, method: str) -> None:
        super().__init__()
        self.net = net
        self.method = method

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        out: torch.Tensor | tuple[torch.Tensor, ...] = getattr(self.net, self.method)(*inputs)
        return out


def load_part(source: Path, part: Part) -> Net:
    """The module of a part, in float32. Raises BundleError for a missing or malformed folder or another class."""
    folder = source / part.folder
    if not (folder / "config.json").is_file():
        raise BundleError("export", f"source must hold {part.folder}/config.json", str(source))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    for cls in part.classes:
        if name in (None, cls.class_name):
            return cls.from_dir(folder)
    raise BundleError("export", f"{part.folder} must be {' or '.join(c.class_name for c in part.classes)}", name)


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
def reference(net: Net, part: Part, network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the torch module gives, by output name."""
    given = (torch.from_numpy(inputs[tensor.name]) for tensor in network.inputs)
    out = _Call(net, part.method)(*given)
    parts = out if isinstance(out, tuple) else (out,)
    return {tensor.name: value.numpy() for tensor, value in zip(network.outputs, parts, strict=True)}


def difference(graph: Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """max |ONNX Runtime - expected| over all outputs; NaN where either is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    got = session.run(list(expected), dict(inputs))
    return float(np.max([np.abs(a - b).max() for a, b in zip(got, expected.values(), strict=True)]))


def export_network(net: Net, part: Part, network: Network, file: Path) -> None:
    """Write `file`, a graph whose weights point into the float16 safetensors that lie beside it.

    Inputs, outputs, dtypes and symbolic shapes are the network's in the spec; batch, tokens and sizes stay dynamic.
    The bytes depend only on the architecture and the versions of torch and onnxscript. Raises BundleError when a
    weight of the network is not in the safetensors file as float16.
    """
    import onnx
    import onnx_ir
    from onnxscript import optimizer

    weights = find_weights(file.parent, net.stem)
    model = _trace(net, part, network)
    held = _weights_as_inputs(model.graph)
    # Weights are inputs here, so the optimiser folds shapes and constants and cannot copy a weight.
    optimizer.optimize_ir(model)
    _point_into(weights, model.graph, held, prefix=net.prefix)
    _name_shapes(model.graph, network)
    proto = onnx_ir.to_proto(model)
    _strip(proto)
    file.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(file), full_check=False)


def _trace(net: Net, part: Part, network: Network) -> onnx_ir.Model:
    factor = getattr(net, "factor", 1)
    dims = _TRACED | {"H": _TRACED["h"] * factor, "W": _TRACED["w"] * factor}
    inputs = sample_inputs(network, dims, seed=0, ids=2)
    dynamic = tuple({i: d for i, d in enumerate(t.shape) if isinstance(d, str)} for t in network.inputs)
    with _quiet():
        program = torch.onnx.export(
            _Call(net, part.method).eval(),
            tuple(torch.from_numpy(inputs[t.name]) for t in network.inputs),
            dynamo=True, optimize=False, verbose=False, opset_version=_OPSET,
            input_names=[t.name for t in network.inputs],
            output_names=[t.name for t in network.outputs],
            dynamic_shapes=(dynamic,),
        )  # fmt: skip
    assert program is not None
    return program.model


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


def _weights_as_inputs(graph: onnx_ir.Graph) -> dict[str, onnx_ir.Value]:
    held = {name: value for name, value in graph.initializers.items() if name.startswith(_PREFIX)}
    for name, value in held.items():
        graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    return held


def _point_into(weights: Path, graph: onnx_ir.Graph, held: Mapping[str, onnx_ir.Value], *, prefix: str) -> None:
    """Every weight in use becomes an external float16 initializer and a Cast at the head of the graph."""
    import onnx_ir

    with weights.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    del graph.inputs[-len(held) :]
    casts = []
    for name, value in held.items():
        if not value.uses():
            continue
        key = prefix + name.removeprefix(_PREFIX)
        entry = header.get(key)
        if entry is None or entry["dtype"] != "F16":
            raise BundleError("export", f"{weights.name} must hold {key} as float16", entry and entry["dtype"])
        begin, end = entry["data_offsets"]
        tensor = onnx_ir.ExternalTensor(
            weights.name, 8 + length + begin, end - begin, onnx_ir.DataType.FLOAT16,
            shape=onnx_ir.Shape(entry["shape"]), name=key, base_dir=weights.parent,
        )  # fmt: skip
        stored = onnx_ir.Value(name=key, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(stored)
        cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT}, name=f"cast {key}")
        cast.outputs[0].name = f"{key}.float32"
        value.replace_all_uses_with(cast.outputs[0])
        casts.append(cast)
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
