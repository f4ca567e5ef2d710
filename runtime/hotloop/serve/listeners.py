"""The control sources that a server was told to listen to, on loopback: OSC, VMC, VTube Studio's plugins, a phone, a
camera.

They move the main session.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import InputError
from ..live.sources import vtube_server
from ..live.sources.datagrams import Datagrams, listen
from ..live.sources.ifacialmocap import PORT as PHONE_PORT
from ..live.sources.receivers import OscReceiver, PhoneReceiver, follow_phone
from ..live.sources.tracking import follow_camera
from ..live.sources.vtube_studio import Studio
from .config import Config
from .limits import settable
from .sessions import Session

__all__ = ["Listeners"]

_MOST_CHANGES = 16  # settings under way at once


class Listeners:
    """Started and closed with the server. counts: name -> what it took and refused, for the monitor."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._closing: list[Callable[[], Any]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.counts: dict[str, dict[str, int]] = {}
        self.ports: dict[str, int] = {}

    async def start(self, session: Session) -> None:
        """Raises InputError where a port is taken."""
        config, bus = self._config, session.bus
        for name, port in (("osc", config.osc), ("vmc", config.vmc)):
            if port is not None:
                receiver = OscReceiver(bus.put, self._change(session), settable())
                protocol = Datagrams(receiver.take, time.monotonic)
                transport = await listen(name, protocol, port)
                self._closing.append(transport.close)
                self.counts[name] = protocol.counts
                self.ports[name] = transport.get_extra_info("sockname")[1]
        if config.vts is not None:
            # A plugin on this machine may write to the avatar as any client without a token may.
            studio = Studio(bus, allow=lambda plugin, developer: True, play=self._play(session),
                            motions=tuple(session.facts.get("motions", ())))  # fmt: skip
            server = await vtube_server.serve(studio, time.monotonic, port=config.vts)
            self._closing.append(server.close)
            self.ports["vts"] = server.sockets[0].getsockname()[1]
        if config.ifm is not None:
            phone = PhoneReceiver(bus.put)
            self._run(follow_phone(config.ifm, phone, time.monotonic, host="0.0.0.0", port=PHONE_PORT, anywhere=True))

        if config.camera is not None:
            self._run(follow_camera(config.camera, partial(bus.put, captured=True)))

    def close(self) -> None:
        for close in self._closing:
            close()
        for task in self._tasks:
            task.cancel()

    def _change(self, session: Session) -> Callable[[str, Any], None]:
        def change(name: str, value: Any) -> None:
            session.config.limits.settings({name: value})
            if len(self._tasks) > _MOST_CHANGES:
                raise InputError("osc", "settings come faster than they are taken", name)
            self._run(_told(session.set({name: value})))

        return change

    def _play(self, session: Session) -> Callable[[str], None]:
        return lambda name: self._run(_told(session.play(name)))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"hotloop: {error}", file=sys.stderr, flush=True)


async def _told(work: Any) -> None:
    """UDP has no answer: what is refused is told in the log."""
    try:
        await work
    except InputError as error:
        print(f"hotloop: {error}", file=sys.stderr, flush=True)
