"""Checkpoints become bundles of certified engines: from stock diffusers' own files, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from helpers import randomise
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

import hotloop
from hotloop.bundle import BUILT_NEVER_RUN, Bundle, builtin
from hotloop.bundle.describe import describe
from hotloop.errors import BundleError, InputError
from hotloop.evaluation import certificates as parity
from hotloop_export import bundle as module
from hotloop_export import engines as engines_module
from hotloop_export.bundle import add_engines, write_bundle
from hotloop_export.recipe import Recipe, Target, parse_target
from hotloop_export.store import Store

NETWORKS = {"text_encoder", "unet", "prompt", "time", "vae_decoder", "vae_encoder"}
REWRITES = ("kv", "time", "prefix")
FAST = {"num_inference_steps": 4, "guidance_scale": 2.0, "sampler": "plms"}
QUICK = dict(num_inference_steps=3, guidance_scale=2.0, seed=3)


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
    """A checkpoint of avatar-tiny's kind as stock diffusers saves it, in float32 that no half can hold."""
    folder = tmp_path_factory.mktemp("checkpoint") / "source"
    vocabulary = write_tokenizer(folder / "tokenizer")
    text = transformers.CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 24, 32), layers_per_block=1, attention_head_dim=4,
        cross_attention_dim=128, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 24, 32), norm_num_groups=8, sample_size=64, scaling_factor=0.9,
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
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def recipe(source: Path) -> Recipe:
    targets = tuple(parse_target(text, None) for text in ("onnx:fp32", "openvino:fp32", "native:fp32"))
    return Recipe(source, targets=targets, rewrites=REWRITES, defaults=FAST)


@pytest.fixture(scope="module")
def made(recipe: Recipe, store: Store, source: Path) -> Path:
    return write_bundle(recipe, source.parent / "bundle", store=store).path


@pytest.fixture(scope="module")
def tiny() -> diffusers.AutoencoderTiny:
    return randomise(diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ))  # fmt: skip


@pytest.fixture(scope="module")
def with_tiny(recipe: Recipe, store: Store, made: Path, source: Path, tiny: diffusers.AutoencoderTiny) -> Path:
    """A bundle that draws with a tiny VAE; the checkpoint's own is beside it."""
    tiny.save_pretrained(source.parent / "taesd")
    recipe = changed(recipe, vae=source.parent / "taesd", targets=(Target("onnx", "fp32"),))
    return write_bundle(recipe, source.parent / "with-tiny", store=store).path


def changed(recipe: Recipe, **others: Any) -> Recipe:
    return Recipe(**(vars(recipe) | others))


def stock(folder: Path) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_latents(pipe: Any, prompt: str) -> np.ndarray:
    images = pipe(
        prompt, num_inference_steps=3, guidance_scale=2.0, generator=torch.Generator().manual_seed(3),
        output_type="latent", width=64, height=64,
    ).images  # fmt: skip
    return images.numpy()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Faithful.


@pytest.mark.parametrize("engine", ["onnx-fp32", "openvino-fp32", "native-fp32"])
def test_every_engine_draws_what_stock_diffusers_draws_from_the_source(made: Path, source: Path, engine: str) -> None:
    got = hotloop.load(made, engine=engine).txt2img("hi there", **QUICK).latents
    assert np.abs(got - stock_latents(stock(source), "hi there")).max() <= 1e-3


def test_the_certificate_holds_and_verify_measures_it_again(made: Path) -> None:
    bundle = Bundle.open(made)
    assert {entry.name for entry in bundle.entries} == {"onnx-fp32", "openvino-fp32", "native-fp32"}
    for entry in bundle.entries:
        assert set(entry.networks) == NETWORKS
        assert set(entry.certificate["networks"]) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
        assert all(figures["max_abs"] <= 1e-4 for figures in entry.certificate["networks"].values())
        assert min(entry.certificate["psnr"]) >= 50
        assert len(entry.certificate["psnr"]) == 2
    found = parity.verify(bundle, engines=["onnx"])
    assert set(found) == {"onnx-fp32"}
    certificate, problem = found["onnx-fp32"]
    assert problem is None and certificate == bundle.entries[0].certificate


def test_the_reference_decodes_what_the_model_draws(made: Path, source: Path) -> None:
    bundle = Bundle.open(made)
    images = parity.Images.read(bundle.manifest["parity"]["images"])
    stored = load_file(made / bundle.manifest["parity"]["files"]["vae_decoder"])
    pipe = stock(source)
    for i in range(2):
        (latents,) = pipe(
            images.prompts[i], num_inference_steps=images.steps, guidance_scale=images.guidance, output_type="latent",
            width=images.size[0], height=images.size[1], generator=torch.Generator().manual_seed(images.seeds[i]),
        ).images  # fmt: skip
        rows = stored["in.latents"][i].shape[1]
        assert rows < latents.shape[1]
        assert torch.abs(stored["in.latents"][i] * 0.9 - latents[:, :rows]).max() <= 1e-3
    with torch.no_grad():
        decoded = pipe.vae.decode(stored["in.latents"]).sample
    assert torch.abs(decoded - stored["out.image"]).max() <= 1e-4


def test_fp32_weights_are_the_checkpoints_own_bits(source: Path, made: Path) -> None:
    for folder in ("unet", "vae"):
        ours = load_file(made / folder / "diffusion_pytorch_model.safetensors")
        theirs = load_file(source / folder / "diffusion_pytorch_model.safetensors")
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(entry.storage == "fp32" for entry in Bundle.open(made).entries)


def test_stock_diffusers_draws_from_the_bundle(made: Path, source: Path) -> None:
    pipe = stock(made)
    assert pipe.text_encoder.dtype == torch.float32
    assert np.array_equal(stock_latents(pipe, "hi"), stock_latents(stock(source), "hi"))


def test_fp16_rounds_the_weights_and_the_certificate_says_what_that_does(
    recipe: Recipe, store: Store, made: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "trace_graph", None)  # the graphs are those of float32 over other files
    out = write_bundle(changed(recipe, targets=(Target("onnx", "fp16"),)), tmp_path / "half", store=store).path
    entry = Bundle.open(out).entries[0]
    assert (entry.storage, entry.precision, entry.precision_of("unet")) == ("fp16", "fp16", "fp32")
    theirs = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    ours = load_file(out / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(ours[key], theirs[key].half()) for key in theirs)
    unet = entry.certificate["networks"]["unet"]
    assert unet["max_abs"] > 1e-5 and unet["cosine"] >= 0.9995 and min(entry.certificate["psnr"]) >= 40


def test_a_half_precision_source_stays_half_under_an_exact_engine(
    recipe: Recipe, store: Store, made: Path, source: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(source, tmp_path / "half")
    for file in half.rglob("*.safetensors"):
        save_file({key: value.half() for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    out = write_bundle(changed(recipe, source=half, targets=(Target("onnx", "fp32"),)), tmp_path / "out", store=store)
    entry = Bundle.open(out.path).entries[0]
    assert entry.storage == "fp16"
    assert entry.certificate["networks"]["unet"]["max_abs"] <= 1e-4


def test_a_lora_merged_at_export_is_the_lora_stock_diffusers_fuses(
    recipe: Recipe, store: Store, made: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, lora = np.random.default_rng(0), {}
    for key, value in load_file(source / "unet/diffusion_pytorch_model.safetensors").items():
        if key.endswith(("to_q.weight", "to_k.weight", "to_v.weight")):
            stem = f"unet.{key.removesuffix('.weight')}"
            lora[f"{stem}.lora_A.weight"] = torch.from_numpy(rng.standard_normal((2, value.shape[1]), np.float32) * 0.2)
            lora[f"{stem}.lora_B.weight"] = torch.from_numpy(rng.standard_normal((value.shape[0], 2), np.float32) * 0.2)
    file = tmp_path / "style.safetensors"
    save_file(lora, file)
    merged = changed(recipe, loras=((file, 0.7),), targets=(Target("onnx", "fp32"),))
    monkeypatch.setattr(engines_module, "trace_graph", None)  # the architecture is the same: nothing is traced again
    outcome = write_bundle(merged, tmp_path / "merged", store=store)
    sources = Bundle.open(outcome.path).manifest["sources"]
    assert [(entry["name"], entry["scale"]) for entry in sources if entry["role"] == "lora"] == [
        ("style.safetensors", 0.7)
    ]
    got = hotloop.load(outcome.path).txt2img("hi", **QUICK).latents
    pipe = stock(source)
    plain = stock_latents(pipe, "hi")
    pipe.load_lora_weights(file, adapter_name="style")
    pipe.set_adapters(["style"], [0.7])
    want = stock_latents(pipe, "hi")
    assert np.abs(got - want).max() <= 1e-3 < np.abs(want - plain).max()


def test_an_embedding_becomes_a_word_of_the_bundle(
    recipe: Recipe, store: Store, made: Path, source: Path, tmp_path: Path
) -> None:
    file = tmp_path / "cat.safetensors"
    save_file({"<cat-toy>": torch.randn(2, 128, generator=torch.Generator().manual_seed(1))}, file)
    with_word = changed(recipe, embeddings=((file, None),), targets=(Target("onnx", "fp32"),))
    out = write_bundle(with_word, tmp_path / "out", store=store).path
    got = hotloop.load(out).txt2img("hi <cat-toy>", **QUICK).latents
    pipe = stock(source)
    pipe.load_textual_inversion(file)
    assert np.abs(got - stock_latents(pipe, "hi <cat-toy>")).max() <= 1e-3
    with pytest.raises(InputError, match=r"\[.*\].*128"):
        save_file({"<wide>": torch.randn(2, 96)}, file)
        write_bundle(with_word, tmp_path / "wide", store=store)
    assert not (tmp_path / "wide").exists()


def test_a_tiny_vae_comes_beside_the_full_one(with_tiny: Path, made: Path, tiny: diffusers.AutoencoderTiny) -> None:
    out = with_tiny
    assert {"tiny_vae_decoder", "tiny_vae_encoder"} <= set(Bundle.open(out).entries[0].networks)
    pipe = hotloop.load(out)
    result = pipe.txt2img("hi", **QUICK)
    with torch.no_grad():
        decoded = tiny.decode(torch.from_numpy(result.latents)).sample
    want = ((decoded.permute(0, 2, 3, 1).numpy()[0] / 2 + 0.5).clip(0, 1) * 255).round()
    assert np.abs(np.asarray(result.images[0], float) - want).max() <= 1
    full = hotloop.load(out, vae="full").txt2img("hi", **QUICK)
    assert np.array_equal(full.latents, result.latents)
    assert np.asarray(full.images[0]).tobytes() != np.asarray(result.images[0]).tobytes()
    with pytest.raises(InputError, match="carries no tiny VAE"):
        hotloop.load(made, vae="tiny")


# Whole.


def test_the_manifest_seals_every_file_and_nothing_of_this_machine(made: Path, source: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    on_disk = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == on_disk
    assert {"LICENSE", "tokenizer/vocab.json", "scheduler/scheduler_config.json", "unet/prompt.onnx"} <= on_disk
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    for word in (str(source.parent), str(Path.home()) + "/", "site-packages"):
        assert not any(word.encode() in raw for raw in tree(made).values())


def test_inspect_tells_what_a_bundle_is(made: Path) -> None:
    text = "\n".join(describe(Bundle.open(made)))
    for part in ("avatar-tiny", "onnx-fp32: certified", "rewrites kv time prefix", "model.safetensors", "as sealed"):
        assert part in text


def test_a_second_export_is_a_hit(recipe: Recipe, store: Store, made: Path, tmp_path: Path) -> None:
    outcome = write_bundle(recipe, tmp_path / "again", store=store)
    assert outcome.hit
    assert [name for name, _, _ in outcome.stages] == ["hash and open the source"]
    assert tree(outcome.path) == tree(made)
    assert write_bundle(recipe, made, store=store).hit


@pytest.mark.parametrize(
    "others",
    [
        {"rewrites": ("kv", "time")}, {"defaults": {**FAST, "num_inference_steps": 5}}, {"certify": "full"},
        {"targets": (Target("onnx", "fp16"),)}, {"groups": ("identity",)}, {"keep_fp32": "auto"},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_decides_a_bundle_is_in_its_key(recipe: Recipe, others: dict[str, Any]) -> None:
    def key(of: Recipe) -> str:
        source = module.open_source(of.source)
        return module.key_of(module._parts(of, source, rehash=False))

    assert key(changed(recipe, **others)) != key(recipe) == key(changed(recipe))


def test_a_changed_source_is_never_taken_for_the_old_one(
    recipe: Recipe, store: Store, made: Path, source: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(source, tmp_path / "source")
    first = write_bundle(changed(recipe, source=other), tmp_path / "first", store=store)
    assert first.hit  # the same bytes in another place
    file = other / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    second = write_bundle(
        changed(recipe, source=other, targets=(Target("native", "fp32"),)), tmp_path / "2", store=store
    )
    assert not second.hit and second.key != first.key


def test_a_shape_range_is_in_the_key_of_engines_with_profiles_and_refused_for_others(recipe: Recipe) -> None:
    source = module.open_source(recipe.source)

    def parts(**others: Any) -> dict[str, Any]:
        return module._parts(changed(recipe, **others), source, rehash=False)

    rtx = (Target("tensorrt_rtx", "fp16"),)
    assert parts(targets=rtx, batches=(1, 4)) != parts(targets=rtx)
    with pytest.raises(InputError, match="engines with profiles"):
        changed(recipe, batches=(1, 4))


# Or not at all.


def unfaithful(pipe: Any) -> dict[str, Any]:
    """A certificate of an engine that is not the model."""
    figures = {"max_abs": 0.5, "mean_abs": 0.1, "cosine": 0.5}
    return {"networks": {"unet": figures}, "psnr": [10.0], "device": "cpu"}


def test_an_engine_that_is_not_the_model_is_never_shipped(
    recipe: Recipe, store: Store, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "certify", unfaithful)
    other = changed(recipe, targets=(Target("onnx", "fp32"),), defaults={**FAST, "guidance_scale": 3.0})
    with pytest.raises(BundleError, match=r"onnx-fp32 is not the model: unet: max .* at most 0\.0001, is 0\.5"):
        write_bundle(other, tmp_path / "out", store=store)
    assert list(tmp_path.iterdir()) == []
    assert list((store.root / "work").iterdir()) == []


def test_a_bundle_that_was_there_is_kept_when_an_export_fails(
    recipe: Recipe, store: Store, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(made, tmp_path / "bundle")
    before = tree(out)
    monkeypatch.setattr(engines_module, "certify", unfaithful)
    with pytest.raises(BundleError):
        write_bundle(changed(recipe, defaults={**FAST, "guidance_scale": 3.5}), out, store=store)
    with pytest.raises(BundleError):
        add_engines(out, [Target("openvino", "bf16")], store=store)
    assert tree(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


EXPORT = """
import sys
from hotloop.cli import app, main
from hotloop_export.cli import export
app.command("export")(export)
sys.argv = ["hotloop", "export", *sys.argv[1:]]
sys.modules["hotloop.cli.app"].entry_points = lambda group: []
main()
"""


def run_export(*arguments: str, cache: Path, limit: int | None = None) -> subprocess.Popen[str]:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with an error instead
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite that runs in the background was told to ignore it
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = os.environ | {"HOTLOOP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", EXPORT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, preexec_fn=limited,
    )  # fmt: skip


@pytest.mark.parametrize("stage", [
    "reference in float32", *(pytest.param(stage, marks=pytest.mark.long) for stage in (
        "read and merge weights", "ONNX graph of text_encoder")),
])  # fmt: skip
def test_killing_the_exporter_at_any_stage_leaves_no_bundle(source: Path, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out" / "bundle"
    out.parent.mkdir()
    with run_export(str(source), "--out", str(out), cache=tmp_path / "cache") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(stage):
                break
        else:
            pytest.fail("the stage was never reached")
        process.kill()
    assert list(out.parent.iterdir()) == []
    again = Recipe(source, targets=(Target("native", "fp32"),))
    write_bundle(again, out, store=Store(tmp_path / "cache"))
    assert Bundle.open(out).entries[0].name == "native-fp32"
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_stopping_the_exporter_leaves_nothing_at_all(source: Path, tmp_path: Path, number: int, said: str) -> None:
    out = tmp_path / "out" / "bundle"
    out.parent.mkdir()
    with run_export(str(source), "--out", str(out), cache=tmp_path / "cache") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("reference in float32"):
                process.send_signal(number)
                break
        *_, last = process.stderr
    assert last == f"hotloop: {said}\n"
    assert process.returncode == 128 + number
    assert list(out.parent.iterdir()) == []
    assert list((tmp_path / "cache/exports/work").iterdir()) == []


def test_a_link_to_a_bundle_stays_a_link(source: Path, tmp_path: Path, store: Store) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    recipe = Recipe(source, targets=(Target("native", "fp32"),))
    for _ in range(2):
        assert write_bundle(recipe, tmp_path / "link", store=store).path == tmp_path / "link"
        assert (tmp_path / "link").is_symlink()
        assert Bundle.open(tmp_path / "target").entries[0].name == "native-fp32"
        (tmp_path / "target" / "LICENSE").write_text("altered")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


def test_a_checkpoint_is_never_replaced_by_its_own_bundle(source: Path, tmp_path: Path, store: Store) -> None:
    bundle = write_bundle(Recipe(source, targets=(Target("native", "fp32"),)), tmp_path / "bundle", store=store).path
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    for out in (bundle, bundle / "new"):
        with pytest.raises(InputError, match="must be apart"):
            write_bundle(Recipe(bundle, targets=(Target("native", "fp16"),)), out, store=store)
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with run_export(
        str(source), "--out", str(out), "--engine", "native", cache=tmp_path / "cache", limit=300_000
    ) as process:
        _, errors = process.communicate()
    assert process.returncode == 2, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("hotloop: [") and "File too large" in last
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert list((tmp_path / "cache/exports/work").iterdir()) == []
    assert list((tmp_path / "cache/exports/bundles").iterdir()) == []


def test_too_little_room_is_said_before_the_work(
    recipe: Recipe, store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(BundleError, match=r"must have .* GB free to make this bundle"):
        write_bundle(changed(recipe, defaults={**FAST, "guidance_scale": 9.0}), tmp_path / "out", store=store)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_source_is_one_line(
    recipe: Recipe, store: Store, source: Path, tmp_path: Path, share: float
) -> None:
    broken = shutil.copytree(source, tmp_path / "source")
    file = broken / "unet/diffusion_pytorch_model.safetensors"
    with file.open("rb+") as opened:
        opened.truncate(int(share * file.stat().st_size))
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.safetensors") as caught:
        write_bundle(changed(recipe, source=broken), tmp_path / "out", store=store)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_weights_with_nan_are_refused_by_name(recipe: Recipe, store: Store, source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(source, tmp_path / "source")
    file = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BundleError, match=r"finite.*conv_in\.bias"):
        write_bundle(changed(recipe, source=broken), tmp_path / "out", store=store)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_what_is_no_bundle_is_never_replaced(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.png").write_text("dear to someone")
    with pytest.raises(InputError, match="must be a bundle to replace"):
        write_bundle(recipe, tmp_path / "photos")
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "me.png"]


# Later.


def test_build_adds_an_engine_and_keeps_the_rest(made: Path, store: Store, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "bundle")
    before = tree(out)
    add_engines(out, [Target("openvino", "bf16")], store=store)
    after = tree(out)
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json"}
    bundle = Bundle.open(out)
    assert [entry.name for entry in bundle.entries] == ["onnx-fp32", "openvino-fp32", "native-fp32", "openvino-bf16"]
    assert bundle.entries[-1].certificate["networks"]["unet"]["cosine"] >= 0.999
    assert bundle.id == Bundle.open(made).id
    with pytest.raises(BundleError):
        add_engines(tmp_path, [Target("openvino", "bf16")], store=store)


@pytest.mark.long  # every day test_tensorrt builds the built-in model's
def test_a_plan_is_built_without_a_gpu_and_says_it_never_ran(made: Path, store: Store, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "bundle")
    add_engines(out, [Target("tensorrt_rtx", "fp32")], shapes=[(64, 64)], batches=(1, 2), store=store)
    bundle = Bundle.open(out)
    entry = bundle.entries[-1]
    assert (entry.name, entry.status) == ("tensorrt_rtx-fp32", BUILT_NEVER_RUN)
    assert "8.9" in entry.target.split()
    assert entry.certificate == {}
    for network in NETWORKS:
        assert bundle.network_file(entry, network).stat().st_size > 1000
    assert BUILT_NEVER_RUN in "\n".join(describe(bundle))
    found = parity.verify(bundle, engines=["tensorrt_rtx"])
    assert found["tensorrt_rtx-fp32"][0] is None and BUILT_NEVER_RUN in str(found["tensorrt_rtx-fp32"][1])
    with pytest.warns(RuntimeWarning, match="tensorrt_rtx-fp32 would be faster"):
        assert hotloop.load(out).engine == "openvino-fp32"


@pytest.mark.parametrize(("bound", "precision"), [
    (-math.inf, "int8"), pytest.param(math.inf, "floating point", marks=pytest.mark.long),
])  # fmt: skip
def test_a_decoder_is_quantised_where_its_pictures_stay_near(
    with_tiny: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: float, precision: str
) -> None:
    """The bundle draws with the tiny VAE: the decoder is calibrated all the same."""
    pytest.importorskip("nncf")
    monkeypatch.setattr(engines_module, "_DECODED", bound)
    monkeypatch.setattr(engines_module, "_CALIBRATION_PROMPTS", 1)
    monkeypatch.setattr(engines_module, "_CALIBRATION_STEPS", 2)
    monkeypatch.setitem(parity.BOUNDS, "int8", parity.Bound())  # of random weights little is left
    out, said = shutil.copytree(with_tiny, tmp_path / "out"), []
    unet, int8 = ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out"), [Target("openvino", "int8")]
    with pytest.raises(InputError, match=r"modules of unet or vae_decoder, got 'decoder\.conv'"):
        add_engines(out, int8, keep_fp32=("mid_block", "decoder.conv"), store=store)
    assert tree(out) == tree(with_tiny)
    add_engines(out, int8, keep_fp32=(*unet, "decoder.conv_in"), store=store, say=said.append)
    entry = Bundle.open(out).entries[-1]
    files = sorted(path.name for path in (out / "engines").rglob("*") if path.is_file())
    if precision == "int8":
        assert entry.precision_of("vae_decoder") == "int8" and files == ["vae_decoder.bin", "vae_decoder.xml"]
    else:
        assert entry.precision_of("vae_decoder") == entry.precision_of("unet") != "int8" and files == []
        (line,) = [line for line in said if "stays in floating point" in line]
        assert re.search(r"vae_decoder .*: in int8 its pictures are \d+\.\d dB from float32's, inf needed", line)


@pytest.mark.long
def test_auto_keeps_in_float32_what_the_bound_needs_and_says_what_it_cost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tighter than the 0.99, which the built-in model holds without help.
    monkeypatch.setitem(parity.BOUNDS, "int8", parity.Bound(cosine=0.9992))
    recipe = Recipe(builtin(), targets=(Target("onnx", "int8"),))
    with pytest.raises(BundleError, match=r"unet: cosine must be at least 0\.9992.*worst layer [a-z_.0-9]+ of unet"):
        write_bundle(recipe, tmp_path / "plain", store=store)
    assert not (tmp_path / "plain").exists()
    out = write_bundle(changed(recipe, keep_fp32="auto"), tmp_path / "lifted", store=store).path
    bundle = Bundle.open(out)
    entry, stored = bundle.entries[0], bundle.manifest["engines"][0]
    assert entry.certificate["networks"]["unet"]["cosine"] >= 0.9992
    assert 0 < len(stored["keep_fp32"]) < 150
    lifted = stored["lifted"]["unet"]
    assert lifted["cosine_before"] < lifted["cosine"] and 0.5 < lifted["time_ratio"] < 3
