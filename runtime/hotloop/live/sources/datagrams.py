"""UDP for sources: a listener with a bound on the size and the rate of what it takes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import InputError

__all__ = ["LARGEST", "Bucket", "Datagrams", "check_host", "listen"]

LARGEST = 16384  # bytes of a datagram
RATE, BURST = 2000.0, 400  # datagrams: a second for long, and at once


def check_host(place: str, host: str, *, anywhere: bool) -> None:
    """Raises InputError for an address other than loopback that was not asked for."""
    if anywhere or host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise InputError(place, "addresses other than loopback must be asked for", host)


class Bucket:
    """A token bucket: `rate` a second, `burst` at once. The clock is the caller's."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self._tokens, self._at = rate, burst, float(burst), 0.0

    def takes(self, t: float) -> bool:
        if self.empty(t):
            return False
        self._tokens -= 1
        return True

    def empty(self, t: float) -> bool:
        """Whether nothing more would be taken now."""
        self._tokens = min(self.burst, self._tokens + self.rate * max(t - self._at, 0.0))
        self._at = max(t, self._at)
        return self._tokens < 1


@dataclass
class Datagrams(asyncio.DatagramProtocol):
    """take(datagram, t): of every datagram that is neither too large, too many, nor from another sender than `only`."""

    take: Callable[[bytes, float], object]
    clock: Callable[[], float]
    only: str | None = None
    rate: float = RATE
    burst: float = BURST
    largest: int = LARGEST

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(("taken", "too_large", "too_many", "others"), 0)
        self._bucket = Bucket(self.rate, self.burst)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        t = self.clock()
        if self.only is not None and addr[0] != self.only:
            self.counts["others"] += 1
        elif len(data) > self.largest:
            self.counts["too_large"] += 1
        elif not self._bucket.takes(t):
            self.counts["too_many"] += 1
        else:
            self.counts["taken"] += 1
            self.take(data, t)


async def listen(
    place: str, protocol: Datagrams, port: int, *, host: str = "127.0.0.1", anywhere: bool = False
) -> asyncio.DatagramTransport:
    """Opens the socket; port 0 takes a free one. A taken port raises InputError. `close()` of what it gives ends it."""
    check_host(place, host, anywhere=anywhere)
    try:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: protocol, local_addr=(host, port)
        )
    except OSError as e:
        raise InputError(place, f"port {port} of {host} must be free", str(e)) from None
    return transport
