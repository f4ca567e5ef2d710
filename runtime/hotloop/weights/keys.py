"""Every name a weight is known by, and the one we use: diffusers' for UNet and VAE, transformers' for CLIP.

Checkpoints of one model differ in names far more than in content. Each function here takes the names a file holds
and returns a table, our name -> where it comes from (`From`). What is no weight (positions, training leftovers) is
left out; a name that fits no layout raises. Nothing here reads a tensor: `Weights.view(table)` applies a table.

Layouts: LDM's, as published with Stable Diffusion (CompVis/latent-diffusion and Stability-AI/stablediffusion,
`ldm/modules/diffusionmodules/{openaimodel,model}.py`), OpenCLIP's (`open_clip/transformer.py`), diffusers' own before
and after its attention was renamed in 0.16, and the tiny autoencoder's (madebyollin/taesd).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..errors import BundleError, InputError

__all__ = [
    "LORA_TARGETS", "TEXT_PREFIX", "From", "LoraKey", "bare_vae", "clip", "clip_vision", "is_open_clip", "is_tiny",
    "lora_flat", "lora_key", "lora_modules", "plain", "seems_to_be", "single_file", "tiny_vae", "unet", "vae",
]  # fmt: skip


class From(NamedTuple):
    """Where a tensor comes from: a name in the file, maybe one of several equal blocks of rows, maybe a flat matrix.

    part, of   the rows [part/of, (part+1)/of) of the stored tensor: (1, 3) is K of a fused Q, K, V
    matrix     a 1x1 convolution [out, in, 1, 1] is read as the matrix [out, in] it is; a matrix stays one
    """

    key: str
    part: int = 0
    of: int = 1
    matrix: bool = False


Table = dict[str, From]


def plain(names: Iterable[str]) -> Table:
    """Every name as it is."""
    return {name: From(name) for name in names}


def _swap(key: str, heads: Mapping[str, str]) -> str | None:
    """`key` with its beginning replaced, whole name parts only; None when none fits."""
    for old, new in heads.items():
        if key.startswith(old + "."):
            return new + key[len(old) :]
    return None


def _unknown(layout: str, key: str) -> BundleError:
    return BundleError("keys", f"tensor must be one that {layout} has", key)


# --- UNet -------------------------------------------------------------------------------------------------------

_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)")


def unet(names: Iterable[str]) -> Table:
    """A UNet in LDM's or diffusers' names."""
    names = list(names)
    if not any(name.startswith("input_blocks.") for name in names):
        return plain(names)
    # LDM numbers its blocks straight through; a block that changes the resolution ends a level.
    ends: dict[str, list[int]] = {"input": [], "output": []}
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match and match[4] in ("op.weight", "conv.weight"):
            ends[match[1]].append(int(match[2]))
    ends = {side: sorted(numbers) for side, numbers in ends.items()}
    return {_unet_name(name, ends): From(name) for name in names}


def _unet_name(name: str, ends: Mapping[str, list[int]]) -> str:
    if fixed := _swap(name, _UNET_ENDS):
        return fixed
    if match := re.fullmatch(r"middle_block\.([02])\.(.+)", name):
        rest = _swap(match[2], _UNET_RES)
        stem = f"mid_block.resnets.{int(match[1]) // 2}"
    elif match := _BLOCK.fullmatch(name):
        side, number, slot, inner = match[1], int(match[2]), int(match[3]), match[4]
        ups = side == "output"
        level = bisect_left(ends[side], number)
        first = ends[side][level - 1] + 1 if level else (0 if ups else 1)
        blocks = f"{'up' if ups else 'down'}_blocks.{level}"
        kind, _, leaf = inner.partition(".")
        if kind == ("conv" if ups else "op") and leaf in ("weight", "bias"):
            stem, rest = f"{blocks}.{'up' if ups else 'down'}samplers.0.conv", leaf
        elif slot == 0:
            stem, rest = f"{blocks}.resnets.{number - first}", _swap(inner, _UNET_RES)
        else:
            known = kind in ("norm", "proj_in", "proj_out", "transformer_blocks")
            stem, rest = f"{blocks}.attentions.{number - first}", inner if known else None
    else:
        rest = None
    if rest is None:
        raise _unknown("the UNet of Stable Diffusion 1 or 2", name)
    return f"{stem}.{rest}"


# --- VAE --------------------------------------------------------------------------------------------------------

_VAE_MID = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(block\.(\d+)|downsample|upsample)\.(.+)")


def vae(names: Iterable[str]) -> Table:
    """An AutoencoderKL in LDM's names or in diffusers', old or new."""
    names = [name for name in names if not name.startswith(("loss.", "model_ema."))]
    if not any(re.match(r"(encoder|decoder)\.mid\.", name) for name in names):
        return {_new_attention(name): From(name, matrix=".attentions." in name) for name in names}
    levels = max((int(match[3]) for name in names if (match := _VAE_LEVEL.fullmatch(name))), default=0)
    return {_vae_name(name, levels): From(name, matrix=".mid.attn_1." in name) for name in names}


def bare_vae(names: Iterable[str]) -> dict[str, str]:
    """A VAE's own names -> those in the file: one in a file of its own, or within a checkpoint."""
    names = list(names)
    for prefix in ("first_stage_model.", "vae."):
        if mine := [name for name in names if name.startswith(prefix)]:
            return {name.removeprefix(prefix): name for name in mine}
    return {name: name for name in names}


def _new_attention(name: str) -> str:
    """Names of the attention's projections before diffusers 0.16 to today's."""
    if ".attentions." not in name:
        return name
    *stem, layer, leaf = name.split(".")
    return ".".join([*stem, _OLD_ATTENTION.get(layer, layer), leaf])


def _vae_name(name: str, levels: int) -> str:
    half, _, rest = name.partition(".")
    if half in ("quant_conv", "post_quant_conv"):
        return name
    if half in ("encoder", "decoder"):
        part, _, inner = rest.partition(".")
        if part in ("conv_in", "conv_out"):
            return name
        if part == "norm_out":
            return f"{half}.conv_norm_out.{inner}"
        if part == "mid" and (block := _swap(inner, _VAE_MID)):
            stem, _, leaf = block.partition(".")
            number, _, leaf = leaf.partition(".")
            leaf = (_swap(leaf, _VAE_ATTENTION) or "") if stem == "attentions" else _shortcut(leaf)
            if leaf:
                return f"{half}.mid_block.{stem}.{number}.{leaf}"
        if match := _VAE_LEVEL.fullmatch(name):
            # LDM counts the decoder's levels from the pixels, diffusers from the latents.
            level = int(match[3]) if match[2] == "down" else levels - int(match[3])
            block = f"resnets.{match[5]}" if match[5] else f"{match[4]}rs.0"  # downsample -> downsamplers
            return f"{half}.{match[2]}_blocks.{level}.{block}.{_shortcut(match[6])}"
    raise _unknown("the autoencoder of Stable Diffusion", name)


def _shortcut(leaf: str) -> str:
    return leaf.replace("nin_shortcut.", "conv_shortcut.")


def is_tiny(names: Iterable[str]) -> bool:
    """Whether the names are a TAESD's, or of one half of it."""
    return any(re.match(r"((encoder|decoder)\.)?(layers\.)?\d+\.", name) for name in names)


_TINY = re.compile(r"(encoder|decoder)?\.?(?:layers\.)?(\d+)\.(.+)")


def tiny_vae(names: Iterable[str], *, half: str | None = None) -> Table:
    """A TAESD in diffusers' names, or in its author's: one file per `half` ("encoder", "decoder"), or both in one.

    The author counts a clamp as the decoder's layer 0, which diffusers does not.
    """
    names = list(names)
    if any(re.match(r"(encoder|decoder)\.layers\.", name) for name in names):
        return plain(names)
    table: Table = {}
    for name in names:
        match = _TINY.fullmatch(name)
        side = match and (match[1] or half)
        if not match or not side:
            table[name] = From(name)
            continue
        number = int(match[2]) - (side == "decoder")
        table[f"{side}.layers.{number}.{match[3]}"] = From(name)
    return table


# --- Text encoder -----------------------------------------------------------------------------------------------

# transformers 4 writes it, transformers 5 does not; we do.
TEXT_PREFIX = "text_model."
# SD 2.x reads the last but one of OpenCLIP ViT-H's 24 layers: the last one is never run, so it is not kept.
_OPEN_CLIP_LAYERS = 23
_OPEN_CLIP_ENDS = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}
_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_NO_TEXT = re.compile(
    r"(embeddings\.position_ids|logit_scale|attn_mask|text_projection(\.weight)?|(visual|vision_model)\..*"
    r"|visual_projection\.weight)"
)


def clip(names: Iterable[str]) -> Table:
    """CLIP's text transformer in OpenCLIP's names or transformers', `text_model.` and `transformer.` there or not."""
    table: Table = {}
    for name in names:
        bare = name.removeprefix("transformer.") if "resblocks." not in name else name
        bare = bare.removeprefix(TEXT_PREFIX)
        if _NO_TEXT.fullmatch(bare):
            continue
        if "resblocks." in name or bare.split(".")[0] in _OPEN_CLIP_ENDS:
            for new, source in _open_clip(bare, name):
                table[TEXT_PREFIX + new] = source
        else:
            table[TEXT_PREFIX + bare] = From(name)
    return table


def clip_vision(names: Iterable[str]) -> Table:
    """CLIP's image encoder in transformers' names."""
    return {name: From(name) for name in names if not name.endswith(".position_ids")}


def is_open_clip(names: Iterable[str]) -> bool:
    """Whether a text encoder has OpenCLIP's layout, under whatever prefix."""
    return any(".resblocks." in name for name in names)


def _open_clip(bare: str, name: str) -> list[tuple[str, From]]:
    if fixed := _swap(bare + ".", _OPEN_CLIP_ENDS):
        return [(fixed.rstrip("."), From(name))]
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", bare)
    if match and int(match[1]) >= _OPEN_CLIP_LAYERS:
        return []
    if match:
        stem = f"encoder.layers.{match[1]}"
        if fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", match[2]):
            return [(f"{stem}.self_attn.{x}_proj.{fused[1]}", From(name, i, 3)) for i, x in enumerate("qkv")]
        if inner := _swap(match[2], _OPEN_CLIP_BLOCK):
            return [(f"{stem}.{inner}", From(name))]
    raise _unknown("the text encoder of OpenCLIP", name)


# --- Whole checkpoints in one file ------------------------------------------------------------------------------

_LDM_UNET, _EMA = "model.diffusion_model.", "model_ema."
_NETWORKS: tuple[tuple[str, str, Callable[[Iterable[str]], Table]], ...] = (
    ("unet", _LDM_UNET, unet),
    ("vae", "first_stage_model.", vae),
    ("text_encoder", "cond_stage_model.model.", clip),
    ("text_encoder", "cond_stage_model.", clip),
)


def single_file(names: Iterable[str], *, ema: bool = False) -> dict[str, Table]:
    """A table for each network in an LDM checkpoint; schedules, optimiser states and other leftovers are left out.

    ema   take the UNet from the moving average kept beside it (`model_ema.`). The plain weights are the default, as in
          diffusers: files made for drawing hold the average there. Raises BundleError when the file has no average.
    """
    rest, found = list(names), {}
    averaged = {name for name in rest if name.startswith(_EMA)}
    for network, prefix, table in _NETWORKS:
        mine = [name for name in rest if name.startswith(prefix)]
        if mine and network not in found:
            bare = table(name[len(prefix) :] for name in mine)
            found[network] = {new: source._replace(key=prefix + source.key) for new, source in bare.items()}
    if ema and "unet" in found:
        found["unet"] = {new: From(_averaged(source.key)) for new, source in found["unet"].items()}
        if lacking := next((s.key for s in found["unet"].values() if s.key not in averaged), None):
            raise BundleError(
                "keys", "file must hold the moving average of every weight of the UNet; it lacks", lacking
            )
    return found


def _averaged(key: str) -> str:
    """The name of a weight's moving average: dots removed, which may not stand in a buffer's name."""
    return _EMA + key.removeprefix("model.").replace(".", "")


# --- What is not a checkpoint of ours ---------------------------------------------------------------------------

# The first row whose pattern is found in a name decides.
_SIGNS = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"\.lora_(down|up|A|B)\.|^lora_(unet|te)|\.lora\.(down|up)\.|\.lora_linear_layer\.|\.hada_w1|\.lokr_w",
         "a LoRA: give it to --lora, beside its checkpoint"),
        (r"^(emb_params|clip_[lg])$", "a textual inversion: give it to --embedding"),
        (r"^conditioner\.embedders\.", "an SDXL checkpoint"),
        (r"^(model\.diffusion_model\.)?joint_blocks\.", "an SD 3 checkpoint"),
        (r"^(model\.diffusion_model\.)?double_blocks\.", "a Flux checkpoint"),
        (r"^(control_model\.|controlnet_cond_embedding\.)", "a ControlNet"),
        (r"motion_modules\.", "an AnimateDiff motion module"),
        (r"^(model\.diffusion_model\.)?label_emb\.", "a class-conditional UNet (SDXL, unCLIP or upscaler)"),
        (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
        (r"^(encoder|decoder)\.(layers\.)?\d+\.|^\d+\.conv\.0\.weight$", "a tiny VAE: give it to --vae"),
        (r"^(first_stage_model\.)?decoder\.(up|up_blocks|mid|mid_block)\.", "a VAE: give it to --vae"),
        (r"^(down_blocks|mid_block)\.",
         "a diffusers UNet alone: give the folder that holds text_encoder, unet and vae"),
        (r"^input_blocks\.", "a UNet alone, without text encoder and VAE"),
        (r"^(text_model|vision_model|transformer\.resblocks|encoder\.layers)\.", "a CLIP model"),
        (r"^(model\.diffusion_model\.)?(blocks|transformer_blocks|layers)\.\d+\.", "a diffusion transformer"),
    )
)  # fmt: skip


def seems_to_be(names: Iterable[str]) -> str | None:
    """What kind of file these names are found in, in words; None for an SD checkpoint and when they tell nothing."""
    names = list(names)
    if any(name.startswith(_LDM_UNET) for name in names):  # a whole checkpoint: its VAE is no sign
        names = [name for name in names if not name.startswith("first_stage_model.")]
    return next((what for pattern, what in _SIGNS if any(map(pattern.search, names))), None)


# --- LoRA -------------------------------------------------------------------------------------------------------

# The weights that nearly all LoRAs change: the matrices (and 1x1 convolutions) of the UNet's transformers and of CLIP's
# layers, as kohya's and diffusers' trainers choose them.
LORA_TARGETS = re.compile(
    r".*\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|attentions\.\d+\.proj_(in|out)"
    r"|self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight"
)


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


_LDM_ENDS = {new: old for old, new in _UNET_ENDS.items() if not old.startswith("middle")}
_LDM_RES = {new: old for old, new in _UNET_RES.items()}


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
