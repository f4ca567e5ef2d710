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

from ..errors import BundleError

__all__ = [
    "LORA_TARGETS", "TEXT_PREFIX", "UNET_ENDS", "UNET_RES", "From", "bare_vae", "clip", "clip_vision", "is_open_clip",
    "is_tiny", "plain", "seems_to_be", "single_file", "tiny_vae", "unet", "vae",
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

UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_RES = {
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
    if fixed := _swap(name, UNET_ENDS):
        return fixed
    if match := re.fullmatch(r"middle_block\.([02])\.(.+)", name):
        rest = _swap(match[2], UNET_RES)
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
            stem, rest = f"{blocks}.resnets.{number - first}", _swap(inner, UNET_RES)
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
