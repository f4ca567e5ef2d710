"""lora.py against PEFT's merge_and_unload and diffusers' load_lora_weights + fuse_lora, and against broken files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

from hotloop.adapters.lora import MAX_RANK, Lora, Scaled, merge
from hotloop.adapters.lora_keys import lora_modules
from hotloop.errors import BundleError, InputError
from hotloop.weights import keys

TOLERANCE = 1e-5

UNETS = {
    "sd15": {"block_out_channels": (16, 32, 48), "attention_head_dim": 4, "cross_attention_dim": 24,
             "layers_per_block": 2},
    "sd21": {"block_out_channels": (16, 32), "attention_head_dim": [2, 4], "cross_attention_dim": 40,
             "use_linear_projection": True, "layers_per_block": 1},
}  # fmt: skip
TEXT = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60, "max_position_embeddings": 16,
        "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def networks(form: str = "sd15") -> dict[str, torch.nn.Module]:
    config = UNETS[form]
    levels = len(config["block_out_channels"])
    down = ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",)
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel(
        **config, norm_num_groups=8, down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
    )  # fmt: skip
    width = config["cross_attention_dim"]
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, **TEXT)
    )
    return {"unet": unet.eval(), "text_encoder": text.eval()}


def keyed(component: str, module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A network's weights as a source has them: CLIP's with `text_model.`, which transformers 5 does not write."""
    prefix = "text_model." if component == "text_encoder" else ""
    return {
        prefix + key.removeprefix("text_model."): value.detach().numpy().copy()
        for key, value in module.state_dict().items()
    }


def base_of(nets: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, np.ndarray]]:
    return {component: keyed(component, module) for component, module in nets.items()}


def shapes_of(base: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {component: {key: value.shape for key, value in weights.items()} for component, weights in base.items()}


def layers_of(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}


def assert_same(merged: Mapping[str, Mapping[str, np.ndarray]], base: Mapping[str, Mapping[str, np.ndarray]],
                reference: Mapping[str, Mapping[str, np.ndarray]]) -> None:  # fmt: skip
    """Every weight is the reference's, and only those that the reference changed are in `merged`."""
    assert {(c, k) for c in merged for k in merged[c]}
    for component, weights in base.items():
        mine = merged.get(component, {})
        assert weights.keys() == reference[component].keys()
        for key, value in weights.items():
            want = reference[component][key]
            got = mine.get(key, value)
            assert got.shape == want.shape and got.dtype == np.float32, key
            assert np.abs(got - want).max() <= TOLERANCE, key
            assert (key in mine) == (not np.array_equal(want, value)), key


# --- PEFT ---

LINEAR = r".*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|q_proj|v_proj|fc1|fc2)"
ALL = (
    r".*(to_q|to_out\.0|ff\.net\.2|proj_in|conv1|conv_shortcut|conv_in|conv_out|samplers\.0\.conv|time_emb_proj"
    r"|linear_1)"
)
PEFT_CASES: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": LINEAR, "r": 4, "lora_alpha": 6},
    "convolutions": {"target_modules": ALL, "r": 3, "lora_alpha": 5},
    "rank stabilised": {"target_modules": ALL, "r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ALL, "r": 4, "lora_alpha": 3,
        "rank_pattern": {"conv1": 2, "attn1.to_q": 7},
        "alpha_pattern": {
            "attn1.to_q": 9, r"down_blocks\.[01]\.resnets\.0\.conv1": 1, "^up_blocks.0.resnets.1.conv1": 2,
            "conv_in": 0.5,
        },
    },
    "patterns, rank stabilised": {
        "target_modules": ALL, "r": 4, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"conv1": 2},
        "alpha_pattern": {"conv1": 5},
    },
    "dora": {"target_modules": LINEAR, "r": 4, "lora_alpha": 6, "use_dora": True},
    "dora of convolutions": {"target_modules": ALL, "r": 3, "lora_alpha": 5, "use_dora": True},
    "fan_in_fan_out": {"target_modules": LINEAR, "r": 4, "lora_alpha": 6, "fan_in_fan_out": True},
}  # fmt: skip


def randomised(model: torch.nn.Module, *, seed: int = 5) -> None:
    """Adapters start as no change: make them some, of any sign."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                p.normal_(generator=generator).mul_(0.3)
            elif "lora_magnitude_vector" in name:
                p.mul_(0.5 + torch.rand(p.shape, generator=generator))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    ("form", "component", "case"),
    [(form, "unet", case) for form in UNETS for case in PEFT_CASES]
    + [("sd15", "text_encoder", case) for case in PEFT_CASES if PEFT_CASES[case]["target_modules"] == LINEAR],
)
def test_merged_weights_are_peft_s(form: str, component: str, case: str, tmp_path: Path) -> None:
    nets = networks(form)
    base = base_of(nets)
    model = peft.get_peft_model(nets[component], peft.LoraConfig(**PEFT_CASES[case]))
    randomised(model)
    model.save_pretrained(tmp_path / "style")
    lora = Lora.open(tmp_path / "style")
    assert (lora.name, lora.style) == ("style", "peft")
    nets[component] = model.merge_and_unload()
    assert_same(merge([Scaled(lora)], base), base, base_of(nets))


@pytest.mark.parametrize("scale", [0.4, -1.5])
def test_the_scale_of_a_dora_is_peft_s(scale: float, tmp_path: Path) -> None:
    nets = networks("sd21")
    base = base_of(nets)
    model = peft.get_peft_model(nets["unet"], peft.LoraConfig(**PEFT_CASES["dora of convolutions"]))
    randomised(model)
    model.save_pretrained(tmp_path)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("default", scale)
    nets["unet"] = model.merge_and_unload()
    assert_same(merge([Scaled(Lora.open(tmp_path), scale)], base), base, base_of(nets))


def test_a_folder_with_an_adapter_per_network_is_one_lora(tmp_path: Path) -> None:
    nets = networks()
    base = base_of(nets)
    for component in list(nets):
        model = peft.get_peft_model(nets[component], peft.LoraConfig(**PEFT_CASES["linear"]))
        randomised(model)
        model.save_pretrained(tmp_path / component)
        nets[component] = model.merge_and_unload()
    lora = Lora.open(tmp_path)
    assert set(lora.layers) == {"unet", "text_encoder"}
    assert_same(merge([Scaled(lora)], base), base, base_of(nets))


def test_the_name_of_an_adapter_may_stand_in_the_keys(tmp_path: Path) -> None:
    nets = networks("sd21")
    base = base_of(nets)
    model = peft.get_peft_model(nets["unet"], peft.LoraConfig(**PEFT_CASES["dora"]), adapter_name="my-style_2")
    randomised(model)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items() if ".lora_" in key}
    assert any(".lora_A.my-style_2.weight" in key for key in tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    nets["unet"] = model.merge_and_unload()
    assert_same(merge([Scaled(Lora.open(tmp_path / "x.safetensors"))], base), base, base_of(nets))


# --- diffusers ---


@pytest.fixture
def pipe() -> SimpleNamespace:
    return pipeline("sd15")


def pipeline(form: str) -> SimpleNamespace:
    """A stock pipeline of narrow networks, and their weights before anything is fused."""
    nets = networks(form)
    stock = diffusers.StableDiffusionPipeline(
        vae=None, tokenizer=None, scheduler=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **nets,
    )  # fmt: skip
    return SimpleNamespace(stock=stock, nets=nets, base=base_of(nets))


def fused(pipe: SimpleNamespace, *, scale: float = 1.0) -> dict[str, dict[str, np.ndarray]]:
    pipe.stock.fuse_lora(lora_scale=scale)
    pipe.stock.unload_lora_weights()
    return base_of(pipe.nets)


def factors(layer: torch.nn.Module, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random down and up of a layer, as trainers make them."""
    out, into, *kernel = layer.weight.shape
    ones = [1] * len(kernel)
    down = torch.randn(rank, into, *kernel, generator=generator) * 0.3
    return down, torch.randn(out, rank, *ones, generator=generator) * 0.3


def kohya(
    nets: Mapping[str, torch.nn.Module], *, alpha: float | None = 2.0, rank: int = 3, only: str | tuple[str, ...] = "",
    seed: int = 9, dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """A kohya file for every linear and convolutional layer whose name ends as told."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for name, layer in layers_of(nets[component]).items():
            if not name.endswith(only):
                continue
            stem = prefix + name.removeprefix("text_model.").replace(".", "_")
            down, up = factors(layer, rank, generator)
            tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down.to(dtype), up.to(dtype)
            if alpha is not None:
                tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["sd15", "sd21"])
def test_kohya_files_merge_as_diffusers_fuses_them(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = pipeline(form)
    path = tmp_path / "style.safetensors"
    save_file(kohya(pipe.nets, dtype=dtype), path)
    lora = Lora.open(path)
    assert (lora.name, lora.style) == ("style", "kohya")
    merged = merge([Scaled(lora, 0.7)], pipe.base)
    pipe.stock.load_lora_weights(str(path))
    assert_same(merged, pipe.base, fused(pipe, scale=0.7))
    changed = {key.removesuffix(".weight") for key in merged["unet"]}
    assert changed == set(layers_of(pipe.nets["unet"]))


def test_kohya_files_without_alpha_have_the_rank_for_it(pipe: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(kohya(pipe.nets, alpha=None), path)
    merged = merge([Scaled(Lora.open(path))], pipe.base)
    pipe.stock.load_lora_weights(str(path))
    assert_same(merged, pipe.base, fused(pipe))


LDM = [
    ("down_blocks_(\\d)_resnets_(\\d)", lambda i, j: f"input_blocks_{1 + 3 * i + j}_0"),
    ("down_blocks_(\\d)_attentions_(\\d)", lambda i, j: f"input_blocks_{1 + 3 * i + j}_1"),
    ("down_blocks_(\\d)_downsamplers_(\\d)_conv", lambda i, j: f"input_blocks_{3 + 3 * i}_0_op"),
    ("mid_block_attentions_(\\d)()", lambda i, j: "middle_block_1"),
    ("up_blocks_(\\d)_attentions_(\\d)", lambda i, j: f"output_blocks_{3 * i + j}_1"),
]


def ldm_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Transformer blocks and downsamplers of a kohya file by LDM's numbers, as for SD 1.5's two layers a level."""
    out = {}
    for key, value in tensors.items():
        for pattern, name in LDM:
            key = re.sub(
                rf"^lora_unet_{pattern}(?=[_.])",
                lambda m, name=name: "lora_unet_" + name(int(m[1]), int(m[2] or 0)), key,
            )  # fmt: skip
        out[key] = value
    return out


def test_kohya_files_in_ldm_names_merge_as_diffusers_fuses_them(pipe: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    ends = (*ATTENTION, "ff.net.2", "proj_in", "proj_out", "downsamplers.0.conv")
    tensors = {key: v for key, v in kohya(pipe.nets, only=ends).items() if "_te_" not in key}
    tensors = ldm_names(tensors)
    assert not any("down_blocks" in key or "up_blocks" in key or "mid_block" in key for key in tensors)
    save_file(tensors, path)
    merged = merge([Scaled(Lora.open(path))], pipe.base)
    pipe.stock.load_lora_weights(str(path), unet_config=pipe.nets["unet"].config)
    assert_same(merged, pipe.base, fused(pipe))


@pytest.mark.parametrize("form", ["sd15", "sd21"])
def test_every_module_of_a_unet_has_the_name_that_ldm_checkpoints_give_it(form: str) -> None:
    """The other direction of the renaming, as the checkpoints' reader has it, brings every name back."""
    ours = {key: value.shape for key, value in keyed("unet", networks(form)["unet"]).items()}
    targets = [key for key, shape in ours.items() if key.endswith(".weight") and len(shape) in (2, 4)]
    other: dict[str, list[str]] = {}
    for name, key in lora_modules("unet", targets).items():
        other.setdefault(key, []).append(name)
    assert all(len(both) == 2 for both in other.values())
    dotted = {both[1]: key for key, both in other.items()}
    ldm = [restore_dots(name) + ".weight" for name in dotted]
    table = keys.unet(ldm)
    assert {table[key].key.replace(".", "_").removesuffix("_weight"): key for key in table} == dotted


def restore_dots(name: str) -> str:
    """LDM's own name of a module from the flat one: only these words have underscores in them."""
    words = ("input_blocks", "middle_block", "output_blocks", "time_embed", "in_layers", "out_layers", "emb_layers",
             "skip_connection", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v",
             "to_out")  # fmt: skip
    for word in words:
        name = name.replace(word, word.replace("_", "\0"))
    return name.replace("_", ".").replace("\0", "_")


def test_names_with_dots_over_ldm_blocks_are_the_same_modules(pipe: SimpleNamespace, tmp_path: Path) -> None:
    """As ComfyUI saves what it extracts."""
    tensors = ldm_names({k: v for k, v in kohya(pipe.nets, only=("to_q", "proj_in")).items() if "_te_" not in k})
    flat, dotted = tmp_path / "flat.safetensors", tmp_path / "dotted.safetensors"
    save_file(tensors, flat)
    save_file({
        "diffusion_model." + restore_dots(key.split(".")[0].removeprefix("lora_unet_")) + "." + key.split(".", 1)[1]: v
        for key, v in tensors.items()
    }, dotted)  # fmt: skip
    one, two = (merge([Scaled(Lora.open(path))], pipe.base) for path in (flat, dotted))
    assert one["unet"].keys() == two["unet"].keys()
    assert all(np.array_equal(one["unet"][key], two["unet"][key]) for key in one["unet"])


def styled(nets: Mapping[str, torch.nn.Module], style: str) -> dict[str, torch.Tensor]:
    """A file as diffusers has saved them over the years."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for component, module in nets.items():
        for name, layer in layers_of(module).items():
            others = () if style == "processors" else ("proj_in", "fc1", "conv2")
            if not name.endswith((*ATTENTION, *others)):
                continue
            down, up = factors(layer, 3, generator)
            bare = name.removeprefix("text_model.")
            text = component == "text_encoder"
            if style == "peft":  # unet.X.lora_A.weight
                pair = [f"{component}.{bare}.lora_{x}.weight" for x in "AB"]
            elif style == "text_model":
                pair = [f"{component}.{'text_model.' if text else ''}{bare}.lora_{x}.weight" for x in "AB"]
            elif style == "linear_layer":
                middle = "lora_linear_layer" if text else "lora"
                prefix = "text_encoder.text_model." if text else "unet."
                pair = [f"{prefix}{bare}.{middle}.{x}.weight" for x in ("down", "up")]
            else:  # processors
                stem, _, leaf = bare.removesuffix(".0").rpartition(".")
                leaf = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(leaf, leaf)
                prefix = "text_encoder.text_model." if text else "unet."
                middle = "" if text else "processor."
                pair = [f"{prefix}{stem}.{middle}{leaf}_lora.{x}.weight" for x in ("down", "up")]
            tensors[pair[0]], tensors[pair[1]] = down, up
    return tensors


@pytest.mark.parametrize("style", ["peft", "text_model", "linear_layer", "processors"])
def test_diffusers_styles_merge_as_diffusers_fuses_them(pipe: SimpleNamespace, style: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(styled(pipe.nets, style), path)
    lora = Lora.open(path)
    assert lora.style == "diffusers"
    merged = merge([Scaled(lora, 0.5)], pipe.base)
    pipe.stock.load_lora_weights(str(path))
    assert_same(merged, pipe.base, fused(pipe, scale=0.5))


@pytest.mark.parametrize("dora", [False, True])
def test_files_that_diffusers_saves_with_its_metadata_merge_as_it_fuses_them(
    pipe: SimpleNamespace, dora: bool, tmp_path: Path
) -> None:
    from peft.utils import get_peft_model_state_dict

    config = {"r": 4, "lora_alpha": 7, "use_dora": dora, "init_lora_weights": "gaussian"}
    layers, metadata = {}, {}
    # (It does not read back the magnitudes of a text encoder.)
    for component, net in list(pipe.nets.items())[: 1 if dora else 2]:
        targets = ["to_q", "to_k", "conv1"] if component == "unet" else ["q_proj", "fc1"]
        net.add_adapter(peft.LoraConfig(target_modules=targets, alpha_pattern={targets[0]: 3}, **config))
        randomised(net)
        layers[component] = get_peft_model_state_dict(net, adapter_name="default")
        metadata[f"{component}_lora_adapter_metadata"] = net.peft_config["default"].to_dict()
    pipe.stock.save_lora_weights(
        tmp_path, **{f"{component}_lora_layers": tensors for component, tensors in layers.items()}, **metadata
    )
    merged = merge([Scaled(Lora.open(tmp_path))], pipe.base)
    again = pipeline("sd15")
    again.stock.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    assert_same(merged, pipe.base, fused(again))


def test_scales_of_blocks_are_diffusers(pipe: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(kohya(pipe.nets, only=ATTENTION), path)
    merged = merge([Scaled(Lora.open(path), {
        "down_blocks": 0.5, "down_blocks.1": -0.25, "mid_block": 1.5, "unet.up_blocks.1.attentions.2": 2.0,
        "up_blocks.2": 0.0, "text_encoder": 0.7,
    })], pipe.base)  # fmt: skip
    pipe.stock.load_lora_weights(str(path), adapter_name="a")
    pipe.stock.set_adapters("a", {
        "text_encoder": 0.7,
        "unet": {"down": {"block_0": 0.5, "block_1": -0.25}, "mid": 1.5,
                 "up": {"block_1": [1.0, 1.0, 2.0], "block_2": 0.0}},
    })  # fmt: skip
    assert_same(merged, pipe.base, fused(pipe))


def test_several_loras_add_up_as_diffusers_adds_them(pipe: SimpleNamespace, tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(kohya(pipe.nets, seed=1, rank=2), files[0])
    save_file(kohya(pipe.nets, seed=2, rank=5, only=("to_q", "conv1", "fc2")), files[1])
    loras = [Lora.open(path) for path in files]
    merged = merge([Scaled(loras[0], 0.6), Scaled(loras[1], -1.2)], pipe.base)
    for path, name in zip(files, "ab", strict=True):
        pipe.stock.load_lora_weights(str(path), adapter_name=name)
    pipe.stock.set_adapters(["a", "b"], [0.6, -1.2])
    assert_same(merged, pipe.base, fused(pipe))
    swapped = merge([Scaled(loras[1], -1.2), Scaled(loras[0], 0.6)], pipe.base)
    assert all(np.abs(swapped[c][k] - merged[c][k]).max() <= TOLERANCE for c in merged for k in merged[c])


def test_a_dora_and_another_lora_add_their_changes(tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5))
    dora = opened(tmp_path / "d.safetensors", tensors | {f"{STEM}.dora_scale": torch.rand(6, 1) + 0.5})
    plain = opened(tmp_path / "p.safetensors", one_layer((6, 5), seed=8)[1])
    both = changed(merge([Scaled(dora, 0.5), Scaled(plain, 2)], base))
    alone = [changed(merge([one], base)) - changed(base) for one in (Scaled(dora, 0.5), Scaled(plain, 2))]
    np.testing.assert_allclose(both, changed(base) + sum(alone), atol=TOLERANCE)
    wide = {"unet": {"conv_in.weight": changed(base).astype(np.float64)}}
    both_wide = changed(merge([Scaled(dora, 0.5), Scaled(plain, 2)], wide))
    assert both_wide.dtype == np.float32
    np.testing.assert_allclose(both_wide, both, atol=TOLERANCE)


# --- Closed forms ---

STEM = "lora_unet_conv_in"


def one_layer(shape: tuple[int, ...], *, seed: int = 7) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A base of one weight, and a kohya LoRA for it."""
    generator = torch.Generator().manual_seed(seed)
    layer = SimpleNamespace(weight=torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    tensors = pair(*factors(layer, 3, generator)) | {f"{STEM}.alpha": torch.tensor(1.5)}
    return {"unet": {"conv_in.weight": layer.weight.numpy()}}, tensors


def opened(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Lora:
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata=metadata)
    return Lora.open(path)


def changed(weights: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    return weights["unet"]["conv_in.weight"]


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_tucker_locon_is_three_convolutions_in_a_row(kernel: int, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(2)
    down, up = torch.randn(3, 5, 1, 1, generator=g), torch.randn(6, 3, 1, 1, generator=g)
    mid, base = torch.randn(3, 3, kernel, kernel, generator=g), torch.randn(6, 5, kernel, kernel, generator=g)
    lora = opened(tmp_path / "a.safetensors", {
        f"{STEM}.lora_down.weight": down, f"{STEM}.lora_mid.weight": mid, f"{STEM}.lora_up.weight": up,
        f"{STEM}.alpha": torch.tensor(2.0),
    })  # fmt: skip
    merged = changed(merge([Scaled(lora, 0.5)], {"unet": {"conv_in.weight": base.numpy()}}))
    x = torch.randn(1, 5, 7, 7, generator=g, dtype=torch.float64)
    want = F.conv2d(x, base.double()) + 0.5 * 2 / 3 * F.conv2d(
        F.conv2d(F.conv2d(x, down.double()), mid.double()), up.double()
    )
    np.testing.assert_allclose(F.conv2d(x, torch.from_numpy(merged).double()), want, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6, 3, 3), (4, 4, 3, 3)])
@pytest.mark.parametrize("by_input", [False, True])
def test_a_dora_scale_is_the_length_of_each_output_or_of_each_input(
    shape: tuple[int, ...], by_input: bool, tmp_path: Path
) -> None:
    base, tensors = one_layer(shape)
    one = [1] * (len(shape) - 2)
    size = [1, shape[1], *one] if by_input else [shape[0], 1, *one]
    lengths = torch.rand(size, generator=torch.Generator().manual_seed(3)) + 0.5
    lora = opened(tmp_path / "a.safetensors", tensors | {f"{STEM}.dora_scale": lengths})
    merged = changed(merge([Scaled(lora)], base))
    plain = changed(merge([Scaled(opened(tmp_path / "b.safetensors", tensors))], base))
    axes = tuple(i for i in range(len(shape)) if i != (1 if by_input else 0))
    np.testing.assert_allclose(np.sqrt((merged**2).sum(axes)), lengths.flatten(), rtol=1e-5)
    want = plain * lengths.numpy() / np.sqrt((plain**2).sum(axes, keepdims=True))
    np.testing.assert_allclose(merged, want, atol=1e-5)


def test_a_row_of_zeros_stays_zero_under_dora(tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5))
    base["unet"]["conv_in.weight"][2] = 0
    tensors[f"{STEM}.lora_up.weight"][2] = 0
    lora = opened(tmp_path / "a.safetensors", tensors | {f"{STEM}.dora_scale": torch.ones(6, 1)})
    merged = changed(merge([Scaled(lora)], base))
    assert np.isfinite(merged).all() and not merged[2].any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_base_of_any_precision_is_widened_before_it_is_added_to(dtype: Any, tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5, 3, 3))
    base = {"unet": {"conv_in.weight": changed(base).astype(dtype)}}
    before = changed(base).copy()
    merged = changed(merge([Scaled(opened(tmp_path / "a.safetensors", tensors))], base))
    down, up = (tensors[f"{STEM}.lora_{x}.weight"].double().flatten(1) for x in ("down", "up"))
    want = before.astype(np.float64) + (0.5 * up @ down).reshape(before.shape).numpy()
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, want, atol=1e-6)
    np.testing.assert_array_equal(changed(base), before)


def test_a_1x1_convolution_fits_a_matrix_and_the_other_way_round(tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5, 1, 1))
    flat_base = {"unet": {"conv_in.weight": changed(base).reshape(6, 5)}}
    flat = {key: v.reshape(v.shape[:2]) for key, v in tensors.items() if v.ndim}
    flat[f"{STEM}.alpha"] = torch.tensor([1.5])
    loras = opened(tmp_path / "a.safetensors", tensors), opened(tmp_path / "b.safetensors", flat)
    results = [changed(merge([Scaled(lora)], b)) for lora in loras for b in (base, flat_base)]
    assert [r.shape for r in results] == [(6, 5, 1, 1), (6, 5)] * 2
    assert all(np.array_equal(r.reshape(6, 5), results[1]) for r in results)


def test_scale_0_changes_nothing(tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5))
    lora = opened(tmp_path / "a.safetensors", tensors | {f"{STEM}.dora_scale": torch.ones(6, 1)})
    assert merge([Scaled(lora, 0)], base) == {} == merge([], base)


def test_a_lora_in_memory_outlives_its_file(tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5))
    lora = opened(tmp_path / "a.safetensors", tensors)
    before = changed(merge([Scaled(lora)], base))
    (tmp_path / "a.safetensors").write_bytes(b"")
    np.testing.assert_array_equal(changed(merge([Scaled(lora)], base)), before)


def test_the_hash_covers_the_weights_and_their_configuration(tmp_path: Path) -> None:
    tensors = {f"base_model.model.conv_in.lora_{x}.weight": torch.ones(2, 2, 1, 1) for x in "AB"}
    config = tmp_path / "adapter_config.json"
    config.write_text('{"lora_alpha": 1}')
    one = opened(tmp_path / "a.safetensors", tensors)
    config.write_text('{"lora_alpha": 2}')
    two = Lora.open(tmp_path / "a.safetensors")
    assert one.sha256 != two.sha256 and one.layers["unet"]["conv_in"].scale != two.layers["unet"]["conv_in"].scale
    kohya_file = opened(tmp_path / "b.safetensors", one_layer((6, 5))[1])
    assert kohya_file.sha256 == hashlib.sha256((tmp_path / "b.safetensors").read_bytes()).hexdigest()


# --- Refusals ---


def refused(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.startswith("[") and len(text) < 400
    return text


def named(key: str, *, shape: tuple[int, ...] = (2, 2)) -> dict[str, torch.Tensor]:
    return {key: torch.ones(shape)}


def pair(down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{STEM}.lora_down.weight": down, f"{STEM}.lora_up.weight": up}


PAIR = pair(torch.ones(2, 5), torch.ones(6, 2))
FILES: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "SDXL's second encoder": (named("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"), "SDXL.*lora_te2_"),
    "SDXL in diffusers' names": (named("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"), "SDXL"),
    "Flux of kohya": (named("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"), "Flux"),
    "Flux of diffusers": (named("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"), "Flux"),
    "LoHa": (named(f"{STEM}.hada_w1_a"), "LoHa is not supported.*hada_w1_a"),
    "LoKr": (named(f"{STEM}.lokr_w1"), "LoKr is not supported"),
    "IA3": (named(f"{STEM}.on_input"), "IA3"),
    "full differences": (PAIR | named("lora_unet_conv_out.diff"), "full weight differences.*conv_out.diff"),
    "differences of biases": (PAIR | named("lora_unet_conv_out.diff_b"), "full weight differences"),
    "norms": (PAIR | named("lora_unet_conv_norm_out.w_norm"), "norms"),
    "bundled embeddings": (PAIR | named("bundle_emb.x.string_to_param.*"), "bundle_emb"),
    "a bias": (named("unet.conv_in.lora_B.bias"), "bias"),
    "embeddings": (named("text_encoder.embeddings.token_embedding.lora_embedding_A"), "embeddings"),
    "a stray tensor": (PAIR | named("betas"), "every tensor must belong to a LoRA.*'betas'"),
    "a stray module": (PAIR | named("vae.decoder.lora_A.weight"), "every tensor must name a module.*vae.decoder"),
    "a checkpoint": (named("conv_in.weight"), "every tensor must belong to a LoRA.*conv_in.weight"),
    "down alone": (named(f"{STEM}.lora_down.weight"), "down and up must come together: no up.*lora_down"),
    "alpha alone": (PAIR | {"lora_unet_conv_out.alpha": torch.tensor(1.0)}, "come together: no down.*conv_out.alpha"),
    "ranks": (PAIR | named(f"{STEM}.lora_up.weight", shape=(6, 3)), "ranks must agree.*has 2, its up, got 3"),
    "rank 0": (pair(torch.ones(0, 5), torch.ones(6, 0)), "rank must be from 1 to 4096"),
    "rank too large": (pair(torch.ones(MAX_RANK + 1, 1), torch.ones(1, MAX_RANK + 1)), "rank must be from 1 to 4096"),
    "ranks of a mid": (
        pair(torch.ones(2, 5, 1, 1), torch.ones(6, 2, 1, 1)) | {f"{STEM}.lora_mid.weight": torch.ones(2, 3, 3, 3)},
        "ranks must agree",
    ),
    "a wide up": (
        pair(torch.ones(2, 5, 3, 3), torch.ones(6, 2, 3, 3)), "up of .* must be a matrix or a 1x1",
    ),
    "three axes": (PAIR | named(f"{STEM}.lora_down.weight", shape=(2, 5, 3)), "matrix or a 2-D convolution"),
    "integers": (PAIR | {f"{STEM}.lora_down.weight": torch.ones(2, 5, dtype=torch.int32)}, "floating point.*int32"),
    "alphas": (PAIR | {f"{STEM}.alpha": torch.ones(2)}, "alpha must be one number"),
    "lengths": (PAIR | {f"{STEM}.dora_scale": torch.ones(4, 1)}, "a length for each of 6 outputs or 5 inputs"),
    "one module twice": (
        PAIR | {"unet.conv_in.lora_A.weight": torch.ones(2, 5), "unet.conv_in.lora_B.weight": torch.ones(6, 2)},
        "two tensors for the down of one module",
    ),
    "two styles": (
        PAIR | {"unet.conv_out.lora_A.weight": torch.ones(2, 5), "unet.conv_out.lora_B.weight": torch.ones(6, 2)},
        "one style, got 'diffusers, kohya'",
    ),
    "PEFT without its configuration": (named("base_model.model.conv_in.lora_A.weight"), "_config.json.* must lie"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FILES))
def test_a_file_that_is_not_a_lora_for_us_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, message = FILES[case]
    with pytest.raises(InputError, match=message) as error:
        opened(tmp_path / "a.safetensors", tensors)
    refused(error)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_nan_and_infinity_are_refused(value: float, role: str, tmp_path: Path) -> None:
    _, tensors = one_layer((6, 5))
    tensors[f"{STEM}.{role}"].view(-1)[-1] = value
    with pytest.raises(BundleError, match=f"finite.*{STEM}.{role}") as error:
        opened(tmp_path / "a.safetensors", tensors)
    refused(error)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotloop.adapters.lora.MAX_TENSORS", 2)
    with pytest.raises(InputError, match="1 to 2 tensors, got 3"):
        opened(tmp_path / "a.safetensors", one_layer((6, 5))[1])
    with pytest.raises(InputError, match="1 to 2 tensors, got 0"):
        opened(tmp_path / "b.safetensors", {})


def test_a_pickle_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    torch.save(PAIR, tmp_path / "a.safetensors")
    with pytest.raises(BundleError, match="pickle"):
        Lora.open(tmp_path / "a.safetensors")


def test_a_folder_must_hold_one_lora(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Lora.open(tmp_path / "none")
    with pytest.raises(InputError, match="must hold one LoRA"):
        Lora.open(tmp_path)
    opened(tmp_path / "a.safetensors", PAIR)
    assert Lora.open(tmp_path).layers["unet"]["conv_in"].rank == 2
    opened(tmp_path / "b.safetensors", PAIR)
    with pytest.raises(InputError, match=r"must hold one LoRA.*a.safetensors.*b.safetensors"):
        Lora.open(tmp_path)


CONFIGS: dict[str, tuple[Any, str]] = {
    "type": ({"peft_type": "LOHA"}, "of type LORA, got 'LOHA'"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "must not change the base"),
    "olora": ({"init_lora_weights": "olora"}, "must not change the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "must not change the base"),
    "bias": ({"lora_bias": True}, "lora_bias"),
    "replicated": ({"layer_replication": [[0, 4]]}, "layer_replication"),
    "alpha": ({"lora_alpha": "8"}, "finite numbers as alpha"),
    "alpha nan": ({"lora_alpha": math.nan}, "finite numbers as alpha"),
    "patterns": ({"alpha_pattern": ["a"]}, "an object as alpha_pattern"),
    "endless alpha": ({"lora_alpha": 10**400}, "finite numbers as alpha"),
    "pattern's alpha": ({"alpha_pattern": {"a": None}}, "finite numbers as alpha"),
    "slow pattern": ({"alpha_pattern": {"(a+)+$": 1}}, "simple patterns"),
    "repeats": ({"alpha_pattern": {"a*a*b": 1}}, "simple patterns"),
    "many repeats": ({"alpha_pattern": {f"a{i}.*": 1 for i in range(33)}}, "at most 32 patterns with repeats"),
    "no pattern": ({"alpha_pattern": {"(": 1}}, "simple patterns"),
    "dora": ({"use_dora": True}, "magnitude for every module"),
    "list": ([1], "must hold a JSON object"),
    "text": ("{", "must be JSON"),
}


@pytest.mark.parametrize("case", list(CONFIGS))
@pytest.mark.parametrize("place", ["adapter_config.json", "lora_adapter_metadata"])
def test_a_configuration_that_means_more_than_lora_is_refused(case: str, place: str, tmp_path: Path) -> None:
    config, message = CONFIGS[case]
    text = config if isinstance(config, str) else json.dumps(config)
    beside = place == "adapter_config.json"
    prefix = "base_model.model." if beside else "unet."
    tensors = {f"{prefix}conv_in.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    if beside:
        (tmp_path / place).write_text(text)
    with pytest.raises(InputError, match=f"{message}") as error:
        opened(tmp_path / "a.safetensors", tensors, None if beside else {place: text})
    refused(error)


@pytest.fixture(scope="module")
def kohya_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "sd15.safetensors"
    save_file(kohya(networks("sd15")), path)
    return path


def test_a_lora_of_another_family_is_refused_by_the_width_of_its_prompts(kohya_file: Path, tmp_path: Path) -> None:
    shapes = shapes_of(base_of(networks("sd15")))
    lora = Lora.open(kohya_file)
    lora.check(shapes)
    for key in shapes["unet"]:
        if "attn2.to_k.weight" in key or "attn2.to_v.weight" in key:
            shapes["unet"][key] = (shapes["unet"][key][0], 40)
    with pytest.raises(InputError, match=r"sd15 is for another family: .* prompts are 40 wide, got 24") as error:
        lora.check(shapes)
    refused(error)
    with pytest.raises(InputError) as error:
        lora.check(shapes_of(base_of(networks("sd21"))))
    refused(error)


FULL = {
    "sd15": ({"attention_head_dim": 8, "cross_attention_dim": 768}, (768, 3072, 12)),
    "sd21": ({"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
             (1024, 4096, 23)),
}  # fmt: skip


def test_a_lora_of_every_layer_fits_the_true_sd_15_or_21_and_not_the_other(tmp_path: Path) -> None:
    nets, shapes = {}, {}
    for form, (config, (width, inner, depth)) in FULL.items():
        text = transformers.CLIPTextConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, bos_token_id=0, eos_token_id=1
        )
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), **config)
            nets[form] = {"unet": unet, "text_encoder": transformers.CLIPTextModel(text)}
        shapes[form] = {
            component: {
                ("text_model." if component == "text_encoder" else "") + key.removeprefix("text_model."): tuple(v.shape)
                for key, v in net.state_dict().items()
            }
            for component, net in nets[form].items()
        }
    for form, other in (("sd15", "sd21"), ("sd21", "sd15")):
        lora = opened(tmp_path / f"{form}.safetensors", kohya(nets[form], rank=1, dtype=torch.float16))
        found = lora.resolve(shapes[form])
        assert sum(len(layers) for layers in found.values()) == sum(len(layers_of(net)) for net in nets[form].values())
        with pytest.raises(InputError, match="for another family") as error:
            lora.check(shapes[other])
        refused(error)


def test_a_lora_must_fit_module_by_module(kohya_file: Path, tmp_path: Path) -> None:
    lora = Lora.open(kohya_file)
    shapes = shapes_of(base_of(networks("sd15")))
    unet = dict(shapes["unet"])
    del unet["mid_block.attentions.0.proj_in.weight"]
    with pytest.raises(InputError, match=r"unet has no module for, got 'lora_unet_mid_block_attent.*proj_in") as error:
        lora.check({**shapes, "unet": unet})
    refused(error)
    unet["mid_block.attentions.0.proj_in.weight"] = (48, 47, 1, 1)
    with pytest.raises(InputError, match=r"another model: mid_block.*proj_in.weight is \[48, 47, 1, 1\]") as error:
        lora.check({**shapes, "unet": unet})
    refused(error)
    unet["mid_block.attentions.0.proj_in.weight"] = (48, 48, 3, 3)
    with pytest.raises(InputError, match=r"\[48, 48, 3, 3\] here, got \[48, 48\]"):
        lora.check({**shapes, "unet": unet})
    with pytest.raises(InputError, match="changes the text_encoder, which is not there"):
        lora.check({"unet": shapes["unet"]})


def test_one_weight_by_two_names_is_refused(pipe: SimpleNamespace, tmp_path: Path) -> None:
    tensors = {k: v for k, v in kohya(pipe.nets, only=("attn1.to_q",)).items() if "_te_" not in k}
    lora = opened(tmp_path / "a.safetensors", tensors | ldm_names(tensors))
    with pytest.raises(InputError, match="once only"):
        lora.check(shapes_of(pipe.base))


@pytest.mark.parametrize("scale", [math.nan, math.inf, 101, -101, True, "1", None, {"down_blocks": math.nan}])
def test_a_scale_must_be_a_moderate_number(kohya_file: Path, scale: Any) -> None:
    with pytest.raises(InputError, match="scale must be a number from -100 to 100") as error:
        Scaled(Lora.open(kohya_file), scale)
    refused(error)
    with pytest.raises(InputError, match="named in text, got 1"):
        Scaled(Lora.open(kohya_file), {1: 0.5})  # type: ignore[dict-item]


def test_a_sum_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    base, tensors = one_layer((6, 5))
    lora = opened(tmp_path / "a.safetensors", tensors | {f"{STEM}.alpha": torch.tensor(3e38)})
    with pytest.raises(InputError, match=r"merged weights must be finite: conv_in\.weight"):
        merge([Scaled(lora, 100)], base)


@pytest.mark.parametrize("block", ["down", "down_blocks.7", "text_encoder.layers", "vae", "", "down_blocks."])
def test_a_scale_for_no_block_is_refused(kohya_file: Path, pipe: SimpleNamespace, block: str) -> None:
    with pytest.raises(InputError, match="for a block of this model") as error:
        merge([Scaled(Lora.open(kohya_file), {block: 0.5})], pipe.base)
    refused(error)


def test_blocks_of_the_text_encoder_need_no_text_model(kohya_file: Path, pipe: SimpleNamespace) -> None:
    lora = Lora.open(kohya_file)
    results = [
        merge([Scaled(lora, {"unet": 0, f"text_encoder.{middle}encoder.layers.1": 0.5})], pipe.base)
        for middle in ("", "text_model.")
    ]
    assert [set(result) for result in results] == [{"text_encoder"}] * 2
    one, two = (result["text_encoder"] for result in results)
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_flat_names_are_never_shared_by_two_modules() -> None:
    for form in UNETS:
        for component, weights in base_of(networks(form)).items():
            changed = [key for key, value in weights.items() if key.endswith(".weight") and value.ndim in (2, 4)]
            table = lora_modules(component, changed)
            assert set(table.values()) == set(changed)
            assert len(table) == len(changed) * (2 if component == "unet" else 1)
