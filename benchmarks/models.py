"""The models that are measured, and hotloop's bundles of them, made once and kept in results/local/.

    python benchmarks/models.py sd15-random
    python benchmarks/models.py sd15-random --bundle sd15 --engines openvino-bf16 openvino-int8

built-in: the model that comes with hotloop. sd15-random: seeded random weights of Stable Diffusion 1.5's shape, in half
precision (`random_checkpoint.py`). Anything else is the path of a folder in diffusers' layout.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotloop.bundle import Bundle, builtin
from hotloop.spec import REWRITES

__all__ = ["LOCAL", "NAMED", "Model", "model", "tiny_vae"]

LOCAL = Path(__file__).parent / "results" / "local"
NAMED = ("built-in", "sd15-random")


@dataclass(frozen=True)
class Model:
    """A folder in diffusers' layout. name: as reported; family: of the spec, None to find it out."""

    name: str
    folder: Path

    @property
    def small(self) -> bool:
        """Whether all peers fit into memory, and an hour, together."""
        return sum(path.stat().st_size for path in self.folder.rglob("*.safetensors")) < 200 << 20

    def hash(self) -> str:
        """SHA-256 over the weights' names and bytes."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*.safetensors")):
            digest.update(str(path.relative_to(self.folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def bundle(self, engines: Sequence[str], rewrites: Sequence[str] = REWRITES, *, keep: bool = False) -> Path:
        """A bundle with these engines ("openvino-bf16") and rewrites, from the exporter's cache when it is there.

        A large model's carries a tiny VAE beside its own. keep: take one that was made here before, and add the
        engines that it lacks; else any change of hotloop's code exports anew, which takes minutes for a large model.
        Made in a process of its own: its memory is not this one's. Raises CalledProcessError.
        """
        place = LOCAL / "bundles" / "-".join([self.name, *(rewrites or ["plain"])])
        kept = keep and (place / "manifest.json").exists()
        there = {entry.name for entry in Bundle.open(place, verify=False).entries} if kept else set()
        lacking = [name for name in engines if name not in there]
        if kept and not lacking:
            return place
        source = self.name if self.name in NAMED else str(self.folder)
        asked = ["--bundle", str(place), "--engines", *lacking, "--rewrites", *rewrites]
        asked += ["--add"] if kept else [] if self.small else ["--vae", str(tiny_vae())]
        subprocess.run([sys.executable, __file__, source, *asked], check=True)
        return place


def model(name: str) -> Model:
    """One of NAMED, made when it is not there yet, or the folder at this path. Raises SystemExit for neither."""
    if name == "built-in":
        return Model(name, builtin())
    if name == "sd15-random":
        folder = LOCAL / "models" / name
        if not (folder / "model_index.json").exists():
            from random_checkpoint import write_checkpoint

            unfinished = folder.with_name(name + ".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write_checkpoint(unfinished, "sd15").rename(folder)
        return Model(name, folder)
    if not (Path(name) / "model_index.json").exists():
        raise SystemExit(f"model must be {', '.join(NAMED)} or a folder with model_index.json, got {name}")
    return Model(Path(name).name, Path(name))


def tiny_vae() -> Path:
    """A folder with seeded random weights of TAESD's shape: what a tiny VAE costs, not what it draws."""
    folder = LOCAL / "models" / "taesd-random"
    if not folder.exists():
        import torch
        from random_checkpoint import random_net

        from hotloop.nets.vae import TinyVAE

        random_net(TinyVAE, {}, seed=9).save(folder, dtype=torch.float16)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="built-in")
    parser.add_argument("--bundle", type=Path, help="write one here")
    parser.add_argument("--engines", nargs="+", default=["onnx-fp32"], metavar="KIND-PRECISION")
    parser.add_argument("--rewrites", nargs="*", default=list(REWRITES))
    parser.add_argument("--add", action="store_true", help="to the bundle that is there, whatever its rewrites")
    parser.add_argument("--vae", type=Path, help="a tiny VAE's folder, carried beside the model's own")
    options = parser.parse_args()
    source = model(options.model)
    if options.bundle:
        from hotloop_export.bundle import add_engines, write_bundle
        from hotloop_export.recipe import Recipe, parse_target

        targets = tuple(parse_target(name.replace("-", ":"), None) for name in options.engines)
        if options.add:
            add_engines(options.bundle, targets, say=print)
            return
        recipe = Recipe(source.folder, targets=targets, rewrites=tuple(options.rewrites), vae=options.vae)
        write_bundle(recipe, options.bundle, say=print)
    else:
        print(f"{source.name}: {source.folder}, SHA-256 {source.hash()}")


if __name__ == "__main__":
    main()
