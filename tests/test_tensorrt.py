"""TensorRT: plans really built by TensorRT for RTX, which needs no GPU for that, and the engine's logic on a double."""

from __future__ import annotations

import gc
import inspect
import json
import math
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as cudart
from doubles.tensorrt import Cuda, Library, parameters

from hotloop import engines
from hotloop.bundle import Bundle, builtin
from hotloop.engines.tensorrt import TensorRtEngine, TensorRtRtxEngine
from hotloop.engines.tensorrt_plan import PlanInfo, Profile
from hotloop.errors import BundleError, HotloopError, InputError
from hotloop.spec import REWRITES, Network, Tensor, family
from hotloop.weights import Weights, save
from hotloop_export.onnx import sample_inputs
from hotloop_export.tensorrt import build_plan, profiles

TINY, SD15 = family("avatar-tiny"), family("sd15")
# Some tests say what happens without a GPU.
GPU = int(cudart.cudaGetDeviceCount()[0]) == 0
BUNDLE = Bundle.open(builtin(), verify=False)
NETWORKS = BUNDLE.networks(BUNDLE.entries[0])
GRAPHS = {name: BUNDLE.network_file(BUNDLE.entries[0], name) for name in NETWORKS}


# Profiles.


def dims_of(name: str, rewrites: tuple[str, ...] = (), **options: Any) -> dict[str, dict[str, tuple[int, int, int]]]:
    given = {"shapes": [(512, 512), (768, 512)], "batches": (1, 4), **options}
    return {p.name: dict(p.dims) for p in profiles(SD15, SD15.split(rewrites)[name], **given)}


def test_a_profile_stands_for_a_size_and_a_range_of_batches():
    assert dims_of("unet") == {
        "512x512": {"B": (1, 2, 8), "h": (64, 64, 64), "w": (64, 64, 64), "T": (77, 77, 231)},
        "768x512": {"B": (1, 2, 8), "h": (64, 64, 64), "w": (96, 96, 96), "T": (77, 77, 231)},
    }
    assert dims_of("unet", guidance=False)["512x512"]["B"] == (1, 1, 4)
    assert dims_of("unet", batches=(4, 4))["512x512"]["B"] == (4, 8, 8)
    assert dims_of("vae_decoder")["768x512"] == {"B": (1, 1, 4), "h": (64, 64, 64), "w": (96, 96, 96)}
    assert dims_of("vae_encoder")["768x512"] == {"B": (1, 1, 4), "H": (512, 512, 512), "W": (768, 768, 768)}


def test_a_split_unet_takes_n_images_and_n_or_2n_rows():
    dims = dims_of("unet", ("kv", "time", "prefix"))["512x512"]
    assert dims == {"N": (1, 1, 4), "h": (64, 64, 64), "w": (64, 64, 64), "B": (1, 2, 8), "T": (77, 77, 231)}
    for n in range(1, 5):
        for b in (n, 2 * n):
            assert Profile("512x512", dims).covers({"N": n, "B": b, "h": 64, "w": 64, "T": 154})


def test_networks_that_see_no_size_have_one_profile():
    assert dims_of("text_encoder") == {"any": {"B": (1, 1, 3), "T": (77, 77, 77)}}
    assert dims_of("prompt", ("kv",)) == {"any": {"B": (1, 2, 8), "T": (77, 77, 231)}}
    assert dims_of("time", ("time",)) == {"any": {"B": (1, 20, 1000)}}
    assert dims_of("image_encoder") == {"any": {"B": (1, 1, 4)}}


def test_every_optional_input_has_its_shapes():
    network = SD15.split(("prefix",), ("controlnet", "identity", "timestep_cond"))["unet"]
    (profile,) = profiles(SD15, network, shapes=[(520, 512)], batches=(2, 3))
    for tensor in network.inputs:
        least, tuned, most = profile.shapes(tensor)
        assert all(a <= b <= c for a, b, c in zip(least, tuned, most, strict=True)), tensor.name
    assert profile.dims["w8"] == (9, 9, 9)  # 65 cells, halved three times, rounding up


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"shapes": [(500, 512)]}, r"multiples of 8 from 64 to 2048, got '500x512'"),
        ({"shapes": [(512, 4096)]}, r"got '512x4096'"),
        ({"shapes": [(32, 512)]}, r"got '32x512'"),
        ({"shapes": []}, r"at least, got \[\]"),
        ({"batches": (4, 1)}, r"least <= most, got \(4, 1\)"),
        ({"batches": (0, 1)}, r"got \(0, 1\)"),
    ],
)
def test_sizes_and_batches_are_checked(options: dict[str, Any], rule: str):
    with pytest.raises(InputError, match=rule):
        dims_of("unet", **options)


# Plans, really built.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PlanInfo, list[tuple[str, float]]]]:
    """The built-in model's networks as plans of TensorRT for RTX: (plan, record, stages that were told)."""
    folder = tmp_path_factory.mktemp("plans")
    made = {}
    for name, graph in GRAPHS.items():
        told: list[tuple[str, float]] = []
        info = build_plan(
            "tensorrt_rtx", graph, NETWORKS[name], folder / f"{name}.plan", family=TINY,
            shapes=[(64, 64)], batches=(1, 2), weights="embed",
            progress=lambda stage, done, told=told: told.append((stage, done)),
        )  # fmt: skip
        made[name] = (folder / f"{name}.plan", info, told)
    return made


@pytest.mark.parametrize("name", GRAPHS)
def test_the_built_in_model_builds_without_a_gpu(name: str, built: Any, record_property: Callable[..., None]):
    plan, info, _ = built[name]
    network = NETWORKS[name]
    assert info.kind == "tensorrt_rtx" and info.version == tensorrt_rtx.__version__ and info.network == name
    assert info.inputs == {t.name: (t.dtype, t.shape) for t in network.inputs}
    assert info.outputs == {t.name: (t.dtype, t.shape) for t in network.outputs}
    assert info.profiles == profiles(TINY, network, shapes=[(64, 64)], batches=(1, 2))
    assert info.targets == ("8.0", "8.6", "8.9", "12.0", "12.1")  # Turing has no float32 products
    assert info.precision == "fp32" and info.weights == "embed"
    # The weights, widened to float32, and the kernels.
    stored = sum(Weights.open(plan.parent / file).nbytes(n) for file, names in info.refit.items() for n in names)
    assert plan.stat().st_size == info.plan_bytes
    assert 2 * stored < info.plan_bytes < 2 * stored + 20e6
    record_property("seconds", info.seconds)
    record_property("peak_bytes", info.peak_bytes)


def test_the_record_beside_a_plan_is_what_was_built(built: Any):
    for plan, info, _ in built.values():
        assert PlanInfo.read(plan) == info
        assert json.loads(PlanInfo.path_of(plan).read_text()) == info.record()


def test_every_weight_of_the_checkpoint_is_in_the_refit_map(built: Any):
    """TensorRT itself confirmed each name when the plan was built; here: none of the files' tensors is missing."""
    found: dict[Path, set[str]] = {}
    for name, (plan, info, _) in built.items():
        graph = onnx.load(str(GRAPHS[name]), load_external_data=False).graph
        assert {n for names in info.refit.values() for n in names} == {
            i.name for i in graph.initializer if i.external_data
        }
        for file, names in info.refit.items():
            found.setdefault((plan.parent / file).resolve(), set()).update(names)
    for path, names in found.items():
        assert names == {name for name in Weights.open(path) if not name.endswith("position_ids")}
    assert {"unet", "vae", "text_encoder"} <= {path.parent.name for path in found}


def test_the_parser_reads_each_weight_from_its_place_in_the_safetensors_file():
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse_from_file(str(GRAPHS["vae_decoder"]))
    held = Weights.open(GRAPHS["vae_decoder"].parent / "diffusion_pytorch_model.safetensors")
    seen = set()
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type == tensorrt_rtx.LayerType.CONSTANT and layer.name in held:
            layer.__class__ = tensorrt_rtx.IConstantLayer
            assert np.asarray(layer.weights).dtype == np.float16
            np.testing.assert_array_equal(np.ravel(layer.weights), held[layer.name].ravel())
            seen.add(layer.name)
    assert seen == {n for n in held if n.startswith(("decoder.", "post_quant_conv."))}


def test_progress_names_the_stages_and_reaches_the_end(built: Any):
    _, _, told = built["unet"]
    assert told[0] == ("parse", 0.0) and told[-1] == ("write", 1.0)
    assert ("Building engine", 1.0) in told
    assert all(0.0 <= done <= 1.0 for _, done in told)
    assert len(told) < 2000  # the library reports thousands of steps


def build_tiny(out: Path, **options: Any) -> PlanInfo:
    given: dict[str, Any] = {
        "kind": "tensorrt_rtx", "graph": GRAPHS["vae_encoder"], "network": NETWORKS["vae_encoder"],
        "family": TINY, "shapes": [(64, 64)], "batches": (1, 1), "weights": "embed",
    }  # fmt: skip
    given |= options
    return build_plan(given.pop("kind"), given.pop("graph"), given.pop("network"), out, **given)


def test_a_build_ends_when_its_progress_raises(tmp_path: Path):
    def stop(stage: str, done: float) -> None:
        if stage not in ("parse",):
            raise KeyboardInterrupt(stage)

    with pytest.raises(KeyboardInterrupt):
        build_tiny(tmp_path / "x.plan", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"kind": "cuda"}, InputError, "kind must be one of tensorrt, tensorrt_rtx, got 'cuda'"),
        ({"weights": "half"}, InputError, "weights must be strip or embed"),
        ({"targets": ["9.0"]}, InputError, r"targets must be among 7\.5, .*, got \['9\.0'\]"),
        ({"targets": []}, InputError, "targets must be among"),
        ({"compatibility": "ampere_plus"}, InputError, "compatibility of tensorrt_rtx must be one of none"),
        ({"targets": ["7.5"]}, BundleError, r"encoder\.onnx does not build with tensorrt_rtx: .*FP32 GEMM"),
        ({"graph": Path("no.onnx")}, BundleError, "no such graph"),
        ({"network": NETWORKS["vae_decoder"]}, BundleError, r"must have \['latents'\], got \['image'\]"),
        ({"network": replace(NETWORKS["vae_encoder"],
                             inputs=(Tensor("image", "float16", ("B", 3, "H", "W")),))},
         BundleError, r"image of encoder\.onnx must be float16 \['B', 3, 'H', 'W'\], got \"FLOAT"),
        ({"network": replace(NETWORKS["vae_encoder"],
                             inputs=(Tensor("image", "float32", ("B", 3, "W", "H")),))},
         BundleError, r"must be float32 \['B', 3, 'W', 'H'\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_in_one_line(
    options: dict[str, Any], error: type[Exception], rule: str, tmp_path: Path
):
    with pytest.raises(error, match=rule) as caught:
        build_tiny(tmp_path / "x.plan", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_parse_or_disagrees_with_its_weights_is_refused(tmp_path: Path):
    source = GRAPHS["vae_encoder"]
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.symlink_to(source.parent / weights.name)
    graph = tmp_path / "encoder.onnx"
    model = onnx.load(str(source), load_external_data=False)
    model.graph.node[-1].op_type = "Frobnicate"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"encoder\.onnx does not parse: .*Frobnicate") as caught:
        build_tiny(tmp_path / "x.plan", graph=graph)
    assert "\n" not in str(caught.value)

    model = onnx.load(str(source), load_external_data=False)
    moved = next(i for i in model.graph.initializer if i.external_data)
    next(e for e in moved.external_data if e.key == "offset").value = "0"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=rf"must hold the initializer {re.escape(moved.name)}"):
        build_tiny(tmp_path / "x.plan", graph=graph)


def test_a_disk_that_is_full_leaves_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BundleError, match="plan must be writable \\(No space left on device\\)"):
        build_tiny(tmp_path / "x.plan")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_plans_without_weights_need_a_gpu_to_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BundleError, match="weights='strip' only where its GPU is; weights='embed' needs none"):
        build_tiny(tmp_path / "x.plan", weights="strip")
    # It is the library's limit: when this fails, it is gone and the rule above can go.
    monkeypatch.setattr("hotloop_export.tensorrt.can_strip", lambda kind: True)
    with pytest.raises(BundleError, match="does not build with tensorrt_rtx"):
        build_tiny(tmp_path / "x.plan", weights="strip")


@pytest.mark.long
def test_the_split_unet_builds_in_half_precision_for_n_and_2n_rows(tmp_path: Path):
    from hotloop.nets.unet import UNet
    from hotloop_export.onnx import export_graph, graph_name

    folder, split = tmp_path / "unet", {}
    shutil.copytree(GRAPHS["unet"].parent, folder)
    net = UNet.from_dir(folder)
    for name in ("unet", "prompt", "time"):
        network = TINY.split(REWRITES)[name]
        graph = folder / graph_name(name, REWRITES, (), "fp16")
        export_graph(net, network, graph, compute="fp16")
        info = build_plan(
            "tensorrt_rtx", graph, network, tmp_path / f"{name}.plan", family=TINY, shapes=[(64, 64), (96, 64)],
            batches=(1, 2), weights="embed",
        )  # fmt: skip
        split[name] = (network, info)
    assert {name: info.precision for name, (_, info) in split.items()} == {
        "unet": "fp16", "prompt": "fp16", "time": "fp32"
    }  # fmt: skip
    for network, info in split.values():
        assert info.inputs == {t.name: (t.dtype, t.shape) for t in network.inputs}
    _, unet = split["unet"]
    assert [p.name for p in unet.profiles] == ["64x64", "96x64"]
    assert unet.profiles[0].dims["N"] == (1, 1, 2) and unet.profiles[0].dims["B"] == (1, 2, 4)
    assert {Path(file).name for file in unet.refit} == {"diffusion_pytorch_model.safetensors", "derived.safetensors"}
    # Turing computes the products in half; the time embedding's are in float32, in a network of its own.
    assert "7.5" in unet.targets and "7.5" in split["prompt"][1].targets and "7.5" not in split["time"][1].targets


class RandomWeights(Mapping[str, np.ndarray]):
    """Of a network's shapes, in float16, made when asked for."""

    def __init__(self, net: Any) -> None:
        self._shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        self._block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float16)

    def __getitem__(self, name: str) -> np.ndarray:
        # Each begins elsewhere in the block: TensorRT keeps equal weights once.
        return np.resize(np.roll(self._block, zlib.crc32(name.encode())), self._shapes[name]) / np.float16(64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@pytest.mark.long
@pytest.mark.parametrize(("compute", "rewrites"), [("fp32", ()), ("fp16", REWRITES)])
def test_the_unet_of_sd15_builds_without_a_gpu(
    compute: str, rewrites: tuple[str, ...], tmp_path: Path, record_property: Callable[..., None]
):
    import torch

    from hotloop.nets.unet import UNet
    from hotloop_export.onnx import export_graph

    with torch.device("meta"):
        net = UNet({"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768})
    folder, network = tmp_path / "unet", SD15.split(rewrites)["unet"]
    folder.mkdir()
    save(RandomWeights(net), folder / "diffusion_pytorch_model.safetensors")
    export_graph(net, network, folder / "model.onnx", compute=compute)
    gc.collect()
    info = build_plan(
        "tensorrt_rtx", folder / "model.onnx", network, tmp_path / "unet.plan", family=SD15, shapes=[(512, 512)],
        batches=(1, 1), weights="embed",
    )  # fmt: skip
    assert info.precision == compute
    stored = {file: Weights.open(tmp_path / file) for file in info.refit}
    if not rewrites:
        assert {len(names) for names in info.refit.values()} == {len(net.state_dict())} == {686}
    # Sums of the rewrite `phase` are kept in float32, and computed with in half like the rest.
    values = sum(math.prod(stored[file].shape(n)) for file, names in info.refit.items() for n in names)
    assert info.plan_bytes == pytest.approx(values * (4 if compute == "fp32" else 2), rel=0.05)
    # An export of SD 1.5 must fit in 12 GB.
    assert info.peak_bytes < 12e9
    record_property("seconds", info.seconds)
    record_property("peak_bytes", info.peak_bytes)
    print(
        compute, rewrites, f"{info.seconds} s, {info.peak_bytes / 1e9:.1f} GB, {info.plan_bytes:,} bytes", info.targets
    )


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["strip", "embed"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_on_a_gpu_plans_give_what_onnx_runtime_gives(kind: str, name: str, weights: str, tmp_path: Path):
    if engines.available()[kind] or not engines.devices(kind):
        pytest.skip(f"{kind} cannot run here")
    network = NETWORKS[name]
    info = build_plan(
        kind, GRAPHS[name], network, tmp_path / "net.plan", family=TINY, shapes=[(64, 64), (96, 64)],
        batches=(1, 2), weights=weights, cache=tmp_path / "cache",
    )  # fmt: skip
    assert info.weights == weights
    ours = engines.open_engine(kind, tmp_path / "net.plan", network, device="cuda", cache=tmp_path / "cache")
    reference = engines.open_engine("onnx", GRAPHS[name], network)
    key = info.refit[next(iter(info.refit))][-1]
    value = Weights.open(tmp_path / next(iter(info.refit)))[key].astype(np.float32)
    pairs = [(ours, reference)]
    if weights == "strip":
        pairs += [(ours.patched({key: 1.5 * value}), reference.patched({key: 1.5 * value})), (ours, reference)]
    for profile in info.profiles:
        width, height = map(int, profile.name.split("x")) if "x" in profile.name else (64, 64)
        dims = TINY.dims(width=width, height=height, batch=1) | {s: most for s, (_, _, most) in profile.dims.items()}
        inputs = sample_inputs(network, dims, seed=1, ids=500)
        for engine, other in pairs:
            with engine.contexts.lease(**dims) as made, other.contexts.lease(**dims) as told:
                for _ in range(3):  # by kernel, captured, replayed
                    for n, array in inputs.items():
                        made.inputs[n][...] = told.inputs[n][...] = array
                    made.run()
                    told.run()
                    for n, array in told.outputs.items():
                        np.testing.assert_allclose(made.outputs[n], array, atol=1e-4)


# The double.


def test_the_double_of_cuda_has_the_real_parameters():
    for name, member in vars(Cuda).items():
        if name.startswith("cuda"):
            mine = [p for p in inspect.signature(member).parameters if p != "self"]
            assert mine in parameters(getattr(cudart, name)), name


KINDS = ["tensorrt", "tensorrt_rtx"]
NETWORK = Network(
    "net",
    (Tensor("sample", "float32", ("B", 3, "h")), Tensor("gain", "float32", ("B",))),
    (Tensor("out", "float32", ("B", 3, "h")),),
)
PROFILES = (Profile("small", {"B": (1, 2, 4), "h": (8, 8, 8)}), Profile("large", {"B": (1, 2, 4), "h": (16, 16, 16)}))
A, B = np.array([1, 2, 3], np.float16), np.array([0.5, 0, -1], np.float16)


class Rig:
    """A plan on disk and the machine that runs it."""

    def __init__(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.kind = folder, kind
        self.cuda = Cuda()
        self.double = Library(self.cuda, rtx=kind == "tensorrt_rtx")
        import cuda.bindings

        monkeypatch.setattr(cuda.bindings, "runtime", self.cuda)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        monkeypatch.setitem(sys.modules, kind, self.double)
        self.plan = folder / "net.plan"
        (folder / "weights").mkdir()
        save({"a.weight": A, "b.bias": B, "unused": A}, folder / "weights" / "net.safetensors")
        self.write()

    def write(self, *, embed: bool = False, record: dict[str, Any] | None = None, **plan: Any) -> None:
        """Write plan and record; keywords stand in place of what belongs there."""
        shapes = [{t.name: p.shapes(t) for t in NETWORK.inputs} for p in PROFILES]
        content = {
            "inputs": ["sample", "gain"], "outputs": ["out"], "profiles": shapes,
            "weights": {} if embed else {"a.weight": 3, "b.bias": 3}, **plan,
        }  # fmt: skip
        self.plan.write_text(json.dumps(content))
        info = PlanInfo(
            kind=self.kind, version=tensorrt_rtx.__version__, network="net", targets=("8.6", "8.9"),
            compatibility="none", precision="fp16", profiles=PROFILES,
            inputs={t.name: (t.dtype, t.shape) for t in NETWORK.inputs},
            outputs={t.name: (t.dtype, t.shape) for t in NETWORK.outputs},
            weights="embed" if embed else "strip", refit={"weights/net.safetensors": ("a.weight", "b.bias")},
            flags=("STRIP_PLAN",), plan_bytes=self.plan.stat().st_size, seconds=1.5, peak_bytes=1,
        )  # fmt: skip
        replace(info, **(record or {})).write(self.plan)

    def open(self, **options: Any) -> Any:
        options = {"device": "cuda", "precision": "fp16", **options}
        return engines.open_engine(self.kind, self.plan, NETWORK, **options)


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(tmp_path, request.param, monkeypatch)
    gc.freeze()  # or each collection would look through torch, if other tests brought it
    yield rig
    gc.collect()
    gc.unfreeze()
    assert not rig.cuda.memory, "device or pinned memory is still held"
    assert not rig.cuda.objects, "streams or graphs are still held"


def expected(sample: np.ndarray, gain: np.ndarray, a: np.ndarray = A, b: np.ndarray = B) -> np.ndarray:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return sample * gain[:, None, None] * a[:, None] + b[:, None]


def run(context: Any, seed: int, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sample, gain, out) of one run on random inputs."""
    rng = np.random.default_rng(seed)
    for array in context.inputs.values():
        array[...] = rng.standard_normal(array.shape)
    context.run(**options)
    return context.inputs["sample"].copy(), context.inputs["gain"].copy(), context.outputs["out"].copy()


def test_runs_copy_in_compute_and_copy_out_first_by_kernel_then_by_graph(rig: Rig):
    engine = rig.open()
    assert (engine.kind, engine.device, engine.network) == (rig.kind, "cuda", NETWORK)
    with engine.contexts.lease(B=2, h=8) as context:
        for i in range(4):
            sample, gain, out = run(context, seed=i)
            np.testing.assert_allclose(out, expected(sample, gain), rtol=1e-6)
    assert rig.cuda.calls.count("cudaGraphInstantiate") == 1
    assert rig.cuda.calls.count("cudaGraphLaunch") == 3


def test_addresses_are_fixed_and_arrays_outlive_their_context(rig: Rig):
    engine = rig.open()
    context = engine.context(B=1, h=8)
    before = {name: array.ctypes.data for name, array in context.outputs.items()}
    _, _, out = run(context, seed=1)
    view = context.outputs["out"]
    assert {name: array.ctypes.data for name, array in context.outputs.items()} == before
    del context
    gc.collect()
    np.testing.assert_array_equal(view, out)


def test_contexts_share_one_engine_and_take_the_profile_of_their_shape(rig: Rig):
    engine = rig.open()
    contexts = [engine.context(B=b, h=h) for b, h in ((1, 8), (4, 16), (2, 16))]
    for i, context in enumerate(contexts):
        sample, gain, out = run(context, seed=i)
        np.testing.assert_allclose(out, expected(sample, gain), rtol=1e-6)
    assert len(rig.double.opened) == 1
    with pytest.raises(InputError, match=r"fit a profile: small \(B 1-4, h 8\); large \(B 1-4, h 16\), got .*'h': 12"):
        engine.context(B=1, h=12)
    with pytest.raises(InputError, match="fit a profile"):
        engine.context(B=5, h=8)


def test_a_run_goes_to_the_callers_stream(rig: Rig):
    engine = rig.open()
    context = engine.context(B=1, h=8)
    own = rig.cuda.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)[1]
    for i in range(3):
        sample, gain, out = run(context, seed=i, stream=int(own))
        np.testing.assert_allclose(out, expected(sample, gain), rtol=1e-6)
    assert own.synchronised == 3
    rig.cuda.cudaStreamDestroy(own)


@pytest.mark.parametrize("how", ["asked", "breaks", "begin", "instantiate"])
def test_where_capture_fails_a_warning_says_so_once_and_runs_go_on(rig: Rig, how: str):
    if how == "asked":
        rig.double.capturable = False
        if rig.kind == "tensorrt":
            rig.write(breaks_capture=True)  # it cannot be asked
    elif how == "breaks":
        rig.write(breaks_capture=True)
    else:
        rig.cuda.fail["cudaStreamBeginCapture" if how == "begin" else "cudaGraphInstantiate"] = 0
    context = rig.open().context(B=2, h=8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(4):
            sample, gain, out = run(context, seed=i)
            np.testing.assert_allclose(out, expected(sample, gain), rtol=1e-6)
    assert [w.category for w in told] == [RuntimeWarning]
    assert "CUDA graph capture failed" in str(told[0].message) and "\n" not in str(told[0].message)
    assert "cudaGraphLaunch" not in rig.cuda.calls


def test_graphs_can_be_left_off(rig: Rig):
    cls = getattr(sys.modules["hotloop.engines.tensorrt"], engines.KINDS[rig.kind].cls)
    context = cls(rig.plan, NETWORK, graphs=False).context(B=1, h=8)
    for i in range(3):
        run(context, seed=i)
    assert "cudaStreamBeginCapture" not in rig.cuda.calls


def test_prepare_captures_the_graph_of_every_shape(rig: Rig):
    engine = rig.open()
    engine.prepare([{"B": 1, "h": 8}, {"B": 2, "h": 16}])
    assert rig.cuda.calls.count("cudaGraphInstantiate") == 2
    rig.cuda.calls.clear()
    with engine.contexts.lease(B=2, h=16) as context:
        sample, gain, out = run(context, seed=0)
    np.testing.assert_allclose(out, expected(sample, gain), rtol=1e-6)
    assert rig.cuda.calls == ["cudaGraphLaunch", "cudaStreamSynchronize"]


def test_patched_is_a_second_engine_and_the_first_stays_as_it_is(rig: Rig):
    engine = rig.open()
    context = engine.context(B=2, h=8)
    before = run(context, seed=3)[2]
    doubled = engine.patched({"a.weight": 2 * A.astype(np.float32)})
    again = doubled.patched({"b.bias": np.zeros(3, np.float32)})
    for other, a, b in ((doubled, 2 * A, B), (again, 2 * A, 0 * B)):
        sample, gain, out = run(other.context(B=2, h=8), seed=3)
        np.testing.assert_allclose(out, expected(sample, gain, a, b), rtol=1e-6)
    np.testing.assert_array_equal(run(context, seed=3)[2], before)
    assert len(rig.double.opened) == 3


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"c.weight": A}, "weights to replace must be net.plan's, got 'c.weight'"),
        ({"unused": A}, "got 'unused'"),
        ({"a.weight": np.ones((3, 1), np.float32)}, r"a\.weight must have the shape \(3,\), got \(3, 1\)"),
        ({"a.weight": np.full(3, np.nan, np.float32)}, "must be finite in HALF, got 'a.weight'"),
        ({"a.weight": np.full(3, 1e6, np.float32)}, "must be finite in HALF"),
    ],
)
def test_weights_that_cannot_be_replaced_are_refused(rig: Rig, tensors: dict[str, np.ndarray], rule: str):
    engine = rig.open()
    with pytest.raises(InputError, match=rule):
        engine.patched(tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [("HALF", 0), ("FLOAT", 0), ("BF16", 2**-8)])
def test_weights_are_given_in_the_dtype_that_the_plan_was_built_with(rig: Rig, dtype: str, tolerance: float):
    rig.write(dtype=dtype)
    patch = np.array([1 + 2**-9, -3.3, 1e-3], np.float32)
    for engine, a in ((rig.open(), A), (rig.open().patched({"a.weight": patch}), patch)):
        sample, gain, out = run(engine.context(B=1, h=8), seed=0)
        a = a.astype(np.float16) if dtype == "HALF" else a
        np.testing.assert_allclose(out, expected(sample, gain, a), rtol=1e-6 + tolerance, atol=tolerance)


def test_bfloat16_is_rounded_to_nearest_even():
    import torch

    from hotloop.engines.tensorrt import _converted

    value = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    value[:3] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0]  # halfway between two, both ways
    told = torch.from_numpy(value).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(_converted(value, "BF16"), told)


def test_a_plan_with_its_weights_inside_runs_but_takes_no_others(rig: Rig):
    rig.write(embed=True)
    (rig.folder / "weights" / "net.safetensors").unlink()
    engine = rig.open()
    sample, gain, out = run(engine.context(B=1, h=8), seed=0)
    np.testing.assert_allclose(out, sample * gain[:, None, None], rtol=1e-6)
    with pytest.raises(InputError, match="cannot be replaced: it holds them itself"):
        engine.patched({"a.weight": A})


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"kind": "onnx"}, "net.plan was built with onnx; build it again"),
        ({"version": "1.0.0"}, r"opens only with tensorrt\w* 1\.0\.0; build it again .*, got '1\.7"),
        ({"targets": ("8.0", "12.0")}, r"built for compute capability 8\.0, 12\.0; .*, got '8\.9'"),
        ({"plan_bytes": 7}, "must have 7 bytes"),
        ({"inputs": {"sample": ("float32", ("B", 3, "h"))}}, r"gain of net.plan must be \('float32', \('B',\)\)"),
        ({"outputs": {"out": ("float16", ("B", 3, "h"))}}, "out of net.plan must be"),
        ({"refit": {"weights/none.safetensors": ("a.weight",)}}, "no such file"),
        ({"refit": {"weights/net.safetensors": ("a.weight", "z")}}, "must hold every weight of net.plan, got 'z'"),
    ],
)
def test_a_plan_that_is_not_for_this_machine_is_refused_before_the_library_reads_it(
    rig: Rig, record: dict[str, Any], rule: str
):
    rig.write(record=record)
    with pytest.raises(BundleError, match=rule) as caught:
        rig.open()
    assert "\n" not in str(caught.value)
    assert not rig.double.opened


def test_another_device_or_precision_is_refused(rig: Rig):
    with pytest.raises(InputError, match="device must be cuda, got 'cpu'"):
        rig.open(device="cpu")
    with pytest.raises(InputError, match=r"precision of net\.plan is fp16, got 'fp32'"):
        rig.open(precision="fp32")


@pytest.mark.parametrize(
    ("plan", "rule"),
    [
        ({"inputs": ["sample"]}, "inputs of net.plan must be"),
        ({"outputs": ["out", "more"]}, "outputs of net.plan must be"),
        ({"profiles": []}, "must have 2 profiles, got 0"),
        ({"weights": {"a.weight": 3, "b.bias": 3, "z": 1}}, "asks for a weight its record lacks, got 'z'"),
        ({"weights": {"a.weight": 3, "b.bias": 4}}, r"b\.bias must have 4 values, got 3"),
    ],
)
def test_a_plan_that_is_not_what_its_record_says_is_refused(rig: Rig, plan: dict[str, Any], rule: str):
    rig.write(**plan)
    with pytest.raises(BundleError, match=rule):
        rig.open()


def test_profiles_other_than_the_records_are_refused(rig: Rig):
    swapped = [{t.name: p.shapes(t) for t in NETWORK.inputs} for p in reversed(PROFILES)]
    rig.write(profiles=swapped)
    with pytest.raises(BundleError, match=r"sample in profile small of net\.plan must be \(\(1, 3, 8\)"):
        rig.open()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"kind": 1}', '{"profiles": [{"name": "x", "dims": {"B": [3, 2, 1]}}]}']
)
def test_a_malformed_record_is_refused(rig: Rig, text: str):
    PlanInfo.path_of(rig.plan).write_text(text)
    with pytest.raises(BundleError, match=r"net\.plan\.json is not the record of a plan"):
        rig.open()
    PlanInfo.path_of(rig.plan).unlink()
    with pytest.raises(BundleError, match=r"readable net\.plan\.json beside it"):
        rig.open()


@pytest.mark.parametrize("file", ["/etc/w.safetensors", "weights/net.bin", "a\\b.safetensors"])
def test_weights_are_only_taken_from_relative_safetensors_files(rig: Rig, file: str):
    rig.write(record={"refit": {file: ("a.weight",)}})
    with pytest.raises(BundleError, match="relative safetensors file"):
        rig.open()


@pytest.mark.parametrize(
    "function", ["cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize"]
)
@pytest.mark.parametrize("after", [0, 1])
def test_a_failing_cuda_call_is_one_line_and_frees_everything(rig: Rig, function: str, after: int):
    engine = rig.open()
    rig.cuda.fail[function] = after
    with pytest.raises(HotloopError, match=rf"{function}.* failed: out of memory") as caught:
        for _ in range(2):
            context = engine.context(B=1, h=8)
            run(context, seed=0)
    assert "\n" not in str(caught.value)
    rig.cuda.fail.clear()
    del caught  # it holds the frames that hold the context; the fixture then looks for leaks


def test_the_replay_of_a_graph_can_fail_too(rig: Rig):
    context = rig.open().context(B=1, h=8)
    run(context, seed=0)
    rig.cuda.fail["cudaGraphLaunch"] = 0
    with pytest.raises(HotloopError, match="cudaGraphLaunch failed: out of memory"):
        context.run()
    rig.cuda.fail.clear()


# What only TensorRT for RTX has.


@pytest.fixture
def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, "tensorrt_rtx", monkeypatch)


def test_compiled_code_is_kept_and_read_again(rtx: Rig):
    cache = rtx.folder / "cache"
    run(rtx.open(cache=cache).context(B=1, h=8), seed=0)
    (file,) = cache.iterdir()
    assert file.name == f"net-fp16-{tensorrt_rtx.__version__}-sm89.jit" and file.read_bytes() == b"code"
    rtx.double.compiled = b"more"
    run(rtx.open(cache=cache).context(B=1, h=8), seed=0)
    assert file.read_bytes() == b"codemore"
    rtx.double.unstable, rtx.double.compiled = True, b"other"
    run(rtx.open(cache=cache).context(B=1, h=8), seed=0)
    assert file.read_bytes() == b"other"
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_a_warning(rtx: Rig):
    (rtx.folder / "cache").write_text("a file where the folder should be")
    context = rtx.open(cache=rtx.folder / "cache" / "x").context(B=1, h=8)
    with pytest.warns(RuntimeWarning, match="compiled code is not kept"):
        sample, gain, out = run(context, seed=0)
    np.testing.assert_allclose(out, expected(sample, gain), rtol=1e-6)


def test_a_plan_that_the_library_finds_invalid_is_refused_with_its_reasons(rtx: Rig):
    rtx.write(validity="INVALID")
    with pytest.raises(BundleError, match=r"net\.plan is not valid here \(old cuda driver\); build it again"):
        rtx.open()
    assert not rtx.double.opened
    rtx.write(validity="SUBOPTIMAL")
    with pytest.warns(RuntimeWarning, match="not the best for this machine: old cuda driver"):
        rtx.open()


@pytest.mark.parametrize(
    ("capability", "plain", "for_rtx"),
    [((8, 9), True, True), ((12, 0), True, True), ((7, 5), True, True), ((9, 0), True, False), ((7, 0), False, False),
     ((0, 0), False, False)],
)  # fmt: skip
def test_devices_are_those_the_library_runs_on(
    capability: tuple[int, int], plain: bool, for_rtx: bool, rtx: Rig, monkeypatch: pytest.MonkeyPatch
):
    rtx.cuda.capability = capability
    assert TensorRtEngine.devices() == (["cuda"] if plain else [])
    assert TensorRtRtxEngine.devices() == (["cuda"] if for_rtx else [])


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_a_machine_without_a_driver_has_no_device():
    assert engines.devices("tensorrt_rtx") == []
    assert engines.version("tensorrt_rtx") == tensorrt_rtx.__version__


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_a_real_plan_is_refused_here_in_one_line(built: Any):
    plan, _, _ = built["vae_encoder"]
    with pytest.raises(HotloopError, match=r"\[engine\.tensorrt\] cudaGetDeviceCount failed: .*driver") as caught:
        engines.open_engine("tensorrt_rtx", plan, NETWORKS["vae_encoder"], device="cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_the_real_library_gets_as_far_as_it_can_without_a_gpu(built: Any, monkeypatch: pytest.MonkeyPatch):
    """It takes the mapped plan and says in one line what is missing: only then does the double take over."""
    monkeypatch.setattr("hotloop.engines.tensorrt.compute_capability", lambda: (8, 9))
    plan, _, _ = built["vae_encoder"]
    with pytest.raises(BundleError, match=r"vae_encoder\.plan is not valid here"):
        TensorRtRtxEngine(plan, NETWORKS["vae_encoder"])
    monkeypatch.setattr(TensorRtRtxEngine, "_check_validity", lambda self, plan: None)
    with pytest.raises(BundleError, match=r"does not open .*deserializeCudaEngine.*driver") as caught:
        TensorRtRtxEngine(plan, NETWORKS["vae_encoder"])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(GPU, reason="made-up addresses must not reach a GPU")
def test_the_real_cuda_takes_arguments_of_the_types_that_the_engine_gives():
    """Each call fails for want of a driver, none for a type; streams and graphs are the classes CUDA hands out."""
    stream, graph, replay = cudart.cudaStream_t(64), cudart.cudaGraph_t(64), cudart.cudaGraphExec_t(64)
    host, kinds, modes = np.zeros(4, np.float32), cudart.cudaMemcpyKind, cudart.cudaStreamCaptureMode
    for name, *args in (
        ("cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking), ("cudaMalloc", 16), ("cudaHostAlloc", 16, 0),
        ("cudaMemcpyAsync", 64, host.ctypes.data, host.nbytes, kinds.cudaMemcpyHostToDevice, stream),
        ("cudaMemcpyAsync", host.ctypes.data, 64, host.nbytes, kinds.cudaMemcpyDeviceToHost, int(stream)),
        ("cudaStreamSynchronize", stream), ("cudaStreamSynchronize", int(stream)), ("cudaFree", 64),
        ("cudaStreamBeginCapture", stream, modes.cudaStreamCaptureModeThreadLocal), ("cudaStreamEndCapture", stream),
        ("cudaGraphInstantiate", graph, 0), ("cudaGraphLaunch", replay, stream), ("cudaGraphLaunch", replay, 64),
        ("cudaGraphDestroy", graph), ("cudaGraphExecDestroy", replay), ("cudaFreeHost", 64), ("cudaGetLastError",),
        ("cudaStreamDestroy", stream),
        ("cudaDeviceGetAttribute", cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor, 0),
    ):  # fmt: skip
        error, *_ = getattr(cudart, name)(*args)
        assert int(error) == cudart.cudaError_t.cudaErrorInsufficientDriver, name


def test_what_the_export_asks_of_the_library_is_there():
    """build_plan runs for real above, except what belongs to plans without weights and to TensorRT's timings."""
    flags = tensorrt_rtx.BuilderFlag.__members__
    assert {"REFIT_INDIVIDUAL", "STRIP_PLAN", "TF32", "REQUIRE_USER_ALLOCATION"} <= set(flags)
    levels = tensorrt_rtx.HardwareCompatibilityLevel.__members__
    assert {"NONE", "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"} == set(levels)
    assert isinstance(tensorrt_rtx.IBuilderConfig.hardware_compatibility_level, property)
    assert parameters(tensorrt_rtx.IBuilderConfig.create_timing_cache) == [["serialized_timing_cache"]]
    assert parameters(tensorrt_rtx.IBuilderConfig.set_timing_cache) == [["cache", "ignore_mismatch"]]
    assert isinstance(tensorrt_rtx, ModuleType) and hasattr(tensorrt_rtx.ITimingCache, "serialize")
