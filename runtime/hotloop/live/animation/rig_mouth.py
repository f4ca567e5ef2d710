"""The mouth on the rig: lips that part, widen, round and bend.

The reveal texture has the mouth open. A new opening is that one brought to other curves: lips moved whole, what is
between them stretched. Where the mouth is as good as closed the keyframe's own line shows, bent and widened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hotloop_kernels.formula import ramp, rise, take

from .geometry import Geometry
from .mimic import Mimic
from .shapes import TABLE, Field, entry, spread

if TYPE_CHECKING:
    from .rig import Nodes

__all__ = ["Lips"]

_F = np.float32
_T = np.linspace(-1, 1, TABLE, dtype=np.float32)
_BOW, _ROUND, _BEND = np.sqrt(np.maximum(1 - _T * _T, 0)), 1 - _T * _T, _T * _T - _F(0.35)
_MARGIN = 0.016  # face units around lips that come from the reveal texture with them
_CLOSED, _PARTED = 0.0045, 0.011  # of an opening: what is as good as none, and how much more is shown alone
_TEETH = 0.34  # of the open mouth, from above: not seen in one that is hardly open


class Lips:
    """The mouth: one part. reach: what it covers, face coordinates."""

    def __init__(self, geometry: Geometry) -> None:
        self.mouth = mouth = geometry.mouth
        self._line, self._top, self._low = spread(mouth.line), spread(mouth.top), spread(mouth.low)
        self._y = float(mouth.line.mean())
        # Of a face that is not drawn as ours: wider, or further from the chin.
        self.tall = float(np.clip((geometry.chin - self._y) / 0.07, 0.8, 2.0))
        self._wide = float(np.clip(mouth.width / 0.04, 1.0, 1.3))
        self._lift = 0.3 if geometry.brows is not None else 0.08  # of a round mouth's upper lip: below it may be a nose
        self._room = max(0.03, min(0.8 * mouth.width, 0.06))  # beside the corners, that a wider mouth pushes together
        reach = 1.25 * (mouth.width + 0.03 * self._wide) + 0.03
        self.reach = (mouth.x - reach, self._y - 0.055 * self.tall, mouth.x + reach, self._y + 0.12 * self.tall)

    def told(self, m: Mimic) -> tuple[dict[str, Any], bool]:
        """What `field` is told of a frame, and whether the lips are apart."""
        lips, mouth = m.lips, self.mouth
        width, opening = mouth.width + lips.wider * self._wide, lips.opening * self.tall
        bend = 0.024 * lips.corners * self._wide * (1 - 0.35 * min(1.0, lips.opening / 0.04))
        bent = _F(-bend) * _BEND
        told: dict[str, Any] = {
            "mouth": width, "mouth_back": 0.5 / width, "mouth_wider": mouth.width / width - 1, "bent": bent,
        }  # fmt: skip
        parted = min(1.0, (opening - _CLOSED) / _PARTED)
        if parted <= 0:
            return told, False
        line = np.interp(np.minimum(np.maximum(_T * (width / mouth.width), -1), 1), _T, self._line).astype(np.float32)
        closed = line + bent
        top = closed - _F(self._lift * lips.round * opening) * _ROUND
        return told | {
            "lips_over": mouth.reveal / width - 1, "lips_reach": max(width, mouth.width),
            "lips_shown": parted * parted * (3 - 2 * parted),
            "teeth": _TEETH * max(0.0, 1 - opening / 0.034),
            "lip_top": top, "lip_low": top + _F(opening * (1 + 0.3 * lips.round)) * _BOW, "lip_line": closed,
        }, True  # fmt: skip

    def field(self, made: Field, nodes: Nodes, x: Any, y: Any, n: Mapping[str, Any], parted: bool) -> None:
        """Fill in the field of nodes that were at the face's places x, y before it turned."""
        dx = x - _F(self.mouth.x)
        at = entry(dx * n["mouth_back"] + _F(0.5))
        flow, width = nodes.flow(x, y), n["mouth"]
        # The closed line, widened and bent.
        outside = np.maximum(np.abs(dx) - width, 0)
        fade = rise(_F(1) - outside * _F(1 / self._room))
        share = fade * rise(_F(1.9) - np.abs(y - _F(self._y)) * _F(32 / self.tall))
        held = np.minimum(np.maximum(dx, -width), width)
        key = nodes.flow(x + share * held * n["mouth_wider"], y - share * take(n["bent"], at))
        for source in range(made.sources):
            made.flow(source, flow)
        made.flow(0, key)
        if not parted:
            return
        upper, lower, line = (take(n[name], at) for name in ("lip_top", "lip_low", "lip_line"))
        reveal_top, reveal_low = take(self._top, at), take(self._low, at)
        into = ramp((y - upper) / np.maximum(lower - upper, _F(1e-5)))
        hidden = n["teeth"] * (y > upper)
        into = hidden + (1 - hidden) * into
        reveal_x = held * n["lips_over"] * fade + x
        reveal_y = reveal_top + into * (reveal_low - reveal_top) + np.minimum(y - upper, 0) + np.maximum(y - lower, 0)
        # The region: the opening, and the closed line that it hides, with a margin.
        away_y = np.maximum(np.maximum(np.minimum(upper, line) - y, y - np.maximum(lower, line)), 0)
        away_x = np.maximum(np.abs(dx) - n["lips_reach"], 0)
        away = np.sqrt(away_x * away_x + away_y * away_y)
        made.flow(made.sources - 2, nodes.flow(reveal_x, reveal_y))
        made.mask(made.sources - 2, ramp((_F(_MARGIN) - away) * _F(1 / 0.006)) * n["lips_shown"])
