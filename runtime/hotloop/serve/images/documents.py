"""What /openapi.json says of routes that read their bodies themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .refusals import REFUSALS
from .settings import LONGEST

__all__ = ["ANY", "described"]

ANY: dict[str, Any] = {"type": "object"}
_DRAWING = (
    "invalid_body", "unauthorized", "forbidden", "unknown_model", "body_timeout", "cancelled", "too_large",
    "unsupported_media", "invalid_value", "rate_limited", "internal", "overloaded", "expired",
)  # fmt: skip
_PLAIN = ("invalid_body", "unauthorized", "forbidden", "rate_limited", "internal")


def described(
    errors: Mapping[str, Any], *, body: Mapping[str, Any] | None = None, kind: str = "application/json",
    answer: Mapping[str, Any] | None = None, answers: str = "application/json", status: int = 200, draws: bool = False,
    codes: Iterable[str] = (), statuses: Mapping[int, int] | None = None, names: Iterable[str] = (),
    nothing: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Arguments for a route of FastAPI's.

    errors  the schema of what is refused; codes: refusals beside the usual; statuses: where this protocol has others
    body    the schema of the request, of content type `kind`; answer: that of a good answer; nothing: it has no body
    draws   it draws pictures; names: parameters of its path
    """
    extra: dict[str, Any] = {}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": {kind: {"schema": body}}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if draws:
        parameters.append({"name": "x-request-timeout-seconds", "in": "header", "required": False,
                           "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST}})  # fmt: skip
    if parameters:
        extra["parameters"] = parameters
    good: dict[str, Any] = {"description": "done"}
    if not nothing:
        good["content"] = {answers: {"schema": ANY if answer is None else answer}}
    responses: dict[int | str, dict[str, Any]] = {status: good}
    for code in (*(_DRAWING if draws else _PLAIN), *codes):
        number = REFUSALS[code].status
        number = (statuses or {}).get(number, number)
        responses.setdefault(number, {"description": code, "content": {"application/json": {"schema": errors}}})
    return {"openapi_extra": extra, "responses": responses, "response_model": None, "status_code": status}
