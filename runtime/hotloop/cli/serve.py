"""`hotloop serve`: pictures on request, for OpenAI's, AUTOMATIC1111's and Hugging Face's clients, and jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .live import token_of
from .shell import fail

__all__ = ["serve"]

_PLACE = "serve"


def serve(
    bundles: Annotated[list[str] | None, typer.Argument(
        help="Bundles, folders of bundles, or built-in models' names [default: avatar-tiny].")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings, by their names here.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0: a free one [default: 8188].")] = None,
    token: Annotated[str | None, typer.Option(
        help="What clients must say, 32 characters or more, $HOTLOOP_TOKEN; other users of this machine see options."
    )] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file with the token.")] = None,
    insecure_no_auth: Annotated[bool | None, typer.Option(
        "--insecure-no-auth", help="No token on an address that others reach.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name of this server. Repeatable.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A further page that may ask. Repeatable.")] = None,
    lora: Annotated[list[str] | None, typer.Option(
        help="A LoRA (.safetensors) that requests may name, or a folder of them. Repeatable.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes [default: 1].")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, a kind (openvino) or a kind and precision.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads of a worker.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Requests that a worker draws at once [default: 4].")] = None,
    queue: Annotated[int | None, typer.Option(
        help="Requests that wait for a worker; more are answered 503 [default: 8].")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds of a request, at most [default: 300].")] = None,
    drain: Annotated[float | None, typer.Option(
        help="Seconds that requests under way have at the end [default: 60].")] = None,
    linger: Annotated[float | None, typer.Option(
        help="Seconds that 503 is answered at the end, at least [default: 5].")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Refuse fields that are not known.")] = None,
    docs: Annotated[bool | None, typer.Option(help="Tell /openapi.json [default: yes].")] = None,
    log: Annotated[str | None, typer.Option(help="json (a line for each request) or off [default: json].")] = None,
    profile: Annotated[str | None, typer.Option(help="Whose limits hold: cpu or gpu [default: cpu].")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the limits. Repeatable.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would be done, and leave.")] = False,
) -> None:  # fmt: skip
    """Serve pictures on request; Ctrl-C or SIGTERM ends it when what it draws is done, a second one at once."""
    try:
        from ..serve.images.part import create_app
        from ..serve.images.settings import gathered, names_of, shown
        from ..serve.server import serve as run
    except ModuleNotFoundError as error:
        fail(f"[serve] {error.name} must be installed: pip install '.[serve]'")
    settings = gathered(
        {
            "bundles": tuple(bundles) if bundles else None, "host": host, "port": port,
            "token": token_of(token, token_file), "insecure": insecure_no_auth,
            "allow_hosts": tuple(allow_host) if allow_host else None,
            "allow_origins": tuple(allow_origin) if allow_origin else None, "loras": tuple(lora) if lora else None,
            "workers": workers, "engine": engine, "device": device, "threads": threads, "lanes": lanes, "queue": queue,
            "timeout": timeout, "drain": drain, "linger": linger, "strict": strict, "docs": docs, "log": log,
            "profile": profile, "limits": _limits(limit),
        },
        file=config,
    )  # fmt: skip
    if check:
        names, loras = names_of(settings)
        for name, value in shown(settings):
            typer.echo(f"{name:<14} {value}")
        typer.echo(f"{'models':<14} {', '.join(names)}")
        typer.echo(f"{'LoRAs':<14} {', '.join(loras) or 'none'}")
        return
    run(
        settings, lambda: create_app(settings), started=_greet,
        head=settings.limits.head_seconds,
        limit_concurrency=settings.limits.connections, h11_max_incomplete_event_size=32_768,
    )  # fmt: skip


def _limits(given: list[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    limits: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        try:
            limits[name] = float(text) if "." in text else int(text)
        except ValueError:
            raise InputError(_PLACE, "limit must be NAME=NUMBER", one) from None
        if not equals:
            raise InputError(_PLACE, "limit must be NAME=NUMBER", one)
    return limits


def _greet(address: str) -> None:
    typer.echo(f"hotloop serves pictures: {address}    Ctrl-C ends it")
