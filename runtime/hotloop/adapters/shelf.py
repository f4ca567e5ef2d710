"""LoRAs by name, for whoever draws with some of them while others do not: the sessions of one live server.

A set of them is merged beside the pipeline's own engines, which stay as they are; equal sets are one, so that sessions
with the same set share its engines, and no session's set ever reaches another's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol
from weakref import ref

from ..errors import InputError
from ..networks import Networks
from ..weights import Weights
from .lora import Lora, Scaled

__all__ = ["Shelf", "scanned"]

_PLACE = "lora"
_KEPT = 4  # sets that nobody may be using
_MOST = 64  # files
_SUFFIX = ".safetensors"

Wanted = Sequence[tuple[str, float]]


class Base(Protocol):
    """`Adapters`: what a shelf's LoRAs are merged into."""

    networks: Networks

    @property
    def weights(self) -> Mapping[str, Weights]: ...

    def beside(self, loras: Sequence[Scaled]) -> Networks: ...


class Shelf:
    """loras: name -> LoRA. Any thread may ask; sets are merged one at a time."""

    def __init__(self, base: Base, loras: Mapping[str, Lora] | None = None) -> None:
        self._of = ref(base)  # which holds this: no circle, or engines would wait for the garbage collector
        self.loras: dict[str, Lora] = dict(loras or {})
        self._made: OrderedDict[tuple[tuple[str, float], ...], tuple[Networks, Networks]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def _base(self) -> Base:
        base = self._of()
        assert base is not None
        return base

    def put(self, name: str, file: Path) -> None:
        """Raises InputError for a file that is no LoRA of this model, and a name that is there."""
        if name in self.loras:
            raise InputError(_PLACE, "LoRAs must have different names", name)
        lora = Lora.open(file)
        lora.check({part: {key: weights.shape(key) for key in weights} for part, weights in self._base.weights.items()})
        self.loras[name] = lora

    def check(self, wanted: Wanted) -> None:
        """Raises InputError for a name that is not there."""
        for name, _ in wanted:
            if name not in self.loras:
                known = ", ".join(sorted(self.loras)) or "none here"
                raise InputError(_PLACE, f"name must be one of the LoRAs that there are ({known})", name)

    def networks(self, wanted: Wanted) -> Networks:
        """The engines that draw with these, beside what the pipeline itself has loaded; with none, the pipeline's own.

        May take its time. Raises InputError for a name that is not there, and for an engine that takes no LoRA.
        """
        self.check(wanted)
        own, key = self._base.networks, tuple(wanted)
        if not key:
            return own
        with self._lock:
            over, made = self._made.pop(key, (None, own))
            if over is not own:
                made = self._base.beside([Scaled(self.loras[name], scale) for name, scale in key])
            self._made[key] = own, made
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
            return made


def scanned(folder: Path | None, named: Sequence[str] = ()) -> dict[str, Path]:
    """name -> file: those in a folder by their own names, and those given as NAME=FILE.

    Raises InputError for a folder that is none, a name twice, and what has no such form.
    """
    found: dict[str, Path] = {}
    if folder is not None:
        if not folder.is_dir():
            raise InputError(_PLACE, "lora-dir must be a folder", str(folder))
        found = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() == _SUFFIX}
    for one in named:
        name, equals, file = one.partition("=")
        if not equals or not name or not file:
            raise InputError(_PLACE, "lora must be NAME=FILE", one)
        if name in found:
            raise InputError(_PLACE, "LoRAs must have different names", name)
        found[name] = Path(file)
    for name in found:
        if len(name) > 64 or not name.isprintable():
            raise InputError(_PLACE, "a LoRA's name must have at most 64 printable characters", name)
    if len(found) > _MOST:
        raise InputError(_PLACE, f"at most {_MOST} LoRAs", len(found))
    return found
