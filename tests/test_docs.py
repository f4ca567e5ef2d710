"""README and docs/: their Python and shell runs as it is written, their links lead somewhere, their pages build.

A comment above a block, which no reader sees, says what is special about it:

    <!-- docs: given hair.png -->       files that a reader has and the block only names: made by `GIVEN`
    <!-- docs: long, REASON -->         run by `make test-long` only
    <!-- docs: not run, REASON -->      never run; its command lines are still checked, and `NOT_RUN` lists it

The blocks of a page run in order, in one empty folder; its Python blocks share their names.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from hotloop.bundle import builtin, write_manifest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NOT_RUN = {
    "README.md": ["they are what runs this"],
    "CONTRIBUTING.md": ["they are what runs this"],
    "docs/benchmarks.md": ["builds every peer's environment and measures for ten minutes"],
    "docs/builtin-model.md": ["needs diffusers; tests/test_avatar_tiny.py does it"],
    "docs/checkpoints.md": [
        "needs a checkpoint in the single-file format", "TensorRT's builder needs an NVIDIA GPU",
    ],
    "docs/live-animate.md": ["it ends in a server; tests/test_fit.py does the rest"],
    "docs/live.md": ["needs a clip of a face, and the tracker's networks"],
    "docs/live-controls.md": ["needs a camera, and fetches networks"],
    "docs/live-server.md": ["it serves until it is told to end"],
    "docs/serve.md": ["it serves until it is told to end"],
    "docs/native.md": ["needs a GPU"],
    "docs/upscaling.md": ["needs a bundle with an upscaler and a segmenter"] * 2,
    "docs/quickstart.md": ["the suite has its own environment", "installs packages"],
}  # fmt: skip

_BLOCK = re.compile(r"^(?P<marks>(?:<!-- docs: [^\n]* -->\n)*)```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """line: of its first line of code. given: names of files. kept: "long", "not run" or "", and why."""

    page: str
    line: int
    language: str
    code: str
    given: tuple[str, ...] = ()
    kept: str = ""
    why: str = ""


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    name = page.relative_to(ROOT).as_posix()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        given: tuple[str, ...] = ()
        kept = why = ""
        for mark in re.findall(r"<!-- docs: (.*) -->", match["marks"]):
            if mark.startswith("given "):
                given = tuple(mark.removeprefix("given ").split(", "))
            else:
                kept, _, why = mark.partition(", ")
                assert kept in ("long", "not run") and why, f"{name}:{line}: mark must say what and why: {mark}"
        found.append(Block(name, line, match["language"], match["code"], given, kept, why))
    return found


def commands(block: Block) -> list[list[str]]:
    """The command lines of a shell block, as a shell splits them."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# What a reader has at hand.


def hair(path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:26] = 255
    Image.fromarray(mask).save(path)


def style(path: Path) -> None:
    """A LoRA of the built-in UNet's cross-attention, random, in kohya's keys."""
    from safetensors.numpy import load_file, save_file

    rng, tensors = np.random.default_rng(0), {}
    for name, weight in load_file(builtin() / "unet" / "diffusion_pytorch_model.safetensors").items():
        if name.endswith("attn2.to_q.weight"):
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_up.weight"] = rng.normal(size=(weight.shape[0], 4)).astype(np.float32)
            tensors[f"{key}.lora_down.weight"] = rng.normal(size=(4, weight.shape[1])).astype(np.float32)
    assert tensors
    save_file(tensors, path)


def checkpoint(path: Path) -> None:
    """The built-in model as stock diffusers has it: no manifest, no graphs."""
    ours = shutil.ignore_patterns("manifest.json", "*.onnx", "parity")
    shutil.copytree(builtin(), path, ignore=ours)


def exported(path: Path) -> None:
    """What `hotloop export checkpoint --out my-avatar` makes: the built-in bundle with ONNX Runtime's engine alone."""
    shutil.copytree(builtin(), path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["engines"] = [entry for entry in manifest["engines"] if entry["kind"] == "onnx"]
    write_manifest(path, manifest)


def gan(path: Path) -> None:
    """A folder of a generator of random weights, small, with its critic."""
    import torch

    from hotloop.nets.generators import Critic, MLPGenerator

    torch.manual_seed(0)
    hair = {"hair": ["black", "pink"]}
    MLPGenerator({"z": 16, "classes": 2, "size": 8, "widths": [32, 64], "labels": hair}).save(path / "generator")
    Critic({"classes": 2, "size": 8, "widths": [4, 8]}).save(path / "critic")


def graph(path: Path) -> None:
    """Somebody's generator of 8 x 8 grey pixels in 0..1, flat."""
    import onnx

    helper, values = onnx.helper, np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["z", "w"], ["h"]), helper.make_node("Sigmoid", ["h"], ["pixels"])]
    given, made = (helper.make_tensor_value_info(name, 1, ["N", n]) for name, n in (("z", 16), ("pixels", 64)))
    whole = helper.make_graph(nodes, "g", [given], [made], [onnx.numpy_helper.from_array(values, "w")])
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


GIVEN: dict[str, Callable[[Path], object]] = {
    "hair.png": hair,
    "style.safetensors": style,
    "checkpoint": checkpoint,
    "my-avatar": exported,
    "my-gan": gan,
    "my.onnx": graph,
}


# Running them.


def hotloop(arguments: list[str], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line in this process: what it changes of the process is put back."""
    from hotloop.cli import app, main

    terminated = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["hotloop", *arguments])
        patch.setattr(app, "registered_commands", [*app.registered_commands])
        with pytest.raises(SystemExit) as left:
            main()
    signal.signal(signal.SIGTERM, terminated)
    assert left.value.code == 0, f"{place}: hotloop {shlex.join(arguments)} left with {left.value.code}"


@contextmanager
def one_core() -> Iterator[None]:
    """Engines opened here have one thread: small networks gain little from more."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, long: bool) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        place = f"{block.page}:{block.line}"
        if block.kept == "not run" or (block.kept == "long" and not long):
            continue
        for name in block.given:
            if not Path(name).exists():
                GIVEN[name](Path(name))
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, block.page, "exec")
            exec(code, names)
        elif block.language == "sh":
            for program, *arguments in commands(block):
                assert program == "hotloop", f"{place}: {program} is not run here: mark the block"
                hotloop(arguments, place, monkeypatch)


RUNNABLE = [page for page in PAGES if any(block.language in ("python", "sh") for block in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_core():
        run(page, tmp_path, monkeypatch, long=False)
    # What a comment says is printed is printed.
    said = "".join(capsys.readouterr())
    told = [line for block in blocks(page) for line in re.findall(r"print\(.*\)  # (\[.*)", block.code)]
    assert all(line in said for line in told), told


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.kept == "long" for block in blocks(page))], ids=lambda page: page.stem
)
def test_the_long_blocks_of_a_page_run_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch, long=True)


def test_what_is_not_run_is_known_and_says_why() -> None:
    found = {page.relative_to(ROOT).as_posix(): [b.why for b in blocks(page) if b.kept == "not run"] for page in PAGES}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


def test_every_block_has_a_language_that_is_known() -> None:
    known = ("python", "sh", "text", "{toctree}", "{eval-rst}", "{include} ")
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(page)), page
        for block in blocks(page):
            assert block.language.startswith(known), f"{block.page}:{block.line}"
            if block.language == "python":
                ast.parse(block.code)


def test_command_lines_name_what_there_is() -> None:
    """Also of the blocks that are not run: hotloop's commands and options, make's targets, the extras of an install."""
    from importlib.metadata import entry_points

    from hotloop.cli import app

    every = typer.Typer()
    every.registered_commands = [*app.registered_commands]
    for entry in entry_points(group="hotloop.commands"):
        every.command(entry.name)(entry.load())
    known = {
        name: {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        for name, command in typer.main.get_command(every).commands.items()  # type: ignore[attr-defined]
    }
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    seen = set()
    for page in PAGES:
        for block in blocks(page):
            for program, *words in commands(block) if block.language == "sh" else ():
                place = f"{block.page}:{block.line}: {program} {shlex.join(words)}"
                seen.add(program)
                if program == "hotloop":
                    used = {word.split("=")[0] for word in words[1:] if word.startswith("-")}
                    assert used <= known[words[0]] | {"--help"}, place
                elif program == "make":
                    assert {word for word in words if "=" not in word} <= targets, place
                elif program == "pip":
                    wanted = [word for word in words if word.startswith(".[")]
                    assert {extra for word in wanted for extra in word[2:-1].split(",")} <= extras, place
                    assert words[0] == "install" and (wanted or "." in words), place
                else:
                    assert (program, words) == (".", [".venv/bin/activate"]), place
    assert {"hotloop", "make", "pip"} <= seen


# What is told.


def test_the_architecture_page_shows_the_tree_as_it_is() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.split("```text\n")[1].split("```")[0]
    runtime = tree.split("export/hotloop_export/")[0].splitlines()[1:]
    shown = {word.rstrip("/").split("/")[0] for line in runtime for word in re.findall(r"[a-z_]+\.py|[a-z-]+/", line)}
    there = {path.name for path in (ROOT / "runtime" / "hotloop").iterdir()} - {"__pycache__", "py.typed"}
    assert there <= shown | {"__init__.py"}, f"docs/architecture.md lacks {sorted(there - shown)}"
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", page.split("## The contracts")[1]):
        assert any((ROOT / at / name).exists() for at in ("runtime/hotloop", "")), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_lead_to_files_that_are_there() -> None:
    broken = []
    for page in PAGES:
        text = _BLOCK.sub("", page.read_text())
        for target in _LINK.findall(text):
            path = target.split("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_nothing_tells_to_install_what_is_not_published() -> None:
    """hotloop is installed from a clone: `pip install '.[export]'`."""
    sources = [
        path for folder in ("runtime", "export", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    wrong = re.compile(r"pip install ['\"]?hotloop")
    assert [path for path in [*sources, *PAGES] if wrong.search(path.read_text())] == []


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the test extra brings it: make test")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in PAGES if page.parent == ROOT / "docs"} <= pages
    api = (tmp_path / "site" / "api.html").read_text()
    import hotloop

    missing = [name for name in hotloop.__all__ if f'id="hotloop.{name}"' not in api]
    assert missing == ["__version__", "samplers"]  # samplers is a module: its functions have entries
