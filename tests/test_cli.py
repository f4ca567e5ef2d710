"""The command line: files and JSON as asked, one line and exit code 2 when something is wrong, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import hotloop
from PIL import Image

QUICK = ["--steps", "3", "--guidance", "4"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    done = hotloop("txt2img", "a girl with pink hair", "--seed", "7", "--out", "face.png", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "face.png"


def test_txt2img_writes_the_picture_and_says_where(drawn: Path) -> None:
    assert Image.open(drawn).size == (64, 64)


def test_the_command_line_draws_what_python_draws(drawn: Path, pipe: object) -> None:
    result = pipe.txt2img(  # type: ignore[attr-defined]
        "a girl with pink hair", seed=7, num_inference_steps=3, guidance_scale=4.0
    )
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(result.images[0]))


def test_batches_write_every_image_with_its_own_seed_and_each_reruns_alone(tmp_path: Path) -> None:
    done = hotloop(
        "txt2img", "a boy", "--seed", "100", "--batches", "2", "--num-images", "2", "--json", *QUICK, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [entry["seed"] for entry in report["images"]] == [100, 101, 102, 103]
    file = tmp_path / report["images"][3]["file"]
    assert hotloop("rerun", file, cwd=tmp_path).returncode == 0
    assert file.with_name("103-rerun.png").read_bytes() == file.read_bytes()


def test_rerun_of_img2img_and_inpaint_is_byte_for_byte(drawn: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for name, extra in (("img2img", []), ("inpaint", ["--mask", tmp_path / "mask.png", "--only-masked", "4"])):
        done = hotloop(
            name, "red hair", "--image", drawn, *extra, "--seed", "3", "--out", f"{name}.png", *QUICK, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        again = hotloop("rerun", f"{name}.png", "--out", f"{name}-2.png", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / f"{name}-2.png").read_bytes()


def test_words_loras_and_sampler_options_reach_the_picture_and_its_rerun(pipe: object, tmp_path: Path) -> None:
    import hotloop as package
    from hotloop.weights import save

    rng = np.random.default_rng(0)
    save({"mystyle": rng.normal(size=(2, 128)).astype(np.float32)}, tmp_path / "word.safetensors")
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {
        f"{layer}.lora_down.weight": rng.normal(size=(2, 96)),
        f"{layer}.lora_up.weight": rng.normal(size=(96, 2)),
    }
    save({key: factor.astype(np.float32) for key, factor in factors.items()}, tmp_path / "lora.safetensors")
    prompt, given = "a mystyle girl", ["--sampler", "DPM++ 2M Karras", "--clip-skip", "1", "--threads", "1"]
    done = hotloop(
        "txt2img", prompt, *given, "--sampler-option", "solver_type=heun", "--seed", "7", "--lora",
        "lora.safetensors:0.5", "--embedding", "word.safetensors", "--out", "a.png", *QUICK, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own = package.load(threads=1)
    own.load_lora(tmp_path / "lora.safetensors", 0.5)
    own.load_embedding(tmp_path / "word.safetensors")
    result = own.txt2img(
        prompt, seed=7, num_inference_steps=3, guidance_scale=4.0, clip_skip=1, sampler="dpmpp_2m",
        sampler_options={"sigmas": "karras", "solver_type": "heun"},
    )  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(result.images[0]))
    assert hotloop("rerun", "a.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a-rerun.png").read_bytes()
    (tmp_path / "lora.safetensors").write_bytes(b"another")
    refused = hotloop("rerun", "a.png", "--out", "b.png", cwd=tmp_path)
    assert refused.returncode == 2 and "lora must be the file" in refused.stderr
    assert not (tmp_path / "b.png").exists()


def test_rerun_finds_the_sources_beside_the_picture(drawn: Path, tmp_path: Path) -> None:
    Image.open(drawn).save(tmp_path / "source.png")
    hotloop("img2img", "a boy", "--image", "source.png", "--seed", "3", "--out", "made.png", *QUICK, cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    done = hotloop("rerun", "../made.png", "--out", "again.png", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere" / "again.png").read_bytes() == (tmp_path / "made.png").read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"seed": "abc"}, {"seed": None}, {"arguments": {"callback": 1}}, {"arguments": 5}, {"files": {"image": "x"}},
     {"files": {"latents": {"path": "a", "sha256": "b"}}}, {"model": 5}, {"bundle": 5}, {"bundle": "0" * 64},
     {"command": "paint"}, {"colour": 1}, None],
    ids=str,
)  # fmt: skip
def test_rerun_refuses_a_forged_request_in_one_line(drawn: Path, tmp_path: Path, change: dict[str, object]) -> None:
    from PIL.PngImagePlugin import PngInfo

    image = Image.open(drawn)
    text = "[" * 50_000 if change is None else json.dumps(json.loads(image.text["hotloop"]) | change)  # type: ignore[attr-defined]
    info = PngInfo()
    info.add_text("hotloop", text)
    image.save(tmp_path / "forged.png", pnginfo=info)
    done = hotloop("rerun", "forged.png", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["forged.png"]


def test_rerun_refuses_when_the_source_picture_changed(drawn: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    Image.open(drawn).save(source)
    hotloop("img2img", "a boy", "--image", source, "--seed", "3", "--out", "made.png", *QUICK, cwd=tmp_path)
    Image.new("RGB", (64, 64)).save(source)
    done = hotloop("rerun", "made.png", cwd=tmp_path)
    assert done.returncode == 2
    assert "source.png" in done.stderr


BAD: list[tuple[list[str], str]] = [
    (["txt2img", "a girl", "--sampler", "eulr"], "euler"),
    (["txt2img", "a girl", "--seed", "-2"], "seed"),
    (["txt2img", "a girl", "--width", "66"], "multiple of 4"),
    (["txt2img", "a girl", "--width", "100000"], "width"),
    (["txt2img", "a girl", "--steps", "0"], "num_inference_steps"),
    (["txt2img", "a girl", "--steps", "many"], "steps"),
    (["txt2img", "a girl", "--guidance", "nan"], "guidance_scale"),
    (["txt2img", "x" * 120_000], "characters"),
    (["txt2img", "a girl", "--batches", "0"], "batches"),
    (["txt2img", "a girl", "--out", "face.gif"], "face.gif"),
    (["txt2img", "a girl", "--out", "good.png/face.png"], "good.png"),
    (["txt2img", "a girl", "--out", "/proc/nowhere/face.png"], "/proc/nowhere"),
    (["txt2img", "a girl", "--seed", str(2**64 - 1), "--batches", "2"], "seed"),
    (["txt2img", "a girl", "--model", "nowhere"], "nowhere"),
    (["txt2img", "a girl", "--colour", "red"], "colour"),
    (["txt2img"], "prompt"),
    (["txt2img", "a girl", "--sampler-option", "eta"], "NAME=VALUE"),
    (["txt2img", "a girl", "--sampler", "euler", "--eta", "0.3"], "options of euler"),
    (["txt2img", "a girl", "--clip-skip", "2"], "clip_skip"),
    (["txt2img", "a girl", "--threads", "0"], "threads"),
    (["txt2img", "a girl", "--lora", "missing.safetensors"], "missing.safetensors"),
    (["txt2img", "a girl", "--embedding", "text.png"], "text.png"),
    (["img2img", "a girl", "--image", "missing.png"], "missing.png"),
    (["img2img", "a girl", "--image", "cut.png"], "cut.png"),
    (["img2img", "a girl", "--image", "gigantic.png"], "pixels"),
    (["img2img", "a girl", "--image", "good.png", "--strength", "0"], "strength"),
    (["inpaint", "a girl", "--image", "good.png", "--mask", "small.png"], "32 x 32"),
    (["compare", "--samplers", "eulr"], "euler"),
    (["compare", "--engines", "onnx-fp8"], "onnx-fp8"),
    (["compare", "nowhere"], "nowhere"),
    (["rerun", "good.png"], "good.png"),
    (["rerun", "text.png"], "text.png"),
    (["paint"], "paint"),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import struct
    import zlib

    folder = tmp_path_factory.mktemp("bad")
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "good.png")
    Image.new("L", (32, 32), 255).save(folder / "small.png")
    raw = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(raw[: len(raw) // 2])
    (folder / "text.png").write_text("words")
    # A PNG header that promises 60,000 x 60,000 pixels: refused before a byte of them is decoded.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    gigantic = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (folder / "gigantic.png").write_bytes(gigantic + raw[33:])
    return folder


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(case)[:50] for case, _ in BAD])
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    bad_files: Path, arguments: list[str], named: str
) -> None:
    before = sorted(bad_files.rglob("*"))
    done = hotloop(*arguments, cwd=bad_files)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert named in done.stderr
    assert len(done.stderr) < 500
    assert sorted(bad_files.rglob("*")) == before


def test_samplers_lists_every_sampler_with_its_evaluations(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(hotloop("samplers", "--json", cwd=tmp_path).stdout)}
    # Published counts for 20 steps: PNDM 12 + 17, PLMS one more than steps, second-order ones two a step but the last.
    assert {name: rows[name]["evaluations_at_20_steps"] for name in ("pndm", "plms", "ddim", "heun", "kdpm2")} == {
        "pndm": 29, "plms": 21, "ddim": 20, "heun": 39, "kdpm2": 39,
    }  # fmt: skip


def test_doctor_names_engines_kernels_and_the_model(tmp_path: Path) -> None:
    done = hotloop("doctor", "--json", cwd=tmp_path)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["engine onnx"]["ok"]
    assert findings["built-in model"]["ok"]
    assert findings["kernels"]["ok"] or findings["kernels"]["advice"]


def test_there_is_no_progress_bar_without_a_terminal(drawn: Path, tmp_path: Path) -> None:
    assert hotloop("txt2img", "a boy", "--seed", "1", *QUICK, cwd=tmp_path).stderr == ""


def test_without_arguments_it_prints_its_help(tmp_path: Path) -> None:
    done = hotloop(cwd=tmp_path)
    assert done.returncode == 0
    assert "txt2img" in done.stdout and len(done.stdout.splitlines()) > 10


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    prompt = "a girl" + ", floating_hair" * 60
    cut = hotloop("txt2img", prompt, "--seed", "1", *QUICK, cwd=tmp_path)
    assert cut.returncode == 0
    assert len(cut.stderr.strip().splitlines()) == 1 and cut.stderr.startswith("hotloop: ")
    assert hotloop("txt2img", prompt, "--seed", "1", "--long-prompt", "chunk", *QUICK, cwd=tmp_path).stderr == ""


def test_out_may_be_a_directory_with_a_dot_and_need_not_exist(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    assert hotloop("txt2img", "a boy", "--seed", "1", "--out", "v1.2", *QUICK, cwd=tmp_path).returncode == 0
    assert hotloop("txt2img", "a boy", "--seed", "1", "--out", "a/b/c.webp", *QUICK, cwd=tmp_path).returncode == 0
    assert (tmp_path / "v1.2" / "1.png").is_file()
    assert Image.open(tmp_path / "a" / "b" / "c.webp").format == "WEBP"
