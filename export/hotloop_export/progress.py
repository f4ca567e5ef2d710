"""What an export is doing: stages with estimates, seconds and the memory they reached."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Progress", "resident"]

_GB = 2**30
# Peak memory is sampled: the kernel's own mark cannot be set back for each stage.
_PERIOD = 0.05
_SILENCE = 10.0


class Progress:
    """Reports stages through `say`, one line when a stage begins and one when it ends."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.say = say or (lambda line: None)
        self._told = 0.0
        self.stages: list[tuple[str, float, float]] = []  # name, seconds, peak resident memory in bytes

    @contextmanager
    def stage(self, name: str, *, estimate: float | None = None) -> Iterator[None]:
        """estimate: seconds that it took on two cores per the same amount of weights, shown as "about"."""
        about = f", about {estimate:.0f} s" if estimate and estimate >= 2 else ""
        self.say(f"{name}{about} ...")
        self._told = time.perf_counter()
        began, peak, done = time.perf_counter(), [resident()], threading.Event()

        def watch() -> None:
            while not done.wait(_PERIOD):
                peak[0] = max(peak[0], resident())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            seconds = time.perf_counter() - began
            self.stages.append((name, seconds, float(peak[0])))
        self.say(f"{name}: {seconds:.1f} s, peak memory {peak[0] / _GB:.1f} GB")

    def part(self, what: str, done: float) -> None:
        """A long stage is at `done`, 0 to 1, of a part of it; said every ten seconds."""
        if time.perf_counter() - self._told > _SILENCE:
            self._told = time.perf_counter()
            self.say(f"  {what} {done:.0%}")

    @property
    def peak(self) -> float:
        """The most memory of any stage, bytes."""
        return max((peak for _, _, peak in self.stages), default=0.0)


def resident() -> int:
    """DeviceDenoiser memory of this process, bytes, without the pages of mapped files that the kernel can drop."""
    try:
        fields = Path("/proc/self/statm").read_text("ascii").split()
        return (int(fields[1]) - int(fields[2])) * resource.getpagesize()
    except OSError:  # not Linux: the highest so far stands for the present
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
