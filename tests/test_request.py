"""The table of a request's fields: everything else is computed from it, and it says no in one line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hotloop import request as table
from hotloop.errors import InputError
from hotloop.fields import Picture
from hotloop.image.metadata import KEY, StoredRequest
from hotloop.pipeline import Pipeline
from hotloop.samplers import NAMES
from hotloop.samplers.names import resolve

PIPELINES = tuple(table.PIPELINES)


def checked(pipeline: str = "txt2img", **given: Any) -> table.Request:
    pictures = {name: "a.png" for name in table.required(pipeline) if name != "prompt"}
    return table.Request.checked(pipeline, {"prompt": "a", **pictures, **given}, {})


# --- What is computed from it ---


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_default_passes_its_own_check(pipeline: str) -> None:
    request = checked(pipeline)
    assert set(request.values) == set(table.fields(pipeline))
    assert checked(pipeline, compatible="diffusers")["prompt_syntax"] == "plain"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_methods_signature_and_help_are_the_tables(pipeline: str) -> None:
    method = getattr(Pipeline, pipeline)
    names = [*table.fields(pipeline), *table.aliases(pipeline)]
    assert sorted(inspect.signature(method).parameters) == sorted(["self", *names])
    for name, row in table.fields(pipeline).items():
        assert f"{name:<23} {row.help}" in inspect.getdoc(method)  # type: ignore[operator]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_flag_of_the_table_is_an_option_of_the_command(pipeline: str) -> None:
    import typer

    from hotloop.cli import app

    command = typer.main.get_command(app).commands[pipeline]  # type: ignore[attr-defined]
    flags = {flag for option in command.params for flag in option.opts}
    rows = {**table.fields(pipeline), **table.aliases(pipeline)}
    assert {row.flag for row in rows.values() if row.flag} <= flags
    assert len([row.flag for row in rows.values() if row.flag]) == len({row.flag for row in rows.values() if row.flag})


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_json_schema_takes_what_the_table_takes(pipeline: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = table.schema(pipeline)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    pictures = {name: "aGk=" for name in schema["required"] if name != "prompt"}
    good = {"prompt": "a", **pictures}
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, True), ({"clip_skip": 1}, True), ({"clip_skip": 2}, False), ({"guidance_scale": -1}, False),
        ({"rng": "philox"}, True), ({"rng": "mersenne"}, False), ({"prompt": ["a", "b"]}, False),
        ({"num_inference_steps": "ten"}, False), ({"seed": -1}, True), ({"seed": -2}, False),
        ({"sampler_options": {"eta": 0.5, "disable_corrector": [0]}}, True), ({"callback": "x"}, False),
        ({"colour": 1}, False), ({"guidance_rescale": 0.7}, True), ({"guidance_rescale": 1.7}, False),
    ]  # fmt: skip
    for given, holds in cases:
        assert validator.is_valid(good | given) == holds, given
        if not {"prompt", "callback"} & set(given):
            try:
                checked(pipeline, **given)
            except InputError:
                assert not holds, given
            else:
                assert holds, given
    assert not validator.is_valid({})


# --- Names ---


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("num_inference_step", "did you mean num_inference_steps?"),
        ("steps", "did you mean num_inference_steps?"),
        ("cfg_scale", "did you mean guidance_scale?"),
        ("guidance", "did you mean guidance_scale?"),
        ("callback_on_step_end", "did you mean callback?"),
        ("sampler_name", "did you mean sampler?"),
        ("strength", "but of img2img, inpaint"),
        ("zzz", "there are prompt, negative_prompt"),
    ],
)
def test_an_unknown_argument_is_answered_by_the_near_miss(pipe: Any, name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        pipe.txt2img("a girl", **{name: 3})
    assert f"{name} is no argument" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        ("EulerDiscreteScheduler", "euler", {}), ("DPM++ 2M Karras", "dpmpp_2m", {"sigmas": "karras"}),
        ("Euler a", "euler_a", {}), ("euler A", "euler_a", {}), ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde",
        {"sigmas": "exponential"}), ("UniPCMultistepScheduler", "unipc", {}), ("LMS Karras", "lms",
        {"sigmas": "karras"}), ("DPM2", "kdpm2", {}), ("ddim", "ddim", {}),
    ],
)  # fmt: skip
def test_samplers_go_by_their_names_elsewhere(name: str, sampler: str, options: dict[str, Any]) -> None:
    assert resolve(name) == (sampler, options)
    request = checked(sampler=name)
    assert (request["sampler"], request["sampler_options"]) == (sampler, options)
    assert sampler in NAMES


@pytest.mark.parametrize(("name", "near"), [("DPM++ 2N", "DPM++ 2M"), ("EulerScheduler", "EulerDiscreteScheduler")])
def test_a_sampler_that_is_none_is_answered_by_the_near_miss(name: str, near: str) -> None:
    with pytest.raises(InputError, match="did you mean") as caught:
        resolve(name)
    assert near in str(caught.value)


def test_diffusers_names_of_options_reach_the_sampler() -> None:
    request = checked(sampler="DPM++ 2M", use_karras_sigmas=True, timestep_spacing="trailing")
    assert request["sampler_options"] == {"sigmas": "karras", "spacing": "trailing"}
    assert checked(eta=0.3, sampler_options={"spacing": "leading"})["sampler_options"] == {
        "spacing": "leading",
        "eta": 0.3,
    }
    with pytest.raises(InputError, match="eta and sampler_options must not both tell"):
        checked(sampler_options={"eta": 0.1}, eta=0.3)
    assert checked(sampler="DPM++ 2M Karras", sampler_options={"sigmas": "default"})["sampler_options"] == {
        "sigmas": "default"
    }


# --- Seeds ---


def test_seed_minus_one_draws_a_fresh_one_each_time() -> None:
    seeds = {checked(seed=-1).seeds[0] for _ in range(4)} | {checked().seeds[0] for _ in range(4)}
    assert len(seeds) == 8 and all(0 <= seed < 2**32 for seed in seeds)
    assert checked(seed=5, num_images=2).seeds == [5, 6]
    assert checked(seed=[9, 3], num_images=2).seeds == [9, 3]
    with pytest.raises(InputError, match="one for each image"):
        checked(seed=[9, 3, 4], num_images=2)


def test_a_list_of_seeds_draws_each_seeds_own_picture(pipe: Any) -> None:
    quick = dict(num_inference_steps=2, guidance_scale=1.0)
    both = pipe.txt2img("a girl", seed=[9, 3], num_images=2, **quick)
    assert np.array_equal(both.latents[1], pipe.txt2img("a girl", seed=3, **quick).latents[0])


def test_a_generator_is_its_seed_and_no_other_picture() -> None:
    import torch

    generator = torch.Generator().manual_seed(12)
    assert checked(generator=generator).seeds == [12]
    assert checked(generator=[generator, torch.Generator().manual_seed(3)], num_images=2).seeds == [12, 3]
    assert checked(generator=7).seeds == [7]
    with pytest.raises(InputError, match="list of 2"):  # stock pipelines draw both images from one generator in turn
        checked(generator=generator, num_images=2)
    torch.randn(3, generator=generator)
    with pytest.raises(InputError, match="fresh"):
        checked(generator=generator)
    with pytest.raises(InputError, match=r"torch\.Generator"):
        checked(generator="noise")


# --- Stored requests ---


def stored(tmp_path: Path, change: dict[str, Any], **arguments: Any) -> StoredRequest:
    """What a picture with such a request in it is read as."""
    whole = {
        "prompt": "a", "negative_prompt": "", "num_inference_steps": 2, "guidance_scale": 1.0, "sampler": "ddim",
        "sampler_options": {}, "width": 64, "height": 64,
    }  # fmt: skip
    values = {
        "command": "txt2img", "arguments": {k: v for k, v in (whole | arguments).items() if v != "absent"},
        "files": {}, "seed": 1, "bundle": "0" * 64, "model": None, "engine": "onnx-fp32", "version": "0.1.0",
    } | change  # fmt: skip
    info = PngInfo()
    info.add_text(KEY, json.dumps(values))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    request = StoredRequest.read(tmp_path / "a.png")
    table.check_stored(request)
    return request


FILE = {"path": "a.png", "sha256": "0" * 64}
HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a list of prompts": ({}, {"prompt": ["a", "b"]}, "prompt of the stored request must be text"),
    "a prompt that is missing": ({}, {"prompt": "absent"}, "prompt"),
    "steps that are missing": ({}, {"num_inference_steps": "absent"}, "num_inference_steps"),
    "no arguments": ({"arguments": {}}, {}, "prompt"),
    "steps that are text": ({}, {"num_inference_steps": "2"}, "num_inference_steps must be a whole number"),
    "steps without end": ({}, {"num_inference_steps": 10**9}, "num_inference_steps must be a whole number"),
    "a flag for a number": ({}, {"guidance_scale": True}, "guidance_scale must be a number"),
    "a nested option": ({}, {"sampler_options": {"eta": {}}}, "eta must be a number"),
    "an argument of another pipeline": ({}, {"strength": 0.5}, "stores no argument of this name"),
    "an alias": ({}, {"eta": 0.5}, "stores no argument of this name"),
    "a callback": ({}, {"callback": "print"}, "stores no argument of this name"),
    "a picture among the arguments": ({}, {"image": "/etc/passwd"}, "stores no argument of this name"),
    "another command": ({"command": "paint"}, {}, "command"),
    "a command that is a list": ({"command": ["txt2img"]}, {}, "command"),
    "NUL in a path": ({"command": "img2img", "files": {"image": FILE | {"path": "a\0b"}}}, {}, "texts"),
    "NUL in the model": ({"model": "a\0b"}, {}, "texts"),
    "a path that is a number": ({"command": "img2img", "files": {"image": FILE | {"path": 5}}}, {}, "texts"),
    "a hash that is none": ({"command": "img2img", "files": {"image": FILE | {"sha256": "x"}}}, {}, "sha256"),
    "a file too many": ({"files": {"image": FILE}}, {}, "reads"),
    "a LoRA without scale": ({"loras": [FILE]}, {}, "scale"),
    "a seed out of range": ({"seed": 2**64}, {}, "seed"),
    "a seed that is a flag": ({"seed": True}, {}, "seed"),
    "unknown keys": ({"colour": 1}, {}, "colour"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_stored_request_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, arguments, named = HOSTILE[case]
    with pytest.raises(InputError) as caught:
        stored(tmp_path, change, **arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_request_stored_before_a_field_was_there_is_whole(tmp_path: Path) -> None:
    assert stored(tmp_path, {}).arguments["sampler"] == "ddim"
    assert {name for name, row in table.fields("inpaint").items() if isinstance(row.kind, Picture)} == {
        "image", "mask_image",
    }  # fmt: skip


def test_a_device_is_no_source(tmp_path: Path) -> None:
    from hotloop.image.metadata import source

    with pytest.raises(InputError, match="regular"):
        source(Path("/dev/zero"))
    with pytest.raises(InputError, match="regular"):
        source(tmp_path)
    with pytest.raises(InputError, match="readable"):
        source(tmp_path / "missing.png")
