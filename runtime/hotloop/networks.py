"""The opened engines of a bundle: each when it is first used, all replaced as a whole."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import Bundle, Entry
from .denoiser import LRUCache, UNetDenoiser
from .engines import KINDS, Engine, open_engine
from .engines.onnx_file import OnnxFile
from .errors import BundleError
from .process import Origin
from .selection import Choice, runs_in
from .spec import LORA_COMPONENTS, Network
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .denoiser.resident import ResidentLoop

__all__ = ["Networks", "open_networks"]


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
        # network -> what reads for it, where words were added to its token table
        self.tokenizers: Mapping[str, Tokenizer] = {}
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
                with self.bundle.in_place():
                    if path.suffix == ".onnx":
                        OnnxFile(path).check_weights(self.bundle.path)
                    engine = open_engine(
                        self.entry.kind, path, self.rows[name], device=self.device, threads=self._threads,
                        precision=runs_in(self.entry, name, self.device), cache=self._cache,
                        adapters=self._adapters and self.rows[name].component in LORA_COMPONENTS,
                    )  # fmt: skip
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

    def replaced(self, engines: Mapping[str, Engine], tokenizers: Mapping[str, Tokenizer] | None = None) -> Networks:
        """Others like these with some engines replaced, and the tokenizers that go with them; the rest is shared."""
        made = Networks(
            self.bundle, self.entry, device=self.device, threads=self._threads, cache=self._cache,
            adapters=self._adapters, given=self.opened() | dict(engines),
        )  # fmt: skip
        made.tokenizers = self.tokenizers if tokenizers is None else tokenizers
        return made

    @property
    def told_guidance(self) -> bool:
        """Whether the UNet takes its guidance as an input, in place of a second half."""
        return "timestep_cond" in self.entry.groups

    @property
    def resident(self) -> bool:
        """Whether the denoiser keeps the loop's state on its device."""
        kind = KINDS.get(self["unet"].kind)
        return bool(kind and kind.denoiser)

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


def open_networks(
    bundle: Bundle, choices: Sequence[Choice], needed: Sequence[str], *, threads: int | None = None,
    cache: Path | None = None, adapters: bool = False, given: Mapping[str, Engine] | None = None,
) -> tuple[Networks, str]:  # fmt: skip
    """The engines of the first choice whose networks `needed` all open, and why it was chosen.

    A choice that does not work is warned of, never passed over in silence; the last one's BundleError is raised.
    """
    for choice, after in zip(choices, [*choices[1:], None], strict=True):
        networks = Networks(
            bundle, choice.entry, device=choice.device, threads=threads, cache=cache, adapters=adapters, given=given
        )
        try:
            for name in needed:
                networks[name]
            return networks, choice.why
        except BundleError as error:
            if after is None:
                raise
            instead = f"running {after.entry.name} on {after.device} instead"
            warnings.warn(f"{error}; {instead}", RuntimeWarning, stacklevel=4)
    raise AssertionError("there is at least one choice")
