"""A checkpoint of true shape with seeded random weights, in the diffusers folder layout: for timing and parity where no
trained weights are at hand. Weights have the variance that torch starts training with, 1 / (3 fan-in).

    python benchmarks/random_checkpoint.py sd15-random --family sd15 --seed 0
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotloop.bundle import builtin
from hotloop.nets.base import Net
from hotloop.nets.clip import CLIPText
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL

_ATTENTION = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": 768, "attention_head_dim": 8, **_ATTENTION,
}  # fmt: skip
_TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "scaling_factor": 0.18215, "sample_size": 512, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
_SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
_SD2_TEXT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu",
}  # fmt: skip
# family -> (UNet, text encoder, prediction type)
FAMILIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "sd15": (_UNET, _TEXT, "epsilon"),
    "sd15-inpaint": (_UNET | {"in_channels": 9}, _TEXT, "epsilon"),
    "sd21": (_UNET | _SD2, _TEXT | _SD2_TEXT, "epsilon"),
    "sd21-v": (_UNET | _SD2 | {"sample_size": 96}, _TEXT | _SD2_TEXT, "v_prediction"),
}


def write_checkpoint(folder: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """Write the folder: unet, vae, text_encoder, tokenizer (the built-in model's), scheduler, model_index.json."""
    unet, text, prediction = FAMILIES[family]
    parts: Iterator[tuple[str, type[Net], Mapping[str, Any]]] = iter(
        (("unet", UNet, unet), ("vae", AutoencoderKL, VAE), ("text_encoder", CLIPText, text))
    )
    for i, (name, cls, config) in enumerate(parts):
        random_net(cls, config, seed=seed + i).save(folder / name, dtype=dtype)
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "prediction_type": prediction, "skip_prk_steps": True, "steps_offset": 1,
        "set_alpha_to_one": False,
    }  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file in (builtin() / "tokenizer").iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
    index = {
        "_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False,
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def random_net(cls: type[Net], config: Mapping[str, Any], *, seed: int) -> Net:
    """A network with normal weights of variance 1 / (3 fan-in); norms near one, biases small."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        net = cls(config)
    filled = {}
    for name, value in net.state_dict().items():
        shape = tuple(value.shape)
        draws = rng.standard_normal(shape, dtype=np.float32)
        if "embedding." in name and "time" not in name:
            draws *= 0.3
        elif len(shape) > 1:
            draws *= np.float32((3 * np.prod(shape[1:])) ** -0.5)
        else:
            draws *= np.float32(0.1)
            draws += np.float32(name.endswith("weight"))
        filled[name] = torch.from_numpy(draws)
    net.load_state_dict(filled, assign=True)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="sd15")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, options.dtype)
    print(write_checkpoint(options.folder, options.family, seed=options.seed, dtype=dtype))


if __name__ == "__main__":
    main()
