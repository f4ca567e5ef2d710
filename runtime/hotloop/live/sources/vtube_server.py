"""The socket of VTube Studio's plugin API: a WebSocket server around `vtube_studio`, by websockets (extra `[live]`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...errors import InputError
from .datagrams import Bucket, check_host
from .vtube_studio import LARGEST, PORT, Plugin, Studio

if TYPE_CHECKING:
    from websockets.asyncio.server import Server, ServerConnection

__all__ = ["serve"]

_MOST = 16  # connections
_RATE, _BURST = 500.0, 200  # requests of one connection: a second for long, and at once


async def serve(
    studio: Studio, clock: Callable[[], float], *, host: str = "127.0.0.1", port: int = PORT, anywhere: bool = False,
    origins: Sequence[str] = (),
) -> Server:  # fmt: skip
    """Starts the server, closed by `close()` of what it gives. A taken port raises InputError.

    clock    the bus's, in seconds
    origins  of web pages that may connect. Programs send none and may; any other page may not, so that no page in the
             browser writes to the avatar
    """
    from websockets.asyncio.server import serve as listen
    from websockets.exceptions import ConnectionClosed
    from websockets.typing import Origin

    check_host("vtube studio", host, anywhere=anywhere)
    connected: set[ServerConnection] = set()

    async def talk(connection: ServerConnection) -> None:
        if len(connected) >= _MOST:
            await connection.close(1013, f"at most {_MOST} plugins")
            return
        connected.add(connection)
        plugin, bucket = Plugin(studio), Bucket(_RATE, _BURST)
        try:
            async for request in connection:
                if not bucket.takes(t := clock()):
                    await connection.close(1008, f"at most {_RATE:g} requests a second")
                    return
                await connection.send(plugin.reply(request, t, time.time_ns() // 1_000_000))
        except ConnectionClosed:
            pass
        finally:
            connected.discard(connection)

    try:
        return await listen(
            talk, host, port, origins=[None, *(Origin(one) for one in origins)], max_size=LARGEST, compression=None
        )
    except OSError as e:
        raise InputError("vtube studio", f"port {port} of {host} must be free", str(e)) from None
