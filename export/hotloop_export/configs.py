"""Configurations that single files do not carry, derived from the shapes of their tensors.

What no shape tells is what every published checkpoint of the family has: 8 heads in SD 1.x and heads of 64 channels
in SD 2.x, told apart by their linear projections (Stability-AI/stablediffusion, configs v1 and v2); 32 groups in every
norm; CLIP's quick GELU against OpenCLIP's exact one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from hotloop.errors import BundleError
from hotloop.spec import ScheduleConstants
from hotloop.weights.keys import TEXT_PREFIX

__all__ = ["autoencoder", "index", "scheduler", "text_encoder", "tiny_autoencoder", "unet"]

Shapes = Mapping[str, tuple[int, ...]]
_VERSION = "0.27.0"  # the oldest diffusers that reads these entries
_GROUPS = 32
_SD1_HEADS, _SD2_HEAD_SIZE, _CLIP_HEAD_SIZE = 8, 64, 64


def _size(shapes: Shapes, name: str, axis: int) -> int:
    try:
        return shapes[name][axis]
    except (KeyError, IndexError) as error:
        raise BundleError("export", "checkpoint must hold the tensor, of the usual shape", name) from error


def _count(shapes: Shapes, name: Callable[[int], str]) -> int:
    """How many of name(0), name(1), ... there are."""
    i = 0
    while name(i) in shapes:
        i += 1
    return i


def unet(shapes: Shapes) -> dict[str, Any]:
    """UNet2DConditionModel's, from tensors under diffusers' names."""
    levels = _count(shapes, lambda i: f"down_blocks.{i}.resnets.0.conv1.weight")
    widths = [_size(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)]
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in shapes for i in range(levels)]
    linear = len(shapes.get("mid_block.attentions.0.proj_in.weight", ())) == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "attention_head_dim": [width // _SD2_HEAD_SIZE for width in widths] if linear else _SD1_HEADS,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": _size(shapes, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": _size(shapes, "conv_in.weight", 1),
        "layers_per_block": _count(shapes, lambda i: f"down_blocks.0.resnets.{i}.conv1.weight"),
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": _GROUPS,
        "only_cross_attention": False,
        "out_channels": _size(shapes, "conv_out.weight", 0),
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        # SD 2.x overflows half precision in its attention; it changes nothing in single precision.
        "upcast_attention": linear,
        "use_linear_projection": linear,
    }


def autoencoder(shapes: Shapes, *, scaling_factor: float) -> dict[str, Any]:
    """AutoencoderKL's, from tensors under diffusers' names."""
    levels = _count(shapes, lambda i: f"encoder.down_blocks.{i}.resnets.0.conv1.weight")
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "block_out_channels": [_size(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0)
                               for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": _size(shapes, "encoder.conv_in.weight", 1),
        "latent_channels": _size(shapes, "decoder.conv_in.weight", 1),
        "layers_per_block": _count(shapes, lambda i: f"encoder.down_blocks.0.resnets.{i}.conv1.weight"),
        "mid_block_add_attention": "decoder.mid_block.attentions.0.to_q.weight" in shapes,
        "norm_num_groups": _GROUPS,
        "out_channels": _size(shapes, "decoder.conv_out.weight", 0),
        "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
    }  # fmt: skip


def tiny_autoencoder(shapes: Shapes) -> dict[str, Any]:
    """AutoencoderTiny's, from tensors under diffusers' names: blocks between the convolutions of each half."""
    encoder, decoder = (_blocks(shapes, half) for half in ("encoder", "decoder"))
    return {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": _VERSION,
        "act_fn": "relu",
        "decoder_block_out_channels": [_size(shapes, "decoder.layers.0.weight", 0)] * len(decoder),
        "encoder_block_out_channels": [_size(shapes, "encoder.layers.0.weight", 0)] * len(encoder),
        "in_channels": _size(shapes, "encoder.layers.0.weight", 1),
        "latent_channels": _size(shapes, "decoder.layers.0.weight", 1),
        "num_decoder_blocks": decoder,
        "num_encoder_blocks": encoder,
        "out_channels": _size(shapes, f"decoder.layers.{_last(shapes, 'decoder')}.weight", 0),
        "scaling_factor": 1.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }


def _last(shapes: Shapes, half: str) -> int:
    numbers = [name.split(".")[2] for name in shapes if name.startswith(f"{half}.layers.")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _blocks(shapes: Shapes, half: str) -> list[int]:
    """Residual blocks per level: a plain convolution between two blocks begins a level."""
    counts = [0]
    last = _last(shapes, half)
    for i in range(1, last):
        if f"{half}.layers.{i}.conv.0.weight" in shapes:
            counts[-1] += 1
        elif f"{half}.layers.{i}.weight" in shapes:
            counts.append(0)
    return counts


def text_encoder(shapes: Shapes, *, open_clip: bool) -> dict[str, Any]:
    """CLIPTextModel's, from tensors under transformers' names."""
    layer = TEXT_PREFIX + "encoder.layers.{}.mlp.fc1.weight"
    vocabulary, width = (_size(shapes, TEXT_PREFIX + "embeddings.token_embedding.weight", axis) for axis in (0, 1))
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": _size(shapes, layer.format(0), 0),
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": _size(shapes, TEXT_PREFIX + "embeddings.position_embedding.weight", 0),
        "model_type": "clip_text_model",
        "num_attention_heads": width // _CLIP_HEAD_SIZE,
        "num_hidden_layers": _count(shapes, layer.format),
        "pad_token_id": 1,
        "projection_dim": 512 if open_clip else width,
        "vocab_size": vocabulary,
    }


def scheduler(schedule: ScheduleConstants, *, zero_snr: bool = False) -> dict[str, Any]:
    """The scheduler that the family was published with.

    zero_snr: one that ends in pure noise, and so must begin at the last timestep (Lin et al. 2023, table 2)
    """
    v_prediction = schedule.prediction_type == "v_prediction"
    return {
        "_class_name": "DDIMScheduler" if v_prediction or zero_snr else "PNDMScheduler",
        "_diffusers_version": _VERSION,
        **asdict(schedule),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        **({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}),
    }


def index(*, scheduler: str, inpaint: bool) -> dict[str, Any]:
    """model_index.json of a pipeline without safety checker."""
    return {
        "_class_name": "StableDiffusionInpaintPipeline" if inpaint else "StableDiffusionPipeline",
        "_diffusers_version": _VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
