"""Bundles on disk: what lies in one, how it is sealed, and how it is described in words."""

from .bundle import (
    BUILT_NEVER_RUN,
    CERTIFIED,
    SCHEMA_VERSION,
    Bundle,
    Entry,
    builtin,
    seal_of,
    write_manifest,
)

__all__ = [
    "BUILT_NEVER_RUN",
    "CERTIFIED",
    "SCHEMA_VERSION",
    "Bundle",
    "Entry",
    "builtin",
    "seal_of",
    "write_manifest",
]
