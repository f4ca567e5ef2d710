"""The part of the application that draws on request: workers, ledger, and what all its routes have in common."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..app import House, assemble
from ..auth import Said
from . import a1111, huggingface, log, native, openai
from .asking import Asked, Names
from .bodies import Gone
from .events import Stream
from .ledger import Drawn, Ledger, Ticket
from .metrics import Metrics
from .pool import ENGINE, Pool
from .refusals import Refusal
from .settings import LONGEST, Settings, names_of

__all__ = ["Family", "Images", "create_app"]

TIMEOUT = "x-request-timeout-seconds"
ID = "x-request-id"
_GONE = 499
_ANSWERING = 5.0  # seconds that answers have to be written when nothing is drawn any more
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 429: "rate_limited"}

Endpoint = Callable[[Ticket, Request], Awaitable[Response]]


class Family(Protocol):
    """A protocol's routes, and its shape of errors.

    name: of `metrics.FAMILIES`; paths: what its routes begin with; statuses: those that it has in place of the table's
    """

    name: str
    paths: tuple[str, ...]
    statuses: Mapping[int, int]

    def add(self, part: Images, app: FastAPI) -> None: ...

    def refused(self, refusal: Refusal) -> Any:
        """What JSON a refusal is told in."""
        ...


FAMILIES: Sequence[Callable[[], Family]] = (openai.OpenAI, a1111.A1111, huggingface.HuggingFace, native.Native)


class Images:
    """A `Part`. command: what starts a worker process, before its arguments."""

    pages: Sequence[str] = ()

    def __init__(self, settings: Settings, command: Sequence[str] = ENGINE) -> None:
        self.settings: Settings = settings
        self.paths, self.lora_paths = names_of(settings)
        setup = {
            "do": "config", "bundles": {name: str(path) for name, path in self.paths.items()},
            "loras": {name: str(path) for name, path in self.lora_paths.items()}, "engine": settings.engine,
            "device": settings.device, "threads": settings.threads_each,
            "picture_pixels": settings.limits.picture_pixels, "windows": settings.limits.windows,
        }  # fmt: skip
        self.pool = Pool(settings, setup, command)
        self.ledger = Ledger(self._closed)
        self.metrics = Metrics(self)
        self.families = [made() for made in FAMILIES]
        self.started = int(time.time())
        self.streams = 0
        self._forced = False

    # As a part.

    @property
    def ready(self) -> bool:
        return self.pool.ready

    @property
    def names(self) -> Names:
        return Names(self.pool.facts, frozenset(self.lora_paths), self.settings.limits)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            await self.pool.start()
            yield
        finally:
            await self.pool.close(0.0 if self._forced else None)

    async def drain(self, force: asyncio.Event) -> None:
        """503 for what comes, at least as long as a balancer needs to see it; what was taken is answered."""
        since = time.monotonic()
        await self.pool.drain(force)
        lingering = since + self.settings.linger
        answering = time.monotonic() + _ANSWERING
        while not force.is_set():
            now = time.monotonic()
            if now >= lingering and (not self.ledger.open or now >= answering):
                break
            await asyncio.sleep(0.02)
        self._forced = force.is_set()

    def routes(self, app: FastAPI) -> None:
        @app.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

        @app.get("/v2/health/ready", response_class=PlainTextResponse, responses={503: {"description": "not ready"}})
        async def ready() -> Response:
            """KServe's name for /readyz."""
            ready = app.state.house.ready
            return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

        for family in self.families:
            family.add(self, app)

        @app.exception_handler(HTTPException)
        async def missed(request: Request, error: HTTPException) -> Response:
            path = request.url.path
            response = self.refused(self.family_of(path), Refusal(_CODES.get(error.status_code, "not_found")))
            if response.status_code == 405:
                response.headers["Allow"] = ", ".join(sorted(_methods(app, path)))
            return response

    # What routes have in common.

    def family_of(self, path: str) -> Family:
        """Whose shape of errors a path's clients expect; the last one's where none begins like it."""
        return next((one for one in self.families if path.startswith(one.paths)), self.families[-1])

    def refused(self, family: Family, refusal: Refusal, id: str = "") -> Response:
        headers = refusal.headers | ({ID: id} if id else {})
        status = family.statuses.get(refusal.status, refusal.status)
        return JSONResponse(family.refused(refusal), status, headers)

    def said(self, path: str, status: int, line: str) -> tuple[str, bytes]:
        """What the guard's refusals are told in."""
        family = self.family_of(path)
        return "application/json", bytes(JSONResponse(family.refused(Refusal(_CODES[status]))).body)

    def plain(self, family: Family, work: Callable[[Request], Awaitable[Response]]) -> Any:
        """An endpoint that draws nothing."""

        async def endpoint(request: Request) -> Response:
            try:
                return await work(request)
            except Refusal as refusal:
                return self.refused(family, refusal)
            except Gone:
                return Response(status_code=_GONE)
            except Exception as error:
                log.fault(log.request_id(request.headers.get(ID)), error)
                return self.refused(family, Refusal("internal"))

        return endpoint

    def drawing(self, family: Family, work: Endpoint) -> Any:
        """An endpoint that draws: its request has a ticket, and the ticket one end."""

        async def endpoint(request: Request) -> Response:
            id = log.request_id(request.headers.get(ID))
            ticket = self.ledger.ticket(family.name, id, self.settings.timeout)
            refusal: Refusal | None = None
            try:
                if self.pool.draining:
                    raise Refusal("draining", retry=5, again=False)
                ticket.deadline = min(ticket.deadline, ticket.begun + _timeout(request))
                response = await work(ticket, request)
                if ticket.kept:  # a stream's or a job's: its end comes later
                    response.headers[ID] = id
                    return response
                ticket.end("completed", response.status_code)
                response.headers[ID] = id
                return response
            except Refusal as known:
                refusal = known
            except Gone:
                ticket.end("gone", _GONE)
                return Response(status_code=_GONE)
            except asyncio.CancelledError:
                ticket.end("gone", _GONE)
                raise
            except Exception as error:
                log.fault(id, error)
                refusal = Refusal("internal")
            ticket.end(refusal.outcome, refusal.status)
            return self.refused(family, refusal, id)

        return endpoint

    def enter(self, ticket: Ticket, asked: Asked) -> None:
        """Raises Refusal."""
        ticket.asked = asked
        self.pool.enter(ticket)

    async def drawn(self, ticket: Ticket, asked: Asked, request: Request) -> Drawn:
        """Wait for the pictures, or for the client to go: then its worker stops before its next row.

        Raises Refusal, Gone. A plain handler is not told that its client has gone: that is asked for beside.
        """
        self.enter(ticket, asked)
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait((ticket.drawn, gone), return_when=asyncio.FIRST_COMPLETED)
            if not ticket.drawn.done():
                raise Gone
            return ticket.drawn.result()
        finally:
            self.pool.leave(ticket, Refusal("cancelled"))
            gone.cancel()

    def stream(self, ticket: Ticket, events: AsyncIterator[bytes]) -> Response:
        """Events of a ticket that has entered, and its end with the last of them."""
        ticket.kept = True

        def ended() -> None:
            self.pool.leave(ticket, Refusal("cancelled"))
            if ticket.place != "ended":
                ticket.end("gone", _GONE)

        return Stream(events, ended)

    def _closed(self, ticket: Ticket, status: int) -> None:
        now = time.monotonic()
        self.metrics.ended(ticket, now)
        if self.settings.log == "json":
            log.ended(ticket, status, now)


def _methods(app: FastAPI, path: str) -> set[str]:
    """Those that a path has."""
    return {
        method for route in app.routes
        if isinstance(route, Route) and route.path_regex.match(path) for method in route.methods or ()
    }  # fmt: skip


async def _gone(request: Request) -> None:
    with suppress(RuntimeError):  # it was told before
        while (await request.receive())["type"] != "http.disconnect":
            pass


def _timeout(request: Request) -> float:
    said = request.headers.get(TIMEOUT)
    if said is None:
        return math.inf
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST:
        raise Refusal("invalid_value", f"{TIMEOUT} must be a number of seconds, above 0 and at most {LONGEST:g}")
    return seconds


def create_app(settings: Settings, *, command: Sequence[str] = ENGINE) -> FastAPI:
    """The application of a server of pictures. Raises InputError for bundles and LoRAs that are not there."""
    part = Images(settings, command)
    said: Said = part.said
    house = House(settings, open_ready=False, said=said)
    house.parts.append(part)
    told: Mapping[str, Any] = {
        "openapi_url": "/openapi.json" if settings.docs else None, "redirect_slashes": False,
    }  # fmt: skip
    return assemble(house, **told, generate_unique_id_function=partial(_operation))


def _operation(route: Any) -> str:
    return f"{sorted(route.methods)[0].lower()}_{route.path_format.strip('/').replace('/', '_') or 'root'}"
