"""The body of a request, read within its limits: bytes, time, depth of JSON, parts of a form."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .limits import Limits
from .refusals import Refusal

__all__ = ["Gone", "read_bytes", "read_form", "read_json"]

_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
_LARGE = 1 << 18  # bytes that are not gone through on the event loop
_MOST_DIGITS = 400


class Gone(Exception):
    """The client went away."""


async def read_bytes(request: Request, limits: Limits) -> bytes:
    """Raises Refusal, Gone."""
    said = request.headers.get("content-length", "0")
    if not said.isascii() or not said.isdigit() or len(said) > 18 or int(said) > limits.body:
        raise Refusal("too_large")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise Refusal("too_large")
                parts.append(part)
    except TimeoutError:
        raise Refusal("body_timeout") from None
    except ClientDisconnect:
        raise Gone from None
    return b"".join(parts)


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a body. Raises Refusal, Gone."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refusal("unsupported_media")
    data = await read_bytes(request, limits)
    if len(data) > _LARGE:
        return await asyncio.to_thread(_object, data, limits.depth)
    return _object(data, limits.depth)


def _object(data: bytes, depth: int) -> dict[str, Any]:
    deepest = now = 0
    for bracket in _BRACKETS.findall(_TEXTS.sub(b'""', data)):
        now += 1 if bracket in b"[{" else -1
        deepest = max(deepest, now)
    if deepest > depth:
        raise Refusal("invalid_body", f"JSON of at most {depth} levels")
    try:
        value = json.loads(data.decode(), parse_constant=_none, parse_int=_integer, parse_float=_finite)
        if "\\u" in data.decode():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Refusal("invalid_body", "JSON in UTF-8, of finite numbers") from None
    if not isinstance(value, dict):
        raise Refusal("invalid_body", "a JSON object")
    return value


def _none(name: str) -> Any:
    raise ValueError(name)


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


async def read_form(request: Request, limits: Limits) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """A multipart form: its texts, the last of a name, and its files in order. Raises Refusal, Gone."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal("unsupported_media")
    data = await read_bytes(request, limits)

    async def stream() -> AsyncGenerator[bytes, None]:
        for at in range(0, len(data), 1 << 16):
            yield data[at : at + (1 << 16)]
            await asyncio.sleep(0)

    parser = MultiPartParser(
        Headers({"content-type": kind}), stream(), max_files=limits.parts, max_fields=limits.parts,
        max_part_size=limits.body,
    )  # fmt: skip
    parser.spool_max_size = limits.body  # it is in memory already: nothing of it is written to a disk
    try:
        form: FormData = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError):
        raise Refusal("invalid_body", f"a multipart form of at most {limits.parts} fields and files") from None
    texts, files = dict[str, str](), list[tuple[str, bytes]]()
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((name, await value.read()))
            elif "\ufffd" in value or "\0" in name:
                raise Refusal("invalid_body", "a multipart form in UTF-8")
            else:
                value.encode()
                texts[name] = value
    except UnicodeError:
        raise Refusal("invalid_body", "a multipart form in UTF-8") from None
    finally:
        await form.close()
    return texts, files
