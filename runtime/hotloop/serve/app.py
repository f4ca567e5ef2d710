"""The application: one guard and one lifespan around its parts. Nothing is kept in this module."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

from .. import __version__
from .auth import Guard, Said, Tokens
from .config import Access, Config
from .supervisor import WORKER

__all__ = ["House", "Part", "assemble", "create_app"]

HEALTH, READY = "/healthz", "/readyz"


class Part(Protocol):
    """What an application is put together from: routes, and what they need as long as it runs.

    pages  paths that need no token, beginning with these where they end in a slash
    """

    pages: Sequence[str]

    @property
    def ready(self) -> bool: ...

    def routes(self, app: FastAPI) -> None: ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Raises InputError where it cannot start as it was told to."""
        ...

    async def drain(self, force: asyncio.Event) -> None:
        """The first phase of the end: take nothing new, end what is under way while the address still answers; at once
        when `force` is set."""
        ...


class House:
    """What a running application has. open_ready: whether /readyz needs no token; said: as for `Guard`."""

    def __init__(self, access: Access, *, open_ready: bool = True, said: Said | None = None) -> None:
        self.access = access
        self.tokens = Tokens(access.token, access.failures, time.monotonic)
        self.parts: list[Part] = []
        self.open_ready, self.said = open_ready, said
        self.ending = False

    @property
    def ready(self) -> bool:
        return not self.ending and all(part.ready for part in self.parts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All parts. Raises InputError where one cannot start as it was told to."""
        async with AsyncExitStack() as stack:
            for part in self.parts:
                await stack.enter_async_context(part.running())
            yield

    async def drain(self, force: asyncio.Event) -> None:
        self.ending = True
        await asyncio.gather(*(part.drain(force) for part in self.parts))


def assemble(house: House, **told: Any) -> FastAPI:
    """The application of a house's parts. told: what FastAPI is told beside."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with house.running():
            yield

    app = FastAPI(
        **{"title": "hotloop", "version": __version__, "docs_url": None, "redoc_url": None, "openapi_url": None,
           "lifespan": lifespan, **told}
    )  # fmt: skip
    app.state.house = house
    free = (HEALTH, *((READY,) if house.open_ready else ()), *(page for part in house.parts for page in part.pages))
    app.add_middleware(Guard, access=house.access, tokens=house.tokens, free=free, said=house.said)

    @app.get(HEALTH, response_class=PlainTextResponse)
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get(READY, response_class=PlainTextResponse, responses={503: {"description": "not ready"}})
    async def readyz() -> Response:
        return PlainTextResponse("ready\n") if house.ready else PlainTextResponse("not ready\n", 503)

    for part in house.parts:
        part.routes(app)
    return app


def create_app(config: Config | None = None, *, worker: Sequence[str] = WORKER) -> FastAPI:
    """The application of live sessions. worker: the command that starts the worker process, before its arguments."""
    from .live import Live

    config = config or Config()
    house = House(config)
    house.parts.append(Live(config, house.tokens, worker))
    return assemble(house)
