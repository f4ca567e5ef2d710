"""A line of JSON for each request that has ended: what it was and how long it took, no words or pictures of it."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from typing import Any

from .ledger import Ticket

__all__ = ["ended", "fault", "request_id"]

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(given: str | None) -> str:
    """The client's own where it is one, else a fresh one."""
    return given if given is not None and _ID.fullmatch(given) else secrets.token_hex(8)


def ended(ticket: Ticket, status: int, now: float) -> None:
    times, asked = ticket.times, ticket.asked
    told: dict[str, Any] = {
        "event": "request", "id": ticket.id, "family": ticket.family, "outcome": ticket.outcome, "status": status,
        "seconds": round(now - ticket.begun, 4),
    }  # fmt: skip
    if "queued" in times:
        told["queued"] = round(times.get("running", now) - times["queued"], 4)
    if "running" in times:
        told["drawn"] = round(times.get("answering", now) - times["running"], 4)
    if asked is not None:
        told |= {
            "model": asked.bundle, "pipeline": asked.pipeline, "images": len(asked.seeds), "size": asked.size,
            "steps": asked.settled["num_inference_steps"], "worker": getattr(ticket.worker, "number", None),
        }  # fmt: skip
    _line(told)


def fault(id: str, error: BaseException) -> None:
    """What went wrong in the server itself: the kind of error and where, not its words, which may be a client's."""
    at = error.__traceback__
    places = []
    while at is not None:
        code = at.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{at.tb_lineno} {code.co_name}")
        at = at.tb_next
    _line({"event": "fault", "id": id, "error": type(error).__name__, "at": places[-6:]})


def _line(told: dict[str, Any]) -> None:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    print(json.dumps({"time": stamp, **told}, separators=(",", ":")), file=sys.stderr, flush=True)
