"""Every name a weight is known by, and the one we use: diffusers' for UNet and VAE, transformers' for CLIP.

Checkpoints of one model family differ in names far more than in content. Each function here takes the names a file
holds and returns a table, our name -> where it comes from (`From`); names that are not weights are left out, and a
name that fits no layout is an error. Nothing here reads a tensor: `Weights.view(table)` applies a table lazily.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["From"]


class From(NamedTuple):
    """Where a tensor comes from: a name in the file, maybe one of several equal blocks of rows, maybe a flat matrix.

    part, of   the rows [part/of, (part+1)/of) of the stored tensor: (1, 3) is K of a fused Q, K, V
    matrix     a 1x1 convolution [out, in, 1, 1] is read as the matrix [out, in] it is; a matrix stays one
    """

    key: str
    part: int = 0
    of: int = 1
    matrix: bool = False
