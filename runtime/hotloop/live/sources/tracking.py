"""A tracked camera for a server: the tracker runs in a process of its own, so that its work delays no frame.

The process is `hotloop tracker SOURCE --paced`, one line of JSON a picture; its times are the system's monotonic clock,
which all processes share. `hotloop tracker -` is given its pictures: each 12 bytes little endian, f64 when it was taken
and u32 bytes, then a JPEG.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ...errors import InputError
from .face_files import found

__all__ = ["PictureTracker", "command", "follow_camera", "given_pictures"]

_PLACE = "tracker"
_LONGEST = 1 << 16  # of a line
_HEAD = struct.Struct("<dI")
_MOST = 1 << 24  # bytes of a picture


def command(source: str) -> list[str]:
    return [
        sys.executable, "-c", "from hotloop.cli import main; main()", "tracker", source, "--paced", "--calibrate",
    ]  # fmt: skip


async def follow_camera(source: str, put: Callable[..., str | None], *, run: Sequence[str] | None = None) -> None:
    """Puts a face's controls on the bus as "camera", until cancelled or until the source ends.

    run: the process, by default `command(source)`. Raises InputError with the one line that it ended with.
    """
    process = await asyncio.create_subprocess_exec(
        *(run or command(source)), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, limit=_LONGEST,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        while line := await process.stdout.readline():
            told: dict[str, Any] = json.loads(line)
            if told["controls"] is not None:
                put("camera", told["at"], told["controls"])
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        if await process.wait():
            raise InputError(_PLACE, said[-1].removeprefix("hotloop: ") if said else "has ended", source)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class PictureTracker:
    """A tracker that is handed pictures. One is being looked at and the newest waits; others are left out.

    put: given the time of a picture and the controls of the face in it
    """

    def __init__(self, process: asyncio.subprocess.Process, put: Callable[..., object]) -> None:
        self._process, self._put = process, put
        self._waiting: tuple[bytes, float] | None = None
        self._busy = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, put: Callable[..., object], *, run: Sequence[str] | None = None) -> PictureTracker:
        """run: the process, by default `command("-")`. Raises BundleError where the tracker's networks are not here."""
        if run is None:
            found()
        process = await asyncio.create_subprocess_exec(
            *(run or command("-")), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LONGEST
        )
        return cls(process, put)

    def offer(self, picture: bytes, at: float) -> None:
        """A JPEG, and when it was taken."""
        self._waiting = picture, at
        self._hand()

    async def close(self) -> None:
        self._reading.cancel()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def _hand(self) -> None:
        if self._busy or self._waiting is None or self._process.returncode is not None:
            return
        (picture, at), self._waiting = self._waiting, None
        assert self._process.stdin is not None
        self._process.stdin.write(_HEAD.pack(at, len(picture)) + picture)
        self._busy = True

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told: dict[str, Any] = json.loads(line)
            self._busy = False
            self._hand()
            if told["controls"] is not None:
                self._put(told["at"], told["controls"])
        print(f"hotloop: [{_PLACE}] the tracker's process has ended", file=sys.stderr, flush=True)


def given_pictures(stream: BinaryIO) -> Iterator[tuple[float, np.ndarray]]:
    """In the tracker's process: pictures RGB uint8 [H, W, 3] and their times, until the stream ends."""
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        at, size = _HEAD.unpack(head)
        if size > _MOST:
            raise InputError(_PLACE, f"a picture must have at most {_MOST} bytes", size)
        with Image.open(io.BytesIO(stream.read(size)), formats=("JPEG",)) as image:
            yield at, np.asarray(image.convert("RGB"))
