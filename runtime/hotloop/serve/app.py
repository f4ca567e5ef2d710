"""The application: its routes, and what lives as long as it does. Nothing is kept in this module."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from .. import __version__
from ..errors import InputError
from ..live.controls import CONTROLS, EXPRESSIONS
from ..request import schema
from .auth import Guard, Tokens
from .config import Config
from .connection import Connections
from .filming import Filming
from .limits import settable
from .listeners import Listeners
from .sessions import MAIN, Sessions
from .supervisor import WORKER, Supervisor
from .viewer import Viewer
from .webrtc.peers import Peers
from .webrtc.routes import add_webrtc
from .wire import FORMATS, FRAME

__all__ = ["create_app"]

WEB = Path(__file__).parent / "web"
_BOUNDARY = "hotloop-frame"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
}  # fmt: skip


class House:
    """What a running application has."""

    def __init__(self, config: Config, command: Sequence[str]) -> None:
        self.config = config
        self.tokens = Tokens(config.token, config.limits.failures, time.monotonic)
        setup = {
            "do": "config", "bundle": None if config.bundle is None else str(config.bundle),
            "engine": config.engine, "threads": config.threads, "limits": config.limits.told(), "mode": config.mode,
            "record": None if config.record is None else str(config.record.absolute()),
            "loras": {name: str(file.absolute()) for name, file in config.loras.items()},
            "avatar": {name: None if path is None else str(path.absolute()) for name, path in
                       (("picture", config.avatar), ("points", config.points), ("parts", config.parts))},
        }  # fmt: skip
        self.worker = Supervisor(
            setup, config.limits.side, heard=lambda told, body: self.sessions.heard(told, body),
            changed=lambda state: self.sessions.changed(state), command=command,
        )  # fmt: skip
        self.sessions = Sessions(config, self.worker)
        self.connections = Connections(self.sessions, self.tokens, config.limits)
        self.listeners = Listeners(config)
        self.peers = Peers(self.sessions, config)

    @property
    def ready(self) -> bool:
        main = self.sessions.all.get(MAIN)
        return self.worker.state == "ready" and main is not None and main.open and not self.sessions.ending

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises InputError where it cannot start as it was told to."""
        await self.worker.start()
        sweeping: asyncio.Task[None] | None = None
        filming: Filming | None = None
        try:
            main = await self.sessions.main()
            await self.listeners.start(main)
            if self.config.virtual_camera is not None:
                device = None if self.config.virtual_camera == "auto" else self.config.virtual_camera
                filming = Filming(main, device, self.config.ground)
                await filming.start()
            sweeping = asyncio.create_task(self._sweep())
            yield
        finally:
            if sweeping is not None:
                sweeping.cancel()
            if filming is not None:
                filming.close()
            self.listeners.close()
            self.sessions.end()
            await self.peers.end()
            await self.worker.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.sessions.sweep(time.monotonic())


def create_app(config: Config | None = None, *, worker: Sequence[str] = WORKER) -> FastAPI:
    """The application. worker: the command that starts the worker process, before its arguments."""
    config = config or Config()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with house.running():
            yield

    house = House(config, worker)
    app = FastAPI(title="hotloop", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  lifespan=lifespan)  # fmt: skip
    app.state.house = house
    app.add_middleware(Guard, config=config, tokens=house.tokens)

    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        return PlainTextResponse("ready\n") if house.ready else PlainTextResponse("not ready\n", 503)

    @app.get("/api/live")
    async def live() -> Response:
        return JSONResponse(_facts(house))

    @app.get("/mjpeg")
    async def mjpeg(request: Request, session: str | None = None, fps: float = 60.0) -> Response:
        if not 0.1 <= fps <= 1000:
            return PlainTextResponse("[live] fps must be a number in 0.1..1000\n", 400)
        if house.sessions.ending or sum(house.sessions.counts.values()) >= config.limits.connections:
            return PlainTextResponse("[live] no more connections\n", 503, {"Retry-After": "5"})
        if session == "new":
            return PlainTextResponse("[live] a stream shows a session that is there\n", 400)
        try:
            found = await house.sessions.find(session)
        except InputError as error:
            return PlainTextResponse(f"{error}\n", 404)
        return StreamingResponse(
            _parts(house, found, Viewer("viewer", FORMATS["jpeg"], fps)),
            media_type=f"multipart/x-mixed-replace; boundary={_BOUNDARY}",
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )  # fmt: skip

    @app.get("/api/live/scene")
    async def scene(session: str, number: int) -> Response:
        try:
            if session not in house.sessions.all:
                raise InputError("live", "there is no such session")
            data = await house.sessions.all[session].scene(number)
        except InputError as error:
            return PlainTextResponse(f"{error}\n", 404)
        return Response(data, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})

    @app.websocket("/api/live/ws")
    async def stream(socket: WebSocket) -> None:
        await house.connections.serve(socket)

    def page(path: str, name: str) -> None:
        @app.get(path)
        async def show() -> Response:
            file = WEB / name
            return FileResponse(file if file.exists() else WEB / "index.html", headers=_HEADERS)

    add_webrtc(app, house.peers, config)
    for path, name in (("/", "index.html"), ("/view", "view.html"), ("/monitor", "monitor.html")):
        page(path, name)
    app.mount("/static", StaticFiles(directory=WEB))
    return app


def _facts(house: House) -> dict[str, Any]:
    """What a client wants to know before it connects."""
    config, table = house.config, schema("live")
    table["properties"] = {name: row for name, row in table["properties"].items() if name in settable()}
    if config.loras:
        table["properties"]["lora"]["items"]["properties"]["name"]["enum"] = sorted(config.loras)
    else:
        table["properties"].pop("lora")
    return {
        "version": __version__, "modes": house.worker.facts.get("modes", []), "mode": config.mode, "fps": config.fps,
        "model": house.worker.facts.get("model"), "engine": house.worker.facts.get("engine"),
        "controls": [
            {"name": one.name, "min": one.low, "max": one.high, "default": 0.0, "group": group_of(one.name),
             "unit": one.unit} for one in CONTROLS
        ],
        "expressions": list(EXPRESSIONS), "motions": list(house.worker.facts.get("motions", ())),
        "settings": table, "limits": config.limits.told(), "token_needed": house.tokens.needed,
        "recording": config.record is not None,
        "formats": list(FORMATS), "sessions": house.sessions.counts, "listening": house.listeners.ports,
    }  # fmt: skip


def group_of(name: str) -> str:
    """Where a page shows a control."""
    if name in EXPRESSIONS:
        return "expression"
    for group in ("mouth", "jaw", "eye", "gaze", "brow", "head", "cheek"):
        if name.startswith(group):
            return {"jaw": "mouth", "gaze": "eye"}.get(group, group)
    return "other"


async def _parts(house: House, session: Any, viewer: Viewer) -> AsyncIterator[bytes]:
    """A frame a part. One is acknowledged when it has been written."""
    session.join(viewer)
    try:
        while not house.sessions.ending:
            with suppress(TimeoutError):
                await asyncio.wait_for(viewer.wake.wait(), 1)
            viewer.wake.clear()
            viewer.texts()
            if (frame := viewer.frame()) is None:
                continue
            colour = frame.data[FRAME.size :]
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(colour)}\r\n\r\n"
            yield head.encode() + colour + b"\r\n"
            viewer.sent(frame, now := time.monotonic())
            viewer.acknowledge(frame.number & 0xFFFFFFFF, None, now)
    finally:
        session.leave(viewer, time.monotonic())
