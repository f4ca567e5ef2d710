"""Paths and words that come from outside: nothing is waited for that may never end, nothing reaches a terminal raw."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import sys
import unicodedata
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hotloop import files
from hotloop.adapters.embedding import open_embedding
from hotloop.adapters.lora import Lora
from hotloop.cli import shell
from hotloop.cli.app import _show_warning
from hotloop.errors import BundleError, HotloopError, InputError, printable
from hotloop.image import open_image, open_mask, read_text
from hotloop.image.metadata import StoredRequest, source
from hotloop.weights import Weights
from hotloop_export.hashes import file_sha256
from hotloop_export.onnx_generator import open_onnx

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders there")


def of_a_generator(path: Path) -> object:
    return open_onnx(path, value_range=None, size=None, classes=0, controls=0)


READERS: dict[str, Callable[[Path], object]] = {
    "image": open_image, "mask": open_mask, "text": read_text, "stored": StoredRequest.read, "source": source,
    "weights": Weights.open, "lora": Lora.open, "embedding": open_embedding, "export": file_sha256,
    "json": lambda path: files.read_json(path, place="bundle"), "graph": of_a_generator,
}  # fmt: skip


@pytest.fixture(params=["pipe", "device", "link", "socket", "folder"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A path that is no file: opened the plain way, most of these wait or read for ever."""
    path = tmp_path / "it.png"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path = Path("/dev/zero")
    elif request.param == "link":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    else:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path may have 108 bytes
        try:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind("it.png")
        finally:
            os.chdir(here)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(reader: str, endless: Path) -> None:
    with pytest.raises(HotloopError) as caught:
        READERS[reader](endless)
    assert "\n" not in str(caught.value)


def test_the_one_opener(tmp_path: Path, endless: Path) -> None:
    with pytest.raises(OSError, match=r"regular file|directory|No such device"):
        files.open_file(endless)
    file = tmp_path / "plain"
    file.write_bytes(b"12345")
    assert files.read_file(file) == files.read_file(file, most=5) == b"12345"
    assert files.sha256(file) == hashlib.sha256(b"12345").hexdigest()
    with pytest.raises(OSError, match="at most 4 bytes, not 5"):
        files.open_file(file, most=4)
    with pytest.raises(BundleError, match=r"readable \(No such file"):
        files.read_json(tmp_path / "none.json", place="bundle")


HOSTILE = "a\x1b[31m\x1b]0;title\x07\x9b2J\u202egnp\r\n\x00\x7f\ud800b"


def test_words_of_a_file_reach_a_terminal_escaped_and_capped() -> None:
    shown = printable(HOSTILE)
    assert shown.isprintable() and shown.startswith("a\\x1b[31m\\x1b]0;title\\x07\\x9b2J\\u202e")
    assert len(printable("x" * 5000)) == 121
    for c in map(chr, range(0x11000)):
        assert not any(unicodedata.category(one)[0] == "C" for one in printable(c))
    for error in (InputError(HOSTILE, HOSTILE, HOSTILE), BundleError("place", "x" * 10**6, "y" * 10**6)):
        assert str(error).isprintable() and len(str(error)) < 1400


def hostile_png(folder: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text("hotloop", text)
    Image.new("RGB", (8, 8)).save(folder / "hostile.png", pnginfo=info)
    return folder / "hostile.png"


@pytest.mark.parametrize("text", [
    json.dumps({HOSTILE: 1}), json.dumps({"command": HOSTILE}), HOSTILE.replace("\ud800", ""),
    json.dumps({"x" * 9999: 1}),
])  # fmt: skip
def test_a_hostile_request_is_one_short_printable_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        StoredRequest.read(hostile_png(tmp_path, text))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1400


def test_what_the_commands_print_is_printable() -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        shell.print_line(HOSTILE)
        shell.print_json({HOSTILE: [HOSTILE, "\u4eba", "\U000e0001"]})
        with pytest.raises(SystemExit):
            shell.fail(HOSTILE * 1000)
        _show_warning(UserWarning(HOSTILE), UserWarning, "file", 1)
    for line in (*out.getvalue().splitlines(), *err.getvalue().splitlines()):
        assert line.isprintable() and len(line) < 2100
    whole = out.getvalue()
    assert json.loads(whole[whole.index("{") :])[HOSTILE] == [HOSTILE, "\u4eba", "\U000e0001"]
    assert "\u4eba" in whole


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "red.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "link.png").getpixel((0, 0)) == (255, 0, 0)
