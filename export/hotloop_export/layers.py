"""Which layers a low precision harms, and the shortest list of them to keep in floating point.

The graph of low precision runs with the tensors around every layer tapped, and every layer runs again, alone, in
float32, on the input it had there. A layer's error is the distance between the two outputs: what it adds itself,
whatever came in. Layers are named as in `quantize`.

int8 graphs keep layer by layer. bf16 on OpenVINO keeps network by network: its CPU plugin drops the marks that would
hold a linear layer in float32 (seen in `get_runtime_model()`: marked linear layers run in bf16), so `lift` answers
with the whole network or nothing.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotloop.errors import BundleError, InputError

from .quantize import Inputs, float_copy, onnx_layers, openvino_layers, quantize_onnx, quantize_openvino
from .quantize import kept as is_kept

__all__ = ["Lifted", "layers_of", "lift", "runner", "times", "worst_layers"]

_PLACE = "layers"
_PRECISIONS = {"openvino": ("bf16", "int8"), "onnx": ("int8",)}
_QUANTIZE: Mapping[str, Callable[..., None]] = {"openvino": quantize_openvino, "onnx": quantize_onnx}
_SUFFIX = {"openvino": ".xml", "onnx": ".onnx"}
# Layers tapped in one run: their tensors are all in memory at once.
_AT_ONCE = 64
# Of the inputs, this many are enough to rank layers by.
_RANKED = 4
# Layers added to the keep list per round, as a share of all.
_SHARE = 0.04

Run = Callable[[Inputs], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Lifted:
    """What it took to hold the bound.

    keep     layers in floating point, worst first; the network's own name when all of it must stay
    cosine   smallest over outputs and inputs, with these kept
    before   the same with nothing kept
    slower   time of one run, with these kept over with nothing kept; 1 when nothing had to be
    faster   time of one run in float32 over with these kept, measured in the same interleaved run
    """

    keep: tuple[str, ...]
    cosine: float
    before: float
    slower: float
    faster: float


def worst_layers(
    kind: str, graph: Path, inputs: Iterable[Inputs], *, precision: str, keep: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """(layer, error it adds), the worst first, in `graph` run in `precision` by an engine of `kind` on the CPU.

    graph: the float32 ONNX graph; for int8 it is quantised here, on these inputs. error: mean over some of the inputs
    of |low - full| / |full| (2-norms) at the layer's output, for the same input. Raises InputError for a kind and
    precision that have no such graph.
    """
    given = _checked(kind, precision, inputs)
    with tempfile.TemporaryDirectory(prefix="hotloop-layers-") as folder:
        low = _lowered(kind, graph, Path(folder), given, precision=precision, keep=keep)
        return _rank(kind, graph, low, given, precision=precision)


def lift(
    kind: str, graph: Path, inputs: Iterable[Inputs], *, precision: str, bound: float, out: Path | None = None,
    network: str = "network", keep: Sequence[str] = (),
) -> Lifted:  # fmt: skip
    """Keep the worst layers in floating point until every output's cosine to float32 is at least `bound`.

    inputs: for calibration and for the check. keep: layers to keep in any case. out: where to write the quantised
    graph that holds the bound (int8). Raises BundleError naming the worst layer when even the longest list does not.
    """
    given = _checked(kind, precision, inputs)
    if precision != "int8":
        return _all_or_nothing(kind, graph, given, precision=precision, bound=bound, network=network)
    full = runner(kind, graph, "fp32")
    expected = [dict(full(one)) for one in given]
    layers = len(set(layers_of(kind, graph).values()))
    with tempfile.TemporaryDirectory(prefix="hotloop-lift-") as temporary:
        folder = Path(temporary)
        first = file = _lowered(kind, graph, folder / "0", given, precision=precision, keep=keep)
        before = cosine = _cosine(runner(kind, first, precision), given, expected)
        kept, worst = list(keep), ""
        while cosine < bound:
            ranked = [layer for layer, _ in _rank(kind, graph, file, given, precision=precision)
                      if not is_kept(layer, kept)]  # fmt: skip
            worst = worst or ranked[0]
            added = ranked[: math.ceil(_SHARE * layers)]
            if not added:
                rule = f"{network} in {precision} must reach cosine {bound:g} to float32; worst layer {worst}"
                raise BundleError(_PLACE, rule, round(cosine, 5))
            kept += added
            file = _lowered(kind, graph, folder / str(len(kept)), given, precision=precision, keep=kept)
            cosine = _cosine(runner(kind, file, precision), given, expected)
        low = runner(kind, file, precision)
        runs = [full, low] if file == first else [full, low, runner(kind, first, precision)]
        took = times(runs, given[0])
        if out is not None:
            _move(file, out)
    return Lifted(tuple(kept), cosine, before, took[1] / took[-1], took[0] / took[1])


def _all_or_nothing(
    kind: str, graph: Path, given: list[Inputs], *, precision: str, bound: float, network: str
) -> Lifted:
    full, low = runner(kind, graph, "fp32"), runner(kind, graph, precision)
    cosine = _cosine(low, given, [dict(full(one)) for one in given])
    took = times([full, low], given[0])
    if cosine >= bound:
        return Lifted((), cosine, cosine, 1.0, took[0] / took[1])
    return Lifted((network,), 1.0, cosine, took[0] / took[1], 1.0)


def _checked(kind: str, precision: str, inputs: Iterable[Inputs]) -> list[Inputs]:
    if precision not in _PRECISIONS.get(kind, ()):
        known = ", ".join(f"{kind} {precision}" for kind, all_ in _PRECISIONS.items() for precision in all_)
        raise InputError(_PLACE, f"layers can be searched in {known}", f"{kind} {precision}")
    given = list(inputs)
    if not given:
        raise InputError(_PLACE, "a search needs at least one set of inputs")
    return given


def _lowered(
    kind: str, graph: Path, folder: Path, given: Sequence[Inputs], *, precision: str, keep: Sequence[str]
) -> Path:
    """The file that holds the low precision: a quantised graph, or the graph itself."""
    if precision != "int8":
        return graph
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"model{_SUFFIX[kind]}"
    _QUANTIZE[kind](graph, file, given, keep=keep)
    return file


def _move(file: Path, out: Path) -> None:
    """A graph and its weights to their place; an ONNX graph names its weights' file, so that is written anew."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".onnx":
        import onnx

        data = out.with_name(out.name + ".data")
        data.unlink(missing_ok=True)
        onnx.save(onnx.load(str(file)), str(out), save_as_external_data=True, location=data.name, size_threshold=1024)
    else:
        for suffix in (".xml", ".bin"):
            out.with_suffix(suffix).write_bytes(file.with_suffix(suffix).read_bytes())


def _rank(kind: str, graph: Path, low: Path, given: Sequence[Inputs], *, precision: str) -> list[tuple[str, float]]:
    nodes = layers_of(kind, graph)
    given = [given[i] for i in sorted({round(i) for i in np.linspace(0, len(given) - 1, _RANKED)})]
    errors: dict[str, float] = {}
    tapped, alone = (_tapped_onnx, _alone_onnx) if kind == "onnx" else (_tapped_openvino, _alone_openvino)
    for some in _batches(list(nodes), _AT_ONCE):
        with tempfile.TemporaryDirectory(prefix="hotloop-taps-") as folder:
            full, taps = alone(graph, some, Path(folder))
            lower = tapped(low, taps, precision)
            for one in given:
                seen = dict(one) | dict(lower(one))
                want = full({node: seen[before] for node, (before, _) in taps.items()})
                for node, (_, after) in taps.items():
                    error = _relative(seen[after], want[node]) / len(given)
                    errors[nodes[node]] = errors.get(nodes[node], 0.0) + error
    return sorted(errors.items(), key=lambda item: -item[1])


def _batches(nodes: list[str], size: int) -> Iterator[list[str]]:
    for at in range(0, len(nodes), size):
        yield nodes[at : at + size]


def _relative(low: np.ndarray, full: np.ndarray) -> float:
    norm = float(np.linalg.norm(full.astype(np.float64)))
    distance = float(np.linalg.norm(low.astype(np.float64) - full.astype(np.float64)))
    return distance / norm if norm else distance


def _cosine(run: Run, given: Sequence[Inputs], expected: Sequence[Mapping[str, np.ndarray]]) -> float:
    from hotloop.evaluation.certificates import compare

    worst = 1.0
    for one, want in zip(given, expected, strict=True):
        worst = min(worst, compare(run(one), want).cosine)
    return worst


def times(runs: Sequence[Run], inputs: Inputs, *, rounds: int = 7) -> list[float]:
    """Seconds of one run of each, the best of interleaved rounds: what else the machine does only ever adds."""
    best = [math.inf] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            began = time.perf_counter()
            run(inputs)
            best[i] = min(best[i], time.perf_counter() - began)
    return best


# What the two libraries need: a graph's layers, a graph to run, a graph with tensors tapped.


def layers_of(kind: str, graph: Path) -> dict[str, str]:
    """Node -> layer, of a float graph; named as in `quantize`."""
    if kind == "onnx":
        import onnx

        return onnx_layers(onnx.load(str(graph), load_external_data=False))
    import openvino

    return openvino_layers(openvino.Core().read_model(str(graph)))


def runner(kind: str, graph: Path, precision: str) -> Run:
    """A float or quantised graph as a function of its inputs; what int8 leaves in floating point runs in float32."""
    if kind == "onnx":
        return _session(graph)
    import openvino

    return _compiled(openvino.Core().read_model(str(graph)), precision)


def _compiled(model: Any, precision: str) -> Run:
    import openvino

    hint = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}[precision]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    request = compiled.create_infer_request()

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        results = request.infer(dict(inputs))
        return {name: np.array(value) for port, value in results.items() for name in port.get_names()}

    return run


def _session(graph: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


# node -> names of the tensors before and after it in the whole graph
_Taps = Mapping[str, tuple[str, str]]


def _alone_onnx(graph: Path, nodes: Sequence[str], folder: Path) -> tuple[Run, _Taps]:
    """A run that takes each node's input by the node's name and gives its output by the same, in float32."""
    import onnx
    from onnx import TensorProto, helper

    file = float_copy(graph, folder)
    model = onnx.load(str(file), load_external_data=False)
    own = [node for node in model.graph.node if node.name in set(nodes)]
    taps = {node.name: (node.input[0], node.output[0]) for node in own}
    for node in own:
        node.input[0], node.output[0] = f"{node.name}:in", f"{node.name}:out"
    used = {name for node in own for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    lone = helper.make_model(
        helper.make_graph(
            own, "layers",
            [helper.make_tensor_value_info(f"{node.name}:in", TensorProto.FLOAT, None) for node in own],
            [helper.make_tensor_value_info(f"{node.name}:out", TensorProto.FLOAT, None) for node in own],
            weights,
        ),
        opset_imports=model.opset_import, ir_version=model.ir_version,
    )  # fmt: skip
    file.write_bytes(lone.SerializeToString())
    run = _session(file)

    def by_node(inputs: Inputs) -> dict[str, np.ndarray]:
        outputs = run({f"{name}:in": value for name, value in inputs.items()})
        return {name.removesuffix(":out"): value for name, value in outputs.items()}

    return by_node, taps


def _tapped_onnx(graph: Path, taps: _Taps, precision: str) -> Run:
    """The quantiser keeps the names of tensors: x -> QuantizeLinear -> DequantizeLinear -> node -> y."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in sorted({name for pair in taps.values() for name in pair} - given):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    # Beside the graph, since that is where its weights are looked for.
    file = graph.with_name(f".tapped-{graph.name}")
    try:
        file.write_bytes(model.SerializeToString())
        return _session(file)
    finally:
        file.unlink(missing_ok=True)


def _alone_openvino(graph: Path, nodes: Sequence[str], folder: Path) -> tuple[Run, _Taps]:
    """As `_alone_onnx`. Tensors of the whole graph are named `<node>:<output>`, its inputs by their own names."""
    import openvino
    from openvino import opset13

    model = openvino.Core().read_model(str(graph))
    own = {node.get_friendly_name(): node for node in model.get_ops()}
    taps, results, parameters = {}, [], []
    for name in nodes:
        node, source = own[name], own[name].input_value(0)
        before = source.get_node().get_friendly_name()
        if source.get_node().get_type_name() != "Parameter":
            before += f":{source.get_index()}"
        taps[name] = (before, f"{name}:0")
        parameter = opset13.parameter(source.get_partial_shape(), source.get_element_type(), name=f"{name}:in")
        parameter.output(0).set_names({name})
        node.input(0).replace_source_output(parameter.output(0))
        node.output(0).set_names({f"{name}:0"})
        parameters.append(parameter)
        results.append(opset13.result(node.output(0)))
    run = _compiled(openvino.Model(results, parameters, "layers"), "fp32")
    return lambda inputs: {name.removesuffix(":0"): value for name, value in run(inputs).items()}, taps


def _tapped_openvino(graph: Path, taps: _Taps, precision: str) -> Run:
    """The quantiser keeps the names of nodes: x -> FakeQuantize -> node -> y."""
    import openvino
    from openvino import opset13

    model = openvino.Core().read_model(str(graph))
    own = {node.get_friendly_name(): node for node in model.get_ops()}
    results = []
    for tap in sorted({tap for pair in taps.values() for tap in pair if ":" in tap}):
        name, _, port = tap.rpartition(":")
        output = own[name].output(int(port))
        output.add_names({tap})
        results.append(opset13.result(output))
    model.add_results(results)
    return _compiled(model, precision)
