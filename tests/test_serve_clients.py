"""`hotloop serve` asked by other people's clients: openai, webuiapi, huggingface_hub and schemathesis, in an
environment of their own (`make serve-env`) that holds nothing of hotloop's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_client import Server

pytest.importorskip("fastapi", reason="the extra [serve]")

ENV = Path(__file__).parents[1] / "build" / "serve-env" / "bin"
pytestmark = pytest.mark.skipif(not (ENV / "schemathesis").exists(), reason="make serve-env makes their environment")
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("real"), row=None, lanes=4, token=TOKEN) as server:
        yield server


def client(server: Server, code: str) -> Any:
    """What a program of the clients' environment prints last, as JSON. It has `base`, `host`, `port` and `token`."""
    head = f"base, host, port, token = {server.address!r}, {server.host!r}, {server.port}, {TOKEN!r}\n"
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [ENV / "python", "-I", "-c", head + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=online)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OPENAI = """
import base64, io, json, openai
from PIL import Image
client = openai.OpenAI(base_url=base + "v1", api_key=token, max_retries=0)
told = {"models": [one.id for one in client.models.list().data], "model": client.models.retrieve("avatar-tiny").id}

def opened(one):
    return Image.open(io.BytesIO(base64.b64decode(one.b64_json)))

few = {"num_inference_steps": 4}
made = client.images.generate(prompt="a girl", n=2, size="64x64", output_format="webp", quality="high",
                              extra_body={"seed": 5, "negative_prompt": "a hat", "guidance_scale": 3, **few})
told["made"] = [[opened(one).format, opened(one).size] for one in made.data] + [made.size, made.output_format]
told["warnings"] = made.model_extra["warnings"]

def file(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()

red = Image.new("RGB", (64, 64), "red")
mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
mask.paste((0, 0, 0, 0), (0, 0, 32, 64))  # the left half is repainted
edit = client.images.edit(image=file(red), mask=file(mask), prompt="a girl",
                          extra_body={"seed": 1, "mask_blur": 0, **few})
edited = opened(edit.data[0]).convert("RGB")
told["kept"], told["repainted"] = edited.getpixel((60, 32)), edited.getpixel((8, 32))
told["redrawn"] = len(client.images.edit(image=[("a.png", file(red), "image/png")], prompt="a girl",
                                         extra_body={"strength": 0.5, **few}).data)
stream = client.images.generate(prompt="a girl", stream=True, partial_images=2, extra_body={"num_inference_steps": 6})
told["events"] = [[type(one).__name__, opened(one).size] for one in stream]
stream = client.images.edit(image=file(red), prompt="a girl", stream=True, partial_images=1, extra_body=few)
told["edit_events"] = [type(one).__name__ for one in stream]
told["errors"] = []
for given in ({"model": "no"}, {"size": "63x64"}, {"response_format": "url"}, {"n": 100}):
    try:
        client.images.generate(prompt="a girl", **given)
    except openai.APIStatusError as error:
        told["errors"].append([type(error).__name__, error.status_code, error.code, error.param])
try:
    openai.OpenAI(base_url=base + "v1", api_key="x" * 32, max_retries=0).models.list()
except openai.APIStatusError as error:
    told["errors"].append([type(error).__name__, error.status_code, error.code, error.param])
print(json.dumps(told))
"""


def test_openais_client_draws_edits_streams_and_understands_errors(real: Server) -> None:
    told = client(real, OPENAI)
    assert told["models"] == ["avatar-tiny"] and told["model"] == "avatar-tiny"
    assert told["made"] == [["WEBP", [64, 64]]] * 2 + ["64x64", "webp"]
    assert told["warnings"] == ["quality is without effect"]
    assert told["kept"] == [255, 0, 0] and told["repainted"] != [255, 0, 0] and told["redrawn"] == 1
    partial, whole = "ImageGenPartialImageEvent", "ImageGenCompletedEvent"
    assert told["events"] == [[partial, [64, 64]], [partial, [64, 64]], [whole, [64, 64]]]
    assert told["edit_events"] == ["ImageEditPartialImageEvent", "ImageEditCompletedEvent"]
    assert told["errors"] == [
        ["NotFoundError", 404, "unknown_model", "model"], ["BadRequestError", 400, "invalid_value", "width"],
        ["BadRequestError", 400, "invalid_value", "response_format"], ["BadRequestError", 400, "invalid_value", "n"],
        ["AuthenticationError", 401, "unauthorized", None],
    ]  # fmt: skip


WEBUIAPI = """
import json, webuiapi
from PIL import Image
api = webuiapi.WebUIApi(host=host, port=port, sampler="Euler a", steps=4)
api.set_auth("anyone", token)
told = {"samplers": [one["name"] for one in api.get_samplers()], "models": api.util_get_model_names()}
size = {"width": 64, "height": 64}
made = api.txt2img(prompt="a ((girl)), (a hat:1.1)", negative_prompt="hair", seed=3, cfg_scale=2.5, n_iter=2, **size)
told["made"] = [len(made.images), made.image.size, made.info["all_seeds"]]
told["text"] = made.info["infotexts"][1]
told["stored"] = api.png_info(made.images[0]).info == made.info["infotexts"][0]
again = api.txt2img(prompt="a ((girl)), (a hat:1.1)", negative_prompt="hair", seed=4, cfg_scale=2.5, **size)
told["same"] = list(again.image.getdata()) == list(made.images[1].getdata())
large = api.txt2img(prompt="a girl", seed=3, enable_hr=True, hr_scale=2, hr_upscaler=webuiapi.HiResUpscaler.Latent,
                    hr_second_pass_steps=4, denoising_strength=0.5, **size)
told["large"] = large.image.size
red, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 0)
mask.paste(255, (0, 0, 32, 64))
told["redrawn"] = api.img2img(images=[red], prompt="a girl", denoising_strength=0.6, **size).image.size
for fill in (0, 1):
    some = api.img2img(images=[red], mask_image=mask, prompt="a girl", inpainting_fill=fill, mask_blur=0, seed=1,
                       inpaint_full_res=False, **size).image.convert("RGB")
    told[f"fill{fill}"] = [some.getpixel((60, 32)), some.getpixel((8, 32))]
options = api.get_options()
api.set_options({**options, "some_extension": 1})
told["options"] = {**api.get_options(), "some_extension": 1} == {**options, "some_extension": 1}
told["progress"], told["interrupt"] = api.get_progress()["progress"], api.interrupt()
told["lists"] = [len(getattr(api, "get_" + name)()) for name in (
    "schedulers", "upscalers", "latent_upscale_modes", "loras", "hypernetworks", "face_restorers", "realesrgan_models",
    "prompt_styles", "sd_vae", "embeddings", "cmd_flags", "memory", "scripts")]
large = api.extra_single_image(image=red, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2)
told["enlarged"] = large.image.size
told["errors"] = []
for given in ({"sampler_name": "Nobody's"}, {"script_name": "sd upscale"}):
    try:
        api.txt2img(prompt="a girl", **given)
    except RuntimeError as error:
        told["errors"].append(error.args[0])
print(json.dumps(told))
"""


def test_webuiapi_draws_with_hires_edits_and_lists(real: Server) -> None:
    told = client(real, WEBUIAPI)
    assert "Euler a" in told["samplers"] and told["models"][0].startswith("avatar-tiny [")
    assert told["made"] == [2, [64, 64], [3, 4]] and told["stored"] and told["same"] and told["large"] == [128, 128]
    assert (
        "Negative prompt: hair\nSteps: 4, Sampler: Euler a, Schedule type: Automatic, CFG scale: 2.5, Seed: 4, "
        in (told["text"])
    )
    assert told["redrawn"] == [64, 64] and told["enlarged"] == [128, 128]
    for fill in ("fill0", "fill1"):
        kept, repainted = told[fill]
        assert kept == [255, 0, 0] and repainted != [255, 0, 0]
    assert told["options"] and told["progress"] == 0 and told["interrupt"] == {}
    assert told["lists"] == [3, 3, 3, 0, 0, 0, 0, 0, 0, 2, 3, 2, 2]
    assert told["errors"] == [400, 422]


def test_huggingfaces_client_gets_a_picture(real: Server) -> None:
    code = """
import json
from huggingface_hub import InferenceClient
image = InferenceClient(model=base + "hf/models/avatar-tiny", token=token).text_to_image(
    "a girl", num_inference_steps=4, seed=3, width=64, height=64)
print(json.dumps([image.size, image.format]))
"""
    assert client(real, code) == [[64, 64], "PNG"]


# What fits together (a side on the model's grid, a sampler and its options, a picture and its mask) no schema says, so
# a request of the schema's form may be refused; 504 is what a request that asks for too little time is answered.
CONFIG = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]
"""


def fuzzed(tmp_path: Path, *options: str) -> str:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with Server(tmp_path, row=0.0, queue=100, lanes=4, log="off") as server:
        done = subprocess.run(
            [ENV / "schemathesis", "--config-file", tmp_path / "schemathesis.toml", "run",
             f"{server.address}openapi.json", "--seed", "1", *options],
            capture_output=True, text=True, timeout=1200, cwd=tmp_path,
        )  # fmt: skip
        told = server.balanced()
        faults = server.err.read_text()
    assert done.returncode == 0, done.stdout[-6000:]
    assert told["failed"] == 0 and faults == "", faults
    return done.stdout


def test_what_openapi_says_is_true_of_500_examples(tmp_path: Path) -> None:
    said = fuzzed(tmp_path, "--phases", "fuzzing", "--max-examples", "26")
    assert (count := re.search(r"(\d+) generated", said)) is not None and int(count[1]) >= 500


@pytest.mark.long
def test_what_openapi_says_is_true_of_thousands(tmp_path: Path) -> None:
    fuzzed(tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "100")
