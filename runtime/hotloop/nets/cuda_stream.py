"""The CUDA stream that torch is on, for operators that are not torch's."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stream_of"]


def stream_of(tensor: Tensor) -> int | None:
    """As a number; None on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None
