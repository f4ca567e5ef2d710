"""stable-diffusion.cpp through its Python binding, compiled for this processor.

It takes no latents: with rng "cpu" it draws torch's numbers from the seeds itself. Its "discrete" schedule spaces
timesteps as Euler's "linspace"; of the samplers here only Euler exists there with the same steps. Both halves of
guidance are evaluated one after the other, and so are the images of a batch. It shows no latents.

Its tokenizer has the published vocabulary built in. For a model with another one, a prompt is handed over as what that
model's tokenizer and embedding table make of it, through the door for textual inversions: the text encoder then sees
the same 77 rows as everywhere else.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from peers.work import Found, Setup, Work

__all__ = ["Adapter", "prepare"]

_TYPES = {"f16": 1, "q8_0": 8}  # ggml's numbers
_PUBLISHED = 49408  # tokens; the last two begin and end a prompt
_TABLE = "text_model.embeddings.token_embedding.weight"
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
        tokens = _tokenizer(setup.model)
        table = text[_name(text)]
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
        self._handed: dict[str, str] = {}
        self._own_words = _has_published_vocabulary(setup.model)
        slots = [] if self._own_words else [setup.cache / f"{word}.safetensors" for word in _WORDS]
        self._log: list[tuple[float, str]] = []
        self._steps: list[float] = []
        options = {} if setup.threads is None else {"n_threads": setup.threads}

        class Model(stable_diffusion_cpp.StableDiffusion):
            """0.4.7 looks for its own list of embeddings where it has not put it."""

            _embedding_items = tuple(
                stable_diffusion_cpp.sd_embedding_t(name=slot.stem.encode(), path=str(slot).encode()) for slot in slots
            )

        for slot in slots:
            slot.touch()
        self._model = Model(
            model_path=str(_file(setup, weights)), embedding_paths=[str(slot) for slot in slots], rng_type="cpu",
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
            progress_callback=lambda step, steps, seconds: self._steps.append(seconds),
        )
        self._work = work
        self._log.clear()
        self._steps.clear()

    def draw(self) -> Any:
        return self._model.generate_image(**self._options)

    def found(self) -> Found:
        text, loop = self._at("get_learned_condition completed"), self._at("decoding ")
        begin, decoded = (
            self._at("generate_image {}x{}".format(*self._work.size)),
            self._at("decode_first_stage completed"),
        )
        evaluations = self._work.steps
        stages = {"text": text - begin, "loop": loop - text, "vae_decoder": decoded - loop}
        stages["step"] = stages["loop"] / (evaluations * self._work.batch)
        return Found(evaluations, stages)

    def _at(self, message: str) -> float:
        """When it was last said."""
        return next(when for when, text in reversed(self._log) if message in text)

    def _words(self, prompt: str) -> str:
        """The prompt, or the word that stands for its embeddings."""
        if self._own_words or not prompt:
            return prompt
        if prompt not in self._handed:
            from safetensors.numpy import load_file, save_file

            if len(self._handed) == len(_WORDS):
                raise ValueError(f"[stable-diffusion.cpp] prompts must be at most {len(_WORDS)} per process")
            tokens = _tokenizer(self._setup.model)
            ids = tokens(prompt, truncation=True, max_length=77).input_ids[1:-1]
            text = load_file(self._setup.model / "text_encoder" / "model.safetensors")
            word = _WORDS[len(self._handed)]
            rows = text[_name(text)][ids].astype(np.float32)
            save_file({"emb_params": rows}, self._setup.cache / f"{word}.safetensors")
            self._handed[prompt] = word
        return self._handed[prompt]


def _file(setup: Setup, weights: str) -> Path:
    return setup.cache / f"model-{weights}.gguf"


def _has_published_vocabulary(model: Path) -> bool:
    vocabulary = json.loads((model / "tokenizer" / "vocab.json").read_text())
    return len(vocabulary) == _PUBLISHED


def _tokenizer(model: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)


def _name(text: dict[str, Any]) -> str:
    """transformers 5 leaves the first part out."""
    return _TABLE if _TABLE in text else _TABLE.removeprefix("text_model.")
