"""The peer's side: reads requests on the descriptor it was given, answers them, and ends when nobody asks any more.

    PYTHON -P worker.py DESCRIPTOR PARENT ADAPTER

ADAPTER is a module of `peers.adapters`, or a Python file. Libraries print as they like: their output goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Be killed when the process that asked for us dies, even while stopped or deep in a library."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)  # it died before we asked


def load(adapter: str) -> ModuleType:
    if not adapter.endswith(".py"):
        return importlib.import_module(f"peers.adapters.{adapter}")
    spec = importlib.util.spec_from_file_location(Path(adapter).stem, adapter)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    descriptor, parent, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    end_with(parent)
    os.dup2(2, 1)
    # Last, and not first: nothing here may stand before a library's own module of the same name.
    sys.path.append(str(Path(__file__).parents[1]))
    from peers.messages import Closed, receive, send

    with socket.socket(fileno=descriptor) as connection:
        worker = Worker(name)
        while True:
            try:
                header, arrays = receive(connection)
            except Closed:
                return
            try:
                answer, made = worker.answer(header, arrays)
            except Exception as error:
                traceback.print_exc()
                answer, made = {"error": describe(error)}, {}
            try:
                send(connection, answer, made)
            except Closed:
                return


def describe(error: Exception) -> str:
    """One line: what kind of error, and the first line of what it says."""
    text = str(error).strip()
    kind = type(error).__name__
    lowered = text.lower()
    if isinstance(error, MemoryError) or "out of memory" in lowered or "can't allocate memory" in lowered:
        kind = "out of memory"
    return f"{kind}: {text.splitlines()[0]}" if text else kind


class Worker:
    """Holds the adapter between requests."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._adapter: Any = None

    def answer(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer to one request; whatever an adapter raises comes out."""
        from peers.work import Setup, Work

        op = header["op"]
        if op == "prepare":
            load(self._name).prepare(Setup.of(header["setup"]), **header["settings"])
            return {}, {}
        if op == "open":
            began = time.perf_counter()
            self._adapter = load(self._name).Adapter(Setup.of(header["setup"]), **header["settings"])
            return {"load": time.perf_counter() - began, "versions": dict(self._adapter.versions)}, {}
        if op == "draw":
            return self._draw(Work.of(header["work"], arrays["noise"]))
        raise ValueError(f"[worker] op must be prepare, open or draw, got {op}")

    def _draw(self, work: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        import numpy as np

        adapter = self._adapter
        adapter.ready(work)
        device = _cuda()
        if device is not None:
            device.reset_peak_memory_stats()
        began = time.perf_counter()
        images = adapter.draw()
        seconds = time.perf_counter() - began

        found = adapter.found()
        header = {
            "seconds": seconds,
            "stages": dict(found.stages),
            "evaluations": found.evaluations,
            "peak_device_bytes": None if device is None else device.max_memory_reserved(),
        }
        # Some hand out an opaque fourth channel.
        made = {"images": np.stack([np.asarray(image, np.uint8)[..., :3] for image in images])}
        if found.latents is not None:
            made["latents"] = found.latents
        return header, made


def _cuda() -> Any:
    """torch.cuda where a library has put torch on a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


if __name__ == "__main__":
    main()
