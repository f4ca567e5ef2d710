"""The rig's fields: what its lines give on NumPy's arrays, with compiled operators and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hotloop.live.animation import Keyframe, Rig, builtin_keyframe
from hotloop.live.animation.geometry import from_points
from hotloop.live.animation.reveal import reveal_of
from hotloop.live.animation.rig import RiggedPerformance
from hotloop.live.controls import ANIMATOR
from hotloop_kernels.testing import BACKENDS, use

LOWS = np.array([float(low) / max(abs(float(low)), abs(float(high))) for _, low, high in ANIMATOR])
POINTS = {
    "eyeRight": (0.40, 0.44), "lidUpperRight": (0.40, 0.41), "lidLowerRight": (0.40, 0.47), "mouthRight": (0.44, 0.62),
    "eyeLeft": (0.60, 0.46), "lidUpperLeft": (0.60, 0.43), "lidLowerLeft": (0.60, 0.49), "mouthLeft": (0.56, 0.63),
    "chin": (0.5, 0.72), "headCentre": (0.5, 0.45),
}  # fmt: skip


def opaque_keyframe() -> Keyframe:
    """A picture up to its borders, with something before its eyes, whose face lies aslant: no brows, no layers."""
    rng = np.random.default_rng(0)
    picture = np.full((64, 64, 4), 255, np.uint8)
    picture[..., :3] = rng.integers(0, 256, (64, 64, 3))
    geometry, front = from_points(POINTS), np.zeros((64, 64), np.uint8)
    front[20:30, 10:40] = rng.integers(0, 256, (10, 30))
    return Keyframe(picture, reveal_of(picture, geometry), front, geometry)


def controls(rng: np.random.Generator, share: float) -> np.ndarray:
    """As many of all as the share says are not 0."""
    drawn = np.maximum(rng.uniform(-1, 1, len(LOWS)), LOWS)
    return np.where(rng.random(len(LOWS)) < share, drawn, 0).astype(np.float32)


@pytest.fixture(scope="module", params=["layers", "points"])
def performance(request: pytest.FixtureRequest) -> RiggedPerformance:
    return Rig().prepare(builtin_keyframe() if request.param == "layers" else opaque_keyframe())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_fields_are_what_the_same_lines_give_on_arrays(
    performance: RiggedPerformance, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, at rest, talking, tilted, blushing: whatever random controls ask for."""
    made, seen = performance._made, set()

    def compared(
        kind: str, moved: bool, tinted: bool, told: Mapping[str, Any], columns: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        got = made(kind, moved, tinted, told, columns, rows)
        u, v = np.broadcast_arrays(columns, rows[:, None])
        given = {name: one if isinstance(one, np.ndarray) else np.float32(one) for name, one in told.items()}
        want = performance.field(kind, moved, tinted, u, v, given)
        for channel, values in zip(got, want, strict=True):
            np.testing.assert_array_equal(channel, np.broadcast_to(values, channel.shape))
        seen.add(kind)
        return got

    monkeypatch.setattr(performance, "_made", compared)
    rng = np.random.default_rng(int(10 * share))
    for _ in range(1 if share == 0 else 4):
        performance.frame(controls(rng, share), float(rng.uniform(0, 9)))
    assert seen == {"whole", "lips", "eyes"}


@pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")
def test_without_compiled_operators_fields_are_the_same(performance: RiggedPerformance) -> None:
    rng = np.random.default_rng(3)
    for share in (0.2, 1.0):
        asked = controls(rng, share)
        drawings = []
        for name in BACKENDS:
            with use(name):
                drawings.append(performance.frame(asked, 1.5))
        for one, other in zip(*([drawing.whole, *drawing.parts] for drawing in drawings), strict=True):
            np.testing.assert_array_equal(one, other)
        assert drawings[0].boxes == drawings[1].boxes


def test_every_formula_is_written_down_before_it_is_needed(performance: RiggedPerformance) -> None:
    """None has to be in the middle of a stream."""
    written = set(performance._programs)
    rng = np.random.default_rng(5)
    for share in (0.1, 0.3, 0.6, 1.0):
        performance.frame(controls(rng, share), 2.0)
    assert set(performance._programs) == written and len(written) == 10
