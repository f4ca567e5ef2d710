"""The camera tracker: pictures -> the controls of the face in them, and a camera that feeds the bus.

One face at a time, the likeliest. Once found it is followed from picture to picture; the detector runs again only when
it was lost, and then at most every fifth picture.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ...errors import InputError
from ..mailbox import Mailbox
from .face_files import found
from .face_mesh import Face, FaceMesh, Square
from .face_shapes import Neutral, calibrated, controls, mirrored
from .video import Follower, Shot, Video

__all__ = ["Camera", "Tracker"]

_PLACE = "tracker"
_SURE = 0.5
_LOOK_EVERY = 5  # pictures without a face
_CALIBRATION = 15  # pictures


class Put(Protocol):
    """`Bus.put`."""

    def __call__(self, source: str, t: float, values: Mapping[str, Any], /) -> str | None: ...


class Tracker:
    """mesh    by default with the files of `face_files.found()`
    mirror  controls as in a mirror: the avatar's left for the person's right
    irises  look at the eyes too: the gaze needs it

    Not for several threads at once. Raises BundleError where the networks' files are not there.
    """

    def __init__(self, mesh: FaceMesh | None = None, *, mirror: bool = False, irises: bool = True) -> None:
        self._mesh = mesh or FaceMesh(found())
        self._mirror, self._irises = mirror, irises
        self.neutral = Neutral()
        self.face: Face | None = None
        self._square: Square | None = None
        self._without = 0
        self._resting: list[Face] | None = None

    def calibrate(self) -> None:
        """The next 15 pictures with a face show it at rest, looking at the camera: what controls count from."""
        self._resting = []

    def feed(self, picture: np.ndarray) -> dict[str, float] | None:
        """A picture RGB uint8 [H, W, 3] -> controls; None without a face. Raises InputError for what is no picture."""
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or min(picture.shape[:2]) < 16:
            rule = "a picture is RGB uint8 [H, W, 3], 16 pixels at least"
            raise InputError(_PLACE, rule, (picture.shape, str(picture.dtype)))
        if self._square is None:
            self._square = self._mesh.find(picture) if self._without % _LOOK_EVERY == 0 else None
        face = None if self._square is None else self._mesh.look(picture, self._square, irises=self._irises)
        if face is None or face.sure < _SURE:
            self.face = self._square = None
            self._without += 1
            return None
        self.face, self._square, self._without = face, self._mesh.around(face), 0
        self._calibrated(face)
        told = controls(face, self.neutral, (picture.shape[1], picture.shape[0]))
        if not self._irises:
            del told["gazeX"], told["gazeY"]
        return mirrored(told) if self._mirror else told

    def _calibrated(self, face: Face) -> None:
        if self._resting is None:
            return
        self._resting.append(face)
        if len(self._resting) == _CALIBRATION:
            self.neutral, self._resting = calibrated(self._resting), None


class Camera:
    """A video's pictures, tracked, and put on the bus as the source "camera". One thread reads, another tracks: the
    newest picture wins, so a tracker that is too slow sees fewer pictures, never older ones.

    clock  the bus's; a device's pictures have the driver's time, which is Linux's monotonic clock
    take   called with every picture as well, such as `Session.push`
    paced  a file's pictures come in their own time, as a camera's would

    pictures, faces, superseded  how many came, showed a face, were overtaken by a newer one
    said   the last line about what was wrong

    A face that is gone puts nothing: after the bus's timeout its controls are free again. A device or stream that is
    lost is looked for until it is back.
    """

    def __init__(
        self, video: Video, tracker: Tracker, put: Put, *, clock: Callable[[], float] = time.monotonic,
        take: Callable[[Shot], object] | None = None, paced: bool = False,
    ) -> None:  # fmt: skip
        self.pictures = self.faces = self.superseded = 0
        self.said = ""
        self._tracker, self._put, self._clock, self._take_too = tracker, put, clock, take
        self._paced, self._began = paced and not video.live, time.monotonic()
        self._box: Mailbox[tuple[float, Shot]] = Mailbox()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._track, name="hotloop-tracker", daemon=True)
        self._follower = Follower(
            video, self._take, ended=self._ended, patience=math.inf if video.lasting else 0.0, lost=self._lost
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until the video has ended and its last picture is tracked -> whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        self._over.set()
        self._box.wake()
        self._follower.stop()
        self._thread.join(5.0)

    def _take(self, shot: Shot) -> None:
        if self._paced:
            self._over.wait(max(self._began + shot.time - time.monotonic(), 0))
        at = self._clock() if shot.captured is None else shot.captured
        self.pictures += 1
        if self._box.put((at, shot)) is not None:
            self.superseded += 1
        if self._take_too is not None:
            self._take_too(shot)

    def _lost(self, why: str | None) -> None:
        """Nothing is put meanwhile: the bus lets go of the controls after its timeout, and idle life goes on."""
        if why is not None:
            self.said = why

    def _ended(self, why: str) -> None:
        self.said = why or self.said
        self._over.set()
        self._box.wake()

    def _track(self) -> None:
        while len(self._box) or not self._over.is_set():
            self._box.wait(1.0)
            if (come := self._box.take()) is None:
                continue
            at, shot = come
            told = self._tracker.feed(shot.pixels)
            if told is not None:
                self.faces += 1
                self.said = self._put("camera", at, told) or self.said
