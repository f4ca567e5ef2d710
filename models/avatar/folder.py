"""The checkpoint as a folder: `python models/avatar/folder.py [OUT]` puts together what weights/ has so far.

Stable Diffusion's own part is as stock diffusers loads it; the networks around it lie beside, each in a folder of its
own with config.json and safetensors, as `hotloop export` reads them. A stage that is not trained yet is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import animation
import animator
import autoencoder
import base
import clip
import motions
import segmenter
import tinyvae
import upscaler
from model import write_folder
from training import Options, load_weights

from hotloop.nets.animator import Animator
from hotloop.nets.base import Net
from hotloop.nets.motions import Motions
from hotloop.nets.towers import ImageTower, TextTower
from hotloop.nets.vae import TinyVAE

__all__ = ["around", "assemble", "main"]


def _upscaler(options: Options, file: Path) -> dict[str, Net]:
    return {"upscaler": upscaler.load(options)}


def _segmenter(options: Options, file: Path) -> dict[str, Net]:
    return {"segmenter": segmenter.load(options)}


def _clip(options: Options, file: Path) -> dict[str, Net]:
    image, words = ImageTower(clip.IMAGE), TextTower(clip.words_config(options))
    load_weights(file, {"image": image, "words": words})
    return {"clip_image": image, "clip_text": words}


def _animator(options: Options, file: Path) -> dict[str, Net]:
    net = Animator(animator.CONFIG)
    file = options.weights / f"{animation.chosen(options)}.safetensors"
    load_weights(file, {"encoder": net.encoder, "decoder": net.decoder})
    return {"animator": net}


def _motions(options: Options, file: Path) -> dict[str, Net]:
    trained, net = Motions(motions.CONFIG | {"encoder": True}), Motions(motions.CONFIG)
    load_weights(file, {"motions": trained})
    net.decoder.load_state_dict(trained.decoder.state_dict())
    return {"motions": net}


def _tiny_vae(options: Options, file: Path) -> dict[str, Net]:
    vae: Any = tinyvae.load(options)
    tensors = {name: value.numpy() for name, value in vae.cpu().state_dict().items()}
    return {"tiny_vae": TinyVAE.from_tensors(vae.config, tensors)}


# Stage -> its networks by component, of the stage's weights.
_STAGES: Mapping[str, Callable[[Options, Path], dict[str, Net]]] = {
    "upscaler": _upscaler, "segmenter": _segmenter, "clip": _clip, "animator": _animator, "motions": _motions,
    "tinyvae": _tiny_vae,
}  # fmt: skip


def around(options: Options) -> dict[str, Net]:
    """The networks around the model by component, of the stages that have weights."""
    found: dict[str, Net] = {}
    for stage, make in _STAGES.items():
        file = options.weights / f"{stage}.safetensors"
        if file.exists():
            found |= make(options, file)
    return found


def assemble(options: Options, folder: Path) -> list[str]:
    """Writes the folder, replacing what was there in one rename; the components around the model that it has."""
    if not (options.weights / "base.safetensors").exists():
        raise SystemExit("[folder] the stage base must be trained first: it has no weights yet")
    encoder, unet = base.load(options)
    parts = around(options)
    write_folder(folder, encoder, unet, autoencoder.load(options), parts=parts)
    return sorted(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Options().build / "folder")
    chosen = parser.parse_args()
    parts = assemble(Options(), chosen.out)
    print(f"{chosen.out}: Stable Diffusion and {', '.join(parts) or 'nothing around it yet'}")


if __name__ == "__main__":
    main()
