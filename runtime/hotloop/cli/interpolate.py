"""`hotloop interpolate A B`: the way between two generations, as frames, WebP or mp4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .shell import Json, check_writable, print_json

__all__ = ["interpolate"]

_PLACE = "interpolate"
# Of a stored request, what an end takes.
_TAKEN = (
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "sampler", "sampler_options", "width",
    "height", "rng", "clip_skip",
)  # fmt: skip


def interpolate(
    a: Annotated[str, typer.Argument(help="A prompt, or a PNG that txt2img drew.")],
    b: Annotated[str, typer.Argument(help="Where it leads: another prompt or PNG.")],
    frames: Annotated[int, typer.Option(help="Pictures, both ends among them.")] = 24,
    out: Annotated[Path, typer.Option(
        "--out", "--output", "-o", help="A folder, or a file ending with .webp or .mp4 (by PyAV).")] = Path("out"),
    fps: Annotated[float, typer.Option(help="Of the file.")] = 12.0,
    seed_a: Annotated[int, typer.Option(help="Of a prompt A.")] = 0,
    seed_b: Annotated[int | None, typer.Option(help="Of a prompt B [default: A's].")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Of both, where they are prompts.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of each picture, where the ends are prompts [default: 4].")] = None,
    guidance: Annotated[float | None, typer.Option(help="The same [default: 1].")] = None,
    sampler: Annotated[str | None, typer.Option(help="The same [default: lcm].")] = None,
    model: Annotated[Path | None, typer.Option(help="Bundle directory [default: the built-in model].")] = None,
    engine: Annotated[str, typer.Option(help="auto, a kind (openvino) or a kind and precision.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Engine threads [default: all usable cores].")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Draw the way between two generations: prompt, seed and noise slide, in even steps of what is seen."""
    from .. import load
    from ..image.movie import check_movie, save_movie
    from ..live.interpolation import interpolate as between

    check_movie(out, fps)
    check_writable(_PLACE, "out", out, out if out.suffix == "" else out.parent)
    asked = {"negative_prompt": negative_prompt, "num_inference_steps": steps, "guidance_scale": guidance,
             "sampler": sampler}  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    seeds = (seed_a, seed_a if seed_b is None else seed_b)
    first, last = (_end(text, seed, asked) for text, seed in zip((a, b), seeds, strict=True))
    pipe = load(model, engine=engine, threads=threads)
    way = between(pipe, first, last, frames)
    files = save_movie(way.pixels, out, fps=fps)
    if json_:
        print_json({"files": [str(file) for file in files], "frames": frames, "drawn": way.drawn,
                    "places": way.places, "largest_over_mean_step": round(way.unevenness, 4)})  # fmt: skip
        return
    typer.echo(f"{files[0] if len(files) == 1 else out}  {frames} frames, {way.drawn} drawn, "
               f"largest step {way.unevenness:.2f} times the mean")  # fmt: skip


def _end(text: str, seed: int, asked: dict[str, Any]) -> dict[str, Any]:
    """A prompt with what is asked for, or the request that a PNG carries. Raises InputError."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        return {"prompt": text, "seed": seed, **asked}
    from ..image.metadata import StoredRequest

    stored = StoredRequest.read(path)
    if stored.command != "txt2img" or stored.loras or stored.embeddings:
        rule = "an end must be a prompt, or a PNG that txt2img drew without LoRAs and learned words"
        raise InputError(_PLACE, rule, stored.command)
    taken = {name: stored.arguments[name] for name in _TAKEN if stored.arguments.get(name) is not None}
    return taken | {"seed": stored.seed}
