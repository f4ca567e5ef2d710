"""What a server is started with, checked before anything is opened."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import check_integer, check_number
from ..errors import InputError
from .limits import Limits

__all__ = ["LEAST_TOKEN", "MODES", "Config", "is_loopback"]

PLACE = "serve"
LEAST_TOKEN = 32
MODES = ("animate", "restyle")
_STUN = re.compile(r"stuns?:([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")


@dataclass(frozen=True)
class Config:
    """host, port      where it listens; port 0: a free one
    token           what every client must say, 32 characters at least; needed on any address but loopback, unless
                    `insecure`
    allow_hosts     further names that the server is called by; allow_origins: further pages that may connect
    bundle          None: the built-in model; engine, threads: as for `hotloop.load`
    avatar, points, parts  of mode animate, as for `hotloop.live.animation.open_avatar`; None: the one that is here
    mode, size, fps of the sessions; settings: what they begin with; governed: hold the rate by a ladder of cheaper
                    frames
    loras           name -> file, which clients may draw with, by name
    record          a folder for everything that is shown and what it was made of; None: nothing is kept
    osc, vmc, vts   ports of control sources on loopback, ifm: the address of a phone, camera: what shows the face to
                    track; None: off
    virtual_camera  its device, "auto": the first that there is; the main session is shown by it, over `ground`
    ice_servers     stun:HOST:PORT, asked by WebRTC peers and by us; none: nothing outside is asked

    Raises InputError.
    """

    host: str = "127.0.0.1"
    port: int = 8188
    token: str | None = None
    insecure: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    bundle: Path | None = None
    engine: str = "auto"
    threads: int | None = None
    mode: str = "animate"
    avatar: Path | None = None
    points: Path | None = None
    parts: Path | None = None
    size: int | None = None
    fps: float = 60.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    governed: bool = True
    loras: Mapping[str, Path] = field(default_factory=dict)
    record: Path | None = None
    osc: int | None = None
    vmc: int | None = None
    vts: int | None = None
    ifm: str | None = None
    camera: str | None = None
    virtual_camera: str | None = None
    ground: tuple[int, int, int] = (0, 0, 0)
    ice_servers: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_integer(PLACE, "port", self.port, 0, 65535)
        check_number(PLACE, "fps", self.fps, 1, self.limits.fps)
        if self.size is not None:
            check_integer(PLACE, "size", self.size, 8, self.limits.side)
        if self.mode not in MODES:
            raise InputError(PLACE, f"mode must be one of {', '.join(MODES)}", self.mode)
        if self.mode != "animate" and self.avatar is not None:
            raise InputError(PLACE, "an avatar's picture is of mode animate", self.mode)
        for name in ("osc", "vmc", "vts"):
            if (port := getattr(self, name)) is not None:
                check_integer(PLACE, name, port, 0, 65535)
        for one in self.ice_servers:
            if not _STUN.fullmatch(one):
                raise InputError(PLACE, "ice-server must be stun:HOST or stun:HOST:PORT", one)
        if self.token is not None and (len(self.token) < LEAST_TOKEN or not self.token.isprintable()):
            rule = f"a token must have at least {LEAST_TOKEN} printable characters"
            raise InputError(PLACE, rule, f"{len(self.token)} characters")
        if not is_loopback(self.host) and self.token is None and not self.insecure:
            rule = "an address other than loopback needs a token (--token-file, HOTLOOP_TOKEN), or --insecure-no-auth"
            raise InputError(PLACE, rule, self.host)
        self.limits.settings(self.settings)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; `localhost` counts."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
