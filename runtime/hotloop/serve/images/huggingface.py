"""Hugging Face's inference route for text to image: `{inputs, parameters}` -> the bytes of a picture."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from . import documents
from .asking import ALIASES, body_schema, carried, without_unknown
from .bodies import read_json
from .ledger import Ticket
from .native import LORAS, renamed
from .pictures import FORMATS, encoded
from .refusals import Refusal

if TYPE_CHECKING:
    from .part import Images

__all__ = ["HuggingFace"]

ERRORS: dict[str, Any] = {
    "type": "object", "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}  # fmt: skip
_WARNINGS = "x-hotloop-warnings"


class HuggingFace:
    name = "huggingface"
    paths: tuple[str, ...] = ("/hf/",)
    statuses: Mapping[int, int] = MappingProxyType({})

    def refused(self, refusal: Refusal) -> Any:
        return {"error": refusal.message, "error_type": refusal.code}

    def add(self, part: Images, app: FastAPI) -> None:
        limits = part.settings.limits
        parameters = body_schema("txt2img", limits, names={"loras": LORAS})
        parameters = {**parameters, "required": [], "additionalProperties": not part.settings.strict}
        parameters["properties"] = {name: row for name, row in parameters["properties"].items() if name != "prompt"}
        body = {
            "type": "object", "required": ["inputs"],
            "properties": {"inputs": {"type": "string", "maxLength": limits.prompt}, "parameters": parameters},
        }  # fmt: skip

        async def draw(ticket: Ticket, request: Request) -> Response:
            given = await read_json(request, limits)
            parameters = given.get("parameters") or {}
            if not isinstance(given.get("inputs"), str) or not isinstance(parameters, dict):
                raise Refusal("invalid_value", "inputs must be text, and parameters an object", param="inputs")
            table = carried("txt2img").keys() - {"prompt"}
            told, warnings = without_unknown(
                parameters, {*table, *ALIASES, "loras"}, strict=part.settings.strict, ignored=("target_size",)
            )
            values = renamed({name: one for name, one in told.items() if name != "loras"}, "txt2img")
            values = {**values, "prompt": given["inputs"], "num_images_per_prompt": 1}
            bundle = part.names.bundle(request.path_params["model"])
            asked = part.names.ask("txt2img", bundle, values, loras=told.get("loras"), warnings=warnings)
            drawn = await part.drawn(ticket, asked, request)
            accepted = request.headers.get("accept", "")
            kind = next((kind for kind, (_, content) in FORMATS.items() if content in accepted), "png")
            data = await asyncio.to_thread(encoded, drawn.pictures[0], kind)
            headers = {"x-hotloop-seed": str(drawn.seeds[0])}
            if said := [*warnings, *drawn.warnings]:
                headers[_WARNINGS] = "; ".join(one.encode("ascii", "replace").decode() for one in said)[:1000]
            return Response(data, media_type=FORMATS[kind][1], headers=headers)

        app.add_api_route("/hf/models/{model}", part.drawing(self, draw), methods=["POST"], name="text to image",
                          **documents.described(ERRORS, body=body, answers="image/png", draws=True, names=("model",),
                                                answer={"type": "string", "format": "binary"}))  # fmt: skip
