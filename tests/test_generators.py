"""Generators as engines, against torch on every CPU engine, closed forms, and NumPy for somebody's ONNX file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from commands import hotloop
from helpers import randomise
from PIL import Image

import hotloop as package
from hotloop.bundle import Bundle, builtin
from hotloop.bundle.describe import describe
from hotloop.errors import BundleError, HotloopError, InputError
from hotloop.evaluation.certificates import verify
from hotloop.generator import load_generator, slerp

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

from hotloop.nets.generators import CVAE, DCGAN, Critic, MLPGenerator, StyleGenerator  # noqa: E402
from hotloop_export.bundle import add_engines  # noqa: E402
from hotloop_export.generators import Told, write_generator  # noqa: E402
from hotloop_export.recipe import Recipe, Target  # noqa: E402
from hotloop_export.store import Store  # noqa: E402

HAIR = ["black", "pink", "red"]
NETS = {
    "mlp": MLPGenerator({"z": 16, "classes": 3, "widths": [24, 20], "size": 8, "labels": {"hair": HAIR}}),
    "dcgan": DCGAN({"z": 12, "size": 16, "channels": 3, "widths": [8, 6]}),
    "cvae": CVAE({"z": 6, "classes": 2, "widths": [8, 6, 6]}),
    "style": StyleGenerator({"z": 8, "width": 10, "widths": [8, 8, 6]}),
}
ENGINES = ("onnx-fp32", "openvino-fp32", "native-fp32")
TARGETS = tuple(Target(*name.split("-")) for name in ENGINES)


def ready(net):
    """Random weights, statistics and counts."""
    randomise(net)
    generator = torch.Generator().manual_seed(1)
    for name, value in net.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(generator=generator)
        else:
            value.fill_(70_001)  # more than half precision holds
    return net


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """name -> the bundle of a network of random weights; the MLP's carries a critic."""
    torch.manual_seed(3)
    root = tmp_path_factory.mktemp("generators")
    made = {}
    for name, net in NETS.items():
        ready(net).save(root / name / "generator", dtype=torch.float32)
        if name == "mlp":
            critic = ready(Critic({"size": 8, "widths": [4, 6], "classes": 3}))
            critic.save(root / name / "critic", dtype=torch.float32)
            made["critic"] = critic
        targets = (*TARGETS, Target("openvino", "int8"), Target("onnx", "int8")) if name == "dcgan" else TARGETS
        write_generator(Recipe(root / name, targets), made.setdefault(name, root / f"{name}-bundle"),
                        store=Store(root / "cache"))  # fmt: skip
    return made


def drawn_by_torch(name: str, seeds, label: int = 1, z=None) -> np.ndarray:
    """float [N, C, H, W] of torch's own noise."""
    net = NETS[name]
    if z is None:
        z = torch.stack([torch.randn(net.z, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    told = [torch.full((len(z),), label)] if getattr(net, "classes", 0) else []
    with torch.no_grad():
        return net.draw(z, *told).numpy()


def options(name: str) -> dict:
    return {"label": 1} if getattr(NETS[name], "classes", 0) else {}


def watched(generator) -> list[np.ndarray]:
    """Every picture f32 [C, H, W] that it draws from now on."""
    seen, inner = [], generator._picture

    def picture(*given):
        seen.append(inner(*given))
        return seen[-1]

    generator._picture = picture
    return seen


def rgb8(x: np.ndarray) -> np.ndarray:
    """As the formats say: 0..1, times 255, rounded half to even."""
    return np.rint(np.clip(np.broadcast_to(x, (len(x), 3, *x.shape[2:])) / 2 + 0.5, 0, 1) * 255).transpose(0, 2, 3, 1)


# Engines.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETS)
def test_every_cpu_engine_draws_torchs_picture(bundles, name, engine):
    generator = load_generator(bundles[name], engine=engine)
    seen = watched(generator)
    pictures = generator.generate(5, 3, **options(name))
    expected = drawn_by_torch(name, (5, 6, 7))
    assert np.abs(np.stack(seen) - expected).max() < 1e-5
    assert expected.std() > 0.05, "the pictures are not flat"
    assert pictures.dtype == np.uint8 and np.abs(pictures - rgb8(expected)).max() <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "style"])
def test_an_image_of_a_batch_is_its_single_run_bit_for_bit(bundles, name, engine):
    generator = load_generator(bundles[name], engine=engine)
    batch = generator.generate(40, 5, **options(name))
    for i in range(5):
        np.testing.assert_array_equal(generator.generate(40 + i, **options(name))[0], batch[i])
    np.testing.assert_array_equal(generator.generate([44, 40], **options(name)), batch[[4, 0]])
    np.testing.assert_array_equal(load_generator(bundles[name], engine=engine).generate(40, 5, **options(name)), batch)


def test_every_certificate_holds_and_the_bundle_tells_what_it_is(bundles):
    for name in NETS:
        bundle = Bundle.open(bundles[name])
        assert all(made and not problem for made, problem in verify(bundle).values())
        assert f"z of {NETS[name].z}" in next(iter(describe(bundle)))
    entries = {entry.name: entry for entry in Bundle.open(bundles["dcgan"]).entries}
    for name in ("openvino-int8", "onnx-int8"):
        assert entries[name].precision_of("generator") == "int8"
        assert 0.99 <= entries[name].certificate["networks"]["generator"]["cosine"] < 0.9999999


def test_a_critic_scores_as_torchs(bundles):
    generator = load_generator(bundles["mlp"])
    pictures = generator.generate(1, 3, label=2)
    x = torch.from_numpy(pictures[..., 0]).float()[:, None] / 127.5 - 1
    with torch.no_grad():
        expected = bundles["critic"](x, torch.full((3,), 2)).numpy()
    np.testing.assert_allclose(generator.score(pictures, label=2), expected, atol=1e-5)
    with pytest.raises(InputError, match="critic"):
        load_generator(bundles["dcgan"]).score(pictures)


def test_counts_survive_half_precision(tmp_path):
    net = ready(DCGAN({"z": 4, "size": 8, "widths": [4]}))
    net.save(tmp_path)
    again = DCGAN.from_dir(tmp_path)
    assert int(again.body[0].num_batches_tracked) == 70_001
    assert not again.body[0].num_batches_tracked.is_floating_point()


def test_the_keys_are_those_that_training_writes():
    assert list(MLPGenerator({}).state_dict()) == [f"body.{i}.{k}" for i in (0, 2, 4, 6, 8) for k in ("weight", "bias")]
    assert {"dense.0.weight", "body.0.running_mean", "body.1.weight", "body.2.bias", "body.4.weight"} <= set(
        DCGAN({}).state_dict()
    )
    assert DCGAN({"size": 64, "channels": 3}).state_dict()["body.7.weight"].shape == (32, 3, 4, 4)
    assert {"mean", "noise", "constant", "mapper.4.bias", "blocks.3.style.weight"} <= set(
        StyleGenerator({}).state_dict()
    )


def test_modulation_of_inputs_is_modulation_of_weights():
    from hotloop.nets.generators import Modulated

    layer = Modulated(4, 6, 5)
    x, w = torch.randn(2, 4, 7, 7), torch.randn(2, 5)
    scale = layer.style(w)
    for i in range(2):
        weight = layer.weight * scale[i][None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = torch.nn.functional.conv2d(x[i : i + 1], weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x, w)[i : i + 1], expected, atol=1e-5, rtol=1e-4)


# Ways and styles.


def test_slerp_has_its_closed_form():
    rng = np.random.default_rng(0)
    a, b = np.linalg.qr(rng.standard_normal((9, 2)))[0].T
    for t in (0.0, 0.25, 0.7, 1.0):
        np.testing.assert_allclose(slerp(a, b, t), np.cos(t * np.pi / 2) * a + np.sin(t * np.pi / 2) * b, atol=1e-7)
    c = np.float32(rng.standard_normal((2, 9)))
    np.testing.assert_array_equal(slerp(*c, 0.0), c[0])
    np.testing.assert_array_equal(slerp(*c, 1.0), c[1])
    np.testing.assert_allclose(slerp(c[0], 3 * c[0], 0.5), 2 * c[0], rtol=1e-6)  # straight
    np.testing.assert_allclose(slerp(0 * c[0], c[1], 0.5), c[1] / 2, rtol=1e-6)


def test_a_way_ends_at_its_seeds_and_goes_along_the_circle(bundles):
    generator = load_generator(bundles["mlp"], engine="onnx")
    way = generator.interpolate(3, 9, 5, label=1)
    np.testing.assert_array_equal(way[[0, 4]], generator.generate([3, 9], label=1))
    a, b = (torch.randn(16, generator=torch.Generator().manual_seed(seed)).double() for seed in (3, 9))
    angle = torch.acos(a @ b / a.norm() / b.norm())
    middle = (a + b) * (angle / 2).sin() / angle.sin()
    expected = rgb8(drawn_by_torch("mlp", (), z=middle.float()[None]))
    assert np.abs(way[2] - expected[0]).max() <= 1


def test_truncation_draws_towards_the_mean_and_an_identity_is_mapped_once(bundles):
    generator, net = load_generator(bundles["style"], engine="native"), NETS["style"]
    runs = {"mapping": 0, "synthesis": 0}
    generator._run, inner = (
        lambda name, **given: runs.update({name: runs[name] + 1}) or inner(name, **given), generator._run,
    )  # fmt: skip
    z = torch.randn(1, net.z, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        w = net.mapping(z)
        for psi in (1.0, 0.5, 0.0):
            expected = rgb8(net.synthesis(net.mean + psi * (w - net.mean)).numpy())
            assert np.abs(generator.generate(2, truncation=psi) - expected).max() <= 1
    assert runs == {"mapping": 1, "synthesis": 3}
    assert np.array_equal(generator.generate(2, truncation=0), generator.generate(3, truncation=0))


# What is asked for.


def test_a_class_can_be_named(bundles):
    generator = load_generator(bundles["mlp"])
    assert generator.labels == {"hair": HAIR}
    pink = generator.generate(1, controls={"hair": "pink"})
    np.testing.assert_array_equal(pink, generator.generate(1, label=1))
    assert not np.array_equal(pink, generator.generate(1, label=2))
    np.testing.assert_array_equal(generator.generate(1, 2, label=[1, 0])[0], pink[0])


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("mlp", {}, "hair (black, pink, red)"),
        ("mlp", {"label": 3}, "0..2"),
        ("mlp", {"label": 1.5}, "0..2"),
        ("mlp", {"label": [1, 2]}, "one for each"),
        ("mlp", {"controls": {"hair": "green"}}, "black, pink, red"),
        ("mlp", {"controls": {"eyes": "green"}}, "among hair"),
        ("mlp", {"controls": {"hair": "pink"}, "label": 0}, "the same"),
        ("mlp", {"label": 0, "truncation": 0.5}, "mapping"),
        ("dcgan", {"label": 0}, "no classes"),
        ("dcgan", {"controls": {"hair": "pink"}}, "no controls"),
        ("dcgan", {"seed": -1}, "seed"),
        ("dcgan", {"seed": [1, 2], "count": 3}, "one for each"),
        ("dcgan", {"count": 0}, "count"),
        ("style", {"truncation": 1.5}, "0..1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bundles, name, given, says):
    with pytest.raises(InputError) as caught:
        load_generator(bundles[name], engine="onnx").generate(**given)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_each_loader_sends_the_others_bundle_on(bundles):
    with pytest.raises(InputError, match="load_generator"):
        package.load(bundles["mlp"])
    with pytest.raises(InputError, match=r"hotloop\.load"):
        package.load_generator(builtin())


# Folders that are no generator.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "config.json").write_text("{"), "JSON"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "BigGAN"}'), "MLPGenerator, DCGAN"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "MLPGenerator", "z": "many"}'), "z must be"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "DCGAN", "size": 30}'), "multiple of 8"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "DCGAN"}'), "lacks tensors of DCGAN"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "MLPGenerator", "z": 4, "widths": [6], '
                                                  '"size": 4, "labels": {"hair": ["a"]}}'), "takes no labels"),
        (lambda f: (f / "model.safetensors").rename(f / "model.txt"), "one .safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({})), "pickle"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_generator_gives_one_line_and_nothing_is_written(tmp_path, change, says):
    MLPGenerator({"z": 4, "widths": [6], "size": 4}).save(tmp_path / "source")
    change(tmp_path / "source")
    with pytest.raises(HotloopError) as caught:
        write_generator(Recipe(tmp_path / "source"), tmp_path / "out", store=Store(tmp_path / "cache"))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_of_checkpoints_and_foreign_critics_are_refused(tmp_path):
    source = tmp_path / "source"
    MLPGenerator({"z": 4, "widths": [6], "size": 4}).save(source / "generator")
    with pytest.raises(InputError, match="takes no vae"):
        write_generator(Recipe(source, vae="tiny"), tmp_path / "out", store=Store(tmp_path / "cache"))
    Critic({"size": 8}).save(source / "critic")
    with pytest.raises(BundleError, match="critic must see"):
        write_generator(Recipe(source), tmp_path / "out", store=Store(tmp_path / "cache"))
    assert not (tmp_path / "out").exists()


# Somebody's ONNX file.

Z, SIDE = 5, 4


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_onnx(file: Path, *, kind: str = "flat", batch: int | str = "N", **changes) -> Path:
    """A small generator of kind: flat (sigmoid, [N, 48]), deep (z [N, Z, 1, 1], a transposed convolution, tanh),
    embedded (a label through a table), hot (a one-hot condition) or steered (two numbers beside z)."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    value = helper.make_tensor_value_info
    pixels = 3 * SIDE**2
    inputs = [value("noise", 1, [batch, Z, 1, 1] if kind == "deep" else [batch, Z])]
    tables = {"w": weights(1, Z, pixels), "b": weights(2, pixels)}
    nodes = [helper.make_node("Gemm", ["noise", "w", "b"], ["h"])]
    out, shape, last = "h", [batch, pixels], "Sigmoid"
    if kind == "deep":
        tables = {"w": weights(1, Z, 3, SIDE, SIDE), "b": weights(2, 3)}
        nodes = [helper.make_node("ConvTranspose", ["noise", "w", "b"], ["h"])]
        shape, last = [batch, 3, SIDE, SIDE], "Tanh"
    elif kind == "embedded":
        inputs.append(value("y", 7, [batch]))
        tables["t"] = weights(3, 4, pixels)
        nodes += [helper.make_node("Gather", ["t", "y"], ["e"]), helper.make_node("Add", ["h", "e"], ["s"])]
        out = "s"
    elif kind in ("hot", "steered"):
        width = 4 if kind == "hot" else 2
        inputs.append(value("c", 1, [batch, width]))
        tables["t"] = weights(3, width, pixels)
        nodes += [helper.make_node("MatMul", ["c", "t"], ["e"]), helper.make_node("Add", ["h", "e"], ["s"])]
        out = "s"
    nodes.append(helper.make_node(last, [out], ["pixels"]))
    outputs = [value("pixels", 1, shape)]
    tables |= changes.get("tables", {})
    if changes.get("second"):
        nodes.append(helper.make_node("Identity", ["h"], ["more"]))
        outputs.append(value("more", 1, shape))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [tensor(array, name) for name, array in tables.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    external = changes.get("external")
    onnx.save(model, str(file), save_as_external_data=bool(external), location=external, size_threshold=0)
    return file


def by_numpy(kind: str, z: np.ndarray, told: np.ndarray | None = None) -> np.ndarray:
    """[C, H, W] in [-1, 1], in float64."""
    z = z.astype(np.float64)
    if kind == "deep":
        return np.tanh(np.einsum("z,zchw->chw", z, weights(1, Z, 3, SIDE, SIDE)) + weights(2, 3)[:, None, None])
    h = z @ weights(1, Z, 48) + weights(2, 48)
    if told is not None:
        h = h + told @ weights(3, len(told), 48)
    return (2 / (1 + np.exp(-h)) - 1).reshape(3, SIDE, SIDE)


FLAT = {"value_range": "0,1", "size": (SIDE, SIDE)}
KINDS = {
    "flat": (Told(**FLAT), {}, None),
    "deep": (Told("-1,1"), {}, None),
    "embedded": (Told(**FLAT, labels={"hair": ["a", "b", "c", "d"]}), {"controls": {"hair": "c"}}, np.eye(4)[2]),
    "hot": (Told(**FLAT, labels=4), {"label": 3}, np.eye(4)[3]),
    "steered": (Told(**FLAT, controls=("smile", "gaze")), {"controls": {"gaze": "-0.5"}}, np.array([0, -0.5])),
    "steered unnamed": (Told(**FLAT), {"controls": {"c0": 2}}, np.array([2, 0])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_somebodys_onnx_file_draws_as_numpy_does(tmp_path, kind):
    told, asked, condition = KINDS[kind]
    kind = kind.split()[0]
    batch, external = (1, "big.bin") if kind in ("deep", "hot") else ("N", None)
    file = write_onnx(tmp_path / "my.onnx", kind=kind, batch=batch, external=external)
    out = tmp_path / "out"
    store = Store(tmp_path / "cache")
    write_generator(Recipe(file, TARGETS[:1]), out, told, store=store)
    file.unlink()
    add_engines(out, TARGETS[1:2], store=store)
    for engine in ENGINES[:2]:
        generator = load_generator(out, engine=engine)
        seen = watched(generator)
        generator.generate(8, 2, **asked)
        for seed, picture in zip((8, 9), seen, strict=True):
            z = torch.randn(Z, generator=torch.Generator().manual_seed(seed)).numpy()
            assert np.abs(picture - by_numpy(kind, z, condition)).max() < 1e-5
    if external:
        sources = json.loads((out / "manifest.json").read_text())["sources"]
        assert [source["name"] for source in sources] == ["my.onnx", "big.bin"]


def outside(folder: Path) -> Path:
    file = write_onnx(folder / "my.onnx", external="w.bin")
    (folder / "w.bin").rename(folder.parent / "w.bin")
    model = onnx.load(str(file), load_external_data=False)
    for one in model.graph.initializer:
        one.external_data[0].value = "../w.bin"
    file.write_bytes(model.SerializeToString())
    return file


def nowhere(folder: Path) -> Path:
    file = write_onnx(folder / "my.onnx", external="w.bin")
    (folder / "w.bin").unlink()
    return file


def raw(folder: Path, data: bytes) -> Path:
    (folder / "my.onnx").write_bytes(data)
    return folder / "my.onnx"


@pytest.mark.parametrize(
    ("make", "told", "says"),
    [
        (lambda f: raw(f, b"no graph at all"), Told("0,1"), "valid ONNX"),
        (lambda f: raw(f, pickle.dumps({"a": 1})), Told("0,1"), "valid ONNX"),
        (lambda f: raw(f, b""), Told("0,1"), "ONNX"),
        (outside, Told(**FLAT), "beside it"),
        (nowhere, Told(**FLAT), "not there"),
        (lambda f: write_onnx(f / "my.onnx"), Told(size=(4, 4)), "--range: -1,1 or 0,1"),
        (lambda f: write_onnx(f / "my.onnx"), Told("0,255", (4, 4)), "--range: -1,1 or 0,1"),
        (lambda f: write_onnx(f / "my.onnx", kind="deep"), Told("0,1"), "as --range says"),
        (lambda f: write_onnx(f / "my.onnx"), Told("0,1"), "--size WIDTHxHEIGHT"),
        (lambda f: write_onnx(f / "my.onnx"), Told("0,1", (5, 4)), "must fit the 48"),
        (lambda f: write_onnx(f / "my.onnx", kind="deep"), Told("-1,1", (8, 8)), "leave --size out"),
        (lambda f: write_onnx(f / "my.onnx", batch=4), Told(**FLAT), "batch"),
        (lambda f: write_onnx(f / "my.onnx", second=True), Told(**FLAT), "one output"),
        (lambda f: write_onnx(f / "my.onnx", kind="embedded"), Told(**FLAT), "--labels"),
        (lambda f: write_onnx(f / "my.onnx"), Told(**FLAT, labels=3), "no label"),
        (lambda f: write_onnx(f / "my.onnx", kind="embedded"), Told(**FLAT, labels=7), "does not run"),
        (lambda f: write_onnx(f / "my.onnx", kind="steered"), Told(**FLAT, controls=("a",)), "as many"),
        (lambda f: write_onnx(f / "my.onnx", tables={"b": np.full(48, np.nan, np.float32)}), Told(**FLAT), "finite"),
    ],
)
def test_a_bad_onnx_file_gives_one_line_and_nothing_is_written(tmp_path, make, told, says):
    (tmp_path / "in").mkdir()
    file = make(tmp_path / "in")
    with pytest.raises(HotloopError) as caught:
        write_generator(Recipe(file), tmp_path / "out", told, store=Store(tmp_path / "cache"))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_becomes_no_engine_that_needs_a_class(tmp_path):
    with pytest.raises(InputError, match="onnx and openvino"):
        write_generator(Recipe(write_onnx(tmp_path / "my.onnx"), TARGETS), tmp_path / "out", Told(**FLAT))


# The commands.


def test_generate_writes_sheets_and_single_pictures(bundles, tmp_path):
    generator = load_generator(bundles["mlp"])
    line = ["generate", bundles["mlp"], "--seed", "4", "--controls", "hair=pink"]
    done = hotloop(*line, "--count", "3", "--interpolate", "4", "--output", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 12 - 4, 4 * 12 - 4, 3)  # a way is a row; pictures of 8, gaps of 4
    for row in range(2):
        way = generator.interpolate(4 + row, 5 + row, 4, label=1)
        for i in range(4):
            np.testing.assert_array_equal(sheet[row * 12 :, i * 12 :][:8, :8], way[i])
    done = hotloop(*line, "--count", "2", "--output", "single", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seeds"] == [4, 5]
    for seed in (4, 5):
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "single" / f"{seed}.png")), generator.generate(seed, label=1)[0]
        )


def test_bad_commands_end_in_one_line(bundles, tmp_path):
    from hotloop.cli import generators as command

    for given, says in (
        ({"controls": ["hair"]}, "NAME=VALUE"), ({"controls": ["hair=pink,hair=red"]}, "once"),
        ({"output": tmp_path / "a.bmp"}, ".webp"), ({"count": 1, "interpolate": 3}, "two ends"),
        ({"interpolate": 1}, "interpolate"), ({"output": bundles["mlp"] / "manifest.json" / "a.png"}, "written"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            command.generate(bundles["mlp"], **({"output": tmp_path / "a.png"} | given))
    file = write_onnx(tmp_path / "my.onnx", kind="deep")
    done = hotloop("export", file, "--out", "made", cwd=tmp_path, HOTLOOP_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("hotloop: [export]") and "--range" in done.stderr
    done = hotloop("export", file, "--out", "made", "--range=-1,1", cwd=tmp_path, HOTLOOP_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert load_generator(tmp_path / "made").generate(1).shape == (1, SIDE, SIDE, 3)
    assert not list(tmp_path.glob("a.*"))
