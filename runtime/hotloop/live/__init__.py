"""Live: from a camera or a signal to a frame. `Session` is one viewer's, `Stage` runs all sessions' rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..pipeline import Pipeline
from .depth import choose_depth
from .recording import Recording
from .replay import replay
from .session import Controls, Frame, Session
from .stage import Stage

__all__ = ["Controls", "Frame", "Recording", "Session", "Stage", "choose_depth", "open_session", "replay"]


def open_session(pipeline: Pipeline, *, recording: Recording | None = None, **given: Any) -> Session:
    """One session on a stage of its own, whose settings are prepared on a thread beside it (`Pipeline.live`)."""
    plain = None
    if not pipeline.engine.endswith("-fp32"):
        entry = next((one for one in pipeline.bundle.entries if one.name == f"{one.kind}-fp32"), None)
        plain = Pipeline(pipeline.bundle, engine=entry.name, device="cpu") if entry else None
    stage = Stage(pipeline, background=ThreadPoolExecutor(1, "hotloop-live"), plain=plain, recording=recording)
    return stage.open(**given)
