"""What goes over a session's WebSocket: frames and source pictures in binary, all else in JSON (docs/live-server.md).

frame    little endian, 72 bytes, then colour, then alpha
picture  little endian, 24 bytes, then a PNG, JPEG or WebP
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..checks import check_integer
from ..errors import InputError
from ..live.sources.message import Message, read
from ..live.stamps import Stamp

__all__ = ["FORMATS", "FRAME", "PICTURE", "Ask", "Hello", "Picture", "ask", "frame_header", "hello", "picture"]

PLACE = "live"
FRAME = struct.Struct("<4sBBHIIIHHQQQQQII")
PICTURE = struct.Struct("<4sIdII")
# What a viewer may ask for -> the number in the header. "none" takes no frames.
FORMATS = {"none": 0, "jpeg": 1, "jpeg+alpha": 2, "rgba-lz4": 3, "warp": 5}
ALPHA = 1
_NUMBERS = ("canvas", "ping", "pong", "client")
ROLES = ("owner", "viewer", "monitor")


class Picture(NamedTuple):
    """A source picture: its sender's number and time (ms, the sender's clock), and the file."""

    source: int
    captured: float
    data: bytes


@dataclass(frozen=True)
class Hello:
    token: str | None
    session: str | None
    role: str
    format: str
    fps: float


@dataclass(frozen=True)
class Ask:
    """A client's message, whose parts are None where it has none.

    set, blend, id   settings, and what the answer is to be called
    ack, canvas      the frame that came, and when it was shown (ms, the client's clock)
    source           False: no more pictures come
    ping             to be answered; pong, client: the answer to ours, and the client's clock (ms)
    """

    message: Message
    set: dict[str, Any] | None = None
    blend: int = 0
    id: int | str | None = None
    ack: int | None = None
    canvas: float | None = None
    ping: float | None = None
    pong: float | None = None
    client: float | None = None
    stats: bool = False
    record: bool | None = None
    source: bool | None = None


def frame_header(
    stamp: Stamp, kind: int, size: tuple[int, int], colour: int, alpha: int, *, source: int, version: int, frame: int
) -> bytes:
    """The times are microseconds of the server's monotonic clock, 0 where there is none."""
    times = (stamp.captured, stamp.received, stamp.taken, stamp.decoded, stamp.encoded)
    return FRAME.pack(
        b"HLF1", kind, ALPHA if kind != FORMATS["jpeg"] else 0, FRAME.size, frame & 0xFFFFFFFF, source & 0xFFFFFFFF,
        version & 0xFFFFFFFF, *size, *(max(0, round(1e6 * (t or 0.0))) for t in times), colour, alpha,
    )  # fmt: skip


def picture(data: bytes, most: int) -> Picture:
    """Raises InputError for what is no source picture."""
    if len(data) > most:
        raise InputError(PLACE, f"a picture must have at most {most} bytes", len(data))
    if len(data) < PICTURE.size or data[:4] != b"HLS1":
        raise InputError(PLACE, "a binary message must be a source picture: HLS1, its header, its file", data[:4])
    _, source, captured, size, _ = PICTURE.unpack_from(data)
    if not math.isfinite(captured):
        raise InputError(PLACE, "captured must be a finite number of milliseconds", captured)
    if size != len(data) - PICTURE.size:
        raise InputError(PLACE, f"the header tells {size} bytes of picture", len(data) - PICTURE.size)
    return Picture(source, captured, data[PICTURE.size :])


def hello(text: str, most_fps: float) -> Hello:
    """The first message of a connection. Raises InputError."""
    told = _object(text)
    if told.get("hello") != 1:
        raise InputError(PLACE, 'the first message must be {"hello": 1, ...}', text[:40])
    for name in ("token", "session"):
        if not isinstance(told.get(name, ""), (str, type(None))):
            raise InputError(PLACE, f"{name} must be text", type(told[name]).__name__)
    for name, words in (("role", ROLES), ("format", tuple(FORMATS))):
        if name in told and told[name] not in words:
            raise InputError(PLACE, f"{name} must be one of {', '.join(words)}", told[name])
    fps = _number(told, "fps")
    if fps is not None and not 0.1 <= fps <= 1000:
        raise InputError(PLACE, "fps must be a number in 0.1..1000", fps)
    return Hello(
        told.get("token"), told.get("session"), told.get("role", "viewer"), told.get("format", "jpeg"),
        min(fps or most_fps, most_fps),
    )  # fmt: skip


def ask(text: str, most: int) -> Ask:
    """Any later text message. Raises InputError; nothing of the message then counts."""
    if len(text) > most:
        raise InputError(PLACE, f"a message must have at most {most} characters", len(text))
    told = _object(text)
    given = told.pop("set", None)
    if given is not None and not isinstance(given, dict):
        raise InputError(PLACE, "set must be an object of settings", given)
    blend, called = told.pop("blend", 0), told.pop("id", None)
    check_integer(PLACE, "blend", blend, 0, 10_000)
    if not isinstance(called, (int, str, type(None))) or len(str(called)) > 64:
        raise InputError(PLACE, "id must be a number or a short text", called)
    ack = told.pop("ack", None)
    if ack is not None:
        check_integer(PLACE, "ack", ack, 0, 0xFFFFFFFF)
    canvas, ping, pong, client = (_number(told, name) for name in _NUMBERS)
    flags = {name: told.pop(name, None) for name in ("record", "source")}
    for name, flag in flags.items():
        if not isinstance(flag, (bool, type(None))):
            raise InputError(PLACE, f"{name} must be true or false", flag)
    stats = bool(told.pop("stats", False))
    rest = {key: value for key, value in told.items() if key not in _NUMBERS}
    return Ask(
        read(rest), given, blend, called, ack, canvas, ping, pong, client, stats, flags["record"], flags["source"]
    )


def _object(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(PLACE, "a message must be JSON", text[:40]) from None
    if not isinstance(told, dict):
        raise InputError(PLACE, "a message must be a JSON object", text[:40])
    return told


def _number(told: dict[str, Any], name: str) -> float | None:
    value = told.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise InputError(PLACE, f"{name} must be a finite number", value)
    return float(value)
