"""Who takes part in a run: peers and hotloop's engines, each in a process of its own, as cases of the harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from harness import Case, Check, Timed, Unmeasured, cosine_at_least, psnr_at_least
from peers.client import PeerError, Process
from peers.table import PEERS, Peer, hotloop
from peers.work import Drawn, Setup, Work

from hotloop.noise import normal, seeds_for
from hotloop.spec import Family

__all__ = [
    "LIMITS",
    "Entrant",
    "Field",
    "agreement",
    "chosen",
    "of_engine",
    "precision_of",
    "same_picture",
    "work_for",
]

# PSNR in dB that a picture keeps to one in float32, by the precision it was drawn in: below, it is another picture.
LIMITS = {"fp32": 50.0, "fp16": 40.0, "bf16": 25.0, "int8": 20.0, "q8_0": 20.0}


def precision_of(name: str) -> str:
    """The last word of a case's name, by convention: "diffusers eager bf16", "hotloop openvino int8"."""
    return name.replace("-", " ").rsplit(" ", 1)[-1]


def of_engine(engine: str, *, vae: str = "full") -> Peer:
    """hotloop with an engine such as "openvino-bf16"."""
    return hotloop(engine, name=f"hotloop {engine.replace('-', ' ')}", vae=vae)


def work_for(
    prompt: str, negative: str, *, family: Family, seed: int, batch: int, size: tuple[int, int], **options: Any,
) -> Work:  # fmt: skip
    """The same start for everybody: image i from the seed + i, as torch's generator on the CPU draws it."""
    seeds = tuple(seeds_for(seed, batch))
    shape = (family.latent_channels, size[1] // family.vae_factor, size[0] // family.vae_factor)
    noise = np.stack([normal(one, shape) for one in seeds])
    return Work(prompt, noise, seeds, negative_prompt=negative, size=size, **options)


def same_picture(precision: str) -> Check:
    """The images agree as far as the precision lets them."""
    by_psnr = psnr_at_least(LIMITS[precision])
    return lambda expected, got: by_psnr(expected.images, got.images)


def agreement(expected: Drawn, got: Drawn) -> dict[str, float | None]:
    """How far two results agree, for a record's quality block."""
    from hotloop.evaluation.metrics import psnr, ssim

    pairs = list(zip(expected.images, got.images, strict=True))
    found = {
        "psnr_db": float(psnr(got.images, expected.images)),  # of their pooled error: one equal picture is not infinity
        "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
    }
    if expected.latents is not None and got.latents is not None:
        found["latents_cosine"] = cosine_at_least(0)(expected.latents, got.latents).value
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


@dataclass(frozen=True)
class Entrant:
    """One that is open and ready."""

    name: str
    process: Process
    load: float
    versions: Mapping[str, str]

    def draw(self, work: Work) -> Timed:
        """Raises Unmeasured when the process cannot."""
        try:
            drawn = self.process.draw(work)
        except PeerError as error:
            raise Unmeasured(error.reason) from error
        return Timed(drawn, drawn.seconds, drawn.stages)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Awake inside, stopped outside: a library whose threads spin takes nothing from the others."""
        self.process.resume()
        try:
            yield
        finally:
            self.process.pause()

    def case(self, work: Work, **params: Any) -> Case:
        told = {"precision": precision_of(self.name), "versions": dict(self.versions), **params}
        device: list[int | None] = [None]  # bytes of the last call

        def run() -> Timed:
            made = self.draw(work)
            device[0] = made.output.peak_device_bytes
            return made

        return Case(
            self.name,
            run,
            work=work.batch,
            params=told,
            turn=self.turn,
            peak=lambda: {"peak_rss_bytes": self.process.peak_rss(), "peak_device_bytes": device[0], "alone": True},
            load=self.load,
        )


class Field:
    """Everybody who could be opened, and why the others could not.

        with Field(rows, setup) as field:
            cases = [one.case(work) for one in field.entrants]

    Opened one after another, each stopped when it is ready.
    """

    def __init__(self, rows: Sequence[Peer], setup: Setup, *, setups: Mapping[str, Setup] | None = None) -> None:
        self._rows, self._setup, self._setups = rows, setup, setups or {}
        self.entrants: list[Entrant] = []
        self.failed: dict[str, str] = {}

    def __enter__(self) -> Field:
        self._stack = ExitStack()
        try:
            for row in self._rows:
                self._open(row)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, row: Peer) -> None:
        process = self._stack.enter_context(Process(row, self._setups.get(row.name, self._setup)))
        try:
            opened = process.open()
        except PeerError as error:
            process.close()
            self.failed[row.name] = error.reason
            return
        process.pause()
        self.entrants.append(Entrant(row.name, process, opened.load, opened.versions))


def chosen(names: str, device: str) -> list[Peer]:
    """Rows of the table: "all" (those for this kind of device, and those for others to be told of), "none" or names."""
    if names == "all":
        return [row for row in PEERS.values() if device in row.devices or device == "cpu"]
    found = [] if names == "none" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in found if name not in PEERS]:
        raise SystemExit(f"peers must be all, none or among {', '.join(PEERS)}, got {', '.join(unknown)}")
    return [PEERS[name] for name in found]
