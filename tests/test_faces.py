"""The networks around a model of faces: in every engine what they are in torch, and what their tables say."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import face_nets, randomise, run
from PIL import Image
from typer.testing import CliRunner

import hotloop
from hotloop import image as images
from hotloop.bundle import Bundle
from hotloop.bundle.describe import describe
from hotloop.cli import app
from hotloop.engines import open_engine
from hotloop.errors import BundleError, InputError
from hotloop.evaluation.certificates import verify
from hotloop.image.alpha import straight
from hotloop.live import AnimationSession, Recording
from hotloop.live import Keyframe as KeyframePicture
from hotloop.live.animation import AnimatorNetworks, replay_animation
from hotloop.nets import rewrites
from hotloop.nets.animator import REACH, Animator, Keyframe
from hotloop.nets.base import Net
from hotloop.nets.clip import CLIPText
from hotloop.nets.motions import Motions
from hotloop.nets.parts import PARTS
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE
from hotloop.spec import Family, family
from hotloop.weights import Weights
from hotloop_export.bundle import write_bundle
from hotloop_export.onnx import export_graph, graph_name, reference
from hotloop_export.portraits import chain, sees, shown_in
from hotloop_export.recipe import Recipe, parse_target
from hotloop_export.sources import open_source
from hotloop_export.store import Store
from hotloop_kernels import warp_blend

TOKENIZER = Path(__file__).resolve().parents[1] / "models" / "avatar" / "tokenizer"

NAMES = ("segmenter", "upscaler", "clip_text", "clip_image", "animator_encoder", "animator", "motions", "critic")


UNET = {
    "sample_size": 32, "layers_per_block": 1, "cross_attention_dim": 128, "block_out_channels": [32, 64, 96, 96],
    "attention_head_dim": 4, "norm_num_groups": 16,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


class Made:
    """Tiny networks in their folders, their graphs, and what they see on one picture of noise in two sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nets = folder, face_nets()
        for name, net in self.nets.items():
            net.save(folder / name, dtype=torch.float32)
        constants: dict[str, Any] = {}
        for net in self.nets.values():
            constants |= net.constants()
        self.row: Family = family("avatar").with_constants({"faces": constants})

    def net(self, name: str) -> Net:
        return self.nets[PARTS[name].folder]

    def graph(self, name: str) -> Path:
        file = self.folder / PARTS[name].folder / graph_name(name)
        if not file.exists():
            export_graph(self.net(name), self.row.networks[name], file)
        return file

    def inputs(self, name: str, width: int, height: int, n: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """As the exporter has them, of `n` smooth pictures; an earlier network's outputs are torch's."""
        rng = np.random.default_rng(width + n)
        rough = torch.from_numpy(rng.uniform(-1, 1, (n, 3, 6, 6)).astype(np.float32))
        pictures = torch.nn.functional.interpolate(rough, size=(height, width), mode="bicubic").numpy()
        made: dict[str, dict[str, np.ndarray]] = {}
        for one in shown_in(self.row, NAMES):
            network = self.row.networks[one]
            given, dims = sees(network, self.row, pictures, made, rng=rng, vocabulary=50)
            if one == name:
                break
            made[one] = reference(self.net(one), network, given)
        return given, dims


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("faces"))


@pytest.mark.parametrize("kind", ["onnx", "openvino", "native"])
@pytest.mark.parametrize("name", NAMES)
def test_every_engine_gives_what_the_torch_module_gives(made: Made, name: str, kind: str) -> None:
    """Within 1e-5 of the largest value; at sides that are no multiple of anything, where sides are free."""
    pytest.importorskip("openvino" if kind == "openvino" else "onnxruntime")
    network = made.row.networks[name]
    file = made.graph(name) if kind != "native" else made.folder / PARTS[name].folder
    engine = open_engine(kind, file, network, threads=1)
    for width, height, n in ((32, 48, 2), (29, 35, 1)):
        inputs, dims = made.inputs(name, width, height, n)
        expected = reference(made.net(name), network, inputs)
        got = run(engine, inputs, dims)
        for tensor in network.outputs:
            want = expected[tensor.name]
            assert want.std() > 1e-3 or want.size == 1, tensor.name
            assert np.abs(got[tensor.name] - want).max() <= 1e-5 * np.abs(want).max(), tensor.name


# What they give.


def test_the_matte_bounds_what_is_enlarged_and_parts_share_out_each_pixel(made: Made) -> None:
    inputs, _ = made.inputs("upscaler", 32, 48, 2)
    rgba = made.net("upscaler").enlarge(*map(torch.from_numpy, inputs.values())).detach()  # type: ignore[operator]
    raw = made.net("upscaler")(*map(torch.from_numpy, inputs.values())).detach()
    assert rgba.shape == (2, 4, 192, 128) and raw.max() > 1 and raw.min() < 0
    assert rgba.min() == 0 and rgba[:, 3].max() == 1 and torch.all(rgba[:, :3] <= rgba[:, 3:])
    inside = (raw[:, :3] >= 0) & (raw[:, :3] <= raw[:, 3:]) & (raw[:, 3:] <= 1)
    assert inside.float().mean() > 0.1 and torch.equal(rgba[:, :3][inside], raw[:, :3][inside])
    parts = reference(made.net("segmenter"), made.row.networks["segmenter"], {"image": inputs["rgb"]})["parts"]
    np.testing.assert_allclose(parts.sum(1), 1, atol=1e-6)


def test_the_animators_fields_are_activated_as_training_reads_them(made: Made) -> None:
    """Against NumPy in float64: flows in pictures, mask and premultiplied colour in [0, 1]."""
    inputs, _ = made.inputs("animator", 32, 32, 2)
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    net = made.net("animator")
    assert isinstance(net, Animator)
    with torch.no_grad():
        key = Keyframe(
            (given["coarse"], given["middle"], given["fine"], given["finest"]), given["key_boxes"], given["held"],
            torch.empty(0), torch.empty(0),
        )  # fmt: skip
        raw = net.decoder(key, given["controls"], given["z"])
    got = reference(net, made.row.networks["animator"], inputs)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def expected(field: torch.Tensor) -> np.ndarray:
        f = field.numpy().astype(np.float64)
        alpha = sigmoid(f[:, 8:] - 4)
        return np.concatenate(
            [REACH * np.tanh(f[:, :4]), sigmoid(f[:, 4:5] - 2), sigmoid(f[:, 5:8] - 4) * alpha, alpha], axis=1
        )

    np.testing.assert_allclose(got["whole"], expected(raw.whole), atol=1e-6)
    inner = (..., slice(1, -1), slice(1, -1))
    for field, activated in zip(raw.parts, got["parts"].swapaxes(0, 1), strict=True):
        np.testing.assert_allclose(activated[inner], expected(field)[inner], atol=1e-6)


def test_the_outermost_nodes_of_a_part_are_the_pictures(made: Made) -> None:
    """Against NumPy's own reading of the grid: who draws a part in place of the picture sees no seam."""
    inputs, _ = made.inputs("animator", 32, 32, 2)
    got = reference(made.net("animator"), made.row.networks["animator"], inputs)
    whole, parts, boxes = (got[name].astype(np.float64) for name in ("whole", "parts", "boxes"))
    n, side = parts.shape[-1], whole.shape[-1]
    for image, part in np.ndindex(2, 2):
        x0, y0, x1, y1 = boxes[image, part]
        for row, column in [(0, k) for k in range(n)] + [(k, n - 1) for k in range(n)] + [(n - 1, 3), (5, 0)]:
            u, v = ((low + (k + 0.5) / n * (high - low)) * side - 0.5
                    for low, k, high in ((x0, column, x1), (y0, row, y1)))  # fmt: skip
            u, v = np.clip(u, 0, side - 1), np.clip(v, 0, side - 1)
            i, j = min(int(u), side - 2), min(int(v), side - 2)
            corners = whole[image, :, j : j + 2, i : i + 2]
            want = corners @ (1 - (u - i), u - i) @ (1 - (v - j), v - j)
            np.testing.assert_allclose(parts[image, part, :, row, column], want, atol=2e-6)
    assert np.abs(parts[:, :, :, 0] - parts[:, :, :, 1]).max() > 1e-3


def test_masks_that_are_hardly_there_leave_the_reveal_texture_unread(made: Made) -> None:
    """Below 1/2048 at every node, also at those that a part takes from the whole: any texture gives one frame."""
    inputs, _ = made.inputs("animator", 32, 32, 1)
    net = made.net("animator")
    assert isinstance(net, Animator)
    kept = copy.deepcopy(net)
    with torch.no_grad():
        for last in (kept.decoder.out, *kept.decoder.part_outs):
            last.weight[4], last.bias[4] = 0, -20
    got = reference(kept, made.row.networks["animator"], inputs)
    assert 0 < max(got["whole"][0, 4].max(), got["parts"][0, :, 4].max()) < 1 / 2048
    rng = np.random.default_rng(2)
    key, *textures = rng.integers(0, 256, (3, 48, 48, 4), np.uint8)
    drawn = [warp_blend([key, one], got["whole"][0], parts=got["parts"][0], boxes=got["boxes"][0]) for one in textures]
    assert np.array_equal(*drawn) and drawn[0].std() > 10


def test_a_session_animates_by_the_networks(made: Made) -> None:
    """Outside the parts against torch's interpolation and sampling of what the torch module says, to two levels; a
    session with them lives, turns, and replays to the same hashes."""
    engines = {
        name: open_engine("onnx", made.graph(name), made.row.networks[name], threads=1)
        for name in ("animator_encoder", "animator")
    }
    table = [["happy", 0.0, 1.0], ["headYaw", -25.0, 25.0], ["breath", 0.0, 1.0]]
    performer = AnimatorNetworks(engines, table)
    rng = np.random.default_rng(5)
    keyframes = []
    for _ in range(2):
        smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 4), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        rgba = np.array(smooth)
        rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
        keyframes.append(KeyframePicture(rgba, None, None, None))
    performance, vector = performer.prepare(keyframes[0]), np.array([0.4, -0.5, 1.0], np.float32)
    frame = performance.frame(vector, 1.5).draw(64)

    net = made.net("animator")
    assert isinstance(net, Animator)
    small = keyframes[0].rgba.reshape(32, 2, 32, 2, 4).mean((1, 3)) / 255
    with torch.no_grad():
        key = net.encoder(torch.from_numpy(small.transpose(2, 0, 1)[None].astype(np.float32)))
        z = torch.from_numpy(performance.z(1.5)[None])
        whole, _, boxes = net.animate(*key.maps, key.boxes, key.held, torch.from_numpy(vector[None]), z)
        flow = torch.nn.functional.interpolate(whole, size=(64, 64), mode="bilinear", align_corners=False)[0]
        at = (torch.arange(64) + 0.5) / 64
        base = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)

        def sampled(picture: np.ndarray, moved: torch.Tensor) -> torch.Tensor:
            source = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))
            where = 2 * (base + moved.permute(1, 2, 0)) - 1
            return torch.nn.functional.grid_sample(source, where[None], align_corners=False)[0]

        reveal = np.rint(key.reveal[0].permute(1, 2, 0).numpy() * 255)
        mixed = (1 - flow[4]) * sampled(keyframes[0].rgba, flow[:2]) + flow[4] * sampled(reveal, flow[2:4])
        want = 255 * flow[5:9] + (1 - flow[8]) * mixed
    outside = np.ones((64, 64), bool)
    for x0, y0, x1, y1 in boxes[0].numpy() * 64:
        outside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = False
    off = np.abs(frame - want.numpy().transpose(1, 2, 0)).max(-1)
    assert outside.mean() > 0.2 and off[outside].max() <= 2 and frame.std() > 10

    recording = Recording()
    session = AnimationSession(keyframes[0], performer, side=64, recording=recording, clock=lambda: 0.0)
    shown = [session.tick(i / 60) for i in range(4)]
    session.show(keyframes[1])
    shown += [session.tick(i / 60) for i in range(4, 20)]
    assert len({one.pixels.tobytes() for one in shown if one is not None}) > 12 and not session.stats()["faults"]
    assert len(replay_animation(recording, performer)) == session.stats()["frames"]["produced"]
    with pytest.raises(InputError, match="the animator's table must have 3 controls, got 32"):
        AnimatorNetworks(engines)
    with pytest.raises(InputError, match="a bundle must hold animator_encoder and animator"):
        AnimatorNetworks({}, table)


def test_a_text_is_read_at_its_first_end_token_whatever_follows(made: Made) -> None:
    net = made.net("clip_text")
    ids = torch.tensor([[3, 8, 9, 49, 49, 49], [3, 8, 9, 49, 49, 49]])
    ids[1, 4] = 7  # seen by none before it
    with torch.no_grad():
        embeds = net(ids)
        hidden = net.get_submodule("encoder")(ids[:1, :4])[0][:, 3]
        alone = torch.nn.functional.normalize(net.get_submodule("project")(hidden), dim=1)
    torch.testing.assert_close(embeds, alone.expand(2, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))


# Constants and calibration.


@pytest.mark.parametrize(
    ("faces", "said"),
    [(3, "faces must be a table"), ({"parts": 0}, "parts must be like 9"), ({"ears": 2}, "constants must be among"),
     ({"key_widths": [8, 8]}, "key_widths must be like")],
    ids=str,
)  # fmt: skip
def test_constants_that_do_not_fit_are_one_line(faces: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        family("avatar").with_constants({"faces": faces})


def test_calibration_follows_a_picture_through_the_networks(made: Made) -> None:
    picture = made.inputs("segmenter", 32, 32, 1)[0]["image"]
    rows, seen = made.row.networks, []

    def ask(name: str, inputs: Any, dims: dict[str, int]) -> dict[str, np.ndarray]:
        return reference(made.net(name), rows[name], inputs)

    for name, inputs in chain(made.row, NAMES, picture, ask, rng=np.random.default_rng(0), vocabulary=50):
        assert {key: array.dtype for key, array in inputs.items()} == {t.name: t.dtype for t in rows[name].inputs}
        seen.append((name, inputs))
    assert [name for name, _ in seen] == [*NAMES[:5], *["animator"] * 6, *NAMES[6:]]
    frames = [inputs for name, inputs in seen if name == "animator"]
    assert all(np.array_equal(frame["coarse"], frames[0]["coarse"]) for frame in frames)
    assert all(len({frame[name].tobytes() for frame in frames}) == 6 for name in ("controls", "z"))


# As a bundle.


def write_source(folder: Path, *, around: dict[str, Net] | None = None) -> Path:
    """A checkpoint of avatar's UNet, a narrow autoencoder and a short text encoder, of random weights, and networks
    around it."""
    words = json.loads((TOKENIZER / "vocab.json").read_text("utf-8"))
    text = {"vocab_size": len(words), "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "eos_token_id": words["<|endoftext|>"]}  # fmt: skip
    vae = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1, "scaling_factor": 0.7}
    torch.manual_seed(0)
    # The UNet as training begins: of unit gain throughout, bfloat16 would lose it.
    nets: dict[str, Net] = {
        "unet": UNet(UNET), "vae": randomise(AutoencoderKL(vae)), "text_encoder": randomise(CLIPText(text)),
    }  # fmt: skip
    for name, net in (nets | (around or {})).items():
        net.save(folder / name)
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
                 "beta_schedule": "scaled_linear", "skip_prk_steps": True}  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = json.loads((TOKENIZER / "vocab.json").read_text("utf-8"))
    tiny = {"encoder_block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3,
            "num_encoder_blocks": [1] * 3, "num_decoder_blocks": [1] * 3}  # fmt: skip
    around = face_nets(len(words)) | {"tiny_vae": randomise(TinyVAE(tiny))}
    return write_source(tmp_path_factory.mktemp("avatar") / "source", around=around)


def recipe(source: Path, *targets: str) -> Recipe:
    return Recipe(source, targets=tuple(parse_target(one, None) for one in targets),
                  defaults={"num_inference_steps": 2, "guidance_scale": 2.0})  # fmt: skip


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    """Of the native engine, which needs no graphs."""
    store = Store(source.parent / "cache")
    return write_bundle(recipe(source, "native:fp32"), source.parent / "bundle", store=store).path


def test_the_row_avatar_is_its_unets(source: Path) -> None:
    row, found = family("avatar"), rewrites.constants(UNet(UNET))
    assert {name: getattr(row, name) for name in found} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
    }
    opened = open_source(source)
    assert opened.family == "avatar"
    assert set(opened.tensors) == {"unet", "vae", "text_encoder", "tiny_vae", *face_nets()}
    assert open_source(source, family="avatar-tiny").family == "avatar-tiny"  # as asked: shapes allow both


def test_a_bundle_carries_what_lies_around_the_model_draws_and_verifies(bundle: Path, made: Made) -> None:
    opened = Bundle.open(bundle)
    assert opened.family.name == "avatar" and opened.family.default_size == (128, 128)
    assert opened.family.faces == made.row.faces
    assert {*NAMES, "tiny_vae_decoder"} <= set(opened.entries[0].networks)
    certificate, problem = verify(opened)["native-fp32"]
    assert problem is None and certificate is not None and set(NAMES) <= set(certificate["networks"])
    assert any("upscaler" in line for line in describe(opened))
    pipe = hotloop.load(bundle)
    image = pipe.txt2img("a girl with pink hair", seed=1).images[0]
    assert image.size == (128, 128)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    mask = run(pipe.networks["segmenter"], {"image": pixels}, pipe.family.dims(width=128, height=128, batch=1))["matte"]
    dims = pipe.family.dims(width=128, height=128, batch=1)
    rgba = run(pipe.networks["upscaler"], {"rgb": pixels, "matte": mask}, dims)["rgba"]
    assert rgba.shape == (1, 4, 512, 512)


@pytest.mark.long
def test_a_bundle_of_graphs_holds_its_bounds_on_every_cpu_engine(tmp_path: Path) -> None:
    """In int8 the networks around the model that it pays for; the UNet, random as it is here, stays in float."""
    nets = face_nets()
    source = write_source(tmp_path / "source", around={name: nets[name] for name in ("segmenter", "upscaler")})
    asked = replace(
        recipe(source, "onnx:fp32", "openvino:fp32", "openvino:int8"), rewrites=(),
        keep_fp32=("conv_in", "conv_out", "down_blocks", "mid_block", "up_blocks", "time_embedding"),
    )  # fmt: skip
    path = write_bundle(asked, tmp_path / "bundle", store=Store(tmp_path / "cache")).path
    opened = Bundle.open(path)
    found = verify(opened)
    assert set(found) == {"onnx-fp32", "openvino-fp32", "openvino-int8"}
    for name, (certificate, problem) in found.items():
        assert problem is None and certificate is not None and {"segmenter", "upscaler"} <= set(certificate["networks"])
        assert hotloop.load(path, engine=name).txt2img("a sad boy", seed=1).images[0].size == (128, 128)
    low = next(entry for entry in opened.entries if entry.name == "openvino-int8")
    assert low.precision_of("segmenter") == low.precision_of("upscaler") == "int8" != low.precision_of("unet")


def test_references_are_made_of_what_the_model_draws(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    stored = {name: Weights.open(opened.file(path)) for name, path in opened.manifest["parity"]["files"].items()}
    picture = stored["vae_decoder"]["out.image"].clip(-1, 1)
    np.testing.assert_array_equal(stored["segmenter"]["in.image"], picture)
    np.testing.assert_array_equal(stored["upscaler"]["in.rgb"], picture)
    np.testing.assert_array_equal(stored["upscaler"]["in.matte"], stored["segmenter"]["out.matte"])
    rgba = stored["animator_encoder"]["in.rgba"]
    assert rgba.shape == (2, 4, 32, 32) and np.all(rgba[:, :3] <= rgba[:, 3:] + 1e-6)
    for name in ("coarse", "middle", "fine", "finest", "key_boxes", "held"):
        np.testing.assert_array_equal(stored["animator"][f"in.{name}"], stored["animator_encoder"][f"out.{name}"])
    np.testing.assert_array_equal(stored["motions"]["in.action"].sum(1), 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "upscaler" / "diffusion_pytorch_model.safetensors").unlink(), "upscaler must hold"),
        (lambda folder: edit(folder / "segmenter", _class_name="UNet2DConditionModel"), "segmenter must be Segmenter"),
        (lambda folder: edit(folder / "upscaler", width=12), r"must have the shape \(12"),
        (lambda folder: edit(folder / "animator", controls=3), "config.json must describe it"),
        (
            lambda folder: Motions({"actions": ["a"], "personalities": ["b"], "controls": [["c", 0, 1]]}).save(
                folder / "motions"
            ),
            "controls must be alike in all networks",
        ),
    ],
    ids=["no weights", "another class", "other widths", "no list", "other controls"],
)
def test_a_folder_that_does_not_hold_its_network_is_one_line(
    source: Path, tmp_path: Path, change: Any, said: str
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    change(folder)
    with pytest.raises((BundleError, InputError), match=said) as raised:
        write_bundle(recipe(folder, "native:fp32"), tmp_path / "bundle", store=Store(tmp_path / "cache"))
    assert "\n" not in str(raised.value) and not (tmp_path / "bundle").exists()


def edit(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_a_drawing_is_cut_out_and_enlarged_by_the_bundles_networks_and_again_byte_for_byte(
    bundle: Path, tmp_path: Path
) -> None:
    pipe = hotloop.load(bundle)
    drawn = pipe.txt2img("a girl with pink hair", seed=1).images[0]
    pixels, dims = images.to_float(drawn), pipe.family.dims(width=128, height=128, batch=1)
    matte = run(pipe.networks["segmenter"], {"image": pixels}, dims)["matte"]
    rgba = run(pipe.networks["upscaler"], {"rgb": pixels, "matte": matte}, dims)["rgba"][0].transpose(1, 2, 0)
    cut = pipe.txt2img("a girl with pink hair", seed=1, alpha=True, upscale=4).images[0]
    assert cut.mode == "RGBA" and cut.size == (512, 512)
    np.testing.assert_array_equal(np.asarray(cut), straight(rgba))
    asked = ["a girl with pink hair", "--seed", "1", "--alpha", "--upscale", "4", "--model", bundle]
    for line in (["txt2img", *asked, "--out", tmp_path / "a.png"], ["rerun", tmp_path / "a.png"]):
        done = CliRunner().invoke(app, [str(word) for word in line])
        assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(cut))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a-rerun.png").read_bytes()
