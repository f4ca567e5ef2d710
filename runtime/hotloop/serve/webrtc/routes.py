"""WHIP and WHEP over HTTP. A peer's resource is its own address, which only who opened it knows."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ...errors import HotloopError, InputError
from ..config import Config
from .offers import MOST, fragment
from .peers import Peer, Peers, TooMany

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["add_webrtc"]

_SDP, _FRAGMENT = "application/sdp", "application/trickle-ice-sdpfrag"
_COLOUR = re.compile(r"[0-9a-fA-F]{6}")


class _Refused(Exception):
    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.line, self.headers = status, line, headers or {}


def add_webrtc(app: FastAPI, peers: Peers, config: Config) -> None:
    """The endpoints /whip and /whep, and the resources below them."""
    for kind in ("whip", "whep"):
        _add(app, peers, config, kind)


def _add(app: FastAPI, peers: Peers, config: Config, kind: str) -> None:
    links = ", ".join(f'<{one}>; rel="ice-server"' for one in config.ice_servers)

    def answer(request: Request, status: int, body: str = "", kind: str = "text/plain", **headers: str) -> Response:
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(body, status, {**_cors(request, config), **own}, media_type=kind)

    def refuse(request: Request, refused: _Refused) -> Response:
        return PlainTextResponse(f"{refused.line}\n", refused.status, {**_cors(request, config), **refused.headers})

    @app.options(f"/{kind}")
    async def describe(request: Request) -> Response:
        return answer(request, 204, Accept_Post=_SDP, Allow="OPTIONS, POST")

    @app.post(f"/{kind}")
    async def open_(request: Request, session: str | None = None, ground: str = "000000") -> Response:
        try:
            text = await _body(request, _SDP)
            if not _COLOUR.fullmatch(ground):
                raise _Refused(400, "[webrtc] ground must be a colour such as 00ff00")
            if find_spec("aiortc") is None:
                raise _Refused(501, "[webrtc] aiortc must be installed: pip install '.[webrtc]'")
            red, green, blue = bytes.fromhex(ground)
            try:
                peer, said = await peers.open(kind, text, session, (red, green, blue))
            except TooMany as error:
                raise _Refused(503, str(error), {"Retry-After": "5"}) from None
            except InputError as error:
                absent = "no such session" in str(error)
                raise _Refused(404 if absent else 400 if "(SDP)" in str(error) else 422, str(error)) from None
            except HotloopError as error:  # the tracker's networks are not here
                raise _Refused(501, str(error)) from None
        except _Refused as refused:
            return refuse(request, refused)
        return answer(
            request, 201, said, _SDP, Location=f"/{kind}/{peer.name}", ETag=peer.etag, Accept_Patch=_FRAGMENT,
            **({"Link": links} if links else {}),
        )  # fmt: skip

    @app.options(f"/{kind}/{{name}}")
    async def describe_one(request: Request, name: str) -> Response:
        return answer(request, 204, Accept_Patch=_FRAGMENT, Allow="OPTIONS, PATCH, DELETE")

    @app.patch(f"/{kind}/{{name}}")
    async def trickle(request: Request, name: str) -> Response:
        """Trickle ICE; ICE restarts are not there, which is answered 422 (RFC 9725, section 4.3)."""
        try:
            peer = _found(peers, kind, name)
            text = await _body(request, _FRAGMENT)
            match = request.headers.get("if-match")
            if match is None and kind == "whip":
                raise _Refused(428, "[webrtc] If-Match must name the ICE session")
            if match not in (None, "*", peer.etag):  # of WHEP's clients not all say it
                raise _Refused(412, "[webrtc] If-Match names another ICE session")
            try:
                told = fragment(text)
                if match == "*" or told.ufrag not in (None, peer.ufrag):
                    raise _Refused(422, "[webrtc] ICE does not restart here: open a new connection")
                await peer.trickle(told)
            except InputError as error:
                raise _Refused(400, str(error)) from None
        except _Refused as refused:
            return refuse(request, refused)
        return answer(request, 204, ETag=peer.etag)

    @app.delete(f"/{kind}/{{name}}")
    async def close(request: Request, name: str) -> Response:
        try:
            await peers.close(_found(peers, kind, name))
        except _Refused as refused:
            return refuse(request, refused)
        return answer(request, 200)


def _found(peers: Peers, kind: str, name: str) -> Peer:
    peer = peers.all.get(name)
    if peer is None or peer.kind != kind:
        raise _Refused(404, "[webrtc] there is no such connection")
    return peer


async def _body(request: Request, kind: str) -> str:
    """Its text, of this kind and a size that may be."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != kind:
        raise _Refused(415, f"[webrtc] Content-Type must be {kind}", {"Accept-Post": _SDP})
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST:
            raise _Refused(413, f"[webrtc] a description must have at most {MOST} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Refused(400, "[webrtc] a description must be UTF-8") from None


def _cors(request: Request, config: Config) -> dict[str, str]:
    """For pages of other origins that were allowed at the start."""
    origin = request.headers.get("origin", "")
    if origin.lower() not in {one.lower().rstrip("/") for one in config.allow_origins}:
        return {}
    return {
        "Access-Control-Allow-Origin": origin, "Vary": "Origin",
        "Access-Control-Allow-Methods": "OPTIONS, POST, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
        "Access-Control-Expose-Headers": "Location, Link, ETag, Accept-Patch",
    }  # fmt: skip
