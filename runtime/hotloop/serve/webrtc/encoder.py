"""Frames -> packets of H.264 (baseline: no B-frames) or VP8, one in, one out, on the calling thread alone.

Our own: aiortc's H.264 encoder counts in thirtieths of a second and takes x264's preset for films. Of an avatar at
512 x 512, 5.8 ms of a core a frame here, 19 there, at a tenth more bytes.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

__all__ = ["CLOCK", "Encoder"]

CLOCK = 90_000  # RTP's, of video
_FPS = 60  # for rate control alone
_BITS = 3_000_000  # a second, at most
_OPTIONS = {
    "H264": ("libx264", {"preset": "superfast", "tune": "zerolatency", "profile": "baseline", "crf": "21",
                         "maxrate": str(_BITS), "bufsize": str(_BITS // 2)}),
    "VP8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "error-resilient": "1"}),
}  # fmt: skip


class Encoder:
    """kind: H264 or VP8. Frames may change their size; each first one of a size is whole."""

    def __init__(self, kind: str) -> None:
        self._name, self._options = _OPTIONS[kind]
        self._codec: Any = None

    def encode(self, pixels: np.ndarray, pts: int, *, whole: bool) -> av.Packet:
        """uint8 [H, W, 3] with even sides; pts: in `CLOCK`, later than the one before; whole: needs no frame before."""
        height, width = pixels.shape[:2]
        if self._codec is None or (self._codec.width, self._codec.height) != (width, height):
            self._codec = self._opened(width, height)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = pts, Fraction(1, CLOCK)
        frame.pict_type = PictureType.I if whole else PictureType.NONE
        packet = av.Packet(b"".join(bytes(one) for one in self._codec.encode(frame)))
        packet.pts, packet.time_base = pts, Fraction(1, CLOCK)
        return packet

    def _opened(self, width: int, height: int) -> Any:
        codec: Any = av.CodecContext.create(self._name, "w")
        codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
        codec.time_base, codec.framerate = Fraction(1, CLOCK), Fraction(_FPS)
        codec.options, codec.thread_count, codec.gop_size = dict(self._options), 1, 10 * _FPS
        if self._name == "libvpx":
            codec.bit_rate = _BITS
        return codec
