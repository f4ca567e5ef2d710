"""`hotloop live`: a server of live sessions, and its page."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotloop_kernels import build_info

from ..errors import InputError
from ..files import read_file
from . import headless
from .shell import fail

if TYPE_CHECKING:
    from ..serve.config import Config

__all__ = ["live"]

_PLACE = "live"
_TOKEN = "HOTLOOP_TOKEN"
_LARGEST = 4096  # bytes of its file


def live(
    bundle: Annotated[Path | None, typer.Argument(
        help="A bundle, or a built-in model's name [default: avatar-tiny].")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0: a free one.")] = 8188,
    token: Annotated[str | None, typer.Option(
        envvar=_TOKEN, help="What clients must say, 32 characters or more; other users of this machine see options.",
        show_envvar=True)] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file with the token.")] = None,
    insecure_no_auth: Annotated[bool, typer.Option(
        help="No token on an address that others reach.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name of this server. Repeatable.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(
        help="A further page that may connect, such as https://example.org. Repeatable.")] = None,
    mode: Annotated[str, typer.Option(
        help="animate: an avatar that controls move; restyle: redraw pictures, or dream.")] = "animate",
    avatar: Annotated[Path | None, typer.Option(
        help="Who is animated: a picture, with or without alpha [default: hotloop's own avatar].")] = None,
    points: Annotated[Path | None, typer.Option(help="Ten points of its face, JSON, where they are not found.")] = None,
    parts: Annotated[Path | None, typer.Option(help="A folder of masks of its parts.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels of a side [default: the model's].")] = None,
    fps: Annotated[float | None, typer.Option(
        help="Frames a second, at most [default: 60, or 30 in mode restyle].")] = None,
    prompt: Annotated[str | None, typer.Option(help="What is drawn at first.")] = None,
    negative: Annotated[str | None, typer.Option(help="What is kept out.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a frame [default: 2].")] = None,
    guidance: Annotated[float | None, typer.Option(help="At or below 1 guidance is off [default].")] = None,
    strength: Annotated[float | None, typer.Option(help="How far pictures are redrawn [default: 0.5].")] = None,
    seed: Annotated[int | None, typer.Option(help="-1: a fresh one [default: 0].")] = None,
    lora: Annotated[list[str] | None, typer.Option(
        help="NAME=FILE: a LoRA that clients may draw with. Repeatable.")] = None,
    lora_dir: Annotated[Path | None, typer.Option(help="A folder of such files, named by their names.")] = None,
    record: Annotated[Path | None, typer.Option(
        help="Keep everything that is shown, and what it was made of (camera pictures too), in this folder.")] = None,
    governor: Annotated[bool, typer.Option(help="Draw smaller or less often where the rate cannot be held.")] = True,
    engine: Annotated[str, typer.Option(help="auto, a kind (openvino) or a kind and precision.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Engine threads [default: all usable cores].")] = None,
    osc: Annotated[int | None, typer.Option(help="Listen for OSC (/hotloop/..) on this UDP port.")] = None,
    vmc: Annotated[int | None, typer.Option(help="Listen for VMC on this UDP port (usual: 39539).")] = None,
    vts: Annotated[int | None, typer.Option(help="Be VTube Studio to its plugins on this port (usual: 8001).")] = None,
    ifm: Annotated[str | None, typer.Option(help="Ask iFacialMocap on the phone of this address.")] = None,
    camera: Annotated[str | None, typer.Option(
        help="Track the face in a device (/dev/video0), an address or a clip; needs '.[track]'.")] = None,
    virtual_camera: Annotated[str | None, typer.Option(
        help="Be a camera of this machine: its device, or auto; needs '.[camera]'.")] = None,
    ice_server: Annotated[list[str] | None, typer.Option(
        help="A STUN server that WebRTC may ask, such as stun:example.org:3478. Repeatable [default: none].")] = None,
    source: Annotated[str | None, typer.Option(
        help="Without a server: redraw this clip, address or device into --sink.")] = None,
    sink: Annotated[str | None, typer.Option(
        help="Without a server: out.mp4, out.webp, folder/*.png, folder/*.webp or virtual-camera. Of --source; of "
        "--camera: the avatar that it moves; else a dream.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of the sink, at most.")] = None,
) -> None:  # fmt: skip
    """Serve live sessions and their page, or redraw a clip into a file; Ctrl-C ends it."""
    settings = {
        "prompt": prompt, "negative_prompt": negative, "num_inference_steps": steps, "guidance_scale": guidance,
        "strength": strength, "seed": seed,
    }  # fmt: skip
    if camera is not None and sink is not None and source is None:
        headless.act(camera, sink, frames, size=size, avatar=avatar, points=points, parts=parts)
        return
    if source is not None or sink is not None or frames is not None:
        headless.redraw(source, sink, frames, bundle=bundle, engine=engine, threads=threads, size=size,
                        rate=30.0 if fps is None else fps,
                        settings={name: value for name, value in settings.items() if value is not None})  # fmt: skip
        return
    from ..adapters import scanned

    run, config_of = _serve()
    config = config_of(
        host=host, port=port, token=_token(token, token_file), insecure=insecure_no_auth,
        allow_hosts=tuple(allow_host or ()), allow_origins=tuple(allow_origin or ()), bundle=bundle, engine=engine,
        threads=threads, mode=mode, size=size, avatar=avatar, points=points, parts=parts,
        fps=(60.0 if mode == "animate" else 30.0) if fps is None else fps, governed=governor,
        settings={name: value for name, value in settings.items() if value is not None},
        loras=scanned(lora_dir, lora or ()), record=record, osc=osc, vmc=vmc, vts=vts, ifm=ifm, camera=camera,
        virtual_camera=virtual_camera, ice_servers=tuple(ice_server or ()),
    )  # fmt: skip
    run(config, started=lambda address: _greet(address, config))


def _serve() -> tuple[Any, Any]:
    try:
        from ..serve.config import Config
        from ..serve.server import run
    except ModuleNotFoundError as error:
        fail(f"[live] {error.name} must be installed: pip install '.[live]'")
    return run, Config


def _token(token: str | None, file: Path | None) -> str | None:
    if file is None or token:
        return token or None
    try:
        return read_file(file, most=_LARGEST).decode().strip()
    except (OSError, ValueError) as error:  # a name that no file can have, bytes that are no text
        raise InputError(_PLACE, "token-file must be a text file that can be read", str(file)) from error


def _greet(address: str, config: Config) -> None:
    typer.echo(f"hotloop is live: {address}" + ("" if config.token is None else "#token=...  (your token)"))
    if config.mode == "animate" and not build_info()["compiled"]:
        warnings.warn("without compiled operators a frame takes a second (`hotloop doctor` says why)", stacklevel=2)
    if config.record is not None:
        typer.echo(f"everything is recorded in {config.record}, what cameras show too")
    typer.echo(f"for OBS: {address}view    every control: {address}monitor    Ctrl-C ends it")
