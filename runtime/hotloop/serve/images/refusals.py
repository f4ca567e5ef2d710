"""What a request is answered that is not drawn: THE closed table. No other words leave the server.

A row is a code: the status, what is said, and the outcome that it counts as. `{rule}` is a rule of the table of request
fields, which says what may be given and never what was found: no exception's text, no path, no address.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["REFUSALS", "Refusal"]


class _Row(NamedTuple):
    status: int
    message: str
    outcome: str


REFUSALS: dict[str, _Row] = {
    "invalid_body": _Row(400, "the body must be what the route's schema says: {rule}", "invalid"),
    "invalid_value": _Row(422, "{rule}", "invalid"),
    "invalid_picture": _Row(422, "a picture must be a whole PNG, JPEG or WebP of one frame within limits", "invalid"),
    "url_refused": _Row(422, "pictures must come with the request, in base64: no address is opened", "invalid"),
    "unknown_model": _Row(404, "there is no model of this name; the list of models tells them", "invalid"),
    "unknown_lora": _Row(404, "there is no LoRA of this name; the capabilities tell them", "invalid"),
    "invalid_lora": _Row(422, "a LoRA must be one that fits this model and its engine", "invalid"),
    "unknown_job": _Row(404, "there is no such job, or no longer", "invalid"),
    "not_found": _Row(404, "there is nothing here", "invalid"),
    "method_not_allowed": _Row(405, "this route has other methods", "invalid"),
    "too_large": _Row(413, "the body has more bytes than the limits allow", "invalid"),
    "unsupported_media": _Row(415, "the content type must be the one that the route's schema says", "invalid"),
    "body_timeout": _Row(408, "the body did not come in time", "invalid"),
    "unauthorized": _Row(401, "a token is needed: Authorization: Bearer, or Basic with it as the password", "invalid"),
    "forbidden": _Row(403, "this name of the server, or this page, may not ask here", "invalid"),
    "rate_limited": _Row(429, "too many wrong tokens: wait a minute", "limited"),
    "too_many": _Row(429, "too many jobs or streams are kept: end one first", "limited"),
    "overloaded": _Row(503, "the queue is full: ask again after Retry-After seconds", "overloaded"),
    "draining": _Row(503, "the server is ending: ask another one", "draining"),
    "worker_lost": _Row(503, "the worker fell while it drew this: ask again", "lost"),
    "unavailable": _Row(503, "no worker runs: its log says why", "lost"),
    "out_of_memory": _Row(503, "there was too little memory for this", "failed"),
    "expired": _Row(504, "the request's time was over", "expired"),
    "cancelled": _Row(409, "it was cancelled", "cancelled"),
    "non_finite_output": _Row(500, "the model made no finite picture of this", "failed"),
    "internal": _Row(500, "this could not be done; the log tells more under the request's id", "failed"),
}

# What a rule may be made of; anything else is not said.
_PLAIN = re.compile(r"[\w ,.;:()<>=+\-*|'\"\[\]{}?%…`^]*", re.ASCII)
_ADDRESS = re.compile(r"0x[0-9a-f]{4,}", re.I)


class Refusal(Exception):
    """code: a row of the table; rule: what stands in its message; param: the field it is about; retry: seconds until it
    is worth asking again; again: whether asking again, here, makes sense."""

    def __init__(
        self, code: str, rule: str = "", *, param: str | None = None, retry: int | None = None, again: bool = True
    ) -> None:
        self.code, self.param, self.retry, self.again = code, param, retry, again
        row = REFUSALS[code]
        said = rule if _PLAIN.fullmatch(rule) and not _ADDRESS.search(rule) else "a value is out of its range"
        self.status, self.outcome = row.status, row.outcome
        self.message = row.message.replace("{rule}", said[:300])
        super().__init__(code)

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry is None else {"Retry-After": str(self.retry)}
        headers |= {} if self.again else {"x-should-retry": "false"}
        # What still comes of the body is not waited for.
        return headers | ({"Connection": "close"} if self.status in (408, 413) else {})
