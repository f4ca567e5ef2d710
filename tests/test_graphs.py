"""ONNX graphs of the rewritten networks: in ONNX Runtime what the torch modules are, whatever sizes come."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import NARROW, randomise, row_of

from hotloop import samplers
from hotloop.denoiser import UNetDenoiser
from hotloop.engines import open_engine
from hotloop.engines.native import NativeEngine
from hotloop.errors import BundleError
from hotloop.nets.clip import CLIPText, CLIPVision
from hotloop.nets.parts import PARTS
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL
from hotloop.samplers.schedule import Schedule
from hotloop.spec import REWRITES, Network, family
from hotloop.weights import Weights, derived, save
from hotloop_export.onnx import difference, export_graph, graph_name, reference, sample_inputs

TOLERANCE = 1e-4
GROUPS = ("controlnet", "identity", "timestep_cond")
FULL = {
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


class Made:
    """A tiny checkpoint and its graphs, each exported when it is first asked for."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, **unet: Any) -> None:
        """unet: entries of its config beside NARROW's."""
        self.folder = folder
        vae = {"block_out_channels": (16, 24), "norm_num_groups": 8}
        eyes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14, "projection_dim": 20}  # fmt: skip
        text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
                "vocab_size": 50}  # fmt: skip
        nets = {"unet": UNet(NARROW | unet), "vae": AutoencoderKL(vae), "image_encoder": CLIPVision(eyes),
                "text_encoder": CLIPText(text)}  # fmt: skip
        self.nets: dict[str, Any] = {}
        for name, net in nets.items():
            randomise(net).save(folder / name, dtype=dtype)
            self.nets[name] = type(net).from_dir(folder / name)  # the weights as rounded
        self.row = row_of(self.nets["unet"], eye_size=28, eye_width=20, vae_factor=2)

    def network(self, name: str, rewrites: tuple[str, ...] = (), groups: tuple[str, ...] = ()) -> Network:
        return self.row.split(rewrites, groups)[name]

    def graph(
        self, name: str, rewrites: tuple[str, ...] = (), groups: tuple[str, ...] = (), compute: str = "fp32"
    ) -> Path:
        file = self.folder / PARTS[name].folder / graph_name(name, rewrites, groups, compute)
        if not file.exists():
            export_graph(self.net(name), self.network(name, rewrites, groups), file, compute=compute)
        return file

    def net(self, name: str) -> Any:
        return self.nets[PARTS[name].folder]


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With a UNet of nine channels."""
    return Made(tmp_path_factory.mktemp("inpainting"), dtype=torch.float16, in_channels=9)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("graphs"), dtype=torch.float16)


# name, rewrites, groups: together every rewrite and every group, plain and split; the plain UNet is an inpainting one.
# A UNet's graph takes half a minute to trace: every day that of test_export is drawn from and certified, rewritten.
CASES = [
    pytest.param("unet", (), GROUPS, marks=pytest.mark.long),
    pytest.param("unet", REWRITES, ("controlnet", "identity"), marks=pytest.mark.long),
    ("prompt", REWRITES, ()),
    ("time", REWRITES, ("timestep_cond",)),
    ("vae_decoder", ("phase",), ()),
    ("image_encoder", (), ()),
]


@pytest.mark.parametrize(("name", "rewrites", "groups"), CASES, ids=lambda v: v if isinstance(v, str) else "+".join(v))
def test_graph_in_onnxruntime_equals_the_torch_modules(
    made: Made, inpainting: Made, name: str, rewrites: tuple[str, ...], groups: tuple[str, ...]
) -> None:
    """N and B, tokens and both sides are free of each other; without `phase` sides may be odd."""
    made = inpainting if (name, rewrites) == ("unet", ()) else made
    file = made.graph(name, rewrites, groups)
    network = made.network(name, rewrites, groups)
    sizes = [(16, 24, 2, 4, 5, 1), (40, 12, 3, 3, 77, 4), (12, 16, 1, 2, 1, 2)]
    if name == "unet" and "phase" not in rewrites:
        sizes.append((14, 22, 1, 1, 9, 1))
    for width, height, images, batch, tokens, identity in sizes:
        dims = made.row.dims(
            width=width, height=height, images=images, batch=batch, tokens=tokens, identity_tokens=identity
        )
        inputs = sample_inputs(network, dims, seed=1, ids=50)
        expected = reference(made.net(name), network, inputs)
        assert all(value.std() > 0.02 for value in expected.values())
        assert difference(file, inputs, expected) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_split_graphs_draw_every_image_of_a_batch_as_if_alone(made: Made, kind: str) -> None:
    """Through the denoiser, guidance on, each image at a row of its own; in ONNX Runtime bit for bit."""
    pytest.importorskip("openvino" if kind == "openvino" else "onnxruntime")
    declared = {"unet": ("controlnet", "identity"), "time": ("timestep_cond",)}
    engines = {
        name: open_engine(
            kind, made.graph(name, REWRITES, declared.get(name, ())),
            made.network(name, REWRITES, declared.get(name, ())), threads=1,
        )
        for name in ("unet", "prompt", "time")
    }  # fmt: skip
    table = samplers.build("euler", Schedule.from_config({}, made.row.schedule), 4)
    rng = np.random.default_rng(3)
    x, context, negative = (rng.standard_normal(s, np.float32) for s in ((3, 4, 8, 12), (3, 9, 24), (3, 9, 24)))
    rows, embedded = np.array([2, 0, 3]), rng.standard_normal((3, 6), np.float32)

    def step(images: slice) -> tuple[np.ndarray, np.ndarray]:
        with UNetDenoiser(**engines) as denoiser:
            cond = {"context": context[images], "negative_context": negative[images],
                    "timestep_cond": embedded[images]}  # fmt: skip
            denoiser.begin(cond, table, x[images].shape)
            m_c, m_u = denoiser.step(x[images], rows[images])
            assert m_u is not None
            return m_c.copy(), m_u.copy()

    both = step(slice(None))
    u = torch.from_numpy(x * table.c_in[rows][:, None, None, None])
    for i, states in enumerate((context, negative)):
        with torch.no_grad():
            plain = made.nets["unet"](
                u, torch.from_numpy(table.timesteps[rows]), torch.from_numpy(states),
                timestep_cond=torch.from_numpy(embedded),
            ).numpy()  # fmt: skip
        assert np.abs(both[i] - plain).max() <= TOLERANCE
        for image in range(3):
            alone = step(slice(image, image + 1))[i][0]
            assert np.abs(both[i][image] - alone).max() <= (0 if kind == "onnx" else TOLERANCE)


@pytest.mark.long
def test_graphs_point_into_the_checkpoints_weights_and_the_derived_ones(made: Made) -> None:
    file = made.graph("unet", REWRITES, ("controlnet", "identity"))
    graph = onnx.load(file, load_external_data=False).graph
    stored = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    inline = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(t.ByteSize() for t in inline) < 20_000
    assert len(file.read_bytes()) < 200_000
    weights = Weights.open(file.parent / "diffusion_pytorch_model.safetensors")
    sums = Weights.open(file.parent / derived.FILE)
    split = {t.name for name in ("prompt", "time") for t in onnx.load(made.graph(
        name, REWRITES, ("timestep_cond",)), load_external_data=False).graph.initializer}  # fmt: skip
    names = {t.name for t in stored}
    assert names & set(sums) == set(sums) == {f"up_blocks.0.upsamplers.0.{phase}" for phase in derived.PHASES}
    assert (names | split) & set(weights) == set(weights) - {"up_blocks.0.upsamplers.0.conv.weight"}
    assert not names & split
    for tensor in stored:
        entry = {e.key: e.value for e in tensor.external_data}
        source = sums if tensor.name in sums else weights
        assert entry["location"] == source.path.name
        begin, end = source.span(tensor.name)
        assert (int(entry["offset"]), int(entry["length"])) == (begin, end - begin)
        assert tuple(tensor.dims) == source.shape(tensor.name)
    assert all(sums.dtype(name) == "F32" for name in sums)


def test_a_graph_over_float32_weights_casts_none_of_them(tmp_path: Path) -> None:
    made = Made(tmp_path, dtype=torch.float32)
    file = made.graph("prompt", ("kv",))
    network = made.network("prompt", ("kv",))
    inputs = sample_inputs(network, {"B": 2, "T": 5}, seed=1, ids=1)
    assert difference(file, inputs, reference(made.net("prompt"), network, inputs)) <= TOLERANCE
    graph = onnx.load(file, load_external_data=False).graph
    assert {t.data_type for t in graph.initializer} == {onnx.TensorProto.FLOAT}
    assert "Cast" not in Counter(node.op_type for node in graph.node)


def types(graph: onnx.GraphProto) -> dict[str, int]:
    """The element type of every value, as strict inference finds it."""
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=[
        onnx.helper.make_opsetid("", 22)]), check_type=True, strict_mode=True, data_prop=True).graph  # fmt: skip
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {v.name: v.type.tensor_type.elem_type for v in values}


HALVES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
ISLANDS = {"Softmax", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "Cos"}


@pytest.mark.long  # every day: layers that are kept, below
@pytest.mark.parametrize(("name", "compute"), [("vae_decoder", "fp16"), *(("unet", compute) for compute in HALVES)])
def test_half_precision_graphs_compute_in_half_between_islands(made: Made, name: str, compute: str) -> None:
    """Gemm is the time embedding, an island, and the residual blocks' projections of it."""
    file = made.graph(name, (), (), compute)
    graph = onnx.load(file, load_external_data=False).graph
    found = types(graph)
    assert {found[v.name] for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type in {"Conv", "MatMul", "Gelu"}:
            assert found[node.output[0]] == HALVES[compute], node.name
        if node.op_type in ISLANDS:
            assert found[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    gemms = Counter(found[node.output[0]] for node in graph.node if node.op_type == "Gemm")
    assert gemms == ({onnx.TensorProto.FLOAT: 2, HALVES[compute]: 8} if name == "unet" else {})
    if compute == "fp16":  # ONNX Runtime's CPU has no convolution in bfloat16
        network = made.network(name)
        inputs = sample_inputs(network, made.row.dims(width=16, height=24, batch=2), seed=1, ids=1)
        expected = reference(made.net(name), network, inputs)
        assert 1e-5 < difference(file, inputs, expected) <= 0.02 * max(abs(v).max() for v in expected.values())


def test_layers_named_to_be_kept_stay_in_float32(made: Made) -> None:
    file = made.folder / "vae" / "kept.onnx"
    keep = ("decoder.conv_out", "decoder.mid_block.resnets", "not.here")
    export_graph(made.nets["vae"], made.network("vae_decoder"), file, compute="bf16", keep_fp32=keep)
    graph = onnx.load(file, load_external_data=False).graph
    file.unlink()
    cast = {node.input[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    stored = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    wide = {name for name in stored if cast[name] == onnx.TensorProto.FLOAT}
    assert wide == {name for name in stored if "norm" in name or name.startswith(keep)}
    assert {cast[name] for name in stored - wide} == {onnx.TensorProto.BFLOAT16}


def test_the_same_network_gives_the_same_bytes(made: Made) -> None:
    file = made.graph("time", REWRITES, ("timestep_cond",))
    before = file.read_bytes()
    file.unlink()
    assert made.graph("time", REWRITES, ("timestep_cond",)).read_bytes() == before
    for word in (b"site-packages", b"stack_trace", str(made.folder).encode(), str(Path.home()).encode() + b"/"):
        assert word not in before


def test_weights_that_are_not_there_are_refused_by_name(made: Made, tmp_path: Path) -> None:
    weights = Weights.open(made.folder / "unet" / "diffusion_pytorch_model.safetensors")
    lost = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    save({k: weights[k] for k in weights if k != lost}, tmp_path / weights.path.name)
    with pytest.raises(BundleError, match=rf"diffusion_pytorch_model\.safetensors must hold .*{lost}"):
        export_graph(made.nets["unet"], made.network("prompt", ("kv",)), tmp_path / "prompt.onnx")
    assert not (tmp_path / "prompt.onnx").exists()


def test_file_names_tell_what_computes_differently() -> None:
    assert graph_name("unet") == "model.onnx"
    assert graph_name("unet", REWRITES) == "model-kv-time-prefix-phase.onnx"
    assert graph_name("unet", ("kv",), GROUPS, "fp16") == "model-kv+controlnet+identity+timestep_cond.fp16.onnx"
    assert graph_name("unet", ("time",), GROUPS) == "model-time+controlnet+identity.onnx"
    assert graph_name("time", ("time",), GROUPS, "fp16") == "time+timestep_cond.onnx"
    assert graph_name("prompt", REWRITES, GROUPS, "bf16") == "prompt.bf16.onnx"
    assert graph_name("vae_decoder", REWRITES) == "decoder-phase.onnx"
    assert graph_name("vae_encoder", REWRITES) == graph_name("tiny_vae_encoder") == "encoder.onnx"


class Random(Mapping[str, np.ndarray]):
    """Weights of a network in float16, made one at a time."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}

    def __getitem__(self, key: str) -> np.ndarray:
        shape = self.shapes[key]
        rng = np.random.default_rng(abs(hash(key)) % 2**32)
        scale = int(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
        offset = 1 if len(shape) == 1 and key.endswith("weight") else 0
        return (rng.standard_normal(shape, np.float32) * scale + offset).astype(np.float16)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@pytest.mark.long
def test_sd15_exports_within_memory_and_equals_torch(tmp_path: Path) -> None:
    """The UNet of SD 1.5 with all rewrites: random weights, seconds and peak memory printed."""
    folder = tmp_path / "unet"
    folder.mkdir()
    with torch.device("meta"):
        net = UNet(FULL)
    save(Random(net), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(FULL))
    for name in ("unet", "prompt", "time"):
        subprocess.run([sys.executable, "-c", EXPORT, str(folder), name], check=True)
    row = family("sd15")
    dims = row.dims(width=256, height=192, batch=2, images=1)
    networks = row.split(REWRITES)
    for name in ("unet", "prompt", "time"):
        network = networks[name]
        inputs = sample_inputs(network, dims, seed=1, ids=1)
        # Torch goes before ONNX Runtime comes: each holds the weights in float32.
        engine = NativeEngine(folder, network)
        with engine.contexts.lease(**network.pick(dims)) as context:
            for key, value in inputs.items():
                context.inputs[key][...] = value
            context.run()
            expected = {key: value.copy() for key, value in context.outputs.items()}
        del engine, context
        worst = difference(folder / graph_name(name, REWRITES), inputs, expected)
        print(f"{name}: max |ONNX Runtime - torch| {worst:.1e}, std {next(iter(expected.values())).std():.2f}")
        assert worst <= TOLERANCE


EXPORT = """
import resource, sys, time
from pathlib import Path
import torch
from hotloop.nets.unet import UNet
from hotloop.samplers.schedule import Schedule
from hotloop.spec import REWRITES, family
from hotloop_export.onnx import export_graph, graph_name

folder, name = Path(sys.argv[1]), sys.argv[2]
with torch.device("meta"):
    net = UNet(__import__("json").loads((folder / "config.json").read_text()))
began = time.perf_counter()
file = folder / graph_name(name, REWRITES)
export_graph(net, family("sd15").split(REWRITES)[name], file)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{name}: {time.perf_counter() - began:.0f} s, peak {peak:.1f} GB, graph {file.stat().st_size / 1e3:.0f} kB")
assert peak < 12
"""
