"""The opened engines of a bundle: each when it is first used, all replaced as a whole."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import Bundle, Entry
from .denoiser import LRUCache, UNetDenoiser
from .engines import KINDS, Engine, open_engine
from .process import Origin
from .selection import runs_in
from .spec import LORA_COMPONENTS, Network

if TYPE_CHECKING:
    from .denoiser.resident import ResidentLoop

__all__ = ["Networks"]


class Networks:
    """name -> Engine. A call takes one of these at its start and keeps it, so a swap never mixes two sets of weights.

    adapters: open engines so that LoRAs show soon. given: engines that stand in place of the entry's own.
    """

    def __init__(
        self, bundle: Bundle, entry: Entry, *, device: str, threads: int | None = None, cache: Path | None = None,
        adapters: bool = False, given: Mapping[str, Engine] | None = None,
    ) -> None:  # fmt: skip
        self.bundle, self.entry, self.device = bundle, entry, device
        self.rows: Mapping[str, Network] = bundle.networks(entry)
        self._threads, self._cache, self._adapters = threads, cache, adapters
        self._open = dict(given or {})
        self._prompts, self._times = LRUCache(), LRUCache()
        self._lock = threading.Lock()
        self._origin = Origin()

    def __getitem__(self, name: str) -> Engine:
        """Raises BundleError for a network that the entry does not have, or that does not open, and InputError in a
        process that was forked since these were made."""
        self.check_process()
        with self._lock:
            if name not in self._open:
                path = self.bundle.network_file(self.entry, name)
                engine = open_engine(
                    self.entry.kind, path, self.rows[name], device=self.device, threads=self._threads,
                    precision=runs_in(self.entry, name, self.device), cache=self._cache,
                    adapters=self._adapters and self.rows[name].component in LORA_COMPONENTS,
                )  # fmt: skip
                # Only now: bundles are replaced by one rename, so what was read before this holds was this bundle's.
                self.bundle.check_in_place()
                self._open[name] = engine
            return self._open[name]

    def check_process(self) -> None:
        """Raises InputError in a process that was forked since these were made."""
        self._origin.check("engine")

    def opened(self) -> dict[str, Engine]:
        with self._lock:
            return dict(self._open)

    def forget(self) -> None:
        """What the networks split from the UNet gave for prompts and schedules: the next run asks them again."""
        self._prompts.clear()
        self._times.clear()

    def replaced(self, engines: Mapping[str, Engine]) -> Networks:
        """Others like these with some engines replaced; the rest is shared."""
        return Networks(
            self.bundle, self.entry, device=self.device, threads=self._threads, cache=self._cache,
            adapters=self._adapters, given=self.opened() | dict(engines),
        )  # fmt: skip

    def denoiser(self, *, decoder: str | None = None, scaling: float = 1.0) -> UNetDenoiser:
        """What the loop holds: the UNet with the networks that were split from it.

        decoder: the network that turns latents / scaling into the image; an engine that keeps the state on its device
        makes it part of a run.
        """
        unet = self["unet"]
        prompt, time = (self[name] if name in self.rows else None for name in ("prompt", "time"))
        kind = KINDS.get(unet.kind)  # an engine given in place of the entry's may be of a kind of its own
        if kind and kind.denoiser:
            module, cls = kind.denoiser.split(":")
            resident: type[ResidentLoop] = getattr(import_module(module), cls)
            return resident(
                unet, prompt=prompt, time=time, prompts=self._prompts, times=self._times,
                decoder=self[decoder] if decoder else None, scaling=scaling,
            )  # fmt: skip
        return UNetDenoiser(unet, prompt=prompt, time=time, prompts=self._prompts, times=self._times)
