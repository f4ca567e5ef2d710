"""Datagrams -> the bus: what a UDP listener is given to call. Nothing that is sent makes it raise.

UDP has no answer: what was wrong is counted, and the last line kept for the monitor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import InputError
from .datagrams import Datagrams, check_host, listen
from .ifacialmocap import HELLO, PORT, FacialMocap
from .osc import Osc, read
from .vmc import Vmc

__all__ = ["OscReceiver", "PhoneReceiver", "follow_phone"]

_ASK_AGAIN = 2.0  # seconds


class Put(Protocol):
    """`Bus.put`."""

    def __call__(self, source: str, t: float, values: Mapping[str, Any]) -> str | None: ...


@dataclass
class OscReceiver:
    """VMC and `/hotloop/..` on one port. change: called with settings by name; it may raise InputError."""

    put: Put
    change: Callable[[str, Any], object] = lambda name, value: None
    settings: frozenset[str] = frozenset()
    wrong: int = 0
    said: str = ""
    vmc: Vmc = field(default_factory=Vmc)

    def __post_init__(self) -> None:
        self.plain = Osc(self.settings)

    def take(self, datagram: bytes, t: float) -> None:
        try:
            messages = read(datagram)
            told, moved = self.plain.feed(messages), self.vmc.feed(messages)
        except InputError as e:
            self._wrong(str(e))
            return
        for source, values in (("vmc", moved), ("osc", told.controls)):
            if values:
                self.put(source, t, values)
        for fault in told.faults:
            self._wrong(fault)
        for name, value in told.settings.items():
            try:
                self.change(name, value)
            except InputError as e:
                self._wrong(str(e))

    def _wrong(self, line: str) -> None:
        self.wrong += 1
        self.said = line


@dataclass
class PhoneReceiver:
    """iFacialMocap's texts."""

    put: Put
    wrong: int = 0
    said: str = ""
    phone: FacialMocap = field(default_factory=FacialMocap)

    def take(self, datagram: bytes, t: float) -> None:
        try:
            self.put("ifacialmocap", t, self.phone.feed(datagram))
        except InputError as e:
            self.wrong += 1
            self.said = str(e)


async def follow_phone(
    phone: str, receiver: PhoneReceiver, clock: Callable[[], float], *, host: str = "127.0.0.1", port: int = PORT,
    anywhere: bool = False, phone_port: int = PORT,
) -> None:  # fmt: skip
    """Asks the phone (its IP address) for its data and takes what comes from there alone, until cancelled; asks again
    when nothing came for 2 seconds. Raises InputError as `listen`; a phone is not on loopback: it takes `anywhere`."""
    check_host("ifacialmocap", phone, anywhere=anywhere)
    protocol = Datagrams(receiver.take, clock, only=phone)
    transport = await listen("ifacialmocap", protocol, port, host=host, anywhere=anywhere)
    try:
        taken = -1
        while True:
            if protocol.counts["taken"] == taken or taken < 0:
                transport.sendto(HELLO, (phone, phone_port))
            taken = protocol.counts["taken"]
            await asyncio.sleep(_ASK_AGAIN)
    finally:
        transport.close()
