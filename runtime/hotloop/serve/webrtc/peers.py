"""Who is connected by WebRTC: at most so many, each gone when it fails, is silent, or never comes.

A peer's candidates: on loopback those of loopback alone; no STUN server is asked unless one was named at the start.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import HotloopError, InputError
from ...live.animation.gate import step_back
from ...live.sources.tracking import PictureTracker
from ..config import Config, is_loopback
from ..sessions import Session, Sessions
from ..viewer import Viewer
from ..wire import FORMATS, Picture
from .offers import PLACE, Fragment, offer

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection

__all__ = ["Peer", "Peers", "TooMany"]

_COMES = 15.0  # seconds until a peer that was answered is connected
_SILENT = 10.0  # seconds without a picture of one that sends them
_SWEEP = 0.5
_LEAST = 128  # pixels: a small model still sees what a larger picture was averaged from
_FACE = 360  # pixels of the shorter side that the tracker looks at


class TooMany(InputError):
    """No room for another peer, or the server is ending."""


class Peer:
    """One connection. etag: of its ICE session; heard: when its last picture came."""

    def __init__(self, kind: str, session: Session, viewer: Viewer, connection: RTCPeerConnection) -> None:
        self.name, self.kind, self.etag = secrets.token_urlsafe(16), kind, f'"{secrets.token_hex(8)}"'
        self.session, self.viewer, self.connection = session, viewer, connection
        self.since = time.monotonic()
        self.heard: float | None = None
        self.ufrag: str | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.tracker: PictureTracker | None = None

    def over(self, now: float) -> bool:
        state = self.connection.connectionState
        if state in ("failed", "closed"):
            return True
        if state != "connected":
            return now - self.since > _COMES
        return self.kind == "whip" and now - (self.heard or self.since + _COMES) > _SILENT

    async def trickle(self, told: Fragment) -> None:
        """Candidates that came later. Raises InputError."""
        from aiortc.sdp import candidate_from_sdp

        try:
            for mid, line in told.candidates:
                candidate = candidate_from_sdp(line)
                candidate.sdpMid = mid or self.connection.getTransceivers()[0].mid
                await self.connection.addIceCandidate(candidate)
        except Exception as error:  # a broken line fails in as many ways as it can be broken
            raise InputError(PLACE, "a candidate must be one of ICE's", type(error).__name__) from None


class Peers:
    def __init__(self, sessions: Sessions, config: Config) -> None:
        self.sessions, self.config = sessions, config
        self.all: dict[str, Peer] = {}
        self._opening = 0
        self._numbers = itertools.count(1)
        self._pool: ThreadPoolExecutor | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self, kind: str, text: str, session: str | None, ground: tuple[int, int, int]) -> tuple[Peer, str]:
        """A peer that sends ("whip") or receives ("whep") -> it, and the answer to its offer.

        Raises TooMany, and InputError: for an offer that cannot be answered, a session that is not there.
        """
        given = offer(text, receives=kind == "whep")
        if self.sessions.ending or len(self.all) + self._opening >= self.config.limits.peers:
            raise TooMany(PLACE, f"at most {self.config.limits.peers} peers at once", len(self.all))
        self._opening += 1
        try:
            return await self._open(kind, given, await self.sessions.find(session), ground)
        finally:
            self._opening -= 1

    async def _open(self, kind: str, given: str, session: Session, ground: tuple[int, int, int]) -> tuple[Peer, str]:
        from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

        self._begin()
        servers = [RTCIceServer(one) for one in self.config.ice_servers]
        connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        receives = kind == "whep"
        from .outgoing import FPS

        fps = min(FPS, session.config.fps)
        viewer = Viewer("viewer" if receives else "owner", FORMATS["rgba-lz4" if receives else "none"], fps,
                        "" if receives else f"whip {next(self._numbers)}")  # fmt: skip
        peer = Peer(kind, session, viewer, connection)
        session.join(viewer)
        self.all[peer.name] = peer
        try:
            await self._agree(peer, RTCSessionDescription(given, "offer"), ground)
        except BaseException as error:
            await self.close(peer)
            if isinstance(error, HotloopError) or not isinstance(error, Exception):
                raise
            raise InputError(PLACE, "the offer must be one that can be answered", type(error).__name__) from None
        return peer, connection.localDescription.sdp

    async def _agree(self, peer: Peer, given: Any, ground: tuple[int, int, int]) -> None:
        connection, track = peer.connection, None
        if peer.kind == "whep":
            from .outgoing import AvatarTrack

            track = AvatarTrack(peer.viewer, ground, self._threads, lambda: self.sessions.ending)
            sending = connection.addTransceiver(track, direction="sendonly")
            sender: Any = sending.sender
            sender._send_keyframe = track.refresh  # aiortc asks its own encoder, which is not used
            _prefer(sending, "H264", "VP8")
        await connection.setRemoteDescription(given)
        video = None
        for transceiver in connection.getTransceivers():
            if transceiver.kind == "video" and video is None:
                video = transceiver
            else:
                transceiver.direction = "inactive"
            self._confine(transceiver.receiver.transport.transport.iceGatherer)
        assert video is not None
        if track is None:
            video.direction = "recvonly"
            await self._receive(peer, video.receiver.track)
        answer = await connection.createAnswer()
        # The peer opens DTLS, so that our certificate counts: aiortc as the one that opens takes no RSA certificate.
        answer.sdp = answer.sdp.replace("a=setup:active", "a=setup:passive")
        await connection.setLocalDescription(answer)
        if not video._codecs:
            raise InputError(PLACE, "the offer must hold H.264 or VP8")
        if track is not None:
            track.agree(video._codecs[0].name)
        remote = connection.remoteDescription.sdp
        peer.ufrag = next((line[12:] for line in remote.split("\r\n") if line.startswith("a=ice-ufrag:")), None)

    def _confine(self, gatherer: Any) -> None:
        """Candidates of the address that the server listens on, and no others."""
        host = self.config.host
        if host in ("0.0.0.0", "::"):
            return
        connection = gatherer._connection
        address = ("::1" if ":" in host else "127.0.0.1") if is_loopback(host) else host
        whole = type(connection).get_component_candidates

        async def own(component: int, addresses: list[str], **more: Any) -> Any:
            return await whole(connection, component=component, addresses=[address], **more)

        connection.get_component_candidates = own

    async def _receive(self, peer: Peer, track: Any) -> None:
        """Its pictures are the session's source; in mode animate the tracker looks at them."""
        session, viewer, numbers = peer.session, peer.viewer, itertools.count(1)
        take: Callable[[bytes, float], Awaitable[None]]
        if session.mode == "restyle":

            async def take(data: bytes, at: float) -> None:
                viewer.texts()
                session.push(Picture(next(numbers), 0.0, data), viewer, None, at)

            def side() -> int:
                size = session.size or session.worker.facts.get("size") or (_LEAST, _LEAST)
                return max(_LEAST, *size)
        else:
            tracker = peer.tracker = await PictureTracker.start(partial(session.bus.put, viewer.name, captured=True))

            async def take(data: bytes, at: float) -> None:
                viewer.texts()
                tracker.offer(data, at)

            def side() -> int:
                return _FACE

        from .incoming import follow

        def came(now: float) -> None:
            peer.heard = now

        most = self.config.limits.picture_pixels
        peer.tasks.append(asyncio.create_task(self._until(
            peer, follow(track, take, side=side, most_pixels=most, pool=self._threads, came=came)
        )))  # fmt: skip

    async def _until(self, peer: Peer, work: Any) -> None:
        try:
            await work
        except HotloopError as error:
            print(f"hotloop: {error}", file=sys.stderr, flush=True)
        peer.tasks.clear()  # this very one
        await self.close(peer)

    async def close(self, peer: Peer) -> None:
        if self.all.pop(peer.name, None) is None:
            return
        peer.session.leave(peer.viewer, time.monotonic())
        for task in peer.tasks:
            task.cancel()
        if peer.tracker is not None:
            await peer.tracker.close()
        await peer.connection.close()

    async def end(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.gather(*(self.close(peer) for peer in list(self.all.values())), return_exceptions=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    # How.

    @property
    def _threads(self) -> ThreadPoolExecutor:
        assert self._pool is not None
        return self._pool

    def _begin(self) -> None:
        """With the first peer: threads that pack, draw and encode, all of which yield to the frame loop."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(2, "hotloop-webrtc", initializer=step_back)
            self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            for peer in [one for one in self.all.values() if one.over(now)]:
                await self.close(peer)


def _prefer(transceiver: Any, *names: str) -> None:
    """These codecs, in this order."""
    from aiortc import RTCRtpSender

    known = RTCRtpSender.getCapabilities("video").codecs
    rank = {f"video/{name}".lower(): i for i, name in enumerate(names)}
    wanted = [one for one in known if one.mimeType.lower() in rank]
    transceiver.setCodecPreferences(sorted(wanted, key=lambda one: rank[one.mimeType.lower()]))
