"""int8 graphs of the built-in model and the search for layers to keep, against the float graphs in ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import run

import hotloop
from hotloop.bundle import builtin
from hotloop.engines import Engine, open_engine
from hotloop.errors import BundleError, InputError
from hotloop.evaluation.certificates import compare
from hotloop_export.layers import lift, worst_layers
from hotloop_export.onnx import PARTS, load_part
from hotloop_export.quantize import (
    calibration_inputs,
    float_copy,
    onnx_layers,
    openvino_layers,
    quantize_onnx,
    quantize_openvino,
)

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")

PROMPTS = ["portrait of a smiling woman with red hair", "an old man with a hat"]
DECODER = builtin() / "vae/decoder.onnx"
QUANTIZE = {"openvino": quantize_openvino, "onnx": quantize_onnx}
FILES = {"openvino": "decoder.xml", "onnx": "decoder.onnx"}
KINDS = ["openvino", "onnx"]
WORST = "decoder.up_blocks.1.resnets.0.conv1"

Seen = dict[str, list[dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def drawing() -> Any:
    return hotloop.load(engine="onnx", threads=1)


@pytest.fixture(scope="module")
def seen(drawing: Any) -> Seen:
    return calibration_inputs(drawing, PROMPTS, steps=4, size=(64, 64))


@pytest.fixture(scope="module")
def held_out(drawing: Any) -> Seen:
    return calibration_inputs(drawing, ["a girl with glasses"], steps=3, size=(64, 64), seed=50)


@pytest.fixture(scope="module")
def quantised(seen: Seen, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The decoder in int8, one layer kept."""
    made = {kind: tmp_path_factory.mktemp(kind) / file for kind, file in FILES.items()}
    for kind, file in made.items():
        QUANTIZE[kind](DECODER, file, seen["vae_decoder"], keep=["decoder.conv_out"])
    return made


def outputs(engine: Engine, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At the shape of the inputs."""
    dims = {}
    for tensor in engine.network.inputs:
        dims |= zip(tensor.shape, inputs[tensor.name].shape, strict=True)
    if engine.network.name == "vae_decoder":
        dims |= {"H": 4 * dims["h"], "W": 4 * dims["w"]}
    return run(engine, inputs, dims)


def cosine(kind: str, file: Path, drawing: Any, name: str, inputs: list[dict[str, np.ndarray]]) -> float:
    low = open_engine(kind, file, drawing.networks.rows[name], precision="int8", threads=1)
    return min(compare(outputs(low, one), outputs(drawing.networks[name], one)).cosine for one in inputs)


# Calibration inputs.


def test_calibration_inputs_are_those_of_every_step(seen: Seen, drawing: Any) -> None:
    table = drawing.table(drawing.bundle.defaults["sampler"], 4)
    # The built-in UNet is split: the timesteps of a schedule go to a network of their own, once for all prompts.
    assert [[*one["timestep"]] for one in seen["time"]] == [[*table.timesteps]]
    assert len(seen["unet"]) == len(table) * len(PROMPTS)
    assert len(seen["vae_decoder"]) == len(PROMPTS)
    assert all(one["input_ids"].max() > 0 for one in seen["text_encoder"])
    assert not np.array_equal(seen["unet"][0]["sample"], seen["unet"][1]["sample"])


def test_networks_that_have_answered_before_are_calibrated_too(drawing: Any) -> None:
    prompts = ["a girl with a hat"]
    first, again = (calibration_inputs(drawing, prompts, steps=2, size=(64, 64)) for _ in range(2))
    assert {name: len(inputs) for name, inputs in again.items()} == {
        name: len(inputs) for name, inputs in first.items()
    }
    assert again["prompt"] and again["time"]


def test_calibrating_changes_no_image(drawing: Any) -> None:
    def draw() -> np.ndarray:
        return np.asarray(drawing.txt2img("a girl", seed=3, num_inference_steps=3).latents)

    before = draw()
    calibration_inputs(drawing, ["a girl"], steps=3, size=(64, 64))
    assert np.array_equal(draw(), before)


# Layers.


@pytest.mark.parametrize("name", ["unet", "vae_decoder", "text_encoder"])
def test_layers_are_the_linear_and_convolutional_modules_of_the_network(name: str, drawing: Any) -> None:
    graph = drawing.bundle.network_file(drawing.entry, name)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    net = load_part(builtin(), PARTS[name])
    modules = {net.prefix + key for key, module in net.named_modules() if isinstance(module, kinds)}
    if name == "vae_decoder":
        modules = {key for key in modules if key.startswith(("decoder.", "post_quant_conv"))}
    if name == "unet":  # its keys, values and timesteps are other networks'
        moved = ("attn2.to_k", "attn2.to_v", "time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")
        modules = {key for key in modules if not key.endswith(moved)}
    assert set(onnx_layers(onnx.load(str(graph), load_external_data=False)).values()) == modules
    assert set(openvino_layers(openvino.Core().read_model(str(graph))).values()) == modules


def test_the_float_copy_computes_the_same(tmp_path: Path, drawing: Any, held_out: Seen) -> None:
    graph = drawing.bundle.network_file(drawing.entry, "unet")
    copy = open_engine("onnx", float_copy(graph, tmp_path), drawing.networks.rows["unet"], threads=1)
    inputs = held_out["unet"][0]
    assert compare(outputs(copy, inputs), outputs(drawing.networks["unet"], inputs)).max_abs <= 1e-5


# Quantised graphs.


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_close_on_prompts_it_was_not_calibrated_on(
    quantised: dict[str, Path], drawing: Any, held_out: Seen, kind: str
) -> None:
    assert 0.99 <= cosine(kind, quantised[kind], drawing, "vae_decoder", held_out["vae_decoder"]) < 0.999999


def test_every_layer_but_the_kept_one_has_int8_weights(quantised: dict[str, Path]) -> None:
    layers = {*onnx_layers(onnx.load(str(DECODER), load_external_data=False)).values()}
    model = onnx.load(str(quantised["onnx"]), load_external_data=False)
    stored = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert len([tensor for tensor in stored if tensor.data_type == onnx.TensorProto.INT8]) == len(layers) - 1
    (kept,) = (tensor for tensor in stored if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4)
    assert kept.dims[0] == 3
    compiled = openvino.Core().compile_model(str(quantised["openvino"]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = []
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].value in ("Convolution", "FullyConnected"):
            ran.append(info["runtimePrecision"].value)
    assert len(ran) == len(layers)
    assert sorted(set(ran)) in (["f32", "i8", "u8"], ["f32", "u8"])
    assert ran.count("f32") == 1


def test_the_files_are_whole_small_and_of_no_machine(quantised: dict[str, Path]) -> None:
    floats = (builtin() / "vae/diffusion_pytorch_model.safetensors").stat().st_size
    for kind, names in (("openvino", ["decoder.bin", "decoder.xml"]), ("onnx", ["decoder.onnx", "decoder.onnx.data"])):
        folder = quantised[kind].parent
        assert sorted(path.name for path in folder.iterdir()) == names
        assert sum(path.stat().st_size for path in folder.glob("*.bin")) < floats
        for path in folder.iterdir():
            raw = path.read_bytes()
            assert str(builtin()).encode() not in raw
            assert b"/tmp" not in raw
    # The graph finds its weights wherever the two lie.
    model = onnx.load(str(quantised["onnx"]), load_external_data=False)
    places = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"decoder.onnx.data"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_inputs_give_the_same_bytes(quantised: dict[str, Path], seen: Seen, tmp_path: Path, kind: str) -> None:
    QUANTIZE[kind](DECODER, tmp_path / FILES[kind], seen["vae_decoder"], keep=["decoder.conv_out"])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (quantised[kind].parent / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_an_int8_engine_are_not_replaced(quantised: dict[str, Path], drawing: Any, kind: str) -> None:
    engine = open_engine(kind, quantised[kind], drawing.family.networks["vae_decoder"], precision="int8", threads=1)
    with pytest.raises(InputError, match="weights of an int8 graph cannot be replaced"):
        engine.patched({"decoder.conv_in.bias": np.zeros(64, np.float32)})


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_calibrated_is_refused(seen: Seen, tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"layers to keep must be modules of decoder\.onnx, got 'decoder\.conv'"):
        QUANTIZE[kind](DECODER, tmp_path / "x", seen["vae_decoder"], keep=["decoder.conv"])
    with pytest.raises(InputError, match="at least one set of inputs"):
        QUANTIZE[kind](DECODER, tmp_path / "x", [])
    assert not [*tmp_path.iterdir()]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_unet_in_int8_holds_the_bound(drawing: Any, tmp_path: Path, kind: str) -> None:
    prompts = [*PROMPTS, "a man with a black beard, blue background", "a girl with green eyes"]
    calibration = calibration_inputs(drawing, prompts, steps=6, size=(64, 64))["unet"]
    held_out = calibration_inputs(drawing, ["a woman with short blond hair"], steps=5, size=(64, 64), seed=77)["unet"]
    file = tmp_path / Path(FILES[kind]).with_stem("model").name
    QUANTIZE[kind](drawing.bundle.network_file(drawing.entry, "unet"), file, calibration)
    assert cosine(kind, file, drawing, "unet", held_out) >= 0.99
    if kind == "openvino":
        from hotloop.engines import openvino_operators
        from hotloop.engines.openvino import OpenVinoEngine

        # hotloop's operators take the quantisers out of every attention.
        held = openvino_operators.OPERATORS
        row = drawing.networks.rows["unet"]
        low = OpenVinoEngine(file, row, precision="int8", threads=1, operators=held)
        assert (
            min(compare(outputs(low, one), outputs(drawing.networks["unet"], one)).cosine for one in held_out) >= 0.99
        )
        holder: list[Any] = []
        with openvino_operators.holding(holder):
            assert openvino_operators.fuse(low.graph._model.clone(), held, half=True) == 14  # no norms: sizes are open


# The search.


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder with one weight per channel of one layer so large that int8 leaves nothing of the others."""
    folder = tmp_path_factory.mktemp("spoilt") / "vae"
    shutil.copytree(builtin() / "vae", folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    file.chmod(0o644)
    raw = bytearray(file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + length])[WORST + ".weight"]
    begin, end = (8 + length + at for at in entry["data_offsets"])
    weight = np.frombuffer(raw[begin:end], np.float16).reshape(entry["shape"]).copy()
    weight[:, 0, 0, 0] = 30
    raw[begin:end] = weight.tobytes()
    file.write_bytes(raw)
    return folder / "decoder.onnx"


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_that_int8_spoils_is_found(spoilt: Path, seen: Seen, kind: str) -> None:
    ranked = worst_layers(kind, spoilt, seen["vae_decoder"], precision="int8")
    assert ranked[0][0] == WORST
    assert ranked[0][1] > 2 * ranked[1][1] > 0
    assert len(ranked) == len(onnx_layers(onnx.load(str(spoilt), load_external_data=False)))


def test_bf16_errs_by_its_rounding_in_every_layer(seen: Seen) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    errors = [error for _, error in worst_layers("openvino", DECODER, seen["vae_decoder"], precision="bf16")]
    assert 2**-13 < min(errors) <= max(errors) < 2**-7


def test_lifting_keeps_the_worst_layer_first_and_holds_the_bound(
    spoilt: Path, seen: Seen, drawing: Any, tmp_path: Path
) -> None:
    inputs, out = seen["vae_decoder"], tmp_path / "lifted.onnx"
    found = lift("onnx", spoilt, inputs, precision="int8", bound=0.9994, out=out)
    assert found.before < 0.9994 <= found.cosine
    assert found.keep[0] == WORST
    assert found.slower > 0 < found.faster
    network = drawing.family.networks["vae_decoder"]
    low = open_engine("onnx", out, network, precision="int8", threads=1)
    full = open_engine("onnx", spoilt, network, threads=1)
    again = min(compare(outputs(low, one), outputs(full, one)).cosine for one in inputs)
    assert again == pytest.approx(found.cosine, abs=1e-4)


def test_nothing_is_kept_where_the_bound_holds(seen: Seen, tmp_path: Path) -> None:
    found = lift("openvino", DECODER, seen["vae_decoder"], precision="int8", bound=0.99, out=tmp_path / "decoder.xml")
    assert (found.keep, found.slower) == ((), 1.0)
    assert found.cosine == found.before >= 0.99
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.bin", "decoder.xml"]


@pytest.mark.long
def test_a_bound_beyond_reach_names_the_worst_layer(spoilt: Path, seen: Seen) -> None:
    with pytest.raises(BundleError, match=f"must reach cosine 2 to float32; worst layer {WORST}"):
        lift("onnx", spoilt, seen["vae_decoder"][:1], precision="int8", bound=2.0, network="vae_decoder")


def test_bf16_is_kept_or_lifted_as_a_whole(seen: Seen) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    inputs = seen["vae_decoder"]
    assert lift("openvino", DECODER, inputs, precision="bf16", bound=0.999, network="vae_decoder").keep == ()
    lifted = lift("openvino", DECODER, inputs, precision="bf16", bound=0.9999999, network="vae_decoder")
    assert lifted.keep == ("vae_decoder",)
    assert lifted.before < 0.9999999 <= lifted.cosine


def test_what_has_no_low_precision_graph_is_refused(seen: Seen) -> None:
    with pytest.raises(InputError, match="layers can be searched in openvino bf16, openvino int8, onnx int8"):
        worst_layers("onnx", DECODER, seen["vae_decoder"], precision="bf16")
