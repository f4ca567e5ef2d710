"""What `hotloop serve` is made of, without a server: settings, names, refusals, the ledger, A1111's fields, masks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hotloop.cli import app
from hotloop.errors import InputError

pytest.importorskip("fastapi", reason="the extra [serve]")

from hotloop.serve.images import native
from hotloop.serve.images.a1111_fields import translated
from hotloop.serve.images.arena import Arena
from hotloop.serve.images.asking import Names, refused
from hotloop.serve.images.ledger import Ledger
from hotloop.serve.images.limits import Limits
from hotloop.serve.images.model import filled
from hotloop.serve.images.refusals import REFUSALS, Refusal
from hotloop.serve.images.settings import gathered, names_of
from hotloop.serve.ring import memory

# Settings.


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nqueue = 2\nlanes = 3\nbundles = ["a", "b"]\n[limits]\nsteps = 5\nside = 64\n')
    environment = {"HOTLOOP_SERVE_QUEUE": "20", "HOTLOOP_SERVE_LANES": "30", "HOTLOOP_SERVE_LIMITS_STEPS": "50",
                   "HOTLOOP_SERVE_STRICT": "true", "HOTLOOP_TOKEN": "t" * 32, "OTHER": "x"}  # fmt: skip
    told = gathered({"lanes": 40, "port": None, "limits": {"images": 2}}, environment, file)
    assert (told.port, told.queue, told.lanes, told.strict, told.bundles) == (1, 20, 40, True, ("a", "b"))
    assert (told.limits.steps, told.limits.side, told.limits.images) == (50, 64, 2) and told.token == "t" * 32
    assert gathered({"profile": "gpu"}, {}).limits.side == 2048


@pytest.mark.parametrize(
    ("flags", "environment", "text", "said"),
    [
        ({}, {"HOTLOOP_SERVE_QUEU": "1"}, "", "no setting has the name"), ({}, {}, "queu = 1", "keys"),
        ({}, {}, "[limits]\nstep = 1", "limits must be among"), ({}, {}, "queue = 'x'", "queue must be a int"),
        ({}, {"HOTLOOP_SERVE_STRICT": "maybe"}, "", "strict must be a bool"), ({}, {}, "queue =", "TOML"),
        ({"queue": 0}, {}, "", "queue must be"), ({"log": "xml"}, {}, "", "log must be one of"),
        ({"timeout": float("nan")}, {}, "", "timeout must be"), ({}, {}, "limits = 1", "limits must be a Limits"),
        ({"limits": {"steps": "x"}}, {}, "", "limits.steps must be a number"), ({"port": 70000}, {}, "", "port must"),
    ],
)  # fmt: skip
def test_what_is_no_setting_or_out_of_range_is_refused_by_name(
    tmp_path: Path, flags: Any, environment: Any, text: str, said: str
) -> None:
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        gathered(flags, environment, tmp_path / "serve.toml")


def test_a_name_is_what_the_start_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / "many" / name).mkdir(parents=True)
        (tmp_path / "many" / name / "manifest.json").write_text("{}")
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "a hat.safetensors").write_bytes(b"x")
    bundles, loras = names_of(gathered({"bundles": ("avatar-tiny", str(tmp_path / "many")),
                                        "loras": (str(tmp_path / "loras"),)}, {}))  # fmt: skip
    assert list(bundles) == ["avatar-tiny", "one", "two"] and list(loras) == ["a hat"]
    for given, said in (((str(tmp_path / "none"),), "must be a folder"), ((str(tmp_path),), "must be a folder")):
        with pytest.raises(InputError, match=said):
            names_of(gathered({"bundles": given}, {}))
    (tmp_path / "many" / "one").rename(tmp_path / "many" / "<script>")
    with pytest.raises(InputError, match="must match"):
        names_of(gathered({"bundles": (str(tmp_path / "many"),)}, {}))
    (tmp_path / "more" / "two").mkdir(parents=True)
    (tmp_path / "more" / "two" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="two things of one name"):
        names_of(gathered({"bundles": (str(tmp_path / "many" / "two"), str(tmp_path / "more"))}, {}))


def test_check_says_what_would_be_done_and_not_the_token() -> None:
    token = "x" * 40
    done = CliRunner().invoke(app, ["serve", "avatar-tiny", "--check", "--token", token, "--limit", "steps=7"])
    assert done.exit_code == 0 and "steps=7" in done.stdout and token not in done.stdout
    assert "models         avatar-tiny" in done.stdout
    for wrong in (["--limit", "steps"], ["--queue", "0"], ["nothing-of-this-name"]):
        assert CliRunner().invoke(app, ["serve", "--check", *wrong]).exit_code != 0


# Refusals.


def test_no_refusal_says_more_than_a_rule() -> None:
    for rule in ("/etc/passwd must be readable", "at 0x7ffe12345678", "a\nb", "\x1b[31mred", "C:\\x"):
        assert Refusal("invalid_value", rule).message == "a value is out of its range"
    assert Refusal("invalid_value", "steps must be in 1..3").message == "steps must be in 1..3"
    error = InputError("txt2img", "num_inference_steps must be in 1..1000", "secret")
    assert (
        refused("txt2img", error).param == "num_inference_steps" and "secret" not in refused("txt2img", error).message
    )
    statuses = {row.status for row in REFUSALS.values()}
    assert statuses <= {400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503, 504}


def test_a_ticket_has_one_end_and_the_ledger_balances_at_every_moment() -> None:
    async def live() -> None:
        ledger = Ledger()
        one, two = ledger.ticket("native", "1", 10), ledger.ticket("openai", "2", 10)
        one.move("queued")
        assert ledger.balance() == {"received": 2, "ended": 0, "inflight": 1, "queued": 1, "difference": 0}
        one.fail(Refusal("expired"))
        one.end("expired")
        one.end("completed")  # a fault: counted, and without effect
        assert ledger.twice == 1 and ledger.outcomes == {("native", "expired"): 1}
        two.move("running")
        assert ledger.balance()["difference"] == 0 and ledger.balance()["inflight"] == 1
        two.end("gone")
        assert ledger.balance() == {"received": 2, "ended": 2, "inflight": 0, "queued": 0, "difference": 0}

    asyncio.run(live())


def test_a_slot_that_is_given_back_holds_nothing() -> None:
    fd = memory(2 * 65536)
    ours, theirs = Arena(fd, 2, 65536), Arena(fd, 2, 65536)
    at = ours.write(1, 0, b"abc")
    assert theirs.read(1, 0, at) == b"abc" and theirs.read(0, 0, 3) == bytes(3)
    for wrong in ((1, 65530, b"1234567"),):
        with pytest.raises(ValueError, match="of a slot"):
            ours.write(*wrong)
    with pytest.raises(ValueError, match="of a slot"):
        theirs.read(0, -1, 5)
    ours.free(1, at)
    assert theirs.read(1, 0, 3) == bytes(3)
    os.close(fd)


# A1111's fields.

FACTS = {
    "id": "0123456789abcdef", "grid": 8, "least": 64, "most": 1024, "size": [64, 64], "networks": [],
    "defaults": {"sampler": "plms", "num_inference_steps": 20, "guidance_scale": 7.5},
}  # fmt: skip


def asked(edits: bool = False, options: dict[str, Any] | None = None, **given: Any) -> Any:
    names = Names({"small": FACTS, "other": FACTS}, frozenset({"hat"}), Limits())
    part = SimpleNamespace(names=names, settings=gathered({}, {}), pool=SimpleNamespace(facts=names.bundles))
    told = translated(part, {"prompt": "a", **given}, options or {}, edits=edits)  # type: ignore[arg-type]
    return told, names.ask(told.pipeline, told.bundle, told.values, told.pictures, loras=told.loras)


def test_a1111s_fields_become_the_tables_own() -> None:
    told, one = asked(
        prompt="a <lora:hat:0.5>", steps=7, cfg_scale=3, seed=5, n_iter=2, batch_size=2, sampler_name="DPM++ 2M Karras",
        override_settings={"sd_model_checkpoint": "other [0123456789]", "CLIP_stop_at_last_layers": 2}, subseed=3,
    )  # fmt: skip
    assert one.bundle == "other" and one.seeds == [5, 6, 7, 8] and one.loras == (("hat", 0.5),)
    assert one.values["prompt"] == "a " and one.settled["sampler"] == "dpmpp_2m" and one.settled["clip_skip"] == 1
    assert one.settled["sampler_options"] == {"sigmas": "karras"} and told.warnings == ["subseed is without effect"]
    _, large = asked(enable_hr=True, hr_resize_x=128, width=64, height=64, hr_second_pass_steps=3,
                     hr_upscaler="Lanczos", denoising_strength=0.5)  # fmt: skip
    assert (large.settled["hires"], large.settled["hires_steps"], large.settled["hires_fidelity"]) == (2.0, 3, 0.0)
    assert large.settled["hires_strength"] == 0.5 and large.settled["hires_upscaler"] == "lanczos"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"script_name": "sd upscale"}, "invalid_value"), ({"sampler_name": "no such"}, "invalid_body"),
        ({"alwayson_scripts": {"x": {"args": [True]}}}, "invalid_value"), ({"scheduler": "beta"}, "invalid_body"),
        ({"enable_hr": True, "hr_prompt": "b"}, "invalid_value"), ({"prompt": "<lora:no:1>"}, "unknown_lora"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "invalid_value"), ({"n_iter": 5}, "invalid_value"),
        ({"override_settings": {"sd_model_checkpoint": "../x"}}, "unknown_model"), ({"edits": True}, "not_found"),
        ({"edits": True, "init_images": ["http://x/y.png"]}, "url_refused"), ({"steps": 151}, "invalid_value"),
        ({"override_settings": {"sd_vae": "x"}}, "invalid_value"), ({"width": 65}, "invalid_value"),
    ],
)  # fmt: skip
def test_what_does_not_map_is_refused(given: dict[str, Any], code: str) -> None:
    with pytest.raises(Refusal) as told:
        asked(**given)
    assert told.value.code == code


def test_what_is_masked_is_filled_from_around_it() -> None:
    """Constant beside constant; where two colours meet, only those; what is not masked stays as it is."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:] = (200, 10, 10), (10, 10, 200)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 2:12] = mask[10:30, 45:55] = 255
    spoiled = pixels.copy()
    spoiled[mask > 0] = 255
    made = np.asarray(filled(Image.fromarray(spoiled), Image.fromarray(mask)))
    assert np.abs(made.astype(int) - pixels).max() <= 1
    mask[:] = 255
    mask[0, 0] = 0
    made = np.asarray(filled(Image.fromarray(pixels), Image.fromarray(mask)))
    assert np.abs(made.astype(int) - pixels[0, 0]).max() <= 1
    whole = Image.fromarray(pixels)
    assert filled(whole, Image.new("L", (60, 40), 255)) is whole


# The log.


def test_a_job_that_fails_by_our_fault_is_told_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """As a request's answer promises: the kind of error under the request's id, never its words."""
    ends: list[tuple[str, int]] = []

    async def fails(error: Exception) -> SimpleNamespace:
        drawn = asyncio.get_running_loop().create_future()
        drawn.set_exception(error)
        ticket = SimpleNamespace(id="the-id", drawn=drawn, end=lambda outcome, status: ends.append((outcome, status)))
        job = SimpleNamespace(ticket=ticket, kind="png", quality=None, status="running", error=None)
        await native._work(job)  # type: ignore[arg-type]
        return job

    job = asyncio.run(fails(RuntimeError("a secret")))
    log = capsys.readouterr().err
    assert job.error["code"] == "internal" and job.status == "failed" and ends == [("failed", 500)]
    assert "RuntimeError" in log and "the-id" in log and "secret" not in log
    asyncio.run(fails(Refusal("expired")))
    assert capsys.readouterr().err == "" and ends[1] == ("expired", 504)
