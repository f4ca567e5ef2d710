"""hotloop's own routes: jobs that are asked for now and fetched later, with progress; and what there is to ask for."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from ...request import PIPELINES, aliases, fields
from ...samplers.face import NAMES
from . import documents, log
from .asking import ALIASES, Asked, body_schema, carried, without_unknown
from .bodies import read_json
from .events import Stream, event, progress_of
from .ledger import Ticket
from .pictures import FORMATS, base64_picture, encoded
from .refusals import Refusal

if TYPE_CHECKING:
    from .part import Images

__all__ = ["Native", "renamed"]

ERRORS: dict[str, Any] = {
    "type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["code", "message", "param"], "properties": {
            "code": {"type": "string"}, "message": {"type": "string"}, "param": {"type": ["string", "null"]}}}},
}  # fmt: skip
LORAS: dict[str, Any] = {
    "type": "array", "items": {
        "type": "object", "required": ["name"], "additionalProperties": False,
        "properties": {"name": {"type": "string"}, "scale": {"type": "number", "minimum": -10, "maximum": 10}}},
}  # fmt: skip
QUALITY: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 100}
OUTPUT: dict[str, Any] = {"type": "string", "enum": list(FORMATS)}
JOB: dict[str, Any] = {
    "type": "object", "required": ["id", "status", "model", "pipeline", "created", "queue_position", "progress"],
    "properties": {
        "id": {"type": "string"}, "model": {"type": "string"}, "pipeline": {"enum": list(PIPELINES)},
        "status": {"enum": ["queued", "generating", "completed", "failed", "cancelled"]},
        "created": {"type": "integer"}, "queue_position": {"type": ["integer", "null"]},
        "progress": {"type": "object"}, "result": {"type": ["object", "null"]}, "error": {"type": ["object", "null"]},
        "seeds": {"type": "array", "items": {"type": "integer"}},
        "warnings": {"type": "array", "items": {"type": "string"}}},
}  # fmt: skip
_OWN = {"model", "pipeline", "loras", "output_format", "output_compression", "partials"}


@dataclass(eq=False)
class Job:
    ticket: Ticket
    asked: Asked
    kind: str
    quality: int | None
    created: int
    id: str
    task: asyncio.Task[None] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    status: str = "queued"
    ended: float | None = None

    def told(self) -> dict[str, Any]:
        ticket, worker = self.ticket, self.ticket.worker
        status = "generating" if self.ended is None and ticket.place in ("running", "answering") else self.status
        waits = self.ended is None and worker is not None and ticket in worker.queue
        row, rows, step, steps, *_ = ticket.progress
        return {
            "id": self.id, "status": status, "model": self.asked.bundle, "pipeline": self.asked.pipeline,
            "created": self.created, "queue_position": worker.queue.index(ticket) if waits else None,
            "progress": {"row": row, "rows": rows, "step": step, "steps": steps}, "seeds": self.asked.seeds,
            "warnings": list(self.asked.warnings), "result": self.result, "error": self.error,
        }  # fmt: skip


class Native:
    """jobs: id -> job, those that have ended for a while yet."""

    name = "native"
    paths: tuple[str, ...] = ("/v1/jobs", "/v1/capabilities")
    statuses: Mapping[int, int] = MappingProxyType({})

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def refused(self, refusal: Refusal) -> Any:
        return {"error": {"code": refusal.code, "message": refusal.message, "param": refusal.param}}

    def add(self, part: Images, app: FastAPI) -> None:
        limits, said = part.settings.limits, documents.described
        extra = {"model": {"type": "string"}, "loras": LORAS, "output_format": OUTPUT, "output_compression": QUALITY,
                 "partials": {"type": "integer", "minimum": 0, "maximum": 3}}  # fmt: skip
        bodies = []
        for pipeline in PIPELINES:
            body = body_schema(pipeline, limits, names={**extra, "pipeline": {"const": pipeline}})
            bodies.append(body if pipeline == "txt2img" else {**body, "required": [*body["required"], "pipeline"]})

        async def create(ticket: Ticket, request: Request) -> Response:
            return await self._create(part, ticket, request)

        async def listed(request: Request) -> Response:
            self._sweep(part)
            return JSONResponse({"jobs": [{**job.told(), "result": None} for job in self.jobs.values()]})

        async def one(request: Request) -> Response:
            return JSONResponse(self._job(part, request).told())

        async def cancel(request: Request) -> Response:
            job = self._job(part, request)
            part.pool.leave(job.ticket, Refusal("cancelled"))
            if job.task is not None:
                await asyncio.wait((job.task,), timeout=5)
            return JSONResponse(job.told())

        async def delete(request: Request) -> Response:
            job = self._job(part, request)
            part.pool.leave(job.ticket, Refusal("cancelled"))
            self.jobs.pop(job.id, None)
            return Response(status_code=204)

        async def events(request: Request) -> Response:
            job = self._job(part, request)
            if part.streams >= limits.streams:
                raise Refusal("too_many", retry=5)
            part.streams += 1

            def ended() -> None:
                part.streams -= 1

            return Stream(_events(job), ended)

        async def capabilities(request: Request) -> Response:
            return JSONResponse(_capabilities(part))

        no_job, jobs = ("unknown_job",), "/v1/jobs"
        route, plain = app.add_api_route, part.plain
        route(
            jobs,
            part.drawing(self, create),
            methods=["POST"],
            name="create a job",
            **said(ERRORS, body={"oneOf": bodies}, answer=JOB, status=202, draws=True),
        )
        route(jobs, plain(self, listed), methods=["GET"], name="jobs", **said(ERRORS))
        at = f"{jobs}/{{id}}"
        route(
            at, plain(self, one), methods=["GET"], name="a job", **said(ERRORS, answer=JOB, names=("id",), codes=no_job)
        )
        route(
            at,
            plain(self, delete),
            methods=["DELETE"],
            name="forget a job",
            **said(ERRORS, status=204, nothing=True, names=("id",), codes=no_job),
        )
        route(
            f"{at}/cancel",
            plain(self, cancel),
            methods=["POST"],
            name="cancel a job",
            **said(ERRORS, answer=JOB, names=("id",), codes=no_job),
        )
        route(
            f"{at}/events",
            plain(self, events),
            methods=["GET"],
            name="a job's progress",
            **said(
                ERRORS,
                answer={"type": "string"},
                answers="text/event-stream",
                names=("id",),
                codes=("unknown_job", "too_many"),
            ),
        )
        told = said(ERRORS)
        route("/v1/capabilities", plain(self, capabilities), methods=["GET"], name="capabilities", **told)  # fmt: skip

    async def _create(self, part: Images, ticket: Ticket, request: Request) -> Response:
        limits = part.settings.limits
        given = await read_json(request, limits)
        pipeline = given.get("pipeline", "txt2img")
        if not isinstance(pipeline, str) or pipeline not in PIPELINES:
            raise Refusal("invalid_value", f"pipeline must be one of {', '.join(PIPELINES)}", param="pipeline")
        known = {*_OWN, *carried(pipeline), *ALIASES}
        told, warnings = without_unknown(given, known, strict=True)
        values = renamed({name: value for name, value in told.items() if name not in _OWN}, pipeline)
        names, (kind, quality) = part.names, output_of(told)
        bundle = names.bundle(told.get("model"))
        pictures = {}
        if pipeline != "txt2img":
            pictures = {"image": base64_picture(values.pop("image", None), limits, "image")}
        if pipeline == "inpaint":
            mask = base64_picture(values.pop("mask_image", None), limits, "mask_image")
            pictures["mask_image"] = mask.as_mask("white", pictures["image"], "mask_image")
        partials = told.get("partials", 0)
        if not isinstance(partials, int) or isinstance(partials, bool) or not 0 <= partials <= 3:
            raise Refusal("invalid_value", "partials must be an integer in 0..3", param="partials")
        asked = names.ask(pipeline, bundle, values, pictures, loras=told.get("loras"), partials=partials,
                          warnings=warnings)  # fmt: skip
        self._sweep(part)
        if len(self.jobs) >= limits.jobs:
            raise Refusal("too_many", retry=part.pool.retry)
        part.enter(ticket, asked)
        ticket.kept = True
        job = Job(ticket, asked, kind, quality, int(time.time()), secrets.token_hex(12))
        self.jobs[job.id] = job
        job.task = asyncio.create_task(_work(job))
        return JSONResponse(job.told(), 202, {"Location": f"/v1/jobs/{job.id}"})

    def _job(self, part: Images, request: Request) -> Job:
        self._sweep(part)
        if (job := self.jobs.get(request.path_params["id"])) is None:
            raise Refusal("unknown_job")
        return job

    def _sweep(self, part: Images) -> None:
        """Jobs that ended long ago are forgotten."""
        now, kept = time.monotonic(), part.settings.limits.job_seconds
        self.jobs = {id: job for id, job in self.jobs.items() if job.ended is None or now - job.ended < kept}


async def _work(job: Job) -> None:
    """Wait for a job's pictures and keep them: its one end."""
    ticket = job.ticket
    try:
        drawn = await ticket.drawn
        files = [await asyncio.to_thread(encoded, one, job.kind, job.quality) for one in drawn.pictures]
        job.result = {
            "images": [
                {"b64_json": base64.b64encode(data).decode(), "width": one[0], "height": one[1], "seed": seed,
                 "output_format": job.kind}
                for data, one, seed in zip(files, drawn.pictures, drawn.seeds, strict=True)
            ],
            "settings": drawn.settings, "timings": drawn.timings, "warnings": drawn.warnings,
        }  # fmt: skip
        job.status, outcome, status = "completed", "completed", 200
    except Exception as error:
        if not isinstance(error, Refusal):
            log.fault(ticket.id, error)
        refusal = error if isinstance(error, Refusal) else Refusal("internal")
        job.error = {"code": refusal.code, "message": refusal.message}
        job.status = "cancelled" if refusal.code == "cancelled" else "failed"
        outcome, status = refusal.outcome, refusal.status
    job.ended = time.monotonic()
    ticket.end(outcome, status)


async def _events(job: Job) -> AsyncIterator[bytes]:
    """progress as it comes, partial pictures, and at the end the job without its result."""
    yield event("job", {**job.told(), "result": None})
    async for progress in progress_of(job.ticket):
        if progress.picture is not None:
            data = await asyncio.to_thread(encoded, progress.picture, job.kind, job.quality)
            yield event("partial", {"index": progress.nth, "b64_json": base64.b64encode(data).decode()})
        row, rows, step, steps, *_ = progress
        yield event("progress", {"row": row, "rows": rows, "step": step, "steps": steps})
    if job.task is not None:
        await asyncio.wait((job.task,))
    yield event(job.status, {**job.told(), "result": None})


def renamed(given: dict[str, Any], pipeline: str) -> dict[str, Any]:
    """Other programs' names for fields as the table's own; those that the table knows itself stay."""
    own = {*fields(pipeline), *aliases(pipeline)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        field = name if name in own else ALIASES.get(name, name)
        if field in values and values[field] != value:
            raise Refusal("invalid_value", f"{field} is told twice", param=field)
        values[field] = value
    return values


def output_of(told: dict[str, Any]) -> tuple[str, int | None]:
    """output_format and output_compression. Raises Refusal."""
    kind, quality = told.get("output_format") or "png", told.get("output_compression")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise Refusal("invalid_value", f"output_format must be one of {', '.join(FORMATS)}", param="output_format")
    if quality is not None and (not isinstance(quality, int) or isinstance(quality, bool) or not 0 <= quality <= 100):
        rule = "output_compression must be an integer in 0..100"
        raise Refusal("invalid_value", rule, param="output_compression")
    return kind, quality


def _capabilities(part: Images) -> dict[str, Any]:
    settings, pool = part.settings, part.pool
    limits = {name: value for name, value in vars(settings.limits).items()}
    shown = ("family", "engine", "device", "grid", "least", "most", "size", "defaults", "networks", "inpainting")
    return {
        "version": __version__, "pipelines": list(PIPELINES), "samplers": list(NAMES), "output_formats": list(FORMATS),
        "models": {name: {one: facts[one] for one in shown} for name, facts in pool.facts.items()},
        "loras": sorted(part.lora_paths), "limits": limits, "workers": settings.workers, "lanes": settings.lanes,
        "queue": settings.queue, "timeout": settings.timeout,
    }  # fmt: skip
