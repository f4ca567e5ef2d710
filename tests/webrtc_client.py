"""A WebRTC peer by aiortc, on loopback alone, for the tests of WHIP and WHEP."""

from __future__ import annotations

import asyncio
import fractions
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from av import VideoFrame

__all__ = ["Camera", "ask", "peer", "publish", "watch"]


class Camera(MediaStreamTrack):
    """Pictures uint8 [H, W, 3], over and over, 20 a second."""

    kind = "video"

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.pictures, self.sent = pictures, 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(0.05)
        frame = VideoFrame.from_ndarray(self.pictures[self.sent % len(self.pictures)], format="rgb24")
        frame.pts, frame.time_base = self.sent * 4500, fractions.Fraction(1, 90_000)
        self.sent += 1
        return frame


def ask(method: str, address: str, body: str = "", **headers: str) -> tuple[int, Any, str]:
    """Status, headers, body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address, data=body.encode() or None, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


async def peer(track: MediaStreamTrack | None) -> RTCPeerConnection:
    """With its offer as the local description. track: what it sends; None: it receives."""
    made = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    if track is None:
        made.addTransceiver("video", direction="recvonly")
    else:
        made.addTransceiver(track, direction="sendonly")
    offer = await made.createOffer()
    connection = made.getTransceivers()[0].receiver.transport.transport.iceGatherer._connection
    whole = connection.get_component_candidates
    connection.get_component_candidates = lambda component, addresses: whole(component, ["127.0.0.1"])
    await made.setLocalDescription(offer)
    return made


async def connect(made: RTCPeerConnection, address: str, **headers: str) -> Any:
    """-> the answer's headers."""
    status, told, text = await asyncio.to_thread(
        ask, "POST", address, made.localDescription.sdp, Content_Type="application/sdp", **headers
    )
    assert status == 201, text
    await made.setRemoteDescription(RTCSessionDescription(text, "answer"))
    return told


async def publish(address: str, pictures: Sequence[np.ndarray], seconds: float, **headers: str) -> int:
    """-> how many were sent."""
    made = await peer(camera := Camera(pictures))
    await connect(made, address, **headers)
    await asyncio.sleep(seconds)
    await made.close()
    return camera.sent


async def watch(address: str, frames: int, **headers: str) -> list[tuple[float, np.ndarray]]:
    """Times and pictures."""
    made = await peer(None)
    await connect(made, address, **headers)
    track, seen = made.getTransceivers()[0].receiver.track, []
    while len(seen) < frames:
        frame: Any = await asyncio.wait_for(track.recv(), 20)
        seen.append((frame.time, frame.to_ndarray(format="rgb24")))
    await made.close()
    return seen
