"""Serves the application until it is told to end, in two phases: first no longer ready, viewers told and the worker
ended while the address still answers; then the address is given back."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from ..errors import InputError
from .app import House, create_app
from .config import Config
from .supervisor import WORKER

__all__ = ["address", "run"]

_GRACE = 1.0  # seconds that viewers have to hear of the end
_MARGIN = 2  # times the largest picture: what is a little too large is answered, what is more ends the connection


def run(
    config: Config, *, started: Callable[[str], object] = lambda address: None, worker: Sequence[str] = WORKER
) -> None:
    """Until SIGINT or SIGTERM; a second one does not wait. started: called with the address once frames can come.

    Raises InputError where it cannot start: a port that is taken, a bundle or settings that are refused.
    """
    listening = _listen(config)
    app = create_app(config, worker=worker)
    house: House = app.state.house
    server = _Server(
        uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", ws_per_message_deflate=False,
            ws_max_size=_MARGIN * config.limits.picture_bytes, timeout_keep_alive=10, timeout_graceful_shutdown=3,
            limit_concurrency=4 * config.limits.connections, server_header=False, date_header=False,
        )
    )  # fmt: skip
    try:
        asyncio.run(_serve(server, house, listening, lambda: started(address(config.host, listening))))
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

    def end() -> None:
        if asked.is_set():
            server.force_exit = server.should_exit = True
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
        house.sessions.end()
        for _ in range(round(_GRACE / 0.05)):
            if not house.connections.open or server.force_exit:
                break
            await asyncio.sleep(0.05)
        await house.worker.close()
        server.should_exit = True
        await serving
        ended.cancel()


def _listen(config: Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=128)
    except OSError as error:
        rule = f"port {config.port} of {config.host} must be free"
        raise InputError("serve", rule, error.strerror or str(error)) from None


def address(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/"
