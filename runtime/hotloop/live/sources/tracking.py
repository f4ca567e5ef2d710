"""A tracked camera for a server: the tracker runs in a process of its own, so that its work delays no frame.

The process is `hotloop tracker SOURCE --paced`, one line of JSON a picture; its times are the system's monotonic clock,
which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InputError

__all__ = ["command", "follow_camera"]

_PLACE = "tracker"
_LONGEST = 1 << 16  # of a line


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
