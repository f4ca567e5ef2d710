"""Serves an application until it is told to end, in two phases: first no longer ready, and what is under way ends while
the address still answers; then the address is given back."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..errors import InputError
from .app import House, create_app
from .config import Access, Config
from .patience import impatient
from .supervisor import WORKER

__all__ = ["address", "run", "serve"]

HEAD = 30.0  # seconds
_MARGIN = 2  # times the largest picture: what is a little too large is answered, what is more ends the connection


def run(
    config: Config, *, started: Callable[[str], object] = lambda address: None, worker: Sequence[str] = WORKER
) -> None:
    """Live sessions, as `serve` does."""
    serve(
        config, lambda: create_app(config, worker=worker), started=started,
        ws_max_size=_MARGIN * config.limits.picture_bytes, limit_concurrency=4 * config.limits.connections,
    )  # fmt: skip


def serve(
    access: Access, app_of: Callable[[], FastAPI], *, started: Callable[[str], object] = lambda address: None,
    head: float = HEAD, **told: Any,
) -> None:  # fmt: skip
    """Until SIGINT or SIGTERM; a second one does not wait. started: called with the address once requests can come;
    head: seconds that a request's head may take to come; told: what uvicorn is told beside.

    Raises InputError where it cannot start: a port that is taken, a bundle or settings that are refused.
    """
    listening = _listen(access)
    app = app_of()
    server = _Server(
        uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", ws_per_message_deflate=False,
            http=impatient(head),
            timeout_keep_alive=10, timeout_graceful_shutdown=3, server_header=False, date_header=False, **told,
        )
    )  # fmt: skip
    try:
        asyncio.run(_serve(server, app.state.house, listening, lambda: started(address(access.host, listening))))
    except asyncio.CancelledError:  # told to end before it had begun
        pass
    finally:
        listening.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `_serve`'s."""
        yield


async def _serve(server: _Server, house: House, listening: socket.socket, started: Callable[[], object]) -> None:
    loop, asked, whole = asyncio.get_running_loop(), asyncio.Event(), asyncio.current_task()
    force = asyncio.Event()

    def end() -> None:
        if asked.is_set():
            server.force_exit = server.should_exit = True
            force.set()
        elif not server.started and whole is not None:
            whole.cancel()
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    async with house.running():
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        started()
        ended = asyncio.create_task(asked.wait())
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        await house.drain(force)
        server.should_exit = True
        await serving
        ended.cancel()


def _listen(config: Access) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=128)
    except OSError as error:
        rule = f"port {config.port} of {config.host} must be free"
        raise InputError("serve", rule, error.strerror or str(error)) from None


def address(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/"
