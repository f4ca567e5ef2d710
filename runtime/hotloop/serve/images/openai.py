"""OpenAI's routes for pictures, and the same below /v3, where a mask's white is repainted (OpenVINO Model Server's)."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...fields import Flag, Integer, Number, Options, Seed
from . import documents
from .asking import ALIASES, Asked, body_schema, carried, enlarged, without_unknown
from .bodies import read_form, read_json
from .events import event, progress_of
from .ledger import Drawn, Ticket
from .native import LORAS, OUTPUT, QUALITY, output_of, renamed
from .pictures import Picture, encoded, look
from .refusals import Refusal

if TYPE_CHECKING:
    from .part import Images

__all__ = ["OpenAI"]

_IGNORED = ("background", "quality", "style", "moderation", "user", "safety_identifier", "input_fidelity")
_OWN = ("prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "stream",
        "partial_images", "loras")  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_FORMS: dict[type, Any] = {Integer: int, Seed: int, Number: float}
ERRORS: dict[str, Any] = {
    "type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"], "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": "string"}}}},
}  # fmt: skip
ANSWER: dict[str, Any] = {
    "type": "object", "required": ["created", "data"], "properties": {
        "created": {"type": "integer"}, "data": {"type": "array", "items": {
            "type": "object", "required": ["b64_json"], "properties": {"b64_json": {"type": "string"}}}}},
}  # fmt: skip


class OpenAI:
    name = "openai"
    paths: tuple[str, ...] = ("/v1/images", "/v1/models", "/v3/")
    # This protocol has 400 for values out of range, and its clients ask again after 409.
    statuses: Mapping[int, int] = MappingProxyType({422: 400, 409: 400})

    def refused(self, refusal: Refusal) -> Any:
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(refusal.status)
        kind = kind or ("server_error" if refusal.status >= 500 else "invalid_request_error")
        return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}

    def add(self, part: Images, app: FastAPI) -> None:
        for root in ("/v1", "/v3"):
            self._below(root, part, app)

    def _below(self, root: str, part: Images, app: FastAPI) -> None:
        limits, said, route = part.settings.limits, documents.described, app.add_api_route
        statuses = self.statuses

        async def generations(ticket: Ticket, request: Request) -> Response:
            given = await read_json(request, limits)
            return await self._answer(part, ticket, request, given, "txt2img", {})

        async def edits(ticket: Ticket, request: Request) -> Response:
            texts, files = await read_form(request, limits)
            pipeline, pictures = _pictures(files, texts, part, white=root == "/v3")
            return await self._answer(part, ticket, request, _numbers(texts, pipeline), pipeline, pictures)

        async def models(request: Request) -> Response:
            return JSONResponse({"object": "list", "data": [_model(name, part) for name in part.names.bundles]})

        async def model(request: Request) -> Response:
            return JSONResponse(_model(part.names.bundle(request.path_params["id"]), part))

        drawing = partial(part.drawing, self)
        at = f"{root}/images"
        route(
            f"{at}/generations",
            drawing(generations),
            methods=["POST"],
            name=f"{root} generations",
            **said(ERRORS, body=_schema(part, "txt2img"), answer=ANSWER, draws=True, statuses=statuses),
        )
        route(
            f"{at}/edits",
            drawing(edits),
            methods=["POST"],
            name=f"{root} edits",
            **said(
                ERRORS,
                body=_form_schema(part),
                kind="multipart/form-data",
                answer=ANSWER,
                draws=True,
                statuses=statuses,
            ),
        )
        route(f"{root}/models", part.plain(self, models), methods=["GET"], name=f"{root} models", **said(ERRORS))
        route(f"{root}/models/{{id}}", part.plain(self, model), methods=["GET"], name=f"{root} model", **said(
            ERRORS, names=("id",), codes=("unknown_model",)))  # fmt: skip

    async def _answer(
        self, part: Images, ticket: Ticket, request: Request, given: Mapping[str, Any], pipeline: str,
        pictures: Mapping[str, Picture],
    ) -> Response:  # fmt: skip
        table = carried(pipeline).keys() - {"image", "mask_image"}
        told, warnings = without_unknown(
            given, {*_OWN, *table, *ALIASES}, strict=part.settings.strict, ignored=_IGNORED
        )
        if told.get("response_format") not in (None, "b64_json"):
            raise Refusal("invalid_value", "response_format must be b64_json", param="response_format")
        kind, quality = output_of(told)
        stream, partials, n = (told.get(name) for name in ("stream", "partial_images", "n"))
        if stream not in (None, True, False):
            raise Refusal("invalid_value", "stream must be true or false", param="stream")
        for name, value, least, most in (("partial_images", partials, 0, 3), ("n", n, 1, part.settings.limits.images)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)
                                      or not least <= value <= most):  # fmt: skip
                raise Refusal("invalid_value", f"{name} must be an integer in {least}..{most}", param=name)
        values = renamed(
            {name: one for name, one in told.items() if name not in _OWN or name in ("prompt", "n")}, pipeline
        )
        values |= _sides(told.get("size"), values)
        bundle = part.names.bundle(told.get("model"))
        asked = part.names.ask(
            pipeline, bundle, values, pictures, loras=told.get("loras"), warnings=warnings,
            partials=(partials or 0) if stream else 0,
        )  # fmt: skip
        event_name = "image_generation" if pipeline == "txt2img" else "image_edit"
        if stream:
            events = self._events(ticket, asked, event_name, kind, quality)
            part.enter(ticket, asked)
            return part.stream(ticket, events)
        drawn = await part.drawn(ticket, asked, request)
        data = [
            {"b64_json": await _base64(one, kind, quality), "revised_prompt": None, "seed": seed}
            for one, seed in zip(drawn.pictures, drawn.seeds, strict=True)
        ]
        return JSONResponse({
            "created": int(time.time()), "data": data, **_facts(asked, kind, drawn), "usage": _usage(),
            "warnings": [*asked.warnings, *drawn.warnings],
        })  # fmt: skip

    async def _events(
        self, ticket: Ticket, asked: Asked, name: str, kind: str, quality: int | None
    ) -> AsyncIterator[bytes]:  # fmt: skip
        facts = _facts(asked, kind)
        async for progress in progress_of(ticket):
            if progress.picture is not None:
                told = {"type": f"{name}.partial_image", "b64_json": await _base64(progress.picture, kind, quality),
                        "partial_image_index": progress.nth, "created_at": int(time.time()), **facts}  # fmt: skip
                yield event(told["type"], told)
        try:
            drawn = ticket.drawn.result()
            for one in drawn.pictures:
                told = {"type": f"{name}.completed", "b64_json": await _base64(one, kind, quality),
                        "created_at": int(time.time()), **facts, "usage": _usage()}  # fmt: skip
                yield event(told["type"], told)
            ticket.end("completed", 200)
        except Refusal as refusal:
            yield event("error", {"type": "error", **self.refused(refusal)})
            ticket.end(refusal.outcome, refusal.status)


def _pictures(
    files: list[tuple[str, bytes]], texts: dict[str, str], part: Images, *, white: bool
) -> tuple[str, dict[str, Picture]]:  # fmt: skip
    """The pipeline of an edit, and its pictures. white: of `mask`, white is repainted, else what is transparent."""
    for name in ("url", "image", "image[]", "mask", "mask_image", "image_url"):
        if name in texts:
            raise Refusal("url_refused", param=name.removesuffix("[]"))
    named: dict[str, list[bytes]] = {}
    for name, data in files:
        named.setdefault(name.removesuffix("[]") if name.startswith("image[") else name, []).append(data)
    if set(named) - {"image", "mask", "mask_image"} or any(len(one) > 1 for one in named.values()):
        raise Refusal("invalid_value", "image must be one file, mask or mask_image another", param="image")
    if "image" not in named:
        raise Refusal("invalid_value", "image must be given", param="image")
    if "mask" in named and "mask_image" in named:
        raise Refusal("invalid_value", "mask and mask_image must not both be given", param="mask")
    limits = part.settings.limits
    image = look(named["image"][0], limits, "image")
    if "mask" in named:
        mask = look(named["mask"][0], limits, "mask")
        if not white and not mask.alpha:
            rule = "mask must have an alpha channel: what is transparent is repainted (mask_image: what is white)"
            raise Refusal("invalid_value", rule, param="mask")
        return "inpaint", {"image": image, "mask_image": mask.as_mask("white" if white else "alpha", image, "mask")}
    if "mask_image" in named:
        mask = look(named["mask_image"][0], limits, "mask_image")
        return "inpaint", {"image": image, "mask_image": mask.as_mask("white", image, "mask_image")}
    return "img2img", {"image": image}


def _numbers(texts: Mapping[str, str], pipeline: str) -> dict[str, Any]:
    """A form's texts as JSON would have them."""
    kinds = carried(pipeline)
    given: dict[str, Any] = {}
    for name, text in texts.items():
        row = kinds.get(name) or kinds.get(ALIASES.get(name, name))
        kind = None if row is None else type(row)
        if name in ("n", "output_compression", "partial_images"):
            kind = Integer
        try:
            if kind is Flag or name == "stream":
                given[name] = {"true": True, "false": False}[text.lower()]
            elif kind is Options or name == "loras":
                given[name] = json.loads(text)
            elif kind in _FORMS:
                given[name] = _FORMS[kind](text)
            else:
                given[name] = text
        except (ValueError, KeyError, RecursionError):
            raise Refusal("invalid_value", f"{name} must be of its kind", param=name if row else None) from None
    return given


def _sides(size: Any, values: Mapping[str, Any]) -> dict[str, int]:
    if size is None or size == "auto":
        return {}
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise Refusal("invalid_value", 'size must be "auto" or "WIDTHxHEIGHT"', param="size")
    if "width" in values or "height" in values:
        raise Refusal("invalid_value", "size and width or height must not both be given", param="size")
    return {"width": int(found[1]), "height": int(found[2])}


def _facts(asked: Asked, kind: str, drawn: Drawn | None = None) -> dict[str, Any]:
    width, height = drawn.pictures[0][:2] if drawn else enlarged(asked)
    background = "transparent" if asked.settled["alpha"] and kind != "jpeg" else "opaque"
    return {"output_format": kind, "size": f"{width}x{height}", "quality": "high", "background": background}


def _usage() -> dict[str, Any]:
    """Nothing is billed here: tokens are not counted."""
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}  # fmt: skip


async def _base64(picture: tuple[int, int, bytes], kind: str, quality: int | None) -> str:
    data = await asyncio.to_thread(encoded, picture, kind, quality)
    return base64.b64encode(data).decode()


def _model(name: str, part: Images) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": part.started, "owned_by": "hotloop"}


def _schema(part: Images, pipeline: str) -> dict[str, Any]:
    limits = part.settings.limits
    free: dict[str, Any] = {name: {"type": ["string", "null"]} for name in _IGNORED}
    own = {
        "model": {"type": ["string", "null"]}, "n": {"type": ["integer", "null"], "minimum": 1,
                                                     "maximum": limits.images},
        "size": {"type": ["string", "null"], "pattern": "^(auto|[0-9]{1,5}x[0-9]{1,5})$"},
        "response_format": {"enum": ["b64_json", None]}, "output_format": {**OUTPUT, "default": "png"},
        "output_compression": QUALITY, "stream": {"type": ["boolean", "null"]}, "loras": LORAS,
        "partial_images": {"type": ["integer", "null"], "minimum": 0, "maximum": 3},
    }  # fmt: skip
    body = body_schema(pipeline, limits, names={**own, **free})
    body["properties"] = {name: one for name, one in body["properties"].items() if name not in ("image", "mask_image")}
    return {**body, "required": ["prompt"], "additionalProperties": not part.settings.strict}


def _form_schema(part: Images) -> dict[str, Any]:
    body = _schema(part, "inpaint")
    file = {"type": "string", "format": "binary"}
    files = {"image": file, "mask": file, "mask_image": file}
    return {**body, "properties": {**body["properties"], **files}, "required": ["prompt", "image"]}
