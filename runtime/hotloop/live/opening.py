"""One session of its own, restyling on a stage or animating: what `Pipeline.live` gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import InputError
from ..pipeline import Pipeline
from .animation.opening import open_avatar
from .animation.session import AnimationSession
from .recording import Recording
from .session import Session
from .settings import PLACE
from .stage import Stage

__all__ = ["open_session"]


def open_session(
    pipeline: Pipeline, *, mode: str = "restyle", recording: Recording | None = None, **given: Any
) -> Session | AnimationSession:
    """Its settings are prepared on a thread beside the frames.

    mode  "restyle": pictures are redrawn as they come, arguments as for `Stage.open`; "animate": an avatar is moved by
          controls, and prompts draw new ones, arguments as for `open_avatar`
    """
    if mode == "animate":
        background = given.pop("background", None) or ThreadPoolExecutor(1, "hotloop-live")
        return open_avatar(pipeline=pipeline, recording=recording, background=background, **given)
    if mode != "restyle":
        raise InputError(PLACE, "mode must be restyle or animate", mode)
    plain = None
    if not pipeline.engine.endswith("-fp32"):
        entry = next((one for one in pipeline.bundle.entries if one.name == f"{one.kind}-fp32"), None)
        plain = Pipeline(pipeline.bundle, engine=entry.name, device="cpu") if entry else None
    stage = Stage(pipeline, background=ThreadPoolExecutor(1, "hotloop-live"), plain=plain, recording=recording)
    return stage.open(**given)
