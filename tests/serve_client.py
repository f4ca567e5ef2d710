"""A server of pictures in a process of its own, and a client made of sockets: nothing of hotloop's is asked with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

STUB = Path(__file__).parent / "doubles" / "stub_engine.py"
# The command's own server, with the stub in place of the engine.
_LAUNCH = """
import json, sys
from pathlib import Path
from hotloop.serve.images.part import create_app
from hotloop.serve.images.settings import gathered
from hotloop.serve.server import serve
told, stub = json.loads(sys.argv[1]), sys.argv[2]
command = (sys.executable, "-P", stub) if stub else None
settings = gathered({name: tuple(v) if isinstance(v, list) else v for name, v in told.items()})
more = {"command": command} if command else {}
serve(settings, lambda: create_app(settings, **more), started=lambda address: print(address, flush=True),
      head=settings.limits.head_seconds, limit_concurrency=settings.limits.connections)
"""


class Answer(NamedTuple):
    """seconds: from when it was meant to be sent; sent: until it was."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`hotloop serve` with a stub that needs row seconds for a step; with row None the real engine."""

    def __init__(self, tmp: Path, row: float | None = 0.001, prelude: str = "", **settings: Any) -> None:
        self.log, self.err = tmp / "stub.log", tmp / "server.err"
        told = {"port": 0, "lanes": 1, "linger": 0.2, "drain": 20.0, **settings}
        env = {**os.environ, "STUB_ROW": str(row), "STUB_LOG": str(self.log), "OMP_NUM_THREADS": "1"}
        self.log.touch()
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", prelude + _LAUNCH, json.dumps(told), "" if row is None else str(STUB)],
                stdout=subprocess.PIPE, stderr=err, text=True, env=env,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("http"), self.err.read_text()
        self.address = line.strip()
        host, port = self.address.removeprefix("http://").strip("/").rsplit(":", 1)
        self.host, self.port = host, int(port)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def rows(self, prompt: str = "") -> list[tuple[str, int, float]]:
        """What the stub drew: prompt, row, when."""
        told = [line.rsplit(" ", 2) for line in self.log.read_text().splitlines()]
        return [(name, int(row), float(at)) for name, row, at in told if name.startswith(prompt)]

    def metrics(self) -> dict[str, float]:
        text = self.get("/metrics").body.decode()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    def balanced(self, seconds: float = 10.0) -> dict[str, float]:
        """The counters when nothing is under way any more; nothing is unaccounted for at any time."""
        until = time.monotonic() + seconds
        while True:
            told = self.metrics()
            received = sum(value for name, value in told.items() if name.startswith("hotloop_requests_received_total"))
            ended = {name: value for name, value in told.items() if name.startswith("hotloop_requests_ended_total")}
            inflight, queued = told["hotloop_requests_inflight"], told["hotloop_requests_queued"]
            assert received == sum(ended.values()) + inflight + queued
            assert told["hotloop_requests_unaccounted"] == told["hotloop_requests_ended_twice_total"] == 0
            if not inflight + queued and not sum(v for n, v in told.items() if n.startswith("hotloop_worker_running")):
                return {re.search(r'outcome="(\w+)"', name)[1]: 0.0 for name in ended} | _by_outcome(ended)  # type: ignore[index]
            assert time.monotonic() < until, told
            time.sleep(0.02)

    # Asking, one after the other.

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, told: Any, **headers: str) -> Answer:
        return self.ask("POST", path, told, **headers)

    def ask(self, method: str, path: str, told: Any = None, **headers: str) -> Answer:
        data = told if isinstance(told, (bytes, type(None))) else json.dumps(told).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            names.setdefault("content-type", "application/json")
        request = urllib.request.Request(self.address.rstrip("/") + path, data, names, method=method)
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, lowered(answer.headers), answer.read(), time.monotonic() - began)
        except urllib.error.HTTPError as error:
            return Answer(error.code, lowered(error.headers), error.read(), time.monotonic() - began)

    # Asking, many at once: an open loop, whose times count from when a request was meant to be sent.

    async def draw(
        self, prompt: str = "a girl", *, at: float | None = None, leave: float | None = None,
        path: str = "/v1/images/generations", timeout: float | None = None, **told: Any,
    ) -> Answer:  # fmt: skip
        """leave: seconds after which the client goes; its answer then has the status 0."""
        loop = asyncio.get_running_loop()
        meant = loop.time() if at is None else at
        await asyncio.sleep(max(0.0, meant - loop.time()))
        body = json.dumps({"prompt": prompt, **told}).encode()
        header = "" if timeout is None else f"x-request-timeout-seconds: {timeout}\r\n"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n{header}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(head.encode() + body)
            data = await (reader.read() if leave is None else asyncio.wait_for(reader.read(), leave))
        except TimeoutError:
            return Answer(0, {}, b"", loop.time() - meant)
        finally:
            writer.close()
        first, _, body = data.partition(b"\r\n\r\n")
        lines = first.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split()[1]) if lines[0] else -1
        return Answer(status, headers, body, loop.time() - meant)


def _by_outcome(ended: dict[str, float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in ended.items():
        found = re.search(r'outcome="(\w+)"', name)
        assert found is not None
        sums[found[1]] = sums.get(found[1], 0.0) + value
    return sums


def lowered(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
