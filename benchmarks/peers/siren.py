"""The student of Talking Head Anime 4 as published, for its time alone: its weights here are random.

Khungurn 2025, "Talking Head Anime 4: Distillation for Real-Time Performance": two SIRENs (Sitzmann et al. 2020) see
every pixel's position and the pose, and give a picture. Face: 8 layers of 128 on a 128 px patch. Body: two layers each
of 360 at 128 px, 180 at 256 and 90 at 512, every level beside the enlarged features of the one before it; then flow,
mask and colour, by which the character's picture is warped. 37.9 GFLOP a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["FLOPS", "student"]

_FACE_POSE, _POSE = 39, 45
_FACE = (128, 128, 8)  # pixels, width, layers
_BODY = ((128, 360), (256, 180), (512, 90))
_LAYERS = 2  # a level
_OUT = 7  # flow 2, mask 1, colour 4
_OMEGA = 30.0


def _flops() -> int:
    size, width, layers = _FACE
    face = size * size * ((2 + _FACE_POSE) * width + (layers - 1) * width * width + 4 * width)
    body, before = 0, 0
    for pixels, width in _BODY:
        body += pixels * pixels * ((before + 2 + _POSE) * width + (_LAYERS - 1) * width * width)
        before = width
    return 2 * (face + body + _BODY[-1][0] ** 2 * before * _OUT)


FLOPS = _flops()


def student(threads: int, *, precision: str = "f32", sine: bool = True) -> Callable[[], np.ndarray]:
    """A frame float32 [4, 512, 512] of changing poses, by OpenVINO. sine=False: with a rectifier in the sine's place,
    where OpenVINO has no fast one: the least that any runtime would have to do."""
    import openvino as ov
    from openvino import opset14 as op

    rng = np.random.default_rng(0)

    def layer(x: Any, before: int, after: int, *, last: bool = False) -> Any:
        scale = np.sqrt(6 / before) / _OMEGA
        weights = rng.uniform(-scale, scale, (after, before, 1, 1)).astype(np.float32)
        made = op.convolution(x, op.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])
        made = op.add(made, op.constant(rng.uniform(-scale, scale, (1, after, 1, 1)).astype(np.float32)))
        if last:
            return made
        return op.sin(op.multiply(made, np.float32(_OMEGA))) if sine else op.relu(made)

    def places(size: int, pose: Any, count: int) -> Any:
        """[1, 2 + count, size, size]: every pixel's position, and the pose beside it."""
        along = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
        grid = np.stack(np.meshgrid(along, along))[None]
        spread = op.broadcast(pose, np.array([1, count, size, size]))
        return op.concat([op.constant(grid), spread], 1)

    face_pose = op.parameter([1, _FACE_POSE, 1, 1], np.float32)
    pose = op.parameter([1, _POSE, 1, 1], np.float32)
    texture = op.parameter([1, 4, 512, 512], np.float32)

    size, width, layers = _FACE
    face, channels = places(size, face_pose, _FACE_POSE), 2 + _FACE_POSE
    for _ in range(layers):
        face, channels = layer(face, channels, width), width
    face = layer(face, channels, 4, last=True)

    features: Any = None
    before = 0
    for pixels, width in _BODY:
        seen = places(pixels, pose, _POSE)
        channels = 2 + _POSE
        if features is not None:
            sides, axes = np.array([pixels, pixels]), np.array([2, 3])
            features = op.interpolate(features, sides, "linear_onnx", "sizes", axes=axes)
            seen, channels = op.concat([features, seen], 1), channels + before
        for _ in range(_LAYERS):
            seen, channels = layer(seen, channels, width), width
        features, before = seen, width
    out = layer(features, channels, _OUT, last=True)

    # The patch is put into the picture, which is warped and blended with the colour.
    padded = op.pad(face, np.array([0, 0, 64, 192]), np.array([0, 0, 320, 192]), "constant", np.float32(0))
    along = ((np.arange(512) + 0.5) / 256 - 1).astype(np.float32)
    still = np.stack(np.meshgrid(along, along), -1)[None]
    flow = op.transpose(op.slice(out, *map(np.array, ([0], [2], [1], [1]))), np.array([0, 2, 3, 1]))
    linear = {"align_corners": False, "mode": "bilinear", "padding_mode": "border"}
    moved = op.grid_sample(op.add(texture, padded), op.add(flow, still), linear)
    mask = op.sigmoid(op.slice(out, *map(np.array, ([2], [3], [1], [1]))))
    colour = op.slice(out, *map(np.array, ([3], [7], [1], [1])))
    picture = op.add(moved, op.multiply(mask, op.subtract(colour, moved)))

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Model([picture], [face_pose, pose, texture], "siren")
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(2, ov.Tensor(rng.uniform(0, 1, (1, 4, 512, 512)).astype(np.float32)))

    def run() -> np.ndarray:
        for i, count in enumerate((_FACE_POSE, _POSE)):
            request.set_input_tensor(i, ov.Tensor(rng.uniform(0, 1, (1, count, 1, 1)).astype(np.float32)))
        request.infer()
        made: np.ndarray = request.get_output_tensor().data[0]
        return made

    return run
