"""Checkpoints in every form people have them, against what diffusers' own loaders make of the same files."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from hotloop.errors import BundleError, InputError
from hotloop.nets.clip import CLIPText
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE
from hotloop.tokenizer import Tokenizer
from hotloop.weights import Weights, keys
from hotloop_export import hashes, vocabulary
from hotloop_export.hashes import file_sha256
from hotloop_export.sources import open_source

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HOTLOOP_CACHE", str(folder))
    return folder


# --- Checkpoints as diffusers writes them -----------------------------------------------------------------------

DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
SD1 = {
    "unet": {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    "text": {"hidden_size": 768, "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768},
    "scheduler": {"prediction_type": "epsilon"},
}
SD2 = {
    "unet": {"cross_attention_dim": 1024, "sample_size": 96, "use_linear_projection": True, "upcast_attention": True},
    "text": {"hidden_size": 1024, "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512},
    "scheduler": {"prediction_type": "v_prediction"},
}
NARROW = {
    "unet": {"block_out_channels": (64, 64, 128, 128)},
    "vae": {"block_out_channels": (32, 32, 64, 64)},
    "text": {"intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 515},
}
FULL = {
    "unet": {"block_out_channels": (320, 640, 1280, 1280)},
    "vae": {"block_out_channels": (128, 256, 512, 512)},
    "text": {"intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 49408},
}
KINDS = {
    "sd15": (SD1, {"unet": {"in_channels": 4}}),
    "sd15-inpaint": (SD1, {"unet": {"in_channels": 9}}),
    "sd21-v": (SD2, {"unet": {"attention_head_dim": [1, 1, 2, 2]}}),
    "sd21": (SD2, {"unet": {"attention_head_dim": [1, 1, 2, 2], "sample_size": 64},
                   "scheduler": {"prediction_type": "epsilon"}}),
}  # fmt: skip
FULL_SD2 = {
    "unet": {"attention_head_dim": [5, 10, 20, 20]},
    "text": {"intermediate_size": 4096, "num_hidden_layers": 23},
}


def build(make: Callable[[], Any], *, seed: int) -> Any:
    """A module in half precision whose every value is drawn anew, so that no two tensors are alike."""
    with torch.device("meta"):
        module = make()
    module = module.half().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.numel()).reshape(buffer.shape))
    return module.eval()


def write_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> Path:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "hi</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh i</w>\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": pad}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    return folder


def write_folder(folder: Path, kind: str, *, full: bool) -> Path:
    """A diffusers folder of random float16 weights, saved by diffusers and transformers."""
    base, own = KINDS[kind]
    size = FULL if full else NARROW
    if full and base is SD2:
        own = {**own, **FULL_SD2}

    def config(part: str) -> dict[str, Any]:
        return {**size.get(part, {}), **base.get(part, {}), **own.get(part, {})}

    diffusers_unet = {"down_block_types": DOWN, "up_block_types": UP, **config("unet")}
    build(lambda: diffusers.UNet2DConditionModel(**diffusers_unet), seed=1).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = {"layers_per_block": 2, "sample_size": 512, **blocks, **config("vae")}
    build(lambda: diffusers.AutoencoderKL(**vae), seed=2).save_pretrained(folder / "vae")
    text = transformers.CLIPTextConfig(max_position_embeddings=77, **config("text"))
    build(lambda: transformers.CLIPTextModel(text), seed=3).save_pretrained(folder / "text_encoder")
    diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        **config("scheduler"),
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    write_tokenizer(folder / "tokenizer", pad="!" if base is SD2 else "<|endoftext|>")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None], "feature_extractor": [None, None],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "LICENSE.txt").write_text("terms\n")
    return folder


# --- The published single-file layout, written out --------------------------------------------------------------
# Stable Diffusion 1.x and 2.x: four levels of two blocks. Names as listed by the published checkpoints.

UNET_STEMS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.resnets.1": "input_blocks.2.0", "down_blocks.0.attentions.1": "input_blocks.2.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0": "input_blocks.4.0", "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1": "input_blocks.5.0", "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.0": "input_blocks.7.0", "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.resnets.1": "input_blocks.8.0", "down_blocks.2.attentions.1": "input_blocks.8.1",
    "down_blocks.2.downsamplers.0.conv": "input_blocks.9.0.op",
    "down_blocks.3.resnets.0": "input_blocks.10.0", "down_blocks.3.resnets.1": "input_blocks.11.0",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.resnets.2": "output_blocks.2.0", "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.3.0", "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.resnets.1": "output_blocks.4.0", "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.resnets.2": "output_blocks.5.0", "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.0": "output_blocks.6.0", "up_blocks.2.attentions.0": "output_blocks.6.1",
    "up_blocks.2.resnets.1": "output_blocks.7.0", "up_blocks.2.attentions.1": "output_blocks.7.1",
    "up_blocks.2.resnets.2": "output_blocks.8.0", "up_blocks.2.attentions.2": "output_blocks.8.1",
    "up_blocks.2.upsamplers.0.conv": "output_blocks.8.2.conv",
    "up_blocks.3.resnets.0": "output_blocks.9.0", "up_blocks.3.attentions.0": "output_blocks.9.1",
    "up_blocks.3.resnets.1": "output_blocks.10.0", "up_blocks.3.attentions.1": "output_blocks.10.1",
    "up_blocks.3.resnets.2": "output_blocks.11.0", "up_blocks.3.attentions.2": "output_blocks.11.1",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
UNET_LEAVES = {
    ".norm1.": ".in_layers.0.", ".conv1.": ".in_layers.2.", ".time_emb_proj.": ".emb_layers.1.",
    ".norm2.": ".out_layers.0.", ".conv2.": ".out_layers.3.", ".conv_shortcut.": ".skip_connection.",
}  # fmt: skip
VAE_STEMS = {
    **{f"encoder.down_blocks.{i}.resnets.{j}": f"encoder.down.{i}.block.{j}" for i in range(4) for j in range(2)},
    **{f"encoder.down_blocks.{i}.downsamplers.0.conv": f"encoder.down.{i}.downsample.conv" for i in range(3)},
    **{f"decoder.up_blocks.{3 - i}.resnets.{j}": f"decoder.up.{i}.block.{j}" for i in range(4) for j in range(3)},
    **{f"decoder.up_blocks.{3 - i}.upsamplers.0.conv": f"decoder.up.{i}.upsample.conv" for i in (1, 2, 3)},
    **{f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for half in ("encoder", "decoder") for i in (0, 1)},
    **{f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1" for half in ("encoder", "decoder")},
    **{f"{half}.conv_norm_out": f"{half}.norm_out" for half in ("encoder", "decoder")},
    **{name: name for name in ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out",
                               "quant_conv", "post_quant_conv")},
}  # fmt: skip
VAE_ATTENTION = {
    ".group_norm.": ".norm.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".to_out.0.": ".proj_out.",
}


def renamed(name: str, stems: Mapping[str, str], leaves: Mapping[str, str], *, where: str) -> str:
    stem = max((stem for stem in stems if name.startswith(stem + ".")), key=len)
    leaf = name[len(stem) :]
    if where in stem:
        leaf = next((leaf.replace(a, b, 1) for a, b in leaves.items() if leaf.startswith(a)), leaf)
    return stems[stem] + leaf


def ldm_unet(tensors: Tensors) -> Tensors:
    return {renamed(name, UNET_STEMS, UNET_LEAVES, where="resnets"): value for name, value in tensors.items()}


def ldm_vae(tensors: Tensors) -> Tensors:
    out = {}
    for name, value in tensors.items():
        new = renamed(name, VAE_STEMS, VAE_ATTENTION, where="attentions").replace("conv_shortcut", "nin_shortcut")
        conv = ".attn_1." in new and value.ndim == 2
        out[new] = value[:, :, None, None] if conv else value
    return out


def bare_text(tensors: Tensors) -> Tensors:
    return {name.removeprefix("text_model."): value for name, value in tensors.items()}


def openclip_text(tensors: Tensors, *, extra_layers: int = 0) -> Tensors:
    """OpenCLIP's names with fused projections, and the layers that SD 2.x holds but never runs."""
    out: Tensors = {}
    fused: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in bare_text(tensors).items():
        name = name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("encoder.layers.", "transformer.resblocks.").replace("mlp.fc1", "mlp.c_fc")
        name = name.replace("mlp.fc2", "mlp.c_proj").replace("layer_norm", "ln_").replace("self_attn.", "attn.")
        if match := re.fullmatch(r"(.+attn)\.([qkv])_proj\.(weight|bias)", name):
            fused.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = value
        else:
            out[name] = value
    out |= {name: torch.cat([parts[x] for x in "qkv"]) for name, parts in fused.items()}
    last = 1 + max(int(name.split(".")[2]) for name in out if "resblocks" in name)
    for layer in range(last, last + extra_layers):
        out |= {name.replace(".0.", f".{layer}.", 1): v + 1 for name, v in out.items() if ".resblocks.0." in name}
    width = out["positional_embedding"].shape[1]
    return out | {"logit_scale": torch.tensor(4.6), "text_projection": torch.ones(width, width)}


def write_single(file: Path, folder: Path, *, open_clip: bool, text_prefix: str = "text_model.", **extra: Any) -> Path:
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder/model.safetensors")
    tensors = {"model.diffusion_model." + name: value for name, value in ldm_unet(unet).items()}
    tensors |= {"first_stage_model." + name: value for name, value in ldm_vae(vae).items()}
    if open_clip:
        layers = len({name.split(".")[-4] for name in text if name.endswith("mlp.fc1.weight")})
        named = openclip_text(text, extra_layers=1 if layers == 23 else 0)
        tensors |= {"cond_stage_model.model." + name: value for name, value in named.items()}
    else:
        stem = "cond_stage_model.transformer." + text_prefix
        tensors |= {stem + name: value for name, value in bare_text(text).items()}
        tensors[stem + "embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {"betas": torch.linspace(0, 1, 9), "alphas_cumprod": torch.ones(9), "model_ema.decay": torch.tensor(0.9)}
    save_file({name: value.contiguous() for name, value in (tensors | extra).items()}, file, metadata={"format": "pt"})
    return file


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A narrow checkpoint of each kind, as a folder and as the single file it would have been published in."""
    place = tmp_path_factory.mktemp(request.param)
    folder = write_folder(place / "folder", request.param, full=False)
    two = request.param.startswith("sd21")
    return SimpleNamespace(kind=request.param, folder=folder, two=two,
                           file=write_single(place / "model.safetensors", folder, open_clip=two))  # fmt: skip


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    place = tmp_path_factory.mktemp("one")
    folder = write_folder(place / "folder", "sd15", full=False)
    return SimpleNamespace(folder=folder, file=write_single(place / "model.safetensors", folder, open_clip=False))


@pytest.fixture
def copy(sd15: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder whose files may be moved about: hard links, so that nothing is copied."""
    target = tmp_path / "copy"
    for file in sd15.folder.rglob("*"):
        if file.is_file():
            link = target / file.relative_to(sd15.folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    return target


def check(source: Any, pipeline: Any) -> None:
    """Strict both ways: the same names and bits as the modules that diffusers loaded, which hold float16."""
    for name in ("unet", "vae", "text_encoder"):
        own, theirs = source.tensors[name], getattr(pipeline, name).state_dict()
        theirs = {key: value for key, value in theirs.items() if not key.endswith("position_ids")}
        if name == "text_encoder":
            theirs = {"text_model." + key.removeprefix("text_model."): value for key, value in theirs.items()}
        assert set(own) == set(theirs), name
        for key, value in theirs.items():
            assert value.dtype == torch.float16 and own[key].dtype == np.float16
            assert np.array_equal(own[key], value.numpy()), f"{name} {key}"


def stock(load: Callable[..., Any], path: Path, **options: Any) -> Any:
    options = {"dtype": torch.float16, "local_files_only": True, **options}
    return load(str(path), safety_checker=None, feature_extractor=None, **options)


def check_both(kind: str, folder: Path, file: Path, *, two: bool) -> None:
    source = open_source(folder)
    assert (source.family, source.format) == (kind, "diffusers")
    pipeline = stock(diffusers.StableDiffusionPipeline.from_pretrained, folder)
    check(source, pipeline)
    config = dict(pipeline.unet.config), dict(pipeline.vae.config), pipeline.text_encoder.config
    del pipeline
    gc.collect()
    prediction = "epsilon" if kind == "sd21" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error" if kind != "sd21-v" else "ignore")
        source = open_source(file, tokenizer=folder / "tokenizer", prediction=prediction)
    assert (source.family, source.format) == (kind, "single-file")
    pipeline = stock(diffusers.StableDiffusionPipeline.from_single_file, file, config=str(folder))
    check(source, pipeline)
    same_config(source, *config, two=two)


def same_config(source: Any, unet: dict[str, Any], vae: dict[str, Any], text: Any, *, two: bool) -> None:
    """What we derive from shapes says the same as the checkpoint's own configuration."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    ignored = {"_diffusers_version", "_name_or_path", "sample_size", "_class_name"}
    for made, cls, own in (
        (source.configs["unet"], diffusers.UNet2DConditionModel, unet),
        (source.configs["vae"], diffusers.AutoencoderKL, vae),
    ):
        with torch.device("meta"):
            back = cls.from_config(made).config
        differ = {k: (back.get(k), v) for k, v in own.items() if k not in ignored and plain(back.get(k)) != plain(v)}
        assert not differ
    assert source.configs["unet"]["sample_size"] == unet["sample_size"]
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                "vocab_size", "max_position_embeddings", "layer_norm_eps", "projection_dim"):  # fmt: skip
        assert source.configs["text_encoder"][key] == getattr(text, key), key


def test_folders_and_single_files_load_as_diffusers_loads_them(made: SimpleNamespace) -> None:
    check_both(made.kind, made.folder, made.file, two=made.two)


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """For gigabytes, which pytest would keep for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sd15", "sd15-inpaint", "sd21-v"])
def test_full_size_checkpoints_load_as_diffusers_loads_them(roomy: Path, kind: str) -> None:
    folder = write_folder(roomy / "folder", kind, full=True)
    gc.collect()
    two = kind.startswith("sd21")
    file = write_single(roomy / "model.safetensors", folder, open_clip=two)
    gc.collect()
    began = time.perf_counter()
    open_source(file, tokenizer=folder / "tokenizer", prediction="v" if two else None)
    hashed = time.perf_counter()
    source = open_source(file, tokenizer=folder / "tokenizer", prediction="v" if two else None)
    again = time.perf_counter()
    size = sum(source.tensors[name].nbytes(key) for name in source.tensors for key in source.tensors[name])
    print(f"{kind}: {size / 2**30:.2f} GB opened and hashed in {hashed - began:.2f} s, again in {again - hashed:.2f} s")
    check_both(kind, folder, file, two=two)


@torch.no_grad()
def test_networks_fill_from_a_source_as_float32(made: SimpleNamespace) -> None:
    source = open_source(made.file, tokenizer=made.folder / "tokenizer", prediction="eps")
    for name, cls in (("unet", UNet), ("vae", AutoencoderKL), ("text_encoder", CLIPText)):
        net = cls.from_tensors(source.configs[name], source.tensors[name])
        assert not net.training and all(p.dtype == torch.float32 for p in net.parameters())
        own = net.state_dict()
        assert all(np.array_equal(own[key.removeprefix(cls.prefix)], v.astype(np.float32))
                   for key, v in source.tensors[name].items())  # fmt: skip
        first = next(iter(source.tensors[name]))
        cut = {key: value for key, value in source.tensors[name].items() if key != first}
        with pytest.raises(BundleError, match=re.escape(first.removeprefix(cls.prefix))):
            cls.from_tensors(source.configs[name], cut)


def test_a_stock_pipeline_opens_what_a_single_file_says_of_itself(made: SimpleNamespace, tmp_path: Path) -> None:
    """The derived configs and index are ones stock diffusers accepts."""
    source = open_source(made.file, tokenizer=made.folder / "tokenizer", prediction="eps")
    for name, config in source.configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        tensors = {key: torch.from_numpy(value.copy()) for key, value in source.tensors[name].items()}
        save_file(tensors, tmp_path / name / f"{stem}.safetensors", metadata={"format": "pt"})
    for name, content in (("scheduler/scheduler_config.json", source.scheduler), ("model_index.json", source.index)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "tokenizer").symlink_to(source.tokenizer)
    pipeline = stock(diffusers.DiffusionPipeline.from_pretrained, tmp_path)
    expected = "StableDiffusionInpaintPipeline" if made.kind == "sd15-inpaint" else "StableDiffusionPipeline"
    assert type(pipeline).__name__ == expected
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.beta_end == 0.012
    check(source, pipeline)


# --- Names, against the reference's own tables ------------------------------------------------------------------


def test_the_last_of_24_open_clip_layers_is_dropped_and_the_rest_split_as_diffusers_does() -> None:
    width = 8
    config = transformers.CLIPTextConfig(hidden_size=width, intermediate_size=12, num_hidden_layers=23, vocab_size=20,
                                         num_attention_heads=2, projection_dim=width)  # fmt: skip
    model = build(lambda: transformers.CLIPTextModel(config), seed=5)
    file = {"cond_stage_model.model." + k: v for k, v in openclip_text(model.state_dict(), extra_layers=1).items()}
    assert any(".resblocks.23." in name for name in file)
    theirs = single_file_utils.convert_open_clip_checkpoint(model, dict(file))
    theirs = {"text_model." + name.removeprefix("text_model."): value for name, value in theirs.items()}
    theirs.pop("text_model.text_projection.weight", None)
    table = keys.single_file(file)["text_encoder"]
    assert set(table) == set(theirs)
    for name, (key, part, of, _) in table.items():
        assert torch.equal(file[key].chunk(of)[part], theirs[name]), name


@pytest.mark.parametrize("ema", [False, True])
def test_plain_weights_are_read_unless_the_moving_average_is_asked_for(
    sd15: SimpleNamespace, tmp_path: Path, ema: bool
) -> None:
    plain = {name: value for name, value in load_file(sd15.file).items() if name.startswith("model.diffusion_model.")}
    average = {"model_ema." + name.removeprefix("model.").replace(".", ""): v + 1 for name, v in plain.items()}
    extra = {**average, "model_ema.num_updates": torch.tensor(7)}
    file = write_single(tmp_path / "both.safetensors", sd15.folder, open_clip=False, **extra)
    source = open_source(file, tokenizer=sd15.folder / "tokenizer", ema=ema)
    config = diffusers.UNet2DConditionModel.load_config(sd15.folder / "unet")
    theirs = single_file_utils.convert_ldm_unet_checkpoint(load_file(file), config, extract_ema=ema)
    assert set(source.tensors["unet"]) == set(theirs)
    assert all(np.array_equal(source.tensors["unet"][name], value) for name, value in theirs.items())


def test_a_moving_average_that_is_not_there_is_not_made_up(sd15: SimpleNamespace) -> None:
    with pytest.raises(BundleError, match="moving average"):
        open_source(sd15.file, tokenizer=sd15.folder / "tokenizer", ema=True)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_unet_names_of_any_depth_follow_diffusers(levels: int, layers: int) -> None:
    """Names only, made by numbering blocks straight through as LDM's constructor does; diffusers has the last word."""
    names: list[str] = ["time_embed.0.weight", "time_embed.2.bias", "input_blocks.0.0.weight", "out.0.weight",
                        "out.2.bias", "middle_block.0.in_layers.0.weight", "middle_block.1.norm.weight",
                        "middle_block.2.out_layers.3.bias"]  # fmt: skip
    number = 1
    for level in range(levels):
        for _ in range(layers):
            names += [f"input_blocks.{number}.0.in_layers.2.weight", f"input_blocks.{number}.1.proj_in.weight"]
            number += 1
        if level < levels - 1:
            names += [f"input_blocks.{number}.0.op.weight", f"input_blocks.{number}.0.op.bias"]
            number += 1
    number = 0
    for level in range(levels):
        for block in range(layers + 1):
            names += [f"output_blocks.{number}.0.emb_layers.1.weight", f"output_blocks.{number}.1.norm.bias"]
            if block == layers and level < levels - 1:
                names += [f"output_blocks.{number}.2.conv.weight", f"output_blocks.{number}.2.conv.bias"]
            number += 1
    file = {"model.diffusion_model." + name: torch.tensor(float(i)) for i, name in enumerate(names)}
    config = {"layers_per_block": layers, "class_embed_type": None, "addition_embed_type": None}
    filler = dict.fromkeys(single_file_utils.DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"].values(), torch.tensor(-1.0))
    whole = {**{"model.diffusion_model." + name: value for name, value in filler.items()}, **file}
    theirs = single_file_utils.convert_ldm_unet_checkpoint(whole, config)
    theirs = {name: int(value) for name, value in theirs.items() if value >= 0}
    assert {name: names.index(source.key) for name, source in keys.unet(names).items()} == theirs


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_keys_of_single_files_come_with_and_without_text_model(
    sd15: SimpleNamespace, tmp_path: Path, prefix: str
) -> None:
    file = write_single(tmp_path / "m.safetensors", sd15.folder, open_clip=False, text_prefix=prefix)
    own = open_source(file, tokenizer=sd15.folder / "tokenizer").tensors["text_encoder"]
    theirs = open_source(sd15.folder).tensors["text_encoder"]
    assert set(own) == set(theirs) and all(np.array_equal(own[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_transformers_4_and_5_read_alike(copy: Path, sd15: SimpleNamespace, prefix: str) -> None:
    file = copy / "text_encoder/model.safetensors"
    tensors = {prefix + name: value for name, value in bare_text(load_file(file)).items()}
    file.unlink()
    save_file({**tensors, prefix + "embeddings.position_ids": torch.arange(77)[None]}, file)
    own, theirs = (open_source(f).tensors["text_encoder"] for f in (copy, sd15.folder))
    assert set(own) == set(theirs) and all(name.startswith("text_model.") for name in own)
    assert all(np.array_equal(own[name], theirs[name]) for name in theirs)


# --- Folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_folders_read_as_diffusers_reads_them(sd15: SimpleNamespace, copy: Path, variant: str | None) -> None:
    pipeline = stock(diffusers.StableDiffusionPipeline.from_pretrained, sd15.folder)
    for name, size in (("unet", "4MB"), ("vae", "500KB"), ("text_encoder", "2MB")):
        for file in (copy / name).glob("*.safetensors"):
            file.unlink()
        getattr(pipeline, name).save_pretrained(copy / name, max_shard_size=size, variant=variant)
        assert len(list((copy / name).glob("*.safetensors"))) > 1 and list((copy / name).glob("*.index*.json"))
    check(
        open_source(copy, variant=variant),
        stock(diffusers.StableDiffusionPipeline.from_pretrained, copy, variant=variant),
    )
    assert {p["role"] for p in open_source(copy).provenance} >= {
        "unet",
        "vae",
        "text_encoder",
        "scheduler",
        "tokenizer",
    }


def edit_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


SHARD_FAULTS = {
    "a tensor too many": (lambda m: m.update(stray=next(iter(m.values()))), "stray"),
    "a tensor too few": (lambda m: m.pop("conv_in.weight"), r"conv_in\.weight"),
    "a tensor elsewhere": (lambda m: m.update({"conv_in.weight": m["conv_out.bias"]}), r"conv_in\.weight"),
    "a step up": (lambda m: m.update(x="../x.safetensors"), "beside it"),
    "a pickle": (lambda m: m.update(x="x.bin"), "beside it"),
    "a number": (lambda m: m.update(x=3), "must map"),
    "nothing": (lambda m: m.clear(), "must map"),
    "a missing file": (lambda m: m.update(x="missing.safetensors"), "no such file"),
}


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_an_index_that_does_not_tell_the_truth_is_refused(copy: Path, fault: str) -> None:
    change, said = SHARD_FAULTS[fault]
    unet = diffusers.UNet2DConditionModel.from_pretrained(copy / "unet", dtype=torch.float16)
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(copy / "unet", max_shard_size="8MB")
    edit_index(copy / "unet", change)
    with pytest.raises(BundleError, match=said):
        open_source(copy)


def test_variants_are_taken_when_asked_for_or_when_there_is_no_other(copy: Path) -> None:
    for name, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (copy / name / f"{stem}.safetensors").rename(copy / name / f"{stem}.fp16.safetensors")
    pipeline = stock(diffusers.StableDiffusionPipeline.from_pretrained, copy, variant="fp16")
    for variant in ("fp16", None):
        source = open_source(copy, variant=variant)
        check(source, pipeline)
        assert any(p["name"] == "unet/diffusion_pytorch_model.fp16.safetensors" for p in source.provenance)
    os.link(
        copy / "unet/diffusion_pytorch_model.fp16.safetensors",
        copy / "unet/diffusion_pytorch_model.non_ema.safetensors",
    )
    with pytest.raises(InputError, match="fp16, non_ema"):
        open_source(copy)
    taesd().save_pretrained(copy.parent / "taesd")  # which has no such variant, and need not
    assert "tiny_vae" in open_source(copy, variant="fp16", vae=copy.parent / "taesd").tensors
    with pytest.raises(InputError, match="must be one of: fp16, got 'bf16'"):
        open_source(copy, variant="bf16")


def test_a_folder_of_pickles_is_refused_with_the_safe_conversion(copy: Path) -> None:
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": torch.zeros(2)}, copy / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.bin.*pickles.*weights_only=True"):
        open_source(copy)


@pytest.mark.parametrize(
    ("name", "said"),
    [("model_index.json", "model_index"), ("scheduler/scheduler_config.json", "scheduler_config"),
     ("unet/config.json", "unet/config.json"), ("text_encoder/model.safetensors", r"model\.safetensors"),
     ("tokenizer/merges.txt", "merges")],
)  # fmt: skip
def test_an_incomplete_folder_is_refused_by_what_it_lacks(copy: Path, name: str, said: str) -> None:
    (copy / name).unlink()
    with pytest.raises((BundleError, InputError), match=said):
        open_source(copy)


def test_a_folder_carries_its_licence_and_names_what_it_leaves_behind(copy: Path) -> None:
    (copy / "README.md").write_text("notes")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").unlink()
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (copy / "model_index.json").write_text(json.dumps(index))
    source = open_source(copy)
    assert [file.name for file in source.extras] == ["LICENSE.txt", "README.md"]
    assert source.index["safety_checker"] == [None, None] and source.index["requires_safety_checker"] is False
    assert source.index["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_an_image_encoder_is_passed_through(copy: Path) -> None:
    config = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, image_size=8,
                                           num_attention_heads=2, patch_size=4, projection_dim=12)  # fmt: skip
    model = build(lambda: transformers.CLIPVisionModelWithProjection(config), seed=9)
    model.save_pretrained(copy / "image_encoder")
    source = open_source(copy)
    theirs = {name: value for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    assert set(source.tensors["image_encoder"]) == set(theirs)
    assert all(np.array_equal(source.tensors["image_encoder"][name], value) for name, value in theirs.items())
    assert source.configs["image_encoder"]["hidden_size"] == 16


# --- Family and prediction --------------------------------------------------------------------------------------


def test_the_built_in_model_is_known_by_its_shapes() -> None:
    from hotloop.bundle import builtin

    source = open_source(builtin())
    assert source.family == "avatar-tiny" and set(source.tensors) >= {"text_encoder", "unet", "vae"}
    assert open_source(builtin(), family="avatar-tiny").family == "avatar-tiny"
    with pytest.raises(InputError, match="context_dim 768"):
        open_source(builtin(), family="sd15")


def test_sd2_files_are_v_prediction_with_a_warning_unless_told(made: SimpleNamespace) -> None:
    tokenizer = made.folder / "tokenizer"
    if not made.two:
        assert open_source(made.file, tokenizer=tokenizer).scheduler["prediction_type"] == "epsilon"
        source = open_source(made.file, tokenizer=tokenizer, prediction="v_prediction")
        assert (source.family, source.scheduler["prediction_type"]) == (made.kind, "v_prediction")
        return
    with pytest.warns(UserWarning, match="v_prediction, as diffusers does"):
        source = open_source(made.file, tokenizer=tokenizer)
    assert (source.family, source.scheduler["prediction_type"]) == ("sd21-v", "v_prediction")
    assert source.configs["unet"]["sample_size"] == 96
    for said, family in (("eps", "sd21"), ("epsilon", "sd21"), ("v", "sd21-v"), ("v_prediction", "sd21-v")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_source(made.file, tokenizer=tokenizer, prediction=said).family == family
            source = open_source(made.file, tokenizer=tokenizer, family=family)
        assert source.scheduler["prediction_type"] == {"sd21": "epsilon", "sd21-v": "v_prediction"}[family]
    with pytest.raises(InputError, match="sd21 predicts epsilon"):
        open_source(made.file, tokenizer=tokenizer, family="sd21", prediction="v")


def worded(made: SimpleNamespace, file: Path, *marks: str, **modelspec: str) -> Path:
    """The single file with empty tensors as marks, and ModelSpec's metadata, in its header."""
    tensors = load_file(made.file) | {mark: torch.zeros(0) for mark in marks}
    metadata = {f"modelspec.{key}": value for key, value in modelspec.items()}
    save_file(tensors, file, metadata={"format": "pt", **metadata})
    return file


@pytest.mark.parametrize(
    ("marks", "modelspec", "prediction", "said"),
    [
        (("v_pred",), {}, "v_prediction", "v_prediction, by the key v_pred"),
        ((), {"prediction_type": "v"}, "v_prediction", "v_prediction, by modelspec.prediction_type v"),
        ((), {"prediction_type": "epsilon", "architecture": "stable-diffusion-v2-768-v"}, "epsilon", "contradict"),
        ((), {"architecture": "stable-diffusion-v2-512"}, "epsilon", "by modelspec.architecture stable-diffusion-v2-5"),
        ((), {"architecture": "stable-diffusion-v2-768-v"}, "v_prediction", "by modelspec.architecture stable-diff"),
        ((), {"prediction_type": "flow"}, None, "prediction_type flow is not known"),
        (("ztsnr", "v_pred"), {}, "v_prediction", "zero terminal SNR, by the key ztsnr"),
    ],
)
def test_a_single_file_says_what_it_predicts(
    made: SimpleNamespace, tmp_path: Path, marks: tuple[str, ...], modelspec: dict[str, str], prediction: str | None,
    said: str,
) -> None:  # fmt: skip
    if made.kind not in ("sd15", "sd21-v"):
        return
    prediction = prediction or ("v_prediction" if made.two else "epsilon")
    file = worded(made, tmp_path / "m.safetensors", *marks, **modelspec)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        source = open_source(file, tokenizer=made.folder / "tokenizer")
    lines = [*source.repairs, *(str(one.message) for one in warned)]
    assert any(said in line for line in lines)
    assert any("do not tell epsilon from v" in line for line in lines) == (made.two and "flow" in said)
    assert source.scheduler["prediction_type"] == prediction
    if made.two:
        assert source.family == {"epsilon": "sd21", "v_prediction": "sd21-v"}[prediction]
    zero = "ztsnr" in marks
    assert source.scheduler.get("rescale_betas_zero_snr", False) == zero
    assert source.scheduler.get("timestep_spacing", "leading") == ("trailing" if zero else "leading")
    assert source.manner.defaults["sampler"] == ("ddim" if prediction == "v_prediction" else "plms")
    # What the caller says stands before what the file says.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = open_source(file, tokenizer=made.folder / "tokenizer", prediction="epsilon")
    assert told.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("title", "scheduler", "sampler"),
    [("DreamShaper 8 LCM", "LCMScheduler", "lcm"), ("SD Turbo", "EulerDiscreteScheduler", "euler"),
     ("Turbocharged", "PNDMScheduler", "plms")],
)  # fmt: skip
def test_a_title_that_names_a_distillation_chooses_its_scheduler(
    sd15: SimpleNamespace, tmp_path: Path, title: str, scheduler: str, sampler: str
) -> None:
    source = open_source(worded(sd15, tmp_path / "m.safetensors", title=title), tokenizer=sd15.folder / "tokenizer")
    assert source.scheduler["_class_name"] == scheduler and source.index["scheduler"] == ["diffusers", scheduler]
    assert source.manner.defaults["sampler"] == sampler
    assert source.manner.defaults.get("num_inference_steps", 50) == (50 if sampler == "plms" else 4)


def test_a_folder_says_its_own_prediction_and_may_be_overruled(made: SimpleNamespace) -> None:
    own = open_source(made.folder)
    declared = json.loads((made.folder / "scheduler/scheduler_config.json").read_text())["prediction_type"]
    assert own.scheduler["prediction_type"] == declared
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[declared]
    source = open_source(made.folder, prediction=other)
    assert source.scheduler == own.scheduler | {"prediction_type": other}
    assert source.family == {"sd21": "sd21-v", "sd21-v": "sd21"}.get(made.kind, made.kind)
    if made.two:
        with pytest.raises(InputError, match=f"the family {source.family} predicts"):
            open_source(made.folder, family=source.family)


def test_unknown_shapes_are_refused_with_what_was_found(copy: Path) -> None:
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").unlink()
    (copy / "unet/config.json").write_text(json.dumps(config | {"in_channels": 5}))
    with pytest.raises(InputError, match=r"known family \(sd15, .*unet_channels 5.*context_dim 768.*vae_factor 8"):
        open_source(copy)
    with pytest.raises(InputError, match="family must be one of"):
        open_source(copy, family="sd3")
    with pytest.raises(InputError, match="prediction must be"):
        open_source(copy, prediction="x0")


def some(*names: str) -> Tensors:
    return {name: torch.zeros(2, 3) for name in names}


OTHERS = {
    "SDXL": some("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
                 "model.diffusion_model.label_emb.0.0.weight", "first_stage_model.decoder.up.0.block.0.conv1.bias"),
    "Flux": some("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"),
    "SD 3": some("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
    "a LoRA": some("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "x.alpha"),
    "LoRA: give it to --lora": some("unet.down_blocks.0.attentions.0.to_q.lora_A.weight"),
    "ControlNet": some("control_model.input_blocks.0.0.weight"),
    "textual inversion": some("emb_params"),
    "a VAE": some("decoder.up.0.block.0.conv1.weight", "encoder.conv_in.weight"),
    "tiny VAE": some("decoder.layers.0.weight"),
    "diffusers UNet alone": some("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"),
    "CLIP": some("text_model.embeddings.token_embedding.weight"),
    "no text_encoder": some("model.diffusion_model.input_blocks.0.0.weight"),
    "no unet": some("weights", "of something"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_model_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    save_file(OTHERS[kind], tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=re.escape(kind)) as caught:
        open_source(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value) and "m.safetensors" in str(caught.value)


def test_a_unet_with_a_layer_we_do_not_know_is_refused_by_name(sd15: SimpleNamespace, tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.1.2.temporal.weight"
    file = write_single(tmp_path / "m.safetensors", sd15.folder, open_clip=False, **some(name))
    with pytest.raises(BundleError, match=re.escape("input_blocks.1.2.temporal.weight")):
        open_source(file, tokenizer=sd15.folder / "tokenizer")


def test_a_renamed_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "m.safetensors")
    with pytest.raises(BundleError, match="pickles"):
        open_source(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="nowhere"):
        open_source(tmp_path / "nowhere")


# --- Tokenizer --------------------------------------------------------------------------------------------------


def test_a_single_files_tokenizer_is_given_or_lies_beside_it(sd15: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    os.link(sd15.file, file)
    with pytest.raises(InputError, match="a single file carries no tokenizer") as caught:
        open_source(file)
    assert "\n" not in str(caught.value)
    for name in ("vocab.json", "merges.txt"):
        os.link(sd15.folder / "tokenizer" / name, tmp_path / name)
    source = open_source(file)
    assert source.tokenizer == tmp_path
    assert [f.name for f in source.tokenizer_files] == ["vocab.json", "merges.txt"], "and not the checkpoint"
    write_tokenizer(tmp_path / "tokenizer")
    assert open_source(file).tokenizer == tmp_path / "tokenizer"
    assert open_source(file, tokenizer=sd15.folder).tokenizer == sd15.folder / "tokenizer"
    with pytest.raises(InputError, match="folder that holds vocab"):
        open_source(file, tokenizer=tmp_path / "nowhere")


def test_a_single_file_takes_clips_vocabulary_from_where_it_is(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path
) -> None:
    """The narrow text encoders have 515 tokens, so two merges stand for CLIP's here."""
    if made.kind not in ("sd15", "sd21-v"):
        return
    file = tmp_path / "m.safetensors"
    os.link(made.file, file)
    monkeypatch.setattr(vocabulary, "TOKENS", 515)
    monkeypatch.setattr(vocabulary, "find_merges", lambda: None)
    with pytest.raises(InputError, match=r"get CLIP's vocabulary \(`pip install --no-deps clip-anytorch`\)") as caught:
        open_source(file, prediction="v")
    assert "\n" not in str(caught.value) and "--tokenizer" in str(caught.value)
    monkeypatch.setattr(vocabulary, "find_merges", lambda: (Path("somewhere"), ["h i</w>"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(file, prediction="v")
    assert "tokenizer: CLIP's vocabulary, of somewhere" in source.repairs
    assert own_cache in source.tokenizer.parents
    tokenizer = Tokenizer.from_dir(source.tokenizer)
    assert tokenizer.pad == (tokenizer.vocabulary()["!"] if made.two else tokenizer.end), "as the family was trained"


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_refused(sd15: SimpleNamespace, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"extra</w>": 515}))
    with pytest.raises(InputError, match="515 tokens, got 'token 515'"):
        open_source(sd15.file, tokenizer=folder)


def test_sd2_warns_of_a_tokenizer_that_pads_otherwise(made: SimpleNamespace, tmp_path: Path) -> None:
    if not made.two:
        return
    with pytest.warns(UserWarning, match="padded with '!'"):
        open_source(made.file, tokenizer=write_tokenizer(tmp_path / "t"), prediction="v")


# --- Another VAE ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = build(lambda: diffusers.AutoencoderKL(layers_per_block=2, **blocks, **NARROW["vae"]), seed=77)
    return SimpleNamespace(model=vae, tensors=vae.state_dict(), place=tmp_path_factory.mktemp("vae"))


def old_names(tensors: Tensors) -> Tensors:
    """As diffusers named the attention before 0.16, as 1x1 convolutions."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    out = {}
    for name, value in tensors.items():
        for new, was in old.items():
            if ".attentions." in name and new in name:
                name, value = name.replace(new, was), value[:, :, None, None] if value.ndim == 2 else value
        out[name] = value
    return out


VAE_FORMS: dict[str, Callable[[Tensors], Tensors]] = {
    "diffusers": lambda t: t,
    "diffusers before 0.16": old_names,
    "LDM": lambda t: ldm_vae(t) | some("loss.discriminator.main.0.weight", "model_ema.decay"),
    "LDM within a checkpoint": lambda t: {"first_stage_model." + k: v for k, v in ldm_vae(t).items()} | some("betas"),
    "vae.": lambda t: {"vae." + k: v for k, v in t.items()},
}


@pytest.mark.parametrize("form", VAE_FORMS)
def test_a_replacement_vae_is_read_from_a_file_of_any_layout(
    sd15: SimpleNamespace, other_vae: SimpleNamespace, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "other.safetensors"
    save_file({k: v.contiguous() for k, v in VAE_FORMS[form](other_vae.tensors).items()}, file)
    for source in (open_source(sd15.folder, vae=file),
                   open_source(sd15.file, vae=file, tokenizer=sd15.folder / "tokenizer")):  # fmt: skip
        own = source.tensors["vae"]
        assert set(own) == set(other_vae.tensors)
        assert all(np.array_equal(own[name], value) for name, value in other_vae.tensors.items())
        AutoencoderKL.from_tensors(source.configs["vae"], own)
        assert [p["name"] for p in source.provenance if p["role"] == "vae"] == ["other.safetensors"]
        assert source.configs["vae"]["scaling_factor"] == 0.18215
    if form in ("diffusers", "LDM"):
        config = str(sd15.folder / "vae")
        theirs = diffusers.AutoencoderKL.from_single_file(str(file), config=config, dtype=torch.float16)
        assert all(np.array_equal(own[name], value) for name, value in theirs.state_dict().items())


def test_a_replacement_vae_is_read_from_a_folder(
    sd15: SimpleNamespace, other_vae: SimpleNamespace, tmp_path: Path
) -> None:
    other_vae.model.save_pretrained(tmp_path / "v")
    for folder in (tmp_path / "v", sd15.folder):  # a VAE's own, or a whole checkpoint
        source = open_source(sd15.file, vae=folder, tokenizer=sd15.folder / "tokenizer")
        expected = load_file((folder if folder.name == "v" else folder / "vae") / "diffusion_pytorch_model.safetensors")
        assert all(np.array_equal(source.tensors["vae"][name], value) for name, value in expected.items())


def test_a_checkpoint_without_a_vae_needs_one(
    sd15: SimpleNamespace, other_vae: SimpleNamespace, tmp_path: Path
) -> None:
    tensors = {name: v for name, v in load_file(sd15.file).items() if not name.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="holds no VAE"):
        open_source(tmp_path / "m.safetensors", tokenizer=sd15.folder / "tokenizer")
    save_file(other_vae.tensors, tmp_path / "v.safetensors")
    source = open_source(
        tmp_path / "m.safetensors", tokenizer=sd15.folder / "tokenizer", vae=tmp_path / "v.safetensors"
    )
    assert source.family == "sd15"


def taesd(**config: Any) -> Any:
    return build(lambda: diffusers.AutoencoderTiny(**config), seed=6)


def author_names(tensors: Tensors, half: str) -> Tensors:
    """taesd_encoder and taesd_decoder: plain sequences, the decoder's beginning with a clamp."""
    out = {}
    for name, value in tensors.items():
        side, _, number, rest = name.split(".", 3)
        if side == half:
            out[f"{int(number) + (half == 'decoder')}.{rest}"] = value
    return out


@pytest.mark.parametrize(
    "form", ["folder", "file", "halves", "other half", "folder of halves", "one file of the author's"]
)
def test_a_tiny_vae_comes_beside_the_full_one(sd15: SimpleNamespace, tmp_path: Path, form: str) -> None:
    model = taesd()
    tensors = model.state_dict()
    for half in ("encoder", "decoder"):
        save_file(author_names(tensors, half), tmp_path / f"taesd_{half}.safetensors")
    vae = {"folder": tmp_path / "taesd", "file": tmp_path / "taesd.safetensors", "folder of halves": tmp_path,
           "halves": tmp_path / "taesd_encoder.safetensors", "other half": tmp_path / "taesd_decoder.safetensors",
           "one file of the author's": tmp_path / "both.safetensors"}[form]  # fmt: skip
    model.save_pretrained(tmp_path / "taesd")
    save_file(tensors, tmp_path / "taesd.safetensors")
    both = {f"{half}.{k}": v for half in ("encoder", "decoder") for k, v in author_names(tensors, half).items()}
    save_file(both, tmp_path / "both.safetensors")
    source = open_source(sd15.folder, vae=vae)
    assert set(source.tensors["tiny_vae"]) == set(tensors)
    assert all(np.array_equal(source.tensors["tiny_vae"][name], value) for name, value in tensors.items())
    config = source.configs["tiny_vae"]
    assert config["_class_name"] == "AutoencoderTiny"
    for key in ("num_encoder_blocks", "num_decoder_blocks", "encoder_block_out_channels", "decoder_block_out_channels"):
        assert list(config[key]) == list(model.config[key])
    TinyVAE.from_tensors(config, source.tensors["tiny_vae"])
    assert source.configs["vae"]["_class_name"] == "AutoencoderKL"


def test_the_word_tiny_finds_the_tiny_vae_in_or_beside_the_source(sd15: SimpleNamespace, copy: Path) -> None:
    with pytest.raises(InputError, match="no tiny VAE"):
        open_source(copy, vae="tiny")
    taesd().save_pretrained(copy.parent / "taesd")
    assert "tiny_vae" in open_source(copy, vae="tiny").tensors
    taesd().save_pretrained(copy / "tiny_vae")
    assert "tiny_vae" in open_source(copy, vae="tiny").tensors


def test_a_vae_of_another_latent_space_is_refused(sd15: SimpleNamespace, tmp_path: Path) -> None:
    taesd(latent_channels=16).save_pretrained(tmp_path / "taef1")
    with pytest.raises(InputError, match=r"taef1 must have 4 latent channels.*got 16"):
        open_source(sd15.folder, vae=tmp_path / "taef1")
    small = taesd(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                  num_decoder_blocks=(1, 1))  # fmt: skip
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match=r"must have 8 pixels per latent cell.*got 2"):
        open_source(sd15.folder, vae=tmp_path / "small")
    for vae, said in (
        (sd15.folder / "unet/diffusion_pytorch_model.safetensors", "diffusers UNet alone"),
        (sd15.folder / "unet", "vae must be"), (tmp_path / "nowhere", "folder or a"), (tmp_path, "TAESD's two halves"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            open_source(sd15.folder, vae=vae)
    save_file(author_names(taesd().state_dict(), "decoder"), tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(InputError, match="needs its encoder beside it"):
        open_source(sd15.folder, vae=tmp_path / "taesd_decoder.safetensors")


# --- Provenance -------------------------------------------------------------------------------------------------


def test_every_file_that_was_used_is_named_with_its_hash(sd15: SimpleNamespace) -> None:
    import hashlib

    source = open_source(sd15.folder)
    for entry in source.provenance:
        assert entry["sha256"] == hashlib.sha256((sd15.folder / entry["name"]).read_bytes()).hexdigest()
    used = {entry["name"] for entry in source.provenance}
    assert used == {str(f.relative_to(sd15.folder)) for f in sd15.folder.rglob("*") if f.is_file()} - {"LICENSE.txt"}
    single = open_source(sd15.file, tokenizer=sd15.folder / "tokenizer").provenance
    assert single[0] | {"sha256": ""} == {"role": "checkpoint", "name": "model.safetensors", "format": "single-file",
                                          "sha256": ""}  # fmt: skip
    assert not any("/" in entry["name"] for entry in single), "no path of the machine"


def test_hashes_are_remembered_until_the_file_changes(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_SETTLED_NS", 0)
    reads: list[str] = []
    digest = hashes.hashlib.file_digest
    monkeypatch.setattr(hashes.hashlib, "file_digest", lambda f, kind: reads.append(f.name) or digest(f, kind))
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = file_sha256(file)
    assert file_sha256(file) == first and len(reads) == 1
    assert file_sha256(file, rehash=True) == first and len(reads) == 2
    stat = file.stat()
    file.write_bytes(b"two")  # the same size and times, but the change time cannot be set back
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(file) != first and len(reads) == 3
    (own_cache / "hashes.json").write_text("{")
    assert file_sha256(file) != first and len(reads) == 4
    (own_cache / "hashes.json").write_text(json.dumps({str(file): 5}))
    assert file_sha256(file) != first and len(reads) == 5
    with pytest.raises(BundleError, match="readable"):
        file_sha256(tmp_path / "nowhere")


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    file_sha256(tmp_path / "a")
    assert not (own_cache / "hashes.json").exists()


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"one")
    monkeypatch.setattr(hashes, "_SETTLED_NS", 0)
    monkeypatch.setenv("HOTLOOP_CACHE", str(tmp_path / "file" / "below"))
    assert len(file_sha256(tmp_path / "file")) == 64


def test_opening_reads_no_tensor(sd15: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Weights, name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(Weights, "__getitem__", never)
    open_source(sd15.folder)
    open_source(sd15.file, tokenizer=sd15.folder / "tokenizer")
