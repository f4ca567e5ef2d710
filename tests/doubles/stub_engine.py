"""A worker of `hotloop serve` whose model draws a grey picture in a known time: STUB_ROW seconds for each step.

What it did is in the file STUB_LOG: a line for each row, `prompt row monotonic-seconds`. Prompts that begin with these
words do something else: "segfault", "exit" (the process ends, in the third row), "broken" (an error of the model's),
"nan", "memory", "hang" (a row of a minute).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from hotloop.call import Ran, Result
from hotloop.errors import NonFiniteError
from hotloop.loop import Progress
from hotloop.serve.images.engine import main

ROW = float(os.environ.get("STUB_ROW", "0.001"))
LOG = os.environ.get("STUB_LOG")


class StubRun:
    joins, before, networks = False, (0, 0), None

    def __init__(self, prompt: str, steps: int) -> None:
        self.prompt, self.whole = prompt, (steps, steps)
        self.table = SimpleNamespace(steps=np.arange(steps))

    @contextmanager
    def denoiser(self) -> Iterator[tuple[Any, Any]]:
        yield None, SimpleNamespace(seconds=0.0)

    def rows(self, denoiser: Any) -> Iterator[Progress]:
        steps = self.whole[0]
        for row in range(steps):
            if LOG:
                with open(LOG, "a") as file:
                    file.write(f"{self.prompt} {row} {time.monotonic()}\n")
            time.sleep(ROW)
            if row == 2 and self.prompt.startswith("segfault"):
                os.kill(os.getpid(), signal.SIGSEGV)
            if row == 2 and self.prompt.startswith("exit"):
                os._exit(9)
            if self.prompt.startswith("hang"):
                time.sleep(60)
            if self.prompt.startswith("broken"):
                raise RuntimeError("/secret/path at 0xdeadbeef: " + self.prompt)
            if self.prompt.startswith("nan"):
                raise NonFiniteError("txt2img", "latents must be finite")
            if self.prompt.startswith("memory"):
                raise MemoryError
            yield Progress(row, steps, row, steps, 0.0, np.zeros((1, 4, 8, 8), np.float32))


class StubModel:
    def __init__(self) -> None:
        self.evicted: list[Any] = []

    def facts(self) -> dict[str, Any]:
        return {
            "family": "stub", "engine": "stub", "device": "cpu", "id": "0123456789abcdef" * 4, "grid": 8, "least": 64,
            "most": 1024, "size": [64, 64], "networks": ["unet", "vae_decoder"], "inpainting": False,
            "defaults": {"num_inference_steps": 10, "guidance_scale": 2.5, "sampler": "plms"},
        }  # fmt: skip

    def networks(self, loras: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(loras)
        return done

    def drawing(self, pipeline: str, values: dict[str, Any], pictures: dict[str, Any], networks: Any) -> Any:
        ran: Ran = yield StubRun(values["prompt"], values.get("num_inference_steps", 10))  # type: ignore[misc]
        del ran
        size = (values.get("width", 64), values.get("height", 64))
        seeds = values["seed"]
        made = [Image.new("RGB", size, (seed % 256, 128, 128)) for seed in seeds]
        for name, picture in pictures.items():  # what was read as: its mean
            made[0].putpixel((0 if name == "image" else 1, 0), (round(float(np.asarray(picture).mean())),) * 3)
        return Result(made, seeds, {"total": 0.0}, {"num_inference_steps": 10}, np.zeros(1))

    def preview(self, run: Any, row: int, latents: Any) -> np.ndarray:
        return np.full((64, 64, 3), row, np.uint8)


if __name__ == "__main__":
    main(sys.argv[1:], lambda path, told: StubModel() if Path(path).is_dir() else None)
