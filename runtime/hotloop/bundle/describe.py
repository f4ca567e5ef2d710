"""A bundle in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .bundle import Bundle, Entry

__all__ = ["certificate_line", "describe"]


def describe(bundle: Bundle) -> Iterator[str]:
    """Lines: what the model is, what it was made of, what can run it and how faithfully."""
    manifest, family = bundle.manifest, bundle.family
    width, height = family.default_size
    yield f"{family.name}, {width} x {height}, {family.summary}, id {bundle.id[:12]}"
    for source in manifest["sources"]:
        scale = f" x {source['scale']:g}" if "scale" in source else ""
        yield f"  {source.get('role', 'file'):<14}{source.get('name', '?')}{scale}  {source.get('sha256', '')[:12]}"
    sizes = {name: bundle.file(name).stat().st_size for name in manifest["files"]}
    for name, entry in manifest["weights"].items():
        yield f"  weights       {name}, {_size(sizes.get(entry['path'], 0))}"
    for entry in bundle.entries:
        own = {network["path"] for network in entry.networks.values()}
        yield f"{entry.name}: {', '.join(_facts(entry))}, {_size(sum(sizes.get(path, 0) for path in own))}"
        if entry.certificate.get("networks"):
            yield f"  {certificate_line(entry.certificate)}"
    defaults = ", ".join(f"{key} {value}" for key, value in bundle.defaults.items())
    made = ", ".join(f"{tool} {version}" for tool, version in manifest.get("made_with", {}).items())
    if defaults:
        yield f"defaults: {defaults}"
    yield f"made with: {made}"
    yield f"{len(sizes)} files, {_size(sum(sizes.values()))}, all as sealed"


def _facts(entry: Entry) -> Iterator[str]:
    yield entry.status
    yield f"weights {entry.storage}"
    others = {name: network["precision"] for name, network in entry.networks.items() if "precision" in network}
    for precision in sorted(set(others.values()) - {entry.precision}):
        yield f"{' '.join(sorted(name for name in others if others[name] == precision))} in {precision}"
    if entry.rewrites:
        yield "rewrites " + " ".join(entry.rewrites)
    if entry.groups:
        yield "inputs for " + " ".join(entry.groups)
    if entry.grid > 1:
        yield f"sizes in steps of {entry.grid}"
    if entry.target != "any":
        yield f"for {entry.target}"


def certificate_line(certificate: Mapping[str, Any]) -> str:
    """The figures of a certificate: largest |difference| and cosine per network, PSNR, and attributes drawn right."""
    parts = [
        f"{name} {figures['max_abs']:.1e} cos {figures['cosine']:.6f}"
        for name, figures in certificate["networks"].items()
    ]
    parts.append("images " + " ".join(f"{value:.1f}" for value in certificate["psnr"]) + " dB")
    if attributes := certificate.get("attributes"):
        parts.append(f"attributes {attributes['before']:.3f} -> {attributes['after']:.3f}")
    return "; ".join(parts)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
