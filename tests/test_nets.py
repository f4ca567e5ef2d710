"""The networks against diffusers' and transformers' modules holding the same random weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from helpers import randomise
from safetensors.torch import load_file, save_file

from hotloop.errors import BundleError
from hotloop.nets.clip import CLIPText, CLIPVision
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE

TOLERANCE = 1e-4
SEED = 11


def unet_config(widths: tuple[int, ...], **entries: Any) -> dict[str, Any]:
    """The lowest level without attention, as in SD."""
    down = ("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",)
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    return {"block_out_channels": widths, "down_block_types": down, "up_block_types": up, **entries}


SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
             "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}  # fmt: skip
SD21_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
             "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "gelu"}  # fmt: skip
SD_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}

UNETS = {
    "sd15": unet_config((32, 64, 96, 96), attention_head_dim=8, cross_attention_dim=48, norm_num_groups=16),
    "sd21": unet_config((32, 64, 128, 128), attention_head_dim=[1, 2, 4, 4], cross_attention_dim=56,
                        use_linear_projection=True, norm_num_groups=16),
    "inpaint": unet_config((32, 64, 96, 96), in_channels=9, attention_head_dim=8, cross_attention_dim=48,
                           norm_num_groups=16),
    "sines-first": unet_config((32, 64), attention_head_dim=4, cross_attention_dim=48, norm_num_groups=8,
                               flip_sin_to_cos=False, freq_shift=1, layers_per_block=3),
    "avatar-tiny": unet_config((64, 96, 128), attention_head_dim=4, cross_attention_dim=128,
                               norm_num_groups=16, layers_per_block=1),
}  # fmt: skip
FULL_UNETS = {
    "sd15": unet_config((320, 640, 1280, 1280), attention_head_dim=8, cross_attention_dim=768),
    "sd21": unet_config((320, 640, 1280, 1280), attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024,
                        use_linear_projection=True),
}  # fmt: skip
VAES = {
    "sd": {"block_out_channels": (32, 64, 96, 96), "layers_per_block": 2, "norm_num_groups": 16},
    "avatar-tiny": {"block_out_channels": (32, 48, 64), "norm_num_groups": 8},
    "no-quant-conv": {"block_out_channels": (32, 48), "norm_num_groups": 8, "use_quant_conv": False,
                      "use_post_quant_conv": False, "mid_block_add_attention": False, "latent_channels": 8},
}  # fmt: skip
TEXTS = {
    "sd15": SD15_TEXT | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 500,
                         "num_attention_heads": 4},
    "sd21": SD21_TEXT | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 500,
                         "num_attention_heads": 2},
    "one-layer": SD15_TEXT | {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 90,
                              "num_attention_heads": 3,
                              "max_position_embeddings": 20},
}  # fmt: skip


def normal(*shape: int, seed: int = SEED) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(build: Any) -> torch.nn.Module:
    with torch.device("meta"):
        module = build()
    return randomise(module.to_empty(device="cpu"))


def diffusers_vae(config: dict[str, Any]) -> torch.nn.Module:
    levels = len(config["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return randomise(diffusers.AutoencoderKL(**blocks, **config))


def clip(config: dict[str, Any]) -> torch.nn.Module:
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    return randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**config, **ids)))


def epsilons(module: torch.nn.Module, kinds: Any) -> dict[str, float]:
    return {name: m.eps for name, m in module.named_modules() if isinstance(m, kinds)}


def same_weights(net: torch.nn.Module, ref: torch.nn.Module) -> torch.nn.Module:
    """Strict both ways: the keys, shapes and norms' epsilons (too small to show in an output) are the reference's."""
    net.load_state_dict(ref.state_dict(), strict=True, assign=True)
    norms = torch.nn.GroupNorm | torch.nn.LayerNorm
    assert epsilons(net, norms) == epsilons(ref, norms)
    return net.eval()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.02, "the comparison needs an output that is not flat"
    return float((ours - theirs).abs().max())


@torch.no_grad()
def unet_difference(config: dict[str, Any], *, size: tuple[int, int], batch: int = 2, tokens: int = 77) -> float:
    ref = reference(lambda: diffusers.UNet2DConditionModel(**config))
    with torch.device("meta"):
        net = UNet(config)
    same_weights(net, ref)
    sample = normal(batch, config.get("in_channels", 4), *size)
    context = normal(batch, tokens, config["cross_attention_dim"])
    timestep = torch.tensor([999.0, 12.25, 500.0])[:batch]
    return difference(net(sample, timestep, context), ref(sample, timestep, context).sample)


@pytest.mark.parametrize("size", [(16, 16), (11, 13)], ids=str)
@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    assert unet_difference(UNETS[name], size=size) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize(("name", "size"), [("sd15", (64, 64)), ("sd21", (64, 48))], ids=str)
def test_full_size_unet_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    worst = unet_difference(FULL_UNETS[name], size=size, batch=1)
    print(f"{name} UNet: max |difference| {worst:.2e}")
    assert worst <= TOLERANCE


def test_unet_takes_any_number_of_tokens() -> None:
    assert unet_difference(UNETS["sd15"], size=(8, 8), tokens=3) <= TOLERANCE


def test_heads_are_counted_alike_under_both_names() -> None:
    config = UNETS["sd15"]
    ours = UNet({**config, "num_attention_heads": 8, "attention_head_dim": None})
    assert [m.heads for m in ours.modules() if hasattr(m, "heads")] == [8] * 32


@torch.no_grad()
def vae_difference(config: dict[str, Any], *, size: tuple[int, int]) -> tuple[float, float, float]:
    ref = diffusers_vae(config)
    net = same_weights(AutoencoderKL(config), ref)
    image, latents = normal(2, 3, *size), normal(2, config.get("latent_channels", 4), size[0] // 8, size[1] // 8)
    posterior = ref.encode(image).latent_dist
    mean, logvar = net.encode(image)
    return (
        difference(mean, posterior.mean),
        difference(logvar, posterior.logvar),
        difference(net.decode(latents), ref.decode(latents).sample),
    )


@pytest.mark.parametrize("size", [(64, 64), (40, 56)], ids=str)
@pytest.mark.parametrize("name", VAES)
def test_vae_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    assert max(vae_difference(VAES[name], size=size)) <= TOLERANCE


@pytest.mark.long
def test_full_size_vae_equals_diffusers() -> None:
    worst = vae_difference(SD_VAE, size=(256, 192))
    print("SD VAE: max |difference| of mean, logvar, image", *(f"{d:.2e}" for d in worst))
    assert max(worst) <= TOLERANCE


@torch.no_grad()
def test_tiny_vae_equals_diffusers() -> None:
    ref = randomise(diffusers.AutoencoderTiny())
    net = same_weights(TinyVAE({}), ref)
    image, latents = normal(2, 3, 40, 56), 3 * normal(2, 4, 5, 7)
    mean, logvar = net.encode(image)
    assert difference(mean, ref.encode(image).latents) <= TOLERANCE
    assert logvar.exp().max() < 1e-12
    assert difference(net.decode(latents), ref.decode(latents).sample) <= TOLERANCE


@torch.no_grad()
def clip_difference(config: dict[str, Any], *, tokens: int) -> tuple[float, float]:
    ref = clip(config)
    net = same_weights(CLIPText(config), ref)
    ids = torch.randint(0, config["vocab_size"], (2, tokens), generator=torch.Generator().manual_seed(SEED))
    states = ref(ids, output_hidden_states=True)
    last, penultimate = net(ids.int())
    return (
        difference(last, states.last_hidden_state),
        difference(penultimate, ref.final_layer_norm(states.hidden_states[-2])),
    )


@pytest.mark.parametrize("tokens", [20, 7])
@pytest.mark.parametrize("name", TEXTS)
def test_text_encoder_equals_transformers(name: str, tokens: int) -> None:
    assert max(clip_difference(TEXTS[name], tokens=tokens)) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("config", [SD15_TEXT, SD21_TEXT], ids=["sd15", "sd21"])
def test_full_size_text_encoder_equals_transformers(config: dict[str, Any]) -> None:
    worst = clip_difference(config, tokens=77)
    print("text encoder: max |difference| of last, penultimate", *(f"{d:.2e}" for d in worst))
    assert max(worst) <= TOLERANCE


def test_a_later_token_changes_no_earlier_state() -> None:
    net = randomise(CLIPText(TEXTS["sd15"]))
    ids = torch.arange(10)[None]
    changed = ids.clone()
    changed[0, 6] = 77
    a, b = net(ids)[0], net(changed)[0]
    assert torch.equal(a[:, :6], b[:, :6])
    assert not torch.allclose(a[:, 6], b[:, 6])


EYES = {
    "small": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 7, "projection_dim": 20},
    "gelu": {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 30, "patch_size": 14, "projection_dim": 24, "hidden_act": "gelu"},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", EYES)
def test_image_encoder_equals_transformers(name: str, tmp_path: Path) -> None:
    ref = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**EYES[name])))
    ref.save_pretrained(tmp_path / "theirs")
    net = CLIPVision.from_dir(tmp_path / "theirs")
    side = EYES[name]["image_size"]
    assert (net.side, net.embedding) == (side, EYES[name]["projection_dim"])
    image = normal(2, 3, side, side)
    assert difference(net(image), ref(image).image_embeds) <= TOLERANCE
    net.save(tmp_path / "ours", dtype=torch.float32)
    stock = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "ours")
    assert difference(net(image), stock(image).image_embeds) <= TOLERANCE


@torch.no_grad()
def test_stock_loaders_read_what_save_writes(tmp_path: Path) -> None:
    config = UNETS["avatar-tiny"]
    unet = randomise(UNet(config))
    unet.save(tmp_path / "unet", dtype=torch.float32)
    stock = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    x, t, c = normal(1, 4, 8, 8), torch.tensor([7.0]), normal(1, 5, 128)
    assert difference(unet(x, t, c), stock(x, t, c).sample) <= TOLERANCE

    vae = randomise(AutoencoderKL({**VAES["avatar-tiny"], "scaling_factor": 0.7}))
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    vae.config |= levels
    vae.save(tmp_path / "vae", dtype=torch.float32)
    stock = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert stock.config.scaling_factor == 0.7
    assert difference(vae.decode(x), stock.decode(x).sample) <= TOLERANCE

    text = randomise(CLIPText(TEXTS["sd15"]))
    text.save(tmp_path / "text_encoder", dtype=torch.float32)
    stock = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    ids = torch.arange(9)[None]
    assert difference(text(ids)[0], stock(ids).last_hidden_state) <= TOLERANCE


def test_half_precision_files_load_as_their_rounded_weights(tmp_path: Path) -> None:
    net = randomise(AutoencoderKL(VAES["avatar-tiny"]))
    net.save(tmp_path)
    back = AutoencoderKL.from_dir(tmp_path)
    assert not back.training
    for (key, ours), (_, saved) in zip(back.state_dict().items(), net.state_dict().items(), strict=True):
        assert ours.dtype == torch.float32, key
        assert torch.equal(ours, saved.half().float()), key


def test_a_file_named_fp16_is_found(tmp_path: Path) -> None:
    randomise(TinyVAE({})).save(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert TinyVAE.from_dir(tmp_path).factor == 8


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_are_as_readable_as_the_umask_allows(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        file = TinyVAE({}).save(tmp_path)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def edit(file: Path, change: Any) -> None:
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file, metadata={"format": "pt"})


def test_deprecated_attention_keys_of_the_vae_load(tmp_path: Path) -> None:
    net = randomise(AutoencoderKL(VAES["avatar-tiny"]))
    file = net.save(tmp_path, dtype=torch.float32)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def deprecate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {}
        for key, value in tensors.items():
            for new, name in old.items():
                if f".{new}." in key:
                    key = key.replace(new, name)
                    value = value[:, :, None, None] if key.endswith("weight") else value
            out[key] = value.contiguous()
        return out

    edit(file, deprecate)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in load_file(file)
    back = AutoencoderKL.from_dir(tmp_path).state_dict()
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


def test_text_weights_load_with_and_without_their_prefix(tmp_path: Path) -> None:
    net = randomise(CLIPText(TEXTS["one-layer"]))
    file = net.save(tmp_path, dtype=torch.float32)
    assert all(key.startswith("text_model.") for key in load_file(file))
    edit(file, lambda t: {k.removeprefix("text_model."): v for k, v in t.items()}
         | {"embeddings.position_ids": torch.arange(20)})  # fmt: skip
    back = CLIPText.from_dir(tmp_path).state_dict()
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(tmp_path: Path, poison: float) -> None:
    file = randomise(TinyVAE({})).save(tmp_path)
    edit(file, lambda tensors: tensors["decoder.layers.18.bias"].__setitem__(1, poison))
    with pytest.raises(BundleError, match=r"finite.*decoder\.layers\.18\.bias"):
        TinyVAE.from_dir(tmp_path)


def test_missing_unexpected_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    file = randomise(TinyVAE({})).save(tmp_path)
    edit(file, lambda tensors: tensors.update(stray=torch.zeros(1)))
    with pytest.raises(BundleError, match=r"unknown to TinyVAE.*stray"):
        TinyVAE.from_dir(tmp_path)
    edit(file, lambda tensors: (tensors.pop("stray"), tensors.pop("encoder.layers.0.bias"), None)[2])
    with pytest.raises(BundleError, match=r"lacks.*encoder\.layers\.0\.bias"):
        TinyVAE.from_dir(tmp_path)
    edit(file, lambda tensors: tensors.update({"encoder.layers.0.bias": torch.zeros(3)}))
    with pytest.raises(BundleError, match=r"encoder\.layers\.0\.bias .*shape \(64,\), got \(3,\)"):
        TinyVAE.from_dir(tmp_path)


def test_weights_too_large_for_the_file_are_refused_at_save(tmp_path: Path) -> None:
    net = TinyVAE({})
    net.state_dict()["encoder.layers.0.bias"][0] = 1e6
    with pytest.raises(BundleError, match=r"finite as F16, got 'encoder\.layers\.0\.bias'"):
        net.save(tmp_path)


@pytest.mark.parametrize("entry", [{"class_embed_type": "timestep"}, {"only_cross_attention": True},
                                   {"resnet_time_scale_shift": "scale_shift"}])  # fmt: skip
def test_architectures_that_are_not_covered_are_refused_by_name(entry: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=next(iter(entry))):
        UNet({**UNETS["sd15"], **entry})
    with pytest.raises(BundleError, match="down_block_types"):
        UNet({**UNETS["sd15"], "down_block_types": ["AttnDownBlock2D"] * 4})


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json"):
        TinyVAE.from_dir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(BundleError, match=r"must hold diffusion_pytorch_model\.safetensors"):
        TinyVAE.from_dir(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError, match="readable"):
        TinyVAE.from_dir(tmp_path)


def test_training_under_bfloat16_autocast_reaches_every_parameter() -> None:
    net = UNet(UNETS["avatar-tiny"])
    with torch.autocast("cpu", torch.bfloat16):
        out = net(normal(2, 4, 8, 8), torch.tensor([1.0, 900.0]), normal(2, 6, 128))
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
