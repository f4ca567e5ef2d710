"""What a frame of an animated avatar costs: the rig's fields and warp_blend, 512 x 512, one thread, by CPU time.

    OMP_NUM_THREADS=1 python benchmarks/animation.py [--frames 200]

Cases take turns frame by frame, so that a busy machine slows all of them alike. CPU time is the process's own: what
others take of the machine counts only as far as they share its caches and cores.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from hotloop.live import builtin_keyframe
from hotloop.live.animation import Performance, Rig
from hotloop.live.animation.transition import crossed
from hotloop.live.controls import ANIMATOR

CASES: dict[str, dict[str, float]] = {
    "at rest": {}, "idle": {"headYaw": 1.2, "headPitch": 0.5, "gazeX": 0.05, "breath": 0.5},
    "blinking": {"headYaw": 1.2, "breath": 0.5, "eyeBlinkLeft": 0.5, "eyeBlinkRight": 0.5},
    "talking, happy": {"happy": 0.6, "mouthA": 0.5, "headYaw": 8.0, "breath": 0.5},
    "turned": {"headYaw": 20.0, "headPitch": -8.0, "headRoll": 15.0, "mouthO": 0.6},
}  # fmt: skip


def scaled(controls: dict[str, float]) -> np.ndarray:
    return np.array(
        [controls.get(str(name), 0.0) / max(abs(float(low)), abs(float(high))) for name, low, high in ANIMATOR],
        np.float32,
    )


def measure(performance: Performance, frames: int) -> dict[str, dict[str, float]]:
    """case -> median and tenth percentile of fields, blend and both, milliseconds of CPU time."""
    turning = "a transition (idle, both)"
    vectors = {name: scaled(controls) for name, controls in CASES.items()}
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in [*CASES, turning]}
    keyframe, out, now = performance.keyframe, np.empty((512, 512, 4), np.uint8), time.process_time
    for i in range(frames + 5):
        for name, vector in vectors.items():
            began = now()
            drawing = performance.frame(vector, i / 60)
            moved = now()
            drawing.draw(512, out)
            costs[name].append((1e3 * (moved - began), 1e3 * (now() - moved)))
        before, began = out.copy(), now()
        crossed(before, before, 0.5, keyframe, keyframe, 512)
        fade, (fields, blend) = 1e3 * (now() - began), costs["idle"][-1]
        costs[turning].append((2 * fields, 2 * blend + fade))
    told = {}
    for name, pairs in costs.items():
        columns = np.array(pairs[5:]).T
        rows = {"fields": columns[0], "blend": columns[1], "frame": columns.sum(0)}
        told[name] = {
            f"{part} {label}": round(float(np.quantile(values, q)), 2)
            for part, values in rows.items()
            for label, q in (("p10", 0.1), ("median", 0.5))
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    told = measure(Rig().prepare(builtin_keyframe()), given.frames)
    if given.json:
        print(json.dumps(told, indent=2))
        return
    print(f"{'CPU ms a frame (p10 / median)':32}{'fields':>14}{'warp_blend':>14}{'together':>14}")
    for name, row in told.items():
        columns = (f"{row[f'{part} p10']:.2f} / {row[f'{part} median']:.2f}" for part in ("fields", "blend", "frame"))
        print(f"{name:32}" + "".join(f"{column:>14}" for column in columns))


if __name__ == "__main__":
    main()
