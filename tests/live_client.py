"""A client of the live server, by the `websockets` package and struct alone: nothing of hotloop's is imported."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, NamedTuple

import lz4.block
import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

HEAD = struct.Struct("<4sBBHIIIHHQQQQQII")


class Frame(NamedTuple):
    kind: int
    flags: int
    number: int
    source: int
    version: int
    size: tuple[int, int]
    times: tuple[int, ...]
    colour: bytes
    alpha: bytes

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3 | 4], by Pillow's decoder or LZ4's."""
        width, height = self.size
        if self.kind == 3:
            raw = lz4.block.decompress(self.colour, uncompressed_size=4 * width * height)
            return np.frombuffer(raw, np.uint8).reshape(height, width, 4)
        image = Image.open(io.BytesIO(self.colour))
        assert image.format == "JPEG" and image.size == self.size
        rgb = np.asarray(image.convert("RGB"))
        if not self.alpha:
            return rgb
        alpha = lz4.block.decompress(self.alpha, uncompressed_size=width * height)
        return np.dstack([rgb, np.frombuffer(alpha, np.uint8).reshape(height, width)])


def read_frame(data: bytes) -> Frame:
    magic, kind, flags, head, number, source, version, width, height, *rest = HEAD.unpack_from(data)
    *times, colour, alpha = rest
    assert magic == b"HLF1" and head == HEAD.size == 72 and len(data) == head + colour + alpha
    return Frame(kind, flags, number, source, version, (width, height), tuple(times), data[72 : 72 + colour],
                 data[72 + colour :])  # fmt: skip


class Client:
    """acks: whether frames are acknowledged as they are read; texts: what was said and not yet asked for."""

    def __init__(self, address: str, *, acks: bool = True, headers: dict[str, str] | None = None, **hello: Any) -> None:
        self._opened = connect(
            address.replace("http", "ws", 1) + "api/live/ws", additional_headers=headers, max_size=2**24
        )
        self.socket: ClientConnection = self._opened.__enter__()
        self.acks, self.texts, self.frames = acks, list[dict[str, Any]](), list[Frame]()
        with suppress(ConnectionClosed):  # sent away before it could say who it is
            self.say(hello={"hello": 1, "role": "owner", "format": "jpeg"} | hello)
        self.welcome = self.until("welcome", "error")

    def say(self, *, hello: dict[str, Any] | None = None, **told: Any) -> None:
        self.socket.send(json.dumps(hello or told))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self, seconds: float = 20.0) -> None:
        data = self.socket.recv(timeout=seconds)
        if isinstance(data, bytes):
            self.frames.append(frame := read_frame(data))
            if self.acks:
                self._answer(ack=frame.number)
            return
        told = json.loads(data)
        if "ping" in told:
            self._answer(pong=told["ping"], client=1000 * time.monotonic())
        else:
            self.texts.append(told)

    def _answer(self, **told: Any) -> None:
        with suppress(ConnectionClosed):  # what came before the end can still be read
            self.say(**told)

    def until(self, *names: str, seconds: float = 20.0, **values: Any) -> dict[str, Any]:
        """The next text that has one of these parts, and these values."""
        end = time.monotonic() + seconds
        while True:
            for told in self.texts:
                if set(names) & told.keys() and all(told.get(name) == value for name, value in values.items()):
                    self.texts.remove(told)
                    return told
            self.receive(max(end - time.monotonic(), 0.01))

    def frame(self, seconds: float = 20.0, version: int = 0) -> Frame:
        """The next frame, of a version at least."""
        end = time.monotonic() + seconds
        while True:
            while self.frames:
                if (frame := self.frames.pop(0)).version >= version:
                    return frame
            self.receive(max(end - time.monotonic(), 0.01))

    def ask(self, **told: Any) -> dict[str, Any]:
        """Say something with an id -> the answer."""
        number = int(time.monotonic_ns() % 2**31)
        self.say(**told, id=number)
        return self.until("settings", "stats", "done", "error", id=number)

    def picture(self, data: bytes, source: int = 0, captured: float | None = None, size: int | None = None) -> None:
        captured = 1000 * time.monotonic() if captured is None else captured
        size = len(data) if size is None else size
        self.socket.send(struct.pack("<4sIdII", b"HLS1", source, captured, size, 0) + data)


def get(address: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(
        address + path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def balanced(stats: dict[str, Any]) -> bool:
    """Whether both ledgers are exact."""
    source, viewer = stats["source"], stats["viewer"]
    ends = ("shown", "superseded", "skipped", "refused", "failed", "in_flight")
    shown = viewer["acknowledged"] + viewer["superseded"] + viewer["unacknowledged"]
    return source["in"] == sum(source[end] for end in ends) and viewer["offered"] == shown and shown >= 0


class Server:
    """`hotloop live` as anyone starts it."""

    def __init__(self, *options: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-c", "from hotloop.cli import main; main()", "live", "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}),
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+?/", line)
        if found is None:
            raise RuntimeError(self.process.communicate()[1])
        self.address = found[0]

    def end(self, number: int = signal.SIGINT, seconds: float = 15.0) -> tuple[int, str]:
        """Ctrl-C -> exit status and what it said on stderr."""
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=seconds)[1]
        return self.process.returncode, errors

    def workers(self) -> list[int]:
        """Processes that it started and that still run."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
        return [int(row[0]) for row in rows if int(row[1]) == self.process.pid]
