"""Connections whose request does not come: uvicorn closes those that idle after an answer, these are the others."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["impatient"]


def impatient(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection where no whole head of a request has come for so long, from the first byte or
    from its being opened."""

    class Impatient(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _wait(self) -> None:
            asked: Any = self.cycle
            if asked is not None and not asked.response_complete:
                self._forget()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self._close)

        def _forget(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _close(self) -> None:
            self._late = None
            asked: Any = self.cycle
            waits = asked is None or asked.response_complete
            # A WebSocket has taken its connection over.
            if waits and self.transport.get_protocol() is self and not self.transport.is_closing():
                self.transport.close()

    return Impatient
