"""LoRAs on a running pipeline: merged into second engines in the background, which then take the first ones' place.

The bundle's own engines stay as they are, so unloading gives the original images bit for bit, and a call that is under
way ends with the engines it began with. Merged weights add no work per step; OpenVINO and ONNX Runtime take them as
inputs, at a cost that their modules state.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..networks import Networks
from ..spec import LORA_COMPONENTS
from ..tokenizer import Tokenizer
from ..weights import Weights
from ..weights.derived import derive
from .embedding import TOKEN_TABLE, Embedding, open_embedding, place_words
from .lora import Lora, Scaled, merge
from .shelf import Shelf

__all__ = ["Adapters", "Swap", "per_network"]

_ENCODER = "text_encoder"
# Weights that a rewrite moves out of the UNet: rewrite -> (network, the keys).
_MOVED = {
    "kv": ("prompt", re.compile(r".*\.attn2\.to_[kv]\.weight")),
    "time": ("time", re.compile(r"time_embedding\..*|.*\.time_emb_proj\.(weight|bias)")),
}


@dataclass(frozen=True)
class Swap:
    """What a change of adapters did.

    active    name -> scale of the LoRAs that the next call draws with
    networks  the engines that were replaced; weights: how many were merged anew
    seconds   until the next call draws with them; merging: the part of it that was arithmetic
    nbytes    of the merged weights, in float32, that lie beside the bundle's own
    """

    active: Mapping[str, float | Mapping[str, float]]
    networks: tuple[str, ...]
    weights: int
    seconds: float
    merging: float
    nbytes: int

    def __str__(self) -> str:
        names = ", ".join(f"{name} x {scale}" for name, scale in self.active.items()) or "no adapters"
        return (
            f"{names}: {self.weights} weights of {', '.join(self.networks) or 'no network'} in {self.seconds:.2f} s "
            f"({self.merging:.2f} s merging), {self.nbytes / 2**20:.0f} MB more"
        )


class _Merged(NamedTuple):
    """Of some LoRAs: the engines; which of them are new; weights, seconds of arithmetic and bytes as in `Swap`."""

    networks: Networks
    names: tuple[str, ...]
    weights: int
    seconds: float
    nbytes: int


class Adapters:
    """The LoRAs of one pipeline. One thread makes the changes, in order; reading `networks` never waits for it.

    Every change gives a Future: its result is a Swap, or raises InputError for a LoRA that does not fit this model, a
    name that is taken or unknown, or an engine whose weights cannot be replaced. Then nothing has changed.

    shelf  LoRAs by name, of which sets are merged beside what the pipeline draws with
    """

    def __init__(self, base: Networks) -> None:
        self._base = self.networks = base
        self.shelf = Shelf(self)
        self._loras: Mapping[str, Scaled] = {}
        self._words: list[Embedding] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hotloop-adapters")

    @property
    def active(self) -> dict[str, float | Mapping[str, float]]:
        """name -> scale of the LoRAs that the next call draws with."""
        return {name: scaled.scale for name, scaled in self._loras.items()}

    def load(self, file: Path, scale: float | Mapping[str, float], name: str | None = None) -> Future[Swap]:
        """Add a LoRA under its name, by default its file's."""

        if name is not None and (not isinstance(name, str) or not name):
            raise InputError("lora", "name must be a text", name)

        def change(loras: dict[str, Scaled]) -> None:
            lora = Lora.open(file)
            chosen = name or lora.name
            if chosen in loras:
                raise InputError("lora", "a LoRA of this name is loaded; unload it, or give another name", chosen)
            loras[chosen] = Scaled(lora, scale)

        return self._submit(change)

    def set(self, name: str, scale: float | Mapping[str, float]) -> Future[Swap]:
        """Another scale for a loaded LoRA."""

        def change(loras: dict[str, Scaled]) -> None:
            loras[name] = Scaled(_named(loras, name).lora, scale)

        return self._submit(change)

    def unload(self, name: str) -> Future[Swap]:
        """Take a LoRA away; without any, the bundle's own engines run again."""

        def change(loras: dict[str, Scaled]) -> None:
            _named(loras, name)
            del loras[name]

        return self._submit(change)

    def _submit(self, change: Callable[[dict[str, Scaled]], None]) -> Future[Swap]:
        self._base.check_process()  # the worker is a thread
        return self._worker.submit(self._swap, change)

    def embed(self, file: Path, token: str | None, tokenizer: Tokenizer) -> Future[str]:
        """Learn a word on top of the others, for prompts of all later calls; tokenizer: the bundle's own. The Future's
        result is the word."""
        self._base.check_process()
        return self._worker.submit(self._embed, file, token, tokenizer)

    def _embed(self, file: Path, token: str | None, tokenizer: Tokenizer) -> str:
        words = [*self._words, open_embedding(file, token=token)]
        table = np.asarray(self.weights[_ENCODER][TOKEN_TABLE], np.float32)
        reads, table = place_words(tokenizer, table, words)
        own = self._base[_ENCODER]
        encoder = own.patched({TOKEN_TABLE: table})
        encoder.prepare(own.contexts.shapes())
        # LoRAs are merged on top of it, and what is unloaded leaves it.
        before, self._base = self._base, self._base.replaced({_ENCODER: encoder}, {_ENCODER: reads})
        try:
            self._swap(lambda loras: None)
        except BaseException:
            self._base = before
            raise
        self._words = words
        return words[-1].token

    @cached_property
    def weights(self) -> dict[str, Weights]:
        """component -> the bundle's own weights, of those that LoRAs change."""
        listed = self._base.bundle.manifest["weights"]
        with self._base.bundle.in_place():
            return {
                name: Weights.open(self._base.bundle.file(listed[name]["path"]))
                for name in LORA_COMPONENTS
                if name in listed
            }

    def _swap(self, change: Callable[[dict[str, Scaled]], None]) -> Swap:
        """All new engines are made and warm before the first is used."""
        began = time.perf_counter()
        loras = dict(self._loras)
        change(loras)
        made = self._merged(list(loras.values()))
        # The switch: from here every new call draws with the new weights, all of them.
        self.networks, self._loras = made.networks, loras
        return Swap(self.active, made.names, made.weights, time.perf_counter() - began, made.seconds, made.nbytes)

    def beside(self, loras: Sequence[Scaled]) -> Networks:
        """The engines that draw with these as well; what the next call draws with stays. On the caller's thread."""
        self._base.check_process()
        return self._merged([*self._loras.values(), *loras]).networks

    def _merged(self, loras: Sequence[Scaled]) -> _Merged:
        began, base = time.perf_counter(), self._base
        changed = merge(loras, self.weights) if loras else {}
        merging = time.perf_counter() - began
        engines, count, nbytes = {}, 0, 0
        for name, tensors in per_network(changed, base.entry.rewrites).items():
            own = base[name]
            engines[name] = own.patched(tensors)
            engines[name].prepare(own.contexts.shapes())
            count, nbytes = count + len(tensors), nbytes + sum(array.nbytes for array in tensors.values())
        return _Merged(base.replaced(engines) if engines else base, tuple(engines), count, merging, nbytes)


def _named(loras: Mapping[str, Scaled], name: str) -> Scaled:
    if name not in loras:
        raise InputError("lora", f"name must be one of the loaded LoRAs: {sorted(loras)}", name)
    return loras[name]


def per_network(
    changed: Mapping[str, Mapping[str, np.ndarray]], rewrites: tuple[str, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """component -> key -> weight as network -> initializer -> weight: where the rewrites keep them, sums derived."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for component, tensors in changed.items():
        split = rewrites if component == "unet" else ()
        for key, array in tensors.items():
            moved = [network for rewrite, (network, keys) in _MOVED.items() if rewrite in split and keys.fullmatch(key)]
            # A convolution that became its phase sums is not in the graph any more.
            own = derive({key: array}) if "phase" in split else {}
            parts.setdefault(moved[0] if moved else component, {}).update(own or {key: array})
    return parts
