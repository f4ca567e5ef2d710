"""Bundles made from a random avatar-tiny-shaped checkpoint that stock diffusers wrote."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import onnx
import pytest
import torch
import transformers
import typer
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from typer.testing import CliRunner

from hotloop.bundle import Bundle
from hotloop.errors import BundleError, InputError
from hotloop.nets.unet import UNet
from hotloop.nets.vae import TinyVAE
from hotloop.spec import family
from hotloop_export import bundle as bundle_module
from hotloop_export.bundle import write_bundle
from hotloop_export.cli import export
from hotloop_export.onnx import PARTS, difference, export_network, load_part, reference, sample_inputs

# Making the bundle takes half a minute: one worker makes it once.
pytestmark = pytest.mark.xdist_group("export")

TOLERANCE = 1e-4
ROW = family("avatar-tiny")
SIZES = [(64, 64, 1, 77), (76, 52, 3, 20)]  # width, height, batch, tokens; the second has odd latents


def randomise(module: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.normal_(generator=generator)
            p.mul_(p[0].numel() ** -0.5 if p.ndim > 1 and "embedding." not in name else 0.3)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1)
    return module.eval()


def write_tokenizer(folder: Path) -> int:
    """CLIP's byte-level files with one merge; returns the size of the vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "hi</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh i</w>\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": "<|endoftext|>"}  # fmt: skip
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as stock diffusers saves it, in float32, its tokenizer as CLIP ships it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "source"
    vocabulary = write_tokenizer(folder / "tokenizer")
    text = transformers.CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(64, 96, 128), layers_per_block=1, attention_head_dim=4,
        cross_attention_dim=128, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 48, 64), norm_num_groups=8, sample_size=64, scaling_factor=0.9,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    randomise(unet).save_pretrained(folder / "unet")
    randomise(vae).save_pretrained(folder / "vae")
    randomise(transformers.CLIPTextModel(text)).save_pretrained(folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "LICENSE").write_text("the checkpoint's own terms\n")
    return folder


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    defaults = {"num_inference_steps": 20, "guidance_scale": 4.0}
    return write_bundle(source, source.parent / "bundle", family="avatar-tiny", defaults=defaults)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_graph_in_onnxruntime_equals_the_torch_module(made: Path, name: str, size: tuple[int, ...]) -> None:
    width, height, batch, tokens = size
    part, network = PARTS[name], ROW.networks[name]
    inputs = sample_inputs(network, ROW.dims(width=width, height=height, batch=batch, tokens=tokens), seed=1, ids=515)
    expected = reference(load_part(made, part), part, network, inputs)
    assert all(value.std() > 0.02 for value in expected.values())
    assert difference(made / part.folder / part.graph, inputs, expected) <= TOLERANCE


@pytest.mark.parametrize("name", PARTS)
def test_graph_holds_no_weights_and_nothing_of_this_machine(made: Path, name: str) -> None:
    part = PARTS[name]
    file = made / part.folder / part.graph
    raw = file.read_bytes()
    assert len(raw) < 400_000
    for word in (b"site-packages", b"stack_trace", str(made.parent).encode(), str(Path.home()).encode() + b"/"):
        assert word not in raw
    graph = onnx.load(file, load_external_data=False).graph
    inline = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(t.ByteSize() for t in inline) < 20_000
    stored = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    beside = {t.name: {e.key: e.value for e in t.external_data} for t in stored}
    assert {entry["location"] for entry in beside.values()} == {f"{load_part(made, part).stem}.safetensors"}
    # The slices are the tensors of those names.
    weights = load_file(made / part.folder / f"{load_part(made, part).stem}.safetensors")
    data = (made / part.folder / f"{load_part(made, part).stem}.safetensors").read_bytes()
    assert name.startswith("vae") or set(beside) == set(weights)
    for key, entry in beside.items():
        begin = int(entry["offset"])
        assert data[begin : begin + int(entry["length"])] == weights[key].numpy().tobytes(), key


def test_the_vae_is_stored_once_for_both_halves(made: Path) -> None:
    assert sorted(p.name for p in (made / "vae").iterdir()) == [
        "config.json", "decoder.onnx", "diffusion_pytorch_model.safetensors", "encoder.onnx"
    ]  # fmt: skip


def test_exporting_again_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    part = PARTS["vae_decoder"]
    shutil.copytree(made / "vae", tmp_path / "elsewhere" / "vae")
    again = tmp_path / "elsewhere" / "vae" / part.graph
    again.unlink()
    export_network(load_part(tmp_path / "elsewhere", part), part, ROW.networks["vae_decoder"], again)
    assert again.read_bytes() == (made / "vae" / part.graph).read_bytes()


@torch.no_grad()
def test_stock_diffusers_draws_from_the_bundle(made: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(made)
    assert pipe.safety_checker is None
    assert pipe.text_encoder.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    image = pipe("hi", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    part, network = PARTS["unet"], ROW.networks["unet"]
    inputs = sample_inputs(network, ROW.dims(width=64, height=48, batch=2), seed=2, ids=9)
    expected = reference(load_part(made, part), part, network, inputs)["out"]
    out = pipe.unet(*(torch.from_numpy(inputs[t.name]) for t in network.inputs)).sample
    assert abs(out.numpy() - expected).max() <= TOLERANCE
    ids = torch.arange(20)[None]
    text = load_part(made, PARTS["text_encoder"])
    assert (pipe.text_encoder(ids).last_hidden_state - text(ids)[0]).abs().max() <= TOLERANCE


def test_the_weights_are_the_checkpoints_own_rounded_to_half(source: Path, made: Path) -> None:
    for folder in ("unet", "vae"):
        ours = load_file(made / folder / "diffusion_pytorch_model.safetensors")
        theirs = load_file(source / folder / "diffusion_pytorch_model.safetensors")
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key].half()) for key in theirs)


def test_the_manifest_seals_every_file(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    on_disk = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == on_disk
    assert {"LICENSE", "tokenizer/vocab.json", "scheduler/scheduler_config.json", "unet/model.onnx"} <= on_disk
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    assert str(made.parent) not in json.dumps(manifest)


def test_the_manifest_carries_the_checkpoints_constants_and_certificate(made: Path) -> None:
    bundle = Bundle.open(made)
    assert (bundle.family.scaling_factor, bundle.family.vae_factor, bundle.family.grid) == (0.9, 4, 4)
    assert bundle.family.default_size == (64, 64)
    assert bundle.family.schedule.beta_schedule == "scaled_linear"
    assert bundle.defaults == {"sampler": "plms", "num_inference_steps": 20, "guidance_scale": 4.0}
    assert bundle.manifest["engines"][0]["kind"] == "onnx"
    for name in PARTS:
        assert bundle.network_file(name).is_file()
        assert 0 < bundle.manifest["certificate"]["networks"][name]["max_abs"] <= TOLERANCE


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def crash(*args: object, **options: object) -> None:
    raise RuntimeError("power cut")


def test_a_crash_midway_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "export_network", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        write_bundle(source, tmp_path / "new" / "bundle", family="avatar-tiny")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_crash_midway_keeps_the_bundle_that_was_there(
    source: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(made, tmp_path / "bundle")
    monkeypatch.setattr(bundle_module, "_certify", crash)
    monkeypatch.setattr(bundle_module, "export_network", lambda *args: None)
    with pytest.raises(RuntimeError, match="power cut"):
        write_bundle(source, out, family="avatar-tiny")
    assert list(tmp_path.iterdir()) == [out]
    assert tree(out) == tree(made)


def reuse(made: Path) -> Any:
    """An exporter that takes the finished graphs, to try what comes after."""

    def copy(net: Any, part: Any, network: Any, file: Path) -> None:
        shutil.copyfile(made / part.folder / part.graph, file)

    return copy


def test_a_complete_bundle_replaces_the_old_one(
    source: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(made, tmp_path / "bundle")
    (out / "stale.txt").write_text("from an earlier export")
    monkeypatch.setattr(bundle_module, "export_network", reuse(made))
    write_bundle(source, out, family="avatar-tiny", defaults={"num_inference_steps": 20, "guidance_scale": 4.0})
    assert list(tmp_path.iterdir()) == [out]
    assert tree(out) == tree(made)


def test_a_graph_that_differs_from_torch_is_never_shipped(
    source: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "export_network", reuse(made))
    monkeypatch.setattr(bundle_module, "difference", lambda *args: float("nan"))
    with pytest.raises(BundleError, match=r"text_encoder .* within 0\.0001 of torch, got nan"):
        write_bundle(source, tmp_path / "bundle", family="avatar-tiny")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="family must be one of"):
        write_bundle(source, tmp_path / "out", family="sd99")
    with pytest.raises(InputError, match=r"export\.defaults.*cfg"):
        write_bundle(source, tmp_path / "out", family="avatar-tiny", defaults={"cfg": 7})
    with pytest.raises(BundleError, match=r"model_index\.json"):
        write_bundle(tmp_path, tmp_path / "out", family="avatar-tiny")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("dear to someone")
    with pytest.raises(InputError, match="must be a bundle to replace"):
        write_bundle(source, tmp_path / "photos", family="avatar-tiny")
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "me.png"]


def test_a_checkpoint_of_another_family_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="context_dim of the family sd15 is 768, got 128"):
        write_bundle(source, tmp_path / "out", family="sd15")


def test_weights_with_nan_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "source")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(BundleError, match=r"finite, got 'conv_in\.bias'"):
        write_bundle(broken, tmp_path / "out", family="avatar-tiny")
    assert list(tmp_path.iterdir()) == [broken]


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def remember(source: Path, out: Path, **options: Any) -> Path:
        seen.update(source=source, out=out, **options)
        return out

    monkeypatch.setattr(bundle_module, "write_bundle", remember)
    app = typer.Typer()
    app.command("export")(export)
    result = CliRunner().invoke(app, ["src", "--out", "dst", "--family", "avatar-tiny", "--steps", "20"])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == "dst"
    assert seen == {
        "source": Path("src"), "out": Path("dst"), "family": "avatar-tiny", "defaults": {"num_inference_steps": 20}
    }  # fmt: skip


def exported_difference(net: Any, name: str, folder: Path, row: Any, dims: dict[str, int]) -> float:
    part, network = PARTS[name], row.networks[name]
    randomise(net).save(folder / part.folder)
    net = load_part(folder, part)
    graph = folder / part.folder / part.graph
    export_network(net, part, network, graph)
    inputs = sample_inputs(network, dims, seed=3, ids=9)
    return difference(graph, inputs, reference(net, part, network, inputs))


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_the_tiny_vae_exports_too(name: str, tmp_path: Path) -> None:
    row = family("sd15")
    config = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    dims = row.dims(width=72, height=40, batch=3)
    assert exported_difference(TinyVAE(config), name, tmp_path, row, dims) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("linear", [False, True])
def test_narrow_sd_unets_export_with_odd_sizes(channels: int, linear: bool, tmp_path: Path) -> None:
    row = family("sd15").with_constants({"context_dim": 48, "unet_channels": channels})
    config = {
        "block_out_channels": (32, 64, 96, 96), "norm_num_groups": 16, "cross_attention_dim": 48,
        "in_channels": channels, "attention_head_dim": 8, "use_linear_projection": linear,
    }  # fmt: skip
    dims = row.dims(width=8 * 13, height=8 * 9, batch=3)
    assert exported_difference(UNet(config), "unet", tmp_path, row, dims) <= TOLERANCE
