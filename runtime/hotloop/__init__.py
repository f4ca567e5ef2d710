"""hotloop: a low-latency inference runtime for Stable Diffusion 1.x-class models.

    import hotloop

    pipe = hotloop.load()                      # the built-in model; or hotloop.load("path/to/bundle")
    result = pipe.txt2img("a smiling girl with purple hair and glasses", seed=7)
    result.images[0].save("face.png")

Importing this module loads nothing heavy: engines, networks and image code are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import telemetry
from .errors import BundleError, HotloopError, InputError, NonFiniteError, TruncationWarning

if TYPE_CHECKING:
    from . import samplers
    from .bundle import Bundle
    from .generator import Generator, load_generator
    from .pipeline import Pipeline, Result, load

__version__ = "0.1.0"
__all__ = [
    "Bundle",
    "BundleError",
    "Generator",
    "HotloopError",
    "InputError",
    "NonFiniteError",
    "Pipeline",
    "Result",
    "TruncationWarning",
    "__version__",
    "load",
    "load_generator",
    "samplers",
]

telemetry.switch_off()

_LAZY = {
    "Bundle": "bundle", "Generator": "generator", "Pipeline": "pipeline", "Result": "pipeline", "load": "pipeline",
    "load_generator": "generator", "samplers": "samplers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hotloop' has no attribute {name!r}")
    module = import_module(f".{_LAZY[name]}", __name__)
    return module if _LAZY[name] == name else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
