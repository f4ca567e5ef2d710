"""Open Sound Control: datagrams to messages, and hotloop's own addresses.

`/hotloop/<control> value` moves a control, `/hotloop/expression happy` shows an expression, `/hotloop/<setting> value`
changes a setting of the session. python-osc (extra `[live]`) reads a message; bundles are taken apart here, so that
their depth and number are bounded, and messages of old senders that lack the type tag get the one of their address.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ..controls import ALIASES, INDEX, expression

__all__ = ["HOTLOOP", "Message", "Osc", "Told", "read"]

HOTLOOP = "/hotloop/"
_DEEPEST, _MOST = 4, 512  # of bundles, of messages in a datagram
# Types of the addresses that some send without saying them.
_UNTAGGED = {
    "/VMC/Ext/Blend/Val": ",sf",
    "/VMC/Ext/Bone/Pos": ",sfffffff",
    "/VMC/Ext/T": ",f",
    "/VMC/Ext/OK": ",i",
}


@dataclass(frozen=True)
class Message:
    address: str
    values: tuple[Any, ...]


def read(datagram: bytes) -> list[Message]:
    """The messages of a datagram, in order; those of nested bundles too. Malformed ones raise InputError."""
    return [_message(part) for part in _parts(datagram, 0, [_MOST])]


def _parts(data: bytes, depth: int, left: list[int]) -> Iterator[bytes]:
    if not data.startswith(b"#bundle\0"):
        left[0] -= 1
        if left[0] < 0:
            raise InputError("osc", f"a datagram holds at most {_MOST} messages")
        yield data
        return
    if depth >= _DEEPEST:
        raise InputError("osc", f"bundles lie at most {_DEEPEST} deep in one another")
    at = 16  # past the name and the time
    if len(data) < at:
        raise InputError("osc", "a bundle has 16 bytes before its parts", len(data))
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 0 or at + 4 + size > len(data):
            raise InputError("osc", "a bundle's part lies inside it", size)
        yield from _parts(data[at + 4 : at + 4 + size], depth + 1, left)
        at += 4 + size


def _message(data: bytes) -> Message:
    from pythonosc.osc_message import OscMessage, ParseError

    end = data.find(b"\0")
    if not data.startswith(b"/") or end < 0:
        raise InputError("osc", "a message begins with an address", data[:40])
    body = (end + 4) & ~3
    if body < len(data) and data[body : body + 1] != b",":
        data = data[:body] + _tag(data[:end], data[body:]) + data[body:]
    try:
        message = OscMessage(data)
        return Message(message.address, tuple(message.params))
    except (ParseError, ValueError, ArithmeticError, LookupError) as e:
        raise InputError("osc", "a message must be whole", str(e) or type(e).__name__) from None


def _tag(address: bytes, rest: bytes) -> bytes:
    """The type tag that a message lacks, padded: of its address, or one number."""
    known = {known.lower(): tag for known, tag in _UNTAGGED.items()}
    tag = known.get(address.decode("ascii", "replace").lower(), ",f" if len(rest) == 4 else "")
    if not tag:
        raise InputError("osc", "a message of this address must have a type tag", address[:40])
    return tag.encode() + b"\0" * (4 - len(tag) % 4)


@dataclass
class Told:
    """What a datagram asks for: values of controls, settings of the session; a line for each message that is wrong."""

    controls: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Osc:
    """Messages under /hotloop/ -> `Told`. settings: the names that the session takes; any else is a control's."""

    def __init__(self, settings: frozenset[str] = frozenset()) -> None:
        self._settings = settings
        self.others = 0  # messages of other addresses

    def feed(self, messages: list[Message]) -> Told:
        told = Told()
        for message in messages:
            if not message.address.startswith(HOTLOOP):
                self.others += 1
                continue
            try:
                self._read(message.address.removeprefix(HOTLOOP), message.values, told)
            except InputError as e:
                told.faults.append(str(e))
        return told

    def _read(self, name: str, values: tuple[Any, ...], told: Told) -> None:
        if len(values) != 1:
            raise InputError("osc", f"{HOTLOOP}{name[:40]} takes one value", len(values))
        if name == "expression":
            told.controls |= expression(values[0])
        elif name in self._settings and name not in INDEX and name not in ALIASES:
            told.settings[name] = values[0]
        else:
            told.controls[name] = values[0]
