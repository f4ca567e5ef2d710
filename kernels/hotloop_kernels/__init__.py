"""Fused operators of the hot loop, on NumPy arrays.

Each `<op>.py` holds the reference and the public function; the public function uses the compiled operator where the
install could build it. Both give the same bits.
"""

from . import rgb
from .backend import build_info, compiled
from .cfg_step import cfg_step
from .checks import KernelError

__all__ = ["KernelError", "build_info", "cfg_step", "compiled", "rgb"]
