"""What AUTOMATIC1111's clients ask a server for beside pictures: lists, options, names, texts of a PNG."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__ as VERSION
from ...image.enlarge import A1111 as UPSCALERS
from ...samplers.names import resolve
from ..channel import resident
from .pictures import base64_picture, encoded
from .refusals import Refusal

if TYPE_CHECKING:
    from .part import Images

__all__ = ["LISTS", "SAMPLERS", "VERSION", "bundle_of", "listed", "options", "resized", "texts_of", "title"]

_NAMES = ("Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM++ 2M", "DPM++ 2M SDE", "DDIM", "DDPM", "PLMS", "UniPC", "LCM",
          "TCD")  # fmt: skip
# A1111's name -> ours.
SAMPLERS: Mapping[str, str] = {name: resolve(name)[0] for name in _NAMES}
_RESIZERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


def title(part: Images, bundle: str) -> str:
    """Before the first worker is there, the name alone."""
    facts = part.pool.facts
    return f"{bundle} [{facts[bundle]['id'][:10]}]" if bundle in facts else bundle


def bundle_of(part: Images, said: Any) -> str:
    """The bundle of a title, with or without its hash. Raises Refusal."""
    if isinstance(said, str) and said not in part.names.bundles:
        name, bracket, digest = said.partition(" [")
        if bracket and name in part.names.bundles and title(part, name) == said and digest:
            return name
    return part.names.bundle(said)


def options(part: Images) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": next(iter(part.paths)), "sd_checkpoint_hash": "", "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1, "samples_save": False, "samples_format": "png", "send_seed": True,
        "enable_pnginfo": True, "eta_noise_seed_delta": 0, "randn_source": "CPU",
    }  # fmt: skip


def _samplers(part: Images) -> Any:
    return [{"name": name, "aliases": [own], "options": {}} for name, own in SAMPLERS.items()]


def _schedulers(part: Images) -> Any:
    return [
        {"name": name, "label": name.title(), "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name in ("automatic", "karras", "exponential")
    ]


def _models(part: Images) -> Any:
    return [
        {"title": title(part, name), "model_name": name, "hash": facts["id"][:10], "sha256": facts["id"],
         "filename": name, "config": None} for name, facts in part.names.bundles.items()
    ]  # fmt: skip


def _upscalers(part: Images) -> Any:
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0} for name in _RESIZERS
    ]


def _loras(part: Images) -> Any:
    return [
        {"name": name, "alias": name, "path": path.name, "metadata": {}}
        for name, path in sorted(part.lora_paths.items())
    ]  # fmt: skip


def _memory(part: Images) -> Any:
    page, free, total = 1, 0, 0
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    used = resident() + sum(worker.supervisor.beat.get("rss", 0) for worker in part.pool.workers)
    return {"ram": {"free": free, "used": used, "total": total}, "cuda": {"error": "unavailable"}}


LISTS: Mapping[str, Callable[[Images], Any]] = {
    "samplers": _samplers, "schedulers": _schedulers, "sd-models": _models, "upscalers": _upscalers, "loras": _loras,
    "memory": _memory, "latent-upscale-modes": lambda part: [{"name": name} for name in UPSCALERS if "Latent" in name],
    "sd-vae": lambda part: [], "hypernetworks": lambda part: [], "face-restorers": lambda part: [],
    "realesrgan-models": lambda part: [], "prompt-styles": lambda part: [],
    "embeddings": lambda part: {"loaded": {}, "skipped": {}},
    "scripts": lambda part: {"txt2img": [], "img2img": []}, "script-info": lambda part: [],
    "cmd-flags": lambda part: {"api": True, "nowebui": True, "port": part.settings.port},
}  # fmt: skip


def listed(part: Images, made: Callable[[Images], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def work(request: Request) -> Response:
        return JSONResponse(made(part))

    return work


async def resized(part: Images, given: Mapping[str, Any], file: Any) -> str:
    """extra-single-image: a picture made larger by a filter, PNG in base64. Raises Refusal."""
    limits = part.settings.limits
    name = given.get("upscaler_1") or "None"
    second = given.get("upscaler_2", "None")
    if not isinstance(name, str) or name not in _RESIZERS or second not in ("None", None, "", name):
        raise Refusal("invalid_value", f"upscaler_1 must be one of {', '.join(_RESIZERS)}", param="upscaler_1")
    picture = base64_picture(file, limits, "image")
    if given.get("resize_mode", 0) == 1:
        size = [given.get(one) for one in ("upscaling_resize_w", "upscaling_resize_h")]
    else:
        factor = given.get("upscaling_resize", 2)
        fits = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 < factor <= 8
        size = [round(side * factor) if fits else None for side in picture.size]
    width, height = size
    for side in size:
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= 4 * limits.side:
            rule = f"upscaling_resize must leave sides in 1..{4 * limits.side}"
            raise Refusal("invalid_value", rule, param="upscaling_resize")
    resample = _RESIZERS[name]
    target = picture.size if resample is None else (width, height)
    try:
        data = await asyncio.to_thread(_resize, picture.data, target, resample)
    except Exception:  # a broken file fails in as many ways as there are decoders
        raise Refusal("invalid_picture", param="image") from None
    return base64.b64encode(data).decode()


def _resize(data: bytes, size: Any, resample: Any) -> bytes:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as file:
        image = file.convert("RGB")
    image = image if resample is None else image.resize(size, resample)
    return encoded((image.width, image.height, image.tobytes()), "png")


def texts_of(data: bytes) -> dict[str, str]:
    """Of a PNG: keyword -> text, within bounds."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        texts = [(str(name), value) for name, value in image.info.items() if isinstance(value, str)]
    return {name[:80]: value[:65_536] for name, value in texts[:64]}
