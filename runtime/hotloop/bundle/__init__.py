"""Bundles on disk: what lies in one, how its manifest seals it, and how it is described in words."""

from .bundle import BUILTIN, Bundle, Entry, builtin
from .manifest import BUILT_NEVER_RUN, CERTIFIED, SCHEMA_VERSION, seal_of, write_manifest

__all__ = [
    "BUILTIN", "BUILT_NEVER_RUN", "CERTIFIED", "SCHEMA_VERSION", "Bundle", "Entry", "builtin", "seal_of",
    "write_manifest",
]  # fmt: skip
