"""Fused operators of the hot loop, on arrays of numpy, torch and cupy.

Each `<op>.py` holds the reference and the public function; the public function uses the compiled operator where the
install could build it.
"""

from . import rgb
from .attention import attention
from .backend import build_info, compiled, proved, set_threads, threads
from .cfg_step import cfg_step
from .checks import KernelError
from .cores import affinity, quota, usable_cores
from .formula import formula
from .geglu import geglu
from .group_norm_silu import group_norm_silu
from .layer_norm import layer_norm
from .warp_blend import warp_blend

# Those with CUDA sources, as `proved` names them.
OPERATORS = (
    "attention", "cfg_step", "geglu", "group_norm_silu", "layer_norm", "rgb.pack", "rgb.unpack", "warp_blend",
)  # fmt: skip

__all__ = [
    "OPERATORS", "KernelError", "affinity", "attention", "build_info", "cfg_step", "compiled", "formula", "geglu",
    "group_norm_silu", "layer_norm", "proved", "quota", "rgb", "set_threads", "threads", "usable_cores",
    "warp_blend",
]  # fmt: skip
