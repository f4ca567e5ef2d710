"""One session on a stage of its own: what `Pipeline.live` gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..pipeline import Pipeline
from .recording import Recording
from .session import Session
from .stage import Stage

__all__ = ["open_session"]


def open_session(pipeline: Pipeline, *, recording: Recording | None = None, **given: Any) -> Session:
    """Its settings are prepared on a thread beside the frames; arguments as for `Stage.open`."""
    plain = None
    if not pipeline.engine.endswith("-fp32"):
        entry = next((one for one in pipeline.bundle.entries if one.name == f"{one.kind}-fp32"), None)
        plain = Pipeline(pipeline.bundle, engine=entry.name, device="cpu") if entry else None
    stage = Stage(pipeline, background=ThreadPoolExecutor(1, "hotloop-live"), plain=plain, recording=recording)
    return stage.open(**given)
