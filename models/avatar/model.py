"""The text encoder and the UNet of the built-in model, and the diffusers-layout folder that holds the whole of it."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vocabulary import FOLDER as TOKENIZER

from hotloop.nets.base import Net

__all__ = ["SCHEDULER", "SMALL", "UNET", "Tokenizer", "make_text_encoder", "make_unet", "text_config", "write_folder"]

UNET: dict[str, Any] = {
    "sample_size": 32, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "cross_attention_dim": 128,
    "block_out_channels": (32, 64, 96, 96), "attention_head_dim": 4, "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SMALL: dict[str, Any] = {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": 2}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False, "prediction_type": "epsilon",
}  # fmt: skip


class Tokenizer:
    """Texts -> int64 [B, 77], padded with the end token as SD 1.x does."""

    def __init__(self) -> None:
        self.clip = CLIPTokenizer.from_pretrained(TOKENIZER)

    def __call__(self, texts: list[str]) -> Tensor:
        return self.clip(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def make_unet(**changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(**(UNET | changes))


def text_config(**changes: Any) -> dict[str, Any]:
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    return {
        "vocab_size": len(vocabulary), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 128,
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": end, "attention_dropout": 0.0,
    } | changes  # fmt: skip


def make_text_encoder(**changes: Any) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**text_config(**changes)))


def write_folder(
    folder: Path, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL, *,
    parts: Mapping[str, Net] | None = None, extra: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Writes the pipeline in fp16, replacing the folder in one rename; the networks themselves are left in fp32.

    parts: networks around it, by component, each written to a folder of that name.
    extra: file name -> text, written beside (what the weights are, for whoever reads the folder)."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, network in (("text_encoder", text_encoder), ("unet", unet), ("vae", vae)):
        copy.deepcopy(network).cpu().half().save_pretrained(temporary / name, safe_serialization=True)
    # transformers would load in the stored type, diffusers in fp32: the text encoder is asked for fp32 too.
    config = temporary / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    PNDMScheduler(**SCHEDULER).save_pretrained(temporary / "scheduler")
    scheduler = temporary / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"clip_sample": False}, indent=2) + "\n")
    shutil.copytree(TOKENIZER, temporary / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.27.0",
        "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, part in (parts or {}).items():
        part.save(temporary / name)
    for name, text in (extra or {}).items():
        (temporary / name).write_text(text)
    old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
