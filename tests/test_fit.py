"""An avatar fitted to one picture: what is found in it against how it was drawn, what is measured, and its file."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import portraits
import pytest
from PIL import Image
from typer.testing import CliRunner

from hotloop.cli.app import app
from hotloop.errors import InputError
from hotloop.live import open_avatar
from hotloop.live.animation import Keyframe, builtin_keyframe, fit, keyframe_from
from hotloop.live.animation.calibration import calibrated
from hotloop.live.animation.fitting import figures
from hotloop.live.animation.keyframe import load_keyframe, save_keyframe
from hotloop.live.animation.layers import iris_layers


def test_a_drawn_eyes_ovals_are_found_from_points_that_are_a_little_off() -> None:
    """The cat's white oval and iris, as its drawing has them: shares of the picture."""
    rng = np.random.default_rng(1)
    points = {name: tuple(np.add(at, rng.normal(0, 0.004, 2))) for name, at in portraits.CAT.items()}
    keyframe = keyframe_from(portraits.cat(256), points=points, side=256)
    assert keyframe.geometry is not None
    found = calibrated(keyframe.rgba, keyframe.geometry)
    assert found.irises
    for eye, x in zip(found.geometry.eyes, (0.363, 0.637), strict=True):
        unit = found.geometry.unit
        cx, cy = found.geometry.to_picture(np.array(eye.iris[:2]))
        assert abs(cx - x) < 0.006 and abs(cy - 0.437) < 0.008
        assert eye.iris[2] * unit == pytest.approx(0.044, rel=0.2) and eye.iris[3] * unit == pytest.approx(
            0.06, rel=0.2
        )
        edges = [found.geometry.to_picture(np.array([eye.x, y]))[1] for y in (eye.top.min(), eye.low.max())]
        np.testing.assert_allclose(edges, (0.437 - 0.070, 0.437 + 0.070), atol=0.011)
        assert eye.width * unit == pytest.approx(0.058, rel=0.2)


def test_layers_put_together_are_the_picture_and_hold_what_lids_hide() -> None:
    keyframe = keyframe_from(portraits.cat(256), points=portraits.CAT, side=256)
    assert keyframe.geometry is not None
    geometry = calibrated(keyframe.rgba, keyframe.geometry).geometry
    bare, loose = iris_layers(keyframe.rgba, geometry, None)
    green, black = ((keyframe.rgba.astype(int) - (*colour, 255)) ** 2 for colour in ((64, 158, 104), (22, 26, 28)))
    iris = np.minimum(green.sum(-1), black.sum(-1)) < 900
    for x in (0.363, 0.637):  # white where the iris was, all of it; the iris whole
        i, j = round(256 * x), round(256 * 0.437)
        assert iris[j - 10 : j + 11, i - 8 : i + 9].mean() > 0.75  # all but the light in it
        assert (bare[j - 10 : j + 11, i - 8 : i + 9, :3] > 215).mean() > 0.95
        assert (loose[j - 14 : j + 15, i - 10 : i + 11, 3] == 255).all()
    assert not loose[:40].any() and np.array_equal(bare[:80], keyframe.rgba[:80])
    front = np.full((256, 256), 255, np.uint8)  # what lies before the eyes stays in both
    assert np.array_equal(iris_layers(keyframe.rgba, geometry, front)[0], keyframe.rgba)


def test_a_fitted_painting_keeps_its_face_and_its_lids_close() -> None:
    made = fit(portraits.painted(256), points=portraits.PAINTED, side=192)
    assert made.found.irises and made.keyframe.bare is not None
    assert made.before.rest > 60 and made.after.rest > 45
    assert made.after.shut == 0 and made.after.lips == 0 and made.after.gaze < 0.03
    assert made.left == ("the line between the lips is straight: none was found",)


def test_what_is_measured_tells_bad_keyframes() -> None:
    """Lids that are told too narrow leave irises open; layers that are not the picture's are told apart from it."""
    keyframe = keyframe_from(portraits.painted(192), points=portraits.PAINTED, side=192)
    assert keyframe.geometry is not None
    good = figures(keyframe, keyframe.geometry)
    eyes = [
        replace(eye, top=eye.y + 0.2 * (eye.top - eye.y), low=eye.y + 0.2 * (eye.low - eye.y), width=0.3 * eye.width)
        for eye in keyframe.geometry.eyes
    ]
    narrow = replace(keyframe, geometry=replace(keyframe.geometry, eyes=(eyes[0], eyes[1])))
    told = figures(narrow, keyframe.geometry)
    assert told.shut > 0.2 > 0.05 > good.shut, (told, good)
    assert (
        good.rest
        > 60
        > 40
        > figures(replace(narrow, bare=keyframe.rgba // 2, loose=keyframe.rgba), narrow.geometry).rest
    )


def test_where_no_iris_is_to_be_seen_eyes_stay_as_they_are() -> None:
    """A plain picture: nothing in its eyes is unlike the rest."""
    made = fit(Image.new("RGB", (128, 128), (230, 190, 160)), points=portraits.PAINTED, side=64)
    assert made.keyframe.bare is None and made.left[0].startswith("irises stay with the white")


# The file.


def small() -> Keyframe:
    """hotloop's own avatar with every picture that one may have, every eighth pixel."""
    whole = builtin_keyframe()
    pictures = {
        name: None if one is None else np.ascontiguousarray(one[::8, ::8]) for name, one in whole.arrays.items()
    }
    return replace(whole, **pictures)  # type: ignore[arg-type]


def test_one_file_holds_what_a_folder_holds_and_is_opened_as_one(tmp_path: Path) -> None:
    keyframe = small()
    for place in (tmp_path / "mio.avatar", tmp_path / "mio"):
        save_keyframe(keyframe, place)
        assert load_keyframe(place).id == keyframe.id
    assert not list(tmp_path.glob("*.part"))
    again = tmp_path / "again.avatar"
    save_keyframe(keyframe, again)
    assert again.read_bytes() == (tmp_path / "mio.avatar").read_bytes()
    assert open_avatar(again, side=64).keyframe.id == keyframe.id


@pytest.mark.parametrize("fault", ["no archive", "cut", "no picture", "no json", "huge", "a picture of another kind"])
def test_a_file_that_is_no_avatar_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    save_keyframe(small(), tmp_path / "fine.avatar")
    place, data = tmp_path / "bad.avatar", (tmp_path / "fine.avatar").read_bytes()
    with zipfile.ZipFile(tmp_path / "fine.avatar") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    if fault == "no archive":
        place.write_bytes(b"not an archive")
    elif fault == "cut":
        place.write_bytes(data[: len(data) // 2])
    else:
        if fault == "no picture":
            del files["key.webp"]
        elif fault == "no json":
            del files["avatar.json"]
        elif fault == "huge":
            files["key.webp"] = bytes(140_000_000)
        else:
            files["key.webp"] = b"\x89PNG\r\n\x1a\n" + bytes(64)
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    with pytest.raises(InputError, match=r"^\[live.avatar\] an avatar('s file)? must ") as caught:
        open_avatar(place)
    assert "\n" not in str(caught.value)


def test_the_command_fits_a_cat_says_what_it_bought_and_live_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At less than its size: it takes less than its time."""
    monkeypatch.setattr("hotloop.live.animation.fitting.fit", partial(fit, side=256))
    portraits.cat(300).save(tmp_path / "tom.png")
    (tmp_path / "points.json").write_text(json.dumps(portraits.CAT))
    words = ["avatar", "fit", str(tmp_path / "tom.png"), "--points", str(tmp_path / "points.json")]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    rows = dict(re.findall(r"^(.+?), (?:dB|%) +\S+ +(\S+)$", made.output, re.M))
    assert float(rows["at rest like the picture"]) > 40 and float(rows["irises seen through closed lids"]) == 0
    dragged = re.search(r"a look aside drags, % +(\S+) +(\S+)", made.output)
    assert dragged is not None and float(dragged[1]) > 10 > 2 > float(dragged[2])
    session = open_avatar(tmp_path / "tom.avatar", side=128)
    frame = session.tick(0.0)
    assert frame is not None and session.keyframe.name == "tom" and session.keyframe.bare is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "x.png"], "what is done must be fit, got 'make'"),
        (["fit", "x.png", "--out", "x.zip"], "out must end in .avatar"),
        (["fit", "x.png", "--minutes", "0"], "minutes must be"),
        (["fit", "x.png"], "x.png"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["avatar", *words])
    assert isinstance(made.exception, InputError) and message in str(made.exception)
    assert not list(tmp_path.iterdir())
