"""A live session of hotloop redrawing a picture, one after another: from `push` to the frame's pixels."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from peers.adapters.restyle_streamdiffusion import picture
from peers.work import Found, Setup, Work

__all__ = ["Adapter"]

_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


class Adapter:
    """engine: as `hotloop.load` takes it; form: cfg_type; depth: of the rolling batch."""

    def __init__(self, setup: Setup, *, engine: str, form: str = "none", depth: int = 1) -> None:
        import hotloop

        self._pipe = hotloop.load(setup.bundle, engine=engine, device=setup.device, threads=setup.threads)
        self._form, self._depth = form, depth
        self.versions = {"hotloop": hotloop.__version__}
        if package := _PACKAGES.get(self._pipe.entry.kind):
            self.versions[package] = importlib.metadata.version(package)
        self._asked: dict[str, Any] = {}

    def ready(self, work: Work) -> None:
        from hotloop.live import Stage

        if work.header() == self._asked:
            return
        self._asked = work.header()
        self._stage = Stage(self._pipe)
        self._session = self._stage.open(
            depth=self._depth, prompt=work.prompt, negative_prompt=work.negative_prompt, seed=work.seeds[0],
            steps=work.steps, strength=0.5, guidance_scale=max(work.guidance, 1.0), cfg_type=self._form, size=work.size,
        )  # fmt: skip
        self._picture = picture(work.size, work.seeds[0])
        for _ in range(work.steps):
            self.draw()

    def draw(self) -> Any:
        """At depth 1 the pushed picture's own frame, at a greater one that of a picture before it: it is the same."""
        self._session.push(self._picture)
        while (frame := self._session.outbox.take()) is None:
            self._stage.tick()
        return frame.pixels[None]

    def found(self) -> Found:
        return Found(evaluations=1)
