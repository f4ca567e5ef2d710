"""Nothing phones home: the libraries that hotloop loads are kept from reporting and from leaving ids of the user.

It holds for libraries that are imported after hotloop, which imports them late itself.
"""

from __future__ import annotations

import os
import sys

__all__ = ["switch_off"]


def switch_off() -> None:
    """For this process and those it starts; what the user has set stands.

    ONNX Runtime's own switch (its Privacy.md) keeps `deviceid`, `onnxruntime.db` and the uploading threads from being
    made. OpenVINO's and NNCF's has no switch but a file in the user's home, which is not ours to write: without the
    package that reports, both fall back to a stub that does nothing, so its import fails here.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
