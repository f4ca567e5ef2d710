"""Fused operators of the hot loop, on arrays of numpy, torch and cupy.

Each `<op>.py` holds the reference and the public function; the public function uses the compiled operator where the
install could build it.
"""

from . import rgb
from .backend import build_info, compiled, proved, set_threads, threads
from .cfg_step import cfg_step
from .checks import KernelError

__all__ = ["KernelError", "build_info", "cfg_step", "compiled", "proved", "rgb", "set_threads", "threads"]
