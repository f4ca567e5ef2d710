"""How many cores this process may keep busy: what its affinity allows, and the quota of its control groups."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

__all__ = ["affinity", "quota", "usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """min(affinity, quota), the quota rounded up: how many threads have a core to run on."""
    limit = quota(root)
    return affinity() if limit is None else max(1, min(affinity(), math.ceil(limit)))


def affinity() -> int:
    """Cores that the process may be put on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the process's control groups grant (docker's --cpus, a pod's limits); None: no limit.

    The smallest of the process's own group and all above it, of cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us). root:
    where `proc` and the mounts lie. Read once; what cannot be read sets no limit.
    """
    limits = []
    for version, folder, top in _groups(root):
        while True:
            if (limit := _limit(version, folder)) is not None:
                limits.append(limit)
            if folder == top:
                break
            folder = folder.parent
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[tuple[int, Path, Path]]:
    """(version, the process's folder, the mount it lies in) of each hierarchy that can limit processor time."""
    paths: dict[int, str] = {}
    for line in _lines(root / "proc/self/cgroup"):  # "0::/path" is v2's; "4:cpu,cpuacct:/path" is v1's
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif "cpu" in controllers.split(","):
            paths[1] = path
    for line in _lines(root / "proc/self/mountinfo"):
        mounted, _, kind = line.partition(" - ")
        fields, (system, *_, options) = mounted.split(), [*kind.split(), "", ""][:3]
        version = {"cgroup2": 2, "cgroup": 1 if "cpu" in options.split(",") else 0}.get(system, 0)
        if version in paths and len(fields) > 4:
            start, place = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), one) for one in fields[3:5])
            top = root / place.lstrip("/")
            yield version, top / _below(paths[version], start), top


def _below(path: str, start: str) -> PurePosixPath:
    """The group's path within a mount that shows the hierarchy from `start` on: itself where it shows no more."""
    group, shown = PurePosixPath(path), PurePosixPath(start)
    return PurePosixPath() if ".." in group.parts or not group.is_relative_to(shown) else group.relative_to(shown)


def _limit(version: int, folder: Path) -> float | None:
    try:
        if version == 2:
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(granted) / int(period)  # "max" and -1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
