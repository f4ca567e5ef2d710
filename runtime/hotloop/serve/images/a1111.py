"""AUTOMATIC1111's `/sdapi/v1`: what its clients send, as requests of the one table, and answers in its shape."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import a1111_lists as lists
from . import documents
from .a1111_fields import Translated, translated
from .asking import Asked
from .bodies import read_bytes, read_json
from .ledger import Drawn, Ticket
from .pictures import base64_picture, encoded
from .refusals import Refusal

if TYPE_CHECKING:
    from .part import Images

__all__ = ["A1111"]

ERRORS: dict[str, Any] = {
    "type": "object", "required": ["error", "detail", "body", "errors"], "properties": {
        name: {"type": "string"} for name in ("error", "detail", "body", "errors")},
}  # fmt: skip
ANSWER: dict[str, Any] = {
    "type": "object", "required": ["images", "parameters", "info"], "properties": {
        "images": {"type": "array", "items": {"type": "string"}}, "parameters": {"type": "object"},
        "info": {"type": "string"}},
}  # fmt: skip
_MOST_OPTIONS = 1024


class A1111:
    """options: what POST /options has set; it acts where a request says nothing else."""

    name = "a1111"
    paths: tuple[str, ...] = ("/sdapi/",)
    statuses: Mapping[int, int] = MappingProxyType({})

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def refused(self, refusal: Refusal) -> Any:
        return {"error": refusal.code, "detail": refusal.message, "body": "", "errors": refusal.message}

    def add(self, part: Images, app: FastAPI) -> None:
        self.options = lists.options(part)
        limits, said, root = part.settings.limits, documents.described, "/sdapi/v1/"

        def drawing(edits: bool) -> Any:
            async def work(ticket: Ticket, request: Request) -> Response:
                given = await read_json(request, limits)
                told = translated(part, given, self.options, edits=edits)
                return await self._answer(part, ticket, request, given, told)

            return part.drawing(self, work)

        for name, edits in (("txt2img", False), ("img2img", True)):
            app.add_api_route(root + name, drawing(edits), methods=["POST"], name=f"A1111's {name}", **said(
                ERRORS, body=documents.ANY, answer=ANSWER, draws=True, codes=("unknown_model",)))  # fmt: skip

        async def get_options(request: Request) -> Response:
            chosen = lists.bundle_of(part, self.options["sd_model_checkpoint"])
            return JSONResponse({**self.options, "sd_model_checkpoint": lists.title(part, chosen)})

        async def set_options(request: Request) -> Response:
            self._set(part, await read_json(request, limits))
            return JSONResponse(None)

        async def progress(request: Request) -> Response:
            return JSONResponse(_progress(part))

        async def interrupt(request: Request) -> Response:
            _interrupt(part)
            return JSONResponse({})

        async def skip(request: Request) -> Response:
            _interrupt(part)
            return JSONResponse(None)

        async def png_info(request: Request) -> Response:
            return JSONResponse(await _png_info(part, await read_json(request, limits)))

        async def enlarged(request: Request) -> Response:
            given = await read_json(request, limits)
            picture = await lists.resized(part, given, given.get("image"))
            return JSONResponse({"html_info": "", "image": picture})

        async def all_enlarged(request: Request) -> Response:
            given = await read_json(request, limits)
            files = given.get("imageList")
            if not isinstance(files, list) or not 0 < len(files) <= limits.pictures:
                rule = f"imageList must have 1 to {limits.pictures} pictures"
                raise Refusal("invalid_value", rule, param="imageList")
            made = [
                await lists.resized(part, given, one.get("data") if isinstance(one, dict) else None) for one in files
            ]
            return JSONResponse({"html_info": "", "images": made})

        async def interrogate(request: Request) -> Response:
            await read_bytes(request, limits)
            raise Refusal("invalid_value", "there is no network here that tells what a picture shows")

        async def refresh(request: Request) -> Response:
            return JSONResponse(None)

        def plain(path: str, work: Any, method: str = "GET", **told: Any) -> None:
            app.add_api_route(root + path, part.plain(self, work), methods=[method], name=f"A1111's {path} {method}",
                              **said(ERRORS, answer={}, **told))  # fmt: skip

        for path, made in lists.LISTS.items():
            plain(path, lists.listed(part, made))
        taken = {"body": documents.ANY, "codes": ("invalid_value", "too_large", "unsupported_media", "body_timeout")}
        for path, work in (("options", get_options), ("progress", progress)):
            plain(path, work)
        for path, work in (("interrupt", interrupt), ("skip", skip), ("refresh-checkpoints", refresh)):
            plain(path, work, "POST")
        for path, work in (("options", set_options), ("png-info", png_info), ("extra-single-image", enlarged),
                           ("extra-batch-images", all_enlarged), ("interrogate", interrogate)):  # fmt: skip
            plain(path, work, "POST", **taken)

    async def _answer(
        self, part: Images, ticket: Ticket, request: Request, given: Mapping[str, Any], told: Translated
    ) -> Response:  # fmt: skip
        asked = part.names.ask(
            told.pipeline, told.bundle, told.values, told.pictures, loras=told.loras, fill=told.fill,
            warnings=told.warnings,
        )  # fmt: skip
        parameters = {**given, "init_images": None, "mask": None} if "init_images" in given else dict(given)
        try:
            drawn = await part.drawn(ticket, asked, request)
        except Refusal as refusal:
            if refusal.code != "cancelled":
                raise
            # Interrupted: this protocol's clients expect an answer.
            ticket.end("cancelled", 200)
            ticket.kept = True
            nothing = Drawn([], [], {}, {}, [])
            info = _info(part, asked, told, nothing) | {"interrupted": True}
            return JSONResponse({"images": [], "parameters": parameters, "info": json.dumps(info)})
        info = _info(part, asked, told, drawn)
        images = []
        if given.get("send_images", True):
            for picture, text in zip(drawn.pictures, info["infotexts"], strict=True):
                data = await asyncio.to_thread(encoded, picture, "png", None, {"parameters": text})
                images.append(base64.b64encode(data).decode())
        if given.get("include_init_images") and isinstance(given.get("init_images"), list):
            parameters["init_images"] = given["init_images"]
        return JSONResponse({"images": images, "parameters": parameters, "info": json.dumps(info)})

    def _set(self, part: Images, given: dict[str, Any]) -> None:
        """Clients send the whole object back: what is not known is kept, and does nothing. Raises Refusal."""
        plain = (str, int, float, bool, type(None))
        changed = {
            name: value for name, value in given.items()
            if isinstance(value, plain) and len(name) <= 128 and len(str(value)) <= 2048
        }  # fmt: skip
        if changed.get("sd_model_checkpoint") is not None:
            changed["sd_model_checkpoint"] = lists.title(part, lists.bundle_of(part, changed["sd_model_checkpoint"]))
        if len({*self.options, *changed}) <= _MOST_OPTIONS:
            self.options |= changed


def _interrupt(part: Images) -> None:
    """Of this protocol's requests alone: other clients' jobs are theirs."""
    for ticket in [one for one in part.ledger.open if one.family == A1111.name]:
        part.pool.leave(ticket, Refusal("cancelled"))


def _progress(part: Images) -> dict[str, Any]:
    mine = sorted((one for one in part.ledger.open if one.family == A1111.name), key=lambda one: one.begun)
    running = next((one for one in mine if one.place == "running"), None)
    row, rows, step, steps = (0, 0, 0, 0) if running is None else running.progress[:4]
    share = row / rows if rows else 0.0
    spent = 0.0 if running is None else time.monotonic() - running.times["running"]
    stamp = "" if running is None else time.strftime("%Y%m%d%H%M%S")
    return {
        "progress": share, "eta_relative": spent / share - spent if share else 0.0, "current_image": None,
        "textinfo": None, "state": {
            "skipped": False, "interrupted": False, "stopping_generation": False,
            "job": "" if running is None else "txt2img", "job_count": len(mine), "job_timestamp": stamp, "job_no": 0,
            "sampling_step": step, "sampling_steps": steps},
    }  # fmt: skip


async def _png_info(part: Images, given: dict[str, Any]) -> dict[str, Any]:
    picture = base64_picture(given.get("image"), part.settings.limits, "image")
    items = await asyncio.to_thread(lists.texts_of, picture.data)
    return {"info": items.get("parameters", ""), "items": items, "parameters": {}}


def _info(part: Images, asked: Asked, told: Translated, drawn: Drawn) -> dict[str, Any]:
    settled, n = asked.settled, len(drawn.seeds)
    prompt, negative = str(told.prompt), str(told.negative)
    digest = part.names.bundles[asked.bundle]["id"][:10]
    first = drawn.seeds[0] if drawn.seeds else asked.seeds[0]
    width, height = drawn.pictures[0][:2] if drawn.pictures else asked.size
    scale = float(settled["guidance_scale"])
    strength = settled.get("strength", settled.get("hires_strength"))

    def infotext(seed: int) -> str:
        lines = [prompt, *([f"Negative prompt: {negative}"] if negative else [])]
        facts = {
            "Steps": settled["num_inference_steps"], "Sampler": told.sampler, "Schedule type": told.scheduler,
            "CFG scale": f"{scale:g}", "Seed": seed, "Size": f"{width}x{height}", "Model hash": digest,
            "Model": asked.bundle, **({"Denoising strength": strength} if strength is not None else {}),
            "Version": f"hotloop {lists.VERSION}",
        }  # fmt: skip
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])

    return {
        "prompt": prompt, "all_prompts": [prompt] * n, "negative_prompt": negative,
        "all_negative_prompts": [negative] * n, "seed": first, "all_seeds": drawn.seeds, "subseed": first,
        "all_subseeds": drawn.seeds, "subseed_strength": 0, "width": width, "height": height,
        "sampler_name": told.sampler, "cfg_scale": scale, "steps": settled["num_inference_steps"], "batch_size": n,
        "restore_faces": False, "face_restoration_model": None, "sd_model_name": asked.bundle, "sd_model_hash": digest,
        "sd_vae_name": None, "sd_vae_hash": None, "seed_resize_from_w": -1, "seed_resize_from_h": -1,
        "denoising_strength": strength, "extra_generation_params": {}, "index_of_first_image": 0,
        "infotexts": [infotext(seed) for seed in drawn.seeds], "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"), "clip_skip": settled["clip_skip"] + 1,
        "is_using_inpainting_conditioning": False, "version": f"hotloop {lists.VERSION}",
        "warnings": [*asked.warnings, *drawn.warnings],
    }  # fmt: skip
