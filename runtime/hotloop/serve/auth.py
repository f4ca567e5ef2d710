"""Who may speak to the server: the token, the name that it is called by (Host), the page that calls it (Origin).

A browser on this machine opens any page; without the last two such a page could reach a server on loopback, by a name
that it has pointed at 127.0.0.1 or by a plain cross-site request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from ..live.sources.datagrams import Bucket
from .config import Config, is_loopback

__all__ = ["Guard", "Tokens"]

_OPEN = ("/healthz", "/readyz")
_PAGES = ("/", "/view", "/monitor")
_PREFLIGHTS = ("/whip", "/whep")
_MOST_ADDRESSES = 256
_LEAVING = 0.05  # seconds: until its connection has gone, uvicorn 0.54 logs a refused handshake as a fault

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Tokens:
    """Compares tokens in constant time, and counts the wrong ones of every address."""

    def __init__(self, token: str | None, failures: int, clock: Callable[[], float]) -> None:
        self._token = None if token is None else token.encode()
        self._failures, self._clock = failures, clock
        self._wrong: OrderedDict[str, Bucket] = OrderedDict()

    @property
    def needed(self) -> bool:
        return self._token is not None

    def allows(self, token: str | None) -> bool:
        if self._token is None:
            return True
        return token is not None and hmac.compare_digest(self._token, token.encode("utf-8", "surrogatepass"))

    def blocked(self, address: str) -> bool:
        """Whether this address has said too many wrong ones."""
        bucket = self._wrong.get(address)
        return bucket is not None and bucket.empty(self._clock())

    def failed(self, address: str) -> None:
        bucket = self._wrong.pop(address, None) or Bucket(self._failures / 60, self._failures)
        bucket.takes(self._clock())
        self._wrong[address] = bucket
        while len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Any, config: Config, tokens: Tokens) -> None:
        self._app, self._config, self._tokens = app, config, tokens
        self._hosts = {name.lower() for name in (*config.allow_hosts, config.host) if name}
        self._origins = {one.lower().rstrip("/") for one in config.allow_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, line = self._refusal(scope, headers)
        if not line:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _respond(send, "http.response", status, line)
        else:
            await receive()  # websocket.connect
            if "websocket.http.response" in scope.get("extensions", {}):
                await _respond(send, "websocket.http.response", status, line)
                await asyncio.sleep(_LEAVING)
            else:
                await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str]:
        host = headers.get("host", "")
        if not self._known(host):
            return 403, "[serve] Host must be a name of this server (--allow-host)"
        origin = headers.get("origin")
        if origin is not None and not self._same(origin, host):
            return 403, "[serve] Origin must be this server (--allow-origin)"
        path = scope["path"]
        if scope["type"] == "websocket" or path in _OPEN:
            return 0, ""  # a WebSocket's token comes in its first message
        if path in _PAGES or path.startswith("/static/"):
            return 0, ""  # the same for everyone, and a browser cannot say a token before it has the page
        if scope.get("method") == "OPTIONS" and path.startswith(_PREFLIGHTS):
            return 0, ""  # a browser asks this without the token that it then sends
        if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and origin is None:
            return 403, "[serve] other pages may not embed this (--allow-origin)"
        if not self._tokens.needed:
            return 0, ""
        address = address_of(scope)
        if self._tokens.blocked(address):
            return 429, "[serve] too many wrong tokens: wait a minute"
        if self._tokens.allows(_token(headers.get("authorization", ""))):
            return 0, ""
        self._tokens.failed(address)
        return 401, "[serve] a token is needed: Authorization: Bearer, or Basic with it as the password"

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._hosts or is_loopback(name):
            return True
        if is_loopback(self._config.host):
            return False
        try:  # an address cannot be pointed elsewhere as a name can
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _same(self, origin: str, host: str) -> bool:
        if origin.lower() in self._origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def address_of(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


def _token(authorization: str) -> str | None:
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


async def _respond(send: Send, kind: str, status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="hotloop"'))
    if status == 429:
        headers.append((b"retry-after", b"60"))
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": f"{line}\n".encode()})
