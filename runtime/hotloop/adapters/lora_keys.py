"""Every name that LoRA files know a weight by: kohya's, PEFT's, and diffusers' before and after 0.16."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import InputError
from ..weights.keys import UNET_ENDS, UNET_RES

__all__ = ["LoraKey", "lora_flat", "lora_key", "lora_modules"]


class LoraKey(NamedTuple):
    """What a tensor of a LoRA file is for.

    style      "kohya", "peft" or "diffusers"
    component  "unet" or "text_encoder"
    module     as the file names it, without prefix and role; kohya's files write its dots as underscores
    role       "down" [r, in], "up" [out, r], "mid" (between the two), "alpha" or "magnitude"
    """

    style: str
    component: str
    module: str
    role: str


# What stands before a module's name -> (style, component); the first that fits. None: its first word decides.
_LORA_PREFIXES: tuple[tuple[str, str, str | None], ...] = (
    ("lora_unet_", "kohya", "unet"),
    ("lora_te_", "kohya", "text_encoder"),
    ("lora_te1_", "kohya", "text_encoder"),
    ("base_model.model.unet.", "peft", "unet"),
    ("base_model.model.text_encoder.", "peft", "text_encoder"),
    ("base_model.model.", "peft", None),
    ("unet.", "diffusers", "unet"),
    ("text_encoder.", "diffusers", "text_encoder"),
    ("model.diffusion_model.", "diffusers", "unet"),
    ("diffusion_model.", "diffusers", "unet"),
    ("", "diffusers", None),
)
_UNET_WORD = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|time_embed|"
                        r"input_blocks|middle_block|output_blocks|out)[._]")  # fmt: skip
_TEXT_WORD = re.compile(r"(text_model|encoder|embeddings|final_layer_norm)[._]")

# What stands behind it. PEFT may write an adapter's name between lora_A and weight.
_LORA_ROLES = {
    role: re.compile(rf"(.+?)(?:{ending})")
    for role, ending in {
        "down": r"\.lora_down\.weight|\.lora_A(\.[^.]+)?\.weight|(\.lora|_lora|\.lora_linear_layer)\.down\.weight",
        "up": r"\.lora_up\.weight|\.lora_B(\.[^.]+)?\.weight|(\.lora|_lora|\.lora_linear_layer)\.up\.weight",
        "mid": r"\.lora_mid\.weight",
        "alpha": r"(\.lora|_lora|\.lora_linear_layer)?\.alpha",
        "magnitude": r"\.dora_scale|\.lora_magnitude_vector(\.[^.]+)?(\.weight)?",
    }.items()
}

# Signs of what a file is instead, where they are plain.
_LORA_FOREIGN = (
    (re.compile(r"lora_te[23]_|(base_model\.model\.)?text_encoder_[23]\.|.*(label_emb|add_embedding)"), "SDXL or SD3"),
    (re.compile(r"lora_transformer|(base_model\.model\.)?transformer\.|.*(double_blocks|single_blocks|joint_blocks|"
                r"single_transformer_blocks)"), "a transformer model (Flux, SD3)"),
    (re.compile(r"lora_prior|lora_controlnet|.*controlnet"), "another kind of network"),
)  # fmt: skip
_LORA_METHODS = (
    (re.compile(r".*\.hada_"), "LoHa"),
    (re.compile(r".*\.lokr_"), "LoKr"),
    (re.compile(r".*\.(on_input|ia3_l)\b"), "IA3"),
    (re.compile(r".*\.(oft_|boft_)"), "OFT"),
    (re.compile(r".*\.diff(_b)?$"), "full weight differences"),
    (re.compile(r".*\.(w_norm|b_norm)$"), "changes of norms"),
    (re.compile(r"bundle_emb\."), "textual inversion inside the file (bundle_emb)"),
    (re.compile(r".*\.lora_embedding_[AB]"), "LoRA of embeddings"),
    (re.compile(r".*\.lora_[AB](\.[^.]+)?\.bias$"), "LoRA with bias"),
)


def lora_key(key: str) -> LoraKey:
    """What a name in a LoRA file means. Raises InputError for one that belongs to no LoRA of a UNet or CLIP."""
    for pattern, family in _LORA_FOREIGN:
        if pattern.match(key):
            raise InputError("lora", f"must be for Stable Diffusion 1.x or 2.x, this one is for {family}", key)
    for pattern, method in _LORA_METHODS:
        if pattern.match(key):
            raise InputError("lora", f"must be LoRA, LoCon or DoRA; {method} is not supported", key)
    found = ((role, match) for role, pattern in _LORA_ROLES.items() if (match := pattern.fullmatch(key)))
    role, match = next(found, (None, None))
    if role is None or match is None:
        raise InputError("lora", "every tensor must belong to a LoRA in kohya's, PEFT's or diffusers' naming", key)
    stem = match[1]
    for prefix, style, component in _LORA_PREFIXES:
        if stem.startswith(prefix):
            module = stem.removeprefix(prefix)
            component = component or _component(module)
            if module and component:
                return LoraKey(style, component, _today(module, component), role)
            break
    raise InputError("lora", "every tensor must name a module of the UNet or the text encoder", key)


def _component(module: str) -> str | None:
    if _UNET_WORD.match(module + "."):
        return "unet"
    return "text_encoder" if _TEXT_WORD.match(module) else None


def _today(module: str, component: str) -> str:
    """diffusers once kept LoRA in attention processors and named CLIP's projections like its own."""
    module = module.replace(".processor", "")
    if module.endswith(".to_out"):
        module += ".0"
    if component == "text_encoder":
        for old, new in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out.0", "out_proj")):
            if module.endswith(f".self_attn.{old}"):
                module = module.removesuffix(old) + new
    return module


def lora_flat(module: str) -> str:
    """A module's name as kohya writes it: underscores for dots, without CLIP's optional `text_model.`"""
    return module.replace(".", "_").removeprefix("text_model_")


def lora_modules(component: str, keys: Iterable[str]) -> dict[str, str]:
    """Flat names -> weight keys of one network, for every name a LoRA may know a module by.

    Underscores alone do not say where a module's name has its dots, the network's own names do: `keys` are those of
    the weights a LoRA can change. The UNet's modules are also listed under LDM's names.
    """
    modules = {key.removesuffix(".weight"): key for key in keys}
    table = {lora_flat(module): key for module, key in modules.items()}
    if component == "unet":
        layers = len({m.split(".")[3] for m in modules if m.startswith("down_blocks.0.resnets.")})
        attentive = {m.split(".")[1] for m in modules if m.startswith("up_blocks.") and ".attentions." in m}
        for module, key in modules.items():
            table.setdefault(lora_flat(_ldm_module(module, layers, attentive)), key)
    return table


_LDM_ENDS = {new: old for old, new in UNET_ENDS.items() if not old.startswith("middle")}
_LDM_RES = {new: old for old, new in UNET_RES.items()}


def _ldm_module(module: str, layers: int, attentive: set[str]) -> str:
    """LDM's name of a UNet module: its blocks are numbered through, resamplers count as parts of them.

    layers     ResBlocks per level on the way down; one more on the way up
    attentive  levels on the way up that have attention, there the upsampler is the third part and not the second
    """
    if module in _LDM_ENDS:
        return _LDM_ENDS[module]
    place, *rest = module.split(".")
    if place == "mid_block":
        kind, i, *rest = rest
        block = f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}"
    elif place in ("down_blocks", "up_blocks"):
        level, kind, i, *rest = rest
        if place == "down_blocks":
            at = 1 + int(level) * (layers + 1) + (layers if kind == "downsamplers" else int(i))
            part = {"resnets": 0, "attentions": 1, "downsamplers": 0}[kind]
            block = f"input_blocks.{at}.{part}"
        else:
            at = int(level) * (layers + 1) + (layers if kind == "upsamplers" else int(i))
            part = {"resnets": 0, "attentions": 1, "upsamplers": 2 if level in attentive else 1}[kind]
            block = f"output_blocks.{at}.{part}"
        if kind == "downsamplers":
            rest = ["op"]
    else:
        return module
    if kind == "resnets":
        rest = [_LDM_RES.get(".".join(rest), ".".join(rest))]
    return ".".join([block, *rest])
