"""Server-sent events: a stream that is known to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .ledger import Progress, Ticket

__all__ = ["Stream", "event", "progress_of"]


class Stream(StreamingResponse):
    """Events as they come. ended: called when the last was sent, or the client went, or it never began."""

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[], object]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def event(name: str, told: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(told, separators=(',', ':'))}\n\n".encode()


async def progress_of(ticket: Ticket) -> AsyncIterator[Progress]:
    """What is told of a ticket from now on, until it is drawn or is not."""
    came: asyncio.Queue[Progress | None] = asyncio.Queue()
    ticket.listeners.add(came.put_nowait)
    try:
        while not (ticket.drawn.done() and came.empty()):
            if (progress := await came.get()) is None:
                break
            yield progress
    finally:
        ticket.listeners.discard(came.put_nowait)
