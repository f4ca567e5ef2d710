"""stable-diffusion.cpp through its Python binding, compiled for this processor.

It takes no latents: with rng "cpu" it draws torch's numbers from the seeds itself. Its "discrete" schedule spaces
timesteps as Euler's "linspace"; of the samplers here only Euler exists there with the same steps. Both halves of
guidance are evaluated one after the other, and so are the images of a batch. It shows no latents.

Its tokenizer has the published vocabulary built in. For a model with another one, a prompt is handed over as what that
model's tokenizer and embedding table make of it, through the door for textual inversions: the text encoder then sees
the same 77 rows as everywhere else (and computes in float32, a thousandth of the work).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.work import Found, Setup, Work

from . import clip_rows

__all__ = ["Adapter", "prepare"]

_TYPES = {"f16": 1, "q8_0": 8}  # ggml's numbers
_PUBLISHED = 49408  # tokens; the last two begin and end a prompt
_WORDS = tuple(f"handedover{letter}" for letter in "abcdefgh")  # stand for prompts


def prepare(setup: Setup, *, weights: str) -> None:
    """Write the model as one GGUF file with weights of a ggml type."""
    import stable_diffusion_cpp
    from safetensors.numpy import load_file, save_file

    source = setup.cache / "diffusers"
    for part in ("unet", "vae"):
        source.mkdir(exist_ok=True)
        if not (source / part).exists():
            (source / part).symlink_to(setup.model / part)
    text = load_file(setup.model / "text_encoder" / "model.safetensors")
    if not _has_published_vocabulary(setup.model):
        config = json.loads((setup.model / "text_encoder" / "config.json").read_text())
        tokens, table = clip_rows.tokenizer(setup.model), clip_rows.embedding_table(text)
        if config["vocab_size"] != _PUBLISHED:
            raise ValueError(f"[stable-diffusion.cpp] vocab_size must be {_PUBLISHED}, got {config['vocab_size']}")
        table[[_PUBLISHED - 2, _PUBLISHED - 1]] = table[[tokens.bos_token_id, tokens.eos_token_id]]
    (source / "text_encoder").mkdir(exist_ok=True)
    save_file(text, source / "text_encoder" / "model.safetensors")
    made = stable_diffusion_cpp.convert(
        str(source).encode(), b"", str(_file(setup, weights)).encode(), _TYPES[weights], b"", True
    )
    if not made:
        raise RuntimeError(f"[stable-diffusion.cpp] could not convert the model to {weights}")


class Adapter:
    """weights: a ggml type, as prepared."""

    def __init__(self, setup: Setup, *, weights: str) -> None:
        import stable_diffusion_cpp

        self._setup = setup
        self._handed: dict[str, Path] = {}  # prompt -> the file named after the word that stands for it
        self._folder = tempfile.TemporaryDirectory()
        own_words = _has_published_vocabulary(setup.model)
        self._slots = [] if own_words else [Path(self._folder.name, f"{word}.safetensors") for word in _WORDS]
        self._log: list[tuple[float, str]] = []
        options = {} if setup.threads is None else {"n_threads": setup.threads}

        class Model(stable_diffusion_cpp.StableDiffusion):
            """0.4.7 looks for its own list of embeddings where it has not put it."""

            _embedding_items = tuple(
                stable_diffusion_cpp.sd_embedding_t(name=slot.stem.encode(), path=str(slot).encode())
                for slot in self._slots
            )

        for slot in self._slots:
            slot.touch()
        self._model = Model(
            model_path=str(_file(setup, weights)), embedding_paths=[str(slot) for slot in self._slots], rng_type="cpu",
            sampler_rng_type="cpu", vae_decode_only=True, verbose=False, **options,
        )  # fmt: skip
        package = "stable_diffusion_cpp_python"
        self.versions = {package: importlib.metadata.version(package)}

        @stable_diffusion_cpp.sd_log_callback
        def noted(level: int, text: bytes, data: Any) -> None:
            self._log.append((time.perf_counter(), text.decode(errors="replace")))

        self._noted = noted  # C keeps only its address
        stable_diffusion_cpp.sd_set_log_callback(noted, ctypes.c_void_p(0))

    def ready(self, work: Work) -> None:
        if work.sampler != "euler":
            raise ValueError(f"[stable-diffusion.cpp] sampler must be euler, got {work.sampler}")
        if list(work.seeds) != list(range(work.seeds[0], work.seeds[0] + work.batch)):
            raise ValueError(f"[stable-diffusion.cpp] seeds must follow one another, got {work.seeds}")
        self._options: dict[str, Any] = dict(
            prompt=self._words(work.prompt),
            negative_prompt=self._words(work.negative_prompt),
            width=work.size[0],
            height=work.size[1],
            cfg_scale=work.guidance,
            sample_method="euler",
            scheduler="discrete",
            sample_steps=work.steps,
            seed=work.seeds[0],
            batch_count=work.batch,
        )
        self._work = work
        self._log.clear()

    def draw(self) -> Any:
        return self._model.generate_image(**self._options)

    def found(self) -> Found:
        """Stages as its log tells them; what the loop does beside the UNet is counted in the step."""
        began = self._at("generate_image {}x{}".format(*self._work.size))
        text = self._at("get_learned_condition completed")
        loop, decoded = self._at("decoding "), self._at("decode_first_stage completed")
        stages = {"text": text - began, "loop": loop - text, "vae_decoder": decoded - loop}
        stages["step"] = stages["loop"] / self._work.steps
        return Found(self._work.steps, stages)

    def _at(self, message: str) -> float:
        """When it was last said."""
        return next(when for when, text in reversed(self._log) if message in text)

    def _words(self, prompt: str) -> str:
        """The prompt, or the word that stands for its embeddings."""
        if not self._slots or not prompt:
            return prompt
        if prompt not in self._handed:
            if len(self._handed) == len(self._slots):
                raise ValueError(f"[stable-diffusion.cpp] prompts must be at most {len(self._slots)} per process")
            slot = self._slots[len(self._handed)]
            # Elsewhere: another library's tokenizer is not to be counted as this one's memory.
            command = [sys.executable, "-P", clip_rows.__file__, str(self._setup.model), prompt, str(slot)]
            subprocess.run(command, check=True)
            self._handed[prompt] = slot
        return self._handed[prompt].stem


def _file(setup: Setup, weights: str) -> Path:
    return setup.cache / f"model-{weights}.gguf"


def _has_published_vocabulary(model: Path) -> bool:
    vocabulary = json.loads((model / "tokenizer" / "vocab.json").read_text())
    return len(vocabulary) == _PUBLISHED
