"""Animation: the rig against our renderer and closed forms, any picture as an avatar, sessions on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import bare_modules
from PIL import Image, ImageDraw
from scipy import ndimage

from hotloop.errors import InputError
from hotloop.live import AnimationSession, Bus, Recording, open_avatar
from hotloop.live.animation import (
    POINTS,
    Drawing,
    Keyframe,
    Performance,
    Rig,
    builtin_keyframe,
    keyframe_from,
    replay_animation,
)
from hotloop.live.animation.finding import nearby, points_of_parts
from hotloop.live.animation.gate import Gate
from hotloop.live.animation.geometry import Geometry, from_points, read_points
from hotloop.live.animation.keyframe import load_keyframe, save_keyframe
from hotloop.live.animation.matte import plain_matte
from hotloop.live.animation.transition import crossed
from hotloop.live.controls import ANIMATOR, INDEX
from hotloop.live.governor import animate_ladder
from hotloop.live.watchdog import fault_of
from hotloop.request import Request

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "runtime" / "hotloop" / "assets" / "avatar-live"
NAMES = [str(name) for name, _, _ in ANIMATOR]
BOTH = {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}


def vector(**controls: float) -> np.ndarray:
    """The rig's controls, in their own units."""
    units = {str(name): max(abs(float(low)), abs(float(high))) for name, low, high in ANIMATOR}
    made = np.zeros(len(NAMES), np.float32)
    for name, value in controls.items():
        made[NAMES.index(name)] = value / units[name]
    return made


def drawn(performance: Performance, side: int = 256, **controls: float) -> np.ndarray:
    return performance.frame(vector(**controls), 0.0).draw(side)


@pytest.fixture(scope="module")
def rigged() -> Performance:
    return Rig().prepare(builtin_keyframe())


@pytest.fixture(scope="module")
def models() -> Iterator[None]:
    """models/avatar's modules by their bare names, while they are needed."""
    with bare_modules(ROOT / "models" / "avatar"):
        yield


# The avatar that comes with hotloop.


def test_the_builtin_avatar_is_small_and_what_its_script_draws(models: None) -> None:
    from showcase import SITTER, keyframe_of

    files = sorted(ASSETS.iterdir())
    assert sum(file.stat().st_size for file in files) <= 400_000
    assert {file.suffix for file in files} == {".webp", ".png", ".json"}
    made, kept = keyframe_of(SITTER, name="Mio"), builtin_keyframe()
    assert made.id == kept.id and kept.name == "Mio"


# Controls, and the share of the unmoved keyframe's error that may remain.
TRUTHS: list[tuple[dict[str, float], float]] = [
    (BOTH, 0.05), ({"gazeX": 0.8}, 0.2), ({"headYaw": 12.0}, 0.75), ({"headPitch": 9.0}, 0.5),
    ({"headRoll": 12.0}, 0.45), ({"mouthA": 1.0}, 0.6), ({"shiftX": 0.6, "shiftY": 0.4}, 0.2),
    ({"browInnerUp": 1.0}, 0.75), ({"surprised": 0.8}, 0.6),
]  # fmt: skip


@pytest.mark.parametrize(("controls", "share"), TRUTHS, ids=lambda c: ",".join(c) if isinstance(c, dict) else "")
def test_a_frame_is_near_what_the_renderer_draws_of_these_controls(
    rigged: Performance, models: None, controls: dict[str, float], share: float
) -> None:
    """Over grey, against the exact drawing of models/avatar's renderer."""
    from controls import NEUTRAL
    from render import _draw, _rgba
    from render_rig import Rig as Sitting
    from showcase import SITTER

    def over(rgba: np.ndarray) -> np.ndarray:
        return rgba[..., :3] + (255 - rgba[..., 3:].astype(np.float64)) * 0.8

    truth = over(_rgba(_draw(512, Sitting(SITTER, NEUTRAL | controls))))
    frame, still = (float(np.abs(over(drawn(rigged, 512, **c)) - truth).mean()) for c in (controls, {}))
    assert frame < share * still, (frame, still)


def test_at_rest_the_frame_is_the_keyframe(rigged: Performance) -> None:
    """Outside eyes and brows to a level; there, irises and brows are put back where they were."""
    off = np.abs(drawn(rigged, 512).astype(int) - rigged.keyframe.rgba).max(-1)
    x0, y0, x1, y1 = (round(512 * v) for v in rigged.frame(vector(), 0.0).boxes[1])
    outside = np.ones_like(off, bool)
    outside[y0 : y1 + 1, x0 : x1 + 1] = False
    assert off[outside].max() <= 1
    assert off[~outside].mean() < 1.5 and np.quantile(off[~outside], 0.9) <= 2


@pytest.mark.parametrize(
    ("controls", "boxes"),
    [
        (BOTH, [1]),
        ({"gazeX": 1.0, "gazeY": -1.0}, [1]),
        ({"mouthI": 1.0}, [0]),
        ({"jawOpen": 1.0}, [0, 2]),
        ({"browInnerUp": 1.0}, [1]),
    ],
)
def test_what_a_face_control_does_stays_in_its_box(
    rigged: Performance, controls: dict[str, float], boxes: list[int]
) -> None:
    """Bit for bit outside: eyes' box, mouth's box, and for a jaw that opens what is around the chin."""
    found = [*rigged.frame(vector(), 0.0).boxes, (0.2, 0.6, 0.8, 0.9)]
    moved = (drawn(rigged, 512) != drawn(rigged, 512, **controls)).any(-1)
    assert moved.any()
    for i in boxes:
        x0, y0, x1, y1 = (round(512 * v) for v in found[i])
        moved[y0 - 1 : y1 + 2, x0 - 1 : x1 + 2] = False
    assert not moved.any()


@pytest.mark.parametrize("tilt", [{"headRoll": -17.0}, {"headRoll": 17.0}, {"headPitch": 12.0}])
@pytest.mark.parametrize("face", [{"jawOpen": 1.0}, BOTH], ids=["mouth", "eyes"])
def test_mouth_and_eyes_move_as_much_on_a_tilted_head(
    rigged: Performance, face: dict[str, float], tilt: dict[str, float]
) -> None:
    """The boxes over them then have places in common."""

    def moved(**head: float) -> float:
        still, other = (drawn(rigged, **head, **more).astype(int) for more in ({}, face))
        return float((np.abs(other - still).max(-1) > 40).sum())

    assert moved(**tilt) == pytest.approx(moved(), rel=0.15)


def test_closed_lids_show_the_closed_eyes_alone(rigged: Performance) -> None:
    """No second lid: over the eyes the frame is the reveal texture, which has none but its own."""
    frame, reveal = drawn(rigged, 512, **BOTH).astype(int), rigged.keyframe.reveal
    assert reveal is not None and rigged.keyframe.geometry is not None
    for eye in rigged.keyframe.geometry.eyes:
        xs = np.linspace(-0.8, 0.8, 40) * eye.width + eye.x
        ys = np.linspace(float(eye.top.min()) - 0.005, float(eye.low.max()) + 0.01, 50)
        at = rigged.keyframe.geometry.to_picture(np.stack(np.meshgrid(xs, ys), axis=-1)) * 512
        i, j = np.moveaxis(at.astype(int), -1, 0)
        off = np.abs(frame[j, i] - reveal[j, i]).max(-1)
        assert np.quantile(off, 0.9) <= 12 and off.mean() < 8


def poses(seed: int, count: int) -> Iterator[dict[str, float]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {str(name): float(rng.uniform(low, high)) * (rng.random() < 0.5) for name, low, high in ANIMATOR}


def test_no_pose_tears_a_hole(rigged: Performance) -> None:
    """All that is transparent is joined to the border, but for what was already enclosed (a lock of hair's loop)."""

    def holes(rgba: np.ndarray) -> int:
        clear = np.pad(rgba[..., 3] < 128, 1, constant_values=True)
        labels, _ = ndimage.label(clear)
        return int((clear & (labels != labels[0, 0])).sum())

    allowed = 3 * holes(drawn(rigged)) + 25
    for pose in poses(1, 12):
        frame = drawn(rigged, **pose)
        assert holes(frame) <= allowed
        assert (frame[-1, 100:156, 3] == 255).all()  # the body still reaches the lower border
        assert (frame[..., :3] <= frame[..., 3:]).all()


def test_an_opaque_picture_stays_opaque() -> None:
    performance = Rig().prepare(portrait())
    for pose in poses(2, 12):
        assert (drawn(performance, **pose)[..., 3] >= 254).all()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("headYaw", -20, 20), ("headPitch", -10, 10), ("headRoll", -18, 18), ("gazeX", -1, 1), ("shiftX", -1, 1)],
)
def test_a_sweep_has_no_pops(rigged: Performance, name: str, low: float, high: float) -> None:
    """Of 60 equal steps of a control the largest change of the picture is at most 3 times the median one."""
    frames = [drawn(rigged, 192, **{name: v}).astype(np.float32) for v in np.linspace(low, high, 61)]
    steps = [float(np.abs(a - b).mean()) for a, b in pairwise(frames)]
    assert max(steps) <= 3 * float(np.median(steps))


def test_lids_and_lips_open_without_a_jump(rigged: Performance) -> None:
    """Where the keyframe gives way to the reveal texture, too: no step of 60 is more than a seventh of the way."""
    for name, top in (("eyeBlinkLeft", 1.0), ("mouthA", 1.0), ("jawOpen", 1.0)):
        frames = [drawn(rigged, 192, **{name: v}).astype(np.float32) for v in np.linspace(0, top, 61)]
        steps = [float(np.abs(a - b).mean()) for a, b in pairwise(frames)]
        assert max(steps) <= sum(steps) / 7


# Any picture.


def face_points() -> dict[str, list[float]]:
    return {
        "eyeRight": [0.40, 0.44], "eyeLeft": [0.60, 0.44], "lidUpperRight": [0.40, 0.415],
        "lidLowerRight": [0.40, 0.465], "lidUpperLeft": [0.60, 0.415], "lidLowerLeft": [0.60, 0.465],
        "mouthRight": [0.44, 0.62], "mouthLeft": [0.56, 0.62], "chin": [0.5, 0.72], "headCentre": [0.5, 0.45],
    }  # fmt: skip


def painted(size: int = 400) -> Image.Image:
    """A face of ovals before a ground of stripes."""
    picture = Image.new("RGB", (size, size), (90, 120, 110))
    draw = ImageDraw.Draw(picture)
    for x in range(0, size, 20):
        draw.line([(x, 0), (x, size)], fill=(80, 108, 102), width=6)

    def oval(x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        draw.ellipse([size * (x - rx), size * (y - ry), size * (x + rx), size * (y + ry)], fill=colour)

    oval(0.5, 1.0, 0.3, 0.3, (70, 60, 120))
    oval(0.5, 0.46, 0.2, 0.26, (232, 190, 160))
    for x in (0.4, 0.6):
        oval(x, 0.44, 0.042, 0.025, (250, 250, 250))
        oval(x, 0.44, 0.02, 0.024, (40, 70, 60))
    draw.line([(size * 0.44, size * 0.62), (size * 0.56, size * 0.62)], fill=(150, 60, 60), width=4)
    return picture


def portrait() -> Keyframe:
    return keyframe_from(painted(), points=face_points(), side=256)


def test_ten_points_make_eyes_that_close_and_a_mouth_that_opens() -> None:
    """By the picture's own colours: lids of skin where the white was, darkness between the lips."""
    keyframe = portrait()
    performance = Rig().prepare(keyframe)
    shut, wide = (drawn(performance, 256, **c)[..., :3].astype(int) for c in (BOTH, {"mouthA": 1.0}))
    skin = np.array((232, 190, 160))
    for x in (0.40, 0.60):
        lid = shut[round(0.43 * 256), round(x * 256)]
        assert np.abs(lid - skin).max() < 40 and np.abs(keyframe.rgba[110, round(x * 256), :3] - skin).max() > 80
    inside = wide[round(0.635 * 256) : round(0.665 * 256), 122:134].reshape(-1, 3)
    assert (inside.max(1) < 215).mean() > 0.5 and np.abs(np.median(inside, 0) - skin).max() > 60
    still = drawn(performance, 256)
    assert np.abs(still.astype(int) - keyframe.rgba).max() <= 1


def test_alpha_is_kept_and_any_shape_is_brought_into_a_square(tmp_path: Path) -> None:
    tall = Image.new("RGBA", (200, 400), (0, 0, 0, 0))
    tall.paste(painted(200), (0, 200))
    tall.save(tmp_path / "tall.png")
    at = {name: [x, 0.5 + 0.5 * y] for name, (x, y) in face_points().items()}
    keyframe = keyframe_from(tmp_path / "tall.png", points=at, side=128)
    assert keyframe.rgba.shape == (128, 128, 4) and keyframe.name == "tall"
    assert not keyframe.rgba[:60].any() and not keyframe.rgba[:, :30].any()
    assert keyframe.rgba[100, 64, 3] == 255
    geometry = keyframe.geometry
    assert geometry is not None
    want = [(0.25 + 0.5 * x, 0.5 + 0.5 * y) for x, y in (face_points()["eyeRight"], face_points()["eyeLeft"])]
    np.testing.assert_allclose(geometry.anchors[:2], want, atol=0.004)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chin": None}, r"points must name .*; missing, got 'chin'"),
        ({"nose": [0, 0]}, r"points must be among .*, got 'nose'"),
        ({"chin": [0.5, 1.2]}, r"chin must be \[x, y\], shares of the picture in 0..1"),
        ({"chin": [0.5, float("nan")]}, r"chin must be \[x, y\]"),
        ({"chin": [0.5, 0.3]}, r"mouth must lie between eyes and chin"),
        ({"eyeLeft": [0.4, 0.44], "eyeRight": [0.6, 0.44]}, r"eyeLeft is the person's own"),
    ],
)
def test_points_that_make_no_face_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    points = {name: at for name, at in (face_points() | change).items() if at is not None}
    with pytest.raises(InputError, match=rf"^\[live.avatar\] {message}"):
        keyframe_from(painted(), points=points, side=64)


def test_without_points_and_segmenter_the_ten_are_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no segmenter is at hand .*--points\): eyeLeft, eyeRight, .*, headCentre"):
        open_avatar(painted())
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="parts must be a folder with masks"):
        keyframe_from(painted(), parts=tmp_path / "none")
    with pytest.raises(InputError, match="points must be a readable JSON file"):
        read_points(tmp_path / "points.json")


def test_parts_of_a_drawn_face_give_its_points(models: None, tmp_path: Path) -> None:
    """Against the renderer's own geometry, in shares of the picture; the folder of masks does the same."""
    from render import render
    from render_people import sample_face
    from showcase import geometry_of

    face = sample_face(5).changed(defect="none", view="front", expression="neutral", glasses="none")
    face = replace(face, controls={})
    rendering = render(face, 256)
    parts = {name: mask.astype(np.float32) / 255 for name, mask in rendering.masks.items()}
    found, truth = points_of_parts(parts), geometry_of(face)
    assert not isinstance(found, str)
    geometry = from_points(found)
    assert np.abs(geometry.anchors - truth.anchors).max() < 0.03
    assert abs(geometry.to_picture(np.array([0, geometry.chin]))[1] - truth.to_picture([0, truth.chin])[1]) < 0.05
    for name in ("eyes", "mouth", "face", "hair"):
        Image.fromarray(rendering.masks[name]).save(tmp_path / f"{name}.png")
    keyframe = keyframe_from(rendering.image, parts=tmp_path, side=256)
    assert keyframe.geometry is not None and keyframe.front is not None and keyframe.front.max() == 255
    np.testing.assert_allclose(keyframe.geometry.anchors, geometry.anchors, atol=0.01)
    for broken in ("eyes", "mouth"):
        assert isinstance(points_of_parts(parts | {broken: np.zeros_like(parts["eyes"])}), str)
    assert isinstance(points_of_parts(parts | {"mouth": parts["hair"]}), str)


def test_a_face_that_moved_is_found_near_where_it_was(rigged: Performance) -> None:
    """The built-in avatar shifted and enlarged by known amounts: eyes to 1 % of the picture."""
    keyframe = rigged.keyframe
    assert keyframe.geometry is not None
    for dx, dy, scale in ((0.0, 0.0, 1.0), (0.03, -0.02, 1.06), (-0.04, 0.03, 0.94)):
        picture = Image.fromarray(keyframe.rgba)
        inverse = (
            1 / scale,
            0,
            256 - 256 / scale - 512 * dx / scale,
            0,
            1 / scale,
            256 - 256 / scale - 512 * dy / scale,
        )
        moved = np.array(picture.transform((512, 512), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR))
        found = nearby(moved, keyframe)
        for eye, name in zip(keyframe.geometry.eyes, ("Right", "Left"), strict=True):
            want = (keyframe.geometry.to_picture(np.array([eye.x, eye.iris[1]])) - 0.5) * scale + 0.5 + (dx, dy)
            np.testing.assert_allclose(found[f"eye{name}"], want, atol=0.01)
        assert set(found) == set(POINTS)


def test_a_plain_ground_is_cut_away_and_another_one_is_not(rigged: Performance) -> None:
    rgba = rigged.keyframe.rgba
    over = (rgba[..., :3] + (255 - rgba[..., 3:].astype(int)) * 200 // 255).astype(np.uint8)
    matte = plain_matte(over)
    assert (np.abs(matte.astype(int) - rgba[..., 3]) < 64).mean() > 0.97
    busy = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    assert (plain_matte(busy) == 255).all()
    assert (plain_matte(np.full((64, 64, 3), 90, np.uint8)) == 255).all()


def test_a_keyframe_is_saved_and_loaded_whole(rigged: Performance, tmp_path: Path) -> None:
    save_keyframe(portrait(), tmp_path / "one")
    loaded = load_keyframe(tmp_path / "one")
    assert loaded.id == portrait().id and loaded.bare is None and loaded.front is None
    (tmp_path / "one" / "avatar.json").write_text("{}")
    with pytest.raises(InputError, match=r"an avatar must be a folder or .avatar file with avatar.json"):
        load_keyframe(tmp_path / "one")
    with pytest.raises(InputError, match="an avatar must be a folder"):
        open_avatar(tmp_path)
    assert Geometry.of_json(json.loads(json.dumps(portrait().geometry.as_json()))).anchors.shape == (3, 2)  # type: ignore[union-attr]


# The session.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Held:
    """Controls by name, in the bus's order."""

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self.values = dict(values or {})

    def sample(self, t: float) -> np.ndarray:
        made = np.zeros(len(INDEX), np.float32)
        for name, value in self.values.items():
            made[INDEX[name]] = value
        return made


def session(**given: Any) -> AnimationSession:
    return AnimationSession(given.pop("keyframe", None), clock=given.pop("clock", Clock()), **{"side": 96} | given)


def run(one: AnimationSession, frames: int, *, start: int = 0) -> list[bytes]:
    shown = [one.tick((start + i) / 60) for i in range(frames)]
    return [frame.pixels.tobytes() for frame in shown if frame is not None]


def test_an_avatar_lives_by_itself() -> None:
    one = session(idle=4)
    frames = [one.tick(i / 30) for i in range(150)]
    shown = [frame.pixels.tobytes() for frame in frames if frame is not None]
    assert len(set(shown)) > 120
    samples = np.array([frame.stamp.controls for frame in frames if frame is not None])
    assert samples[:, INDEX["eyeBlinkLeft"]].max() > 0.9 and np.ptp(samples[:, INDEX["breath"]]) > 0.8
    assert one.stats()["frames"]["produced"] == 150 and not one.stats()["faults"]


def test_four_sessions_are_each_what_they_are_alone() -> None:
    """Interleaved frame by frame, bit for bit: seeds, keyframes, motions and transitions do not cross."""
    others = [portrait(), None, portrait(), None]

    def opened(i: int) -> AnimationSession:
        one = session(keyframe=others[i], idle=i, number=i, side=80 + 16 * (i % 2))
        one.play(("nod", "talk", "laugh", "wink")[i])
        return one

    def step(one: AnimationSession, i: int, k: int) -> bytes:
        if k == 12:
            one.show(builtin_keyframe() if i % 2 == 0 else portrait())
        frame = one.tick(k / 60)
        assert frame is not None
        return frame.pixels.tobytes()

    alone = []
    for i in range(4):
        one = opened(i)
        alone.append([step(one, i, k) for k in range(30)])
    together: list[list[bytes]] = [[], [], [], []]
    all_ = [opened(i) for i in range(4)]
    for k in range(30):
        for i in (3, 0, 2, 1):
            together[i].append(step(all_[i], i, k))
    assert together == alone and len({frames[0] for frames in alone}) >= 3


def test_a_recording_replays_to_the_same_hashes(tmp_path: Path) -> None:
    recording = Recording()
    one = session(recording=recording, idle=2)
    one.play("talk")
    run(one, 8)
    one.show(portrait())
    run(one, 18, start=8)
    one.close()
    recording.save(tmp_path / "show")
    loaded = Recording.load(tmp_path / "show")
    shown = replay_animation(loaded)
    assert len(shown) == one.stats()["frames"]["produced"] == 26
    assert sum(decision["do"] == "keyframe" for decision in loaded.decisions) == 2
    for decision in loaded.decisions:
        if decision["do"] == "animate" and decision["frame"] == 20:
            decision["controls"][NAMES.index("jawOpen")] = 900
    with pytest.raises(InputError, match="frame 20 of the replay must be the recorded one"):
        replay_animation(loaded)


def test_equal_controls_draw_nothing_and_the_frame_says_so() -> None:
    held = Held({"jawOpen": 0.3})
    one = session(controls=held, sway=False)
    first, second = one.tick(0.0), one.tick(1 / 60)
    assert first is not None and second is not None
    assert (first.stamp.kind, second.stamp.kind) == ("drawn", "unchanged") and second.pixels is first.pixels
    held.values["jawOpen"] += 1e-4  # nobody sees it
    third = one.tick(2 / 60)
    held.values["jawOpen"] += 0.1
    fourth = one.tick(3 / 60)
    assert third is not None and third.stamp.kind == "unchanged"
    assert fourth is not None and fourth.stamp.kind == "drawn" and not np.array_equal(fourth.pixels, first.pixels)
    assert one.stats()["frames"]["unchanged"] == 2 and one.stats()["frames"]["produced"] == 2


def test_motions_play_for_two_seconds_over_what_the_controls_say() -> None:
    clock, held = Clock(), Held()
    one = session(controls=held, sway=False, clock=clock)
    still = run(one, 1)[0]
    assert one.play("nod") == 2.0 and one.stats()["playing"] == "nod"
    frames = run(one, 130)
    assert len(set(frames)) > 60 and frames[-1] == still and one.stats()["playing"] is None
    with pytest.raises(InputError, match=r"motion must be one of nod, shake, laugh, bow, wink, sigh, talk, got 'jump'"):
        one.play("jump")


def test_an_expression_is_set_and_refused_by_name() -> None:
    one = session(controls=Held(), sway=False)
    frames = {None: run(one, 1)[0]}
    for name in ("happy", "angry", "cold", "sad", "surprised", "neutral", None):
        one.set(expression=name)
        frames[name] = run(one, 1)[0]
    assert frames["neutral"] == frames[None] and len(set(frames.values())) == 6
    with pytest.raises(InputError, match=r"expression must be one of happy, .*, got 'bored'"):
        one.set(expression="bored")
    with pytest.raises(InputError, match=r"this session draws no keyframes.*got 'prompt'"):
        one.set(prompt="a girl")


def test_a_bus_moves_the_avatar() -> None:
    one = session(sway=False)
    one.bus.join("page", smooth=False, timeout=float("inf"))
    one.bus.put("page", 0.0, {"headYaw": 20.0, "happy": 1.0})
    before = one.tick(0.0)
    after = [one.tick(i / 60) for i in range(1, 40)][-1]
    assert before is not None and after is not None and after.stamp.controls[INDEX["headYaw"]] == pytest.approx(20)
    assert np.abs(before.pixels.astype(int) - after.pixels).mean() > 2
    with pytest.raises(InputError, match="controls do not come from a bus"):
        _ = session(controls=Held()).bus


def test_a_transition_takes_a_fifth_of_a_second_and_ends_on_the_new_keyframe() -> None:
    one = session(controls=Held(), sway=False)
    first = run(one, 1)[0]
    one.show(portrait())
    frames = run(one, 16, start=1)
    target = run(session(keyframe=portrait(), controls=Held(), sway=False), 1)[0]
    turning = [frame for frame in frames if frame not in (first, target)]
    assert frames[0] == first and frames[-1] == target and 9 <= len(turning) <= 12
    assert frames[13:] == [target] * 3


def test_a_keyframe_that_lies_elsewhere_glides_there_as_one_face() -> None:
    """The same avatar 40 pixels lower, half of the way: as if drawn 20 lower. Two faces would differ by a lot more."""
    keyframe = builtin_keyframe()
    assert keyframe.geometry is not None
    geometry = keyframe.geometry
    lower = replace(
        keyframe, rgba=np.roll(keyframe.rgba, 40, axis=0),
        geometry=replace(geometry, origin=(geometry.origin[0], geometry.origin[1] + 40 / 512)),
    )  # fmt: skip
    half = crossed(keyframe.rgba, lower.rgba, 0.5, keyframe, lower, 512).astype(int)
    want = np.roll(keyframe.rgba, 20, axis=0).astype(int)
    doubled = (keyframe.rgba.astype(int) + lower.rgba) // 2
    face = (slice(150, 420), slice(100, 420))
    assert np.abs(half - want)[face].mean() < 0.6 < 12 < np.abs(doubled - want)[face].mean()
    assert np.array_equal(crossed(keyframe.rgba, lower.rgba, 0.0, keyframe, lower, 512), keyframe.rgba)


class Breaking:
    """A rig whose fields are not finite from a frame on, for some frames."""

    table = ANIMATOR

    def __init__(self, broken: range) -> None:
        self.broken, self.count, self.rig = broken, 0, Rig()

    def prepare(self, keyframe: Keyframe) -> Performance:
        inner, outer = self.rig.prepare(keyframe), self

        class Broken:
            def __init__(self) -> None:
                self.keyframe = keyframe

            def frame(self, controls: np.ndarray, t: float) -> Drawing:
                made = inner.frame(controls, t)
                outer.count += 1
                if outer.count in outer.broken:
                    made.whole[0, 3, 3] = np.nan
                return made

        return Broken()


def test_a_broken_frame_is_made_again_once_and_then_the_last_good_one_is_held() -> None:
    one = session(keyframe=portrait(), performer=Breaking(range(4, 7)), side=64)
    frames = [one.tick(i / 60) for i in range(6)]
    kinds = [(frame.stamp.kind, frame.stamp.fault) for frame in frames if frame is not None]
    # Frame 4 breaks and again (held), the next breaks once and is made again, then all is well.
    assert kinds == [("drawn", "")] * 3 + [("held", "non-finite"), ("drawn", "non-finite"), ("drawn", "")]
    assert frames[3] is not None and frames[2] is not None and frames[3].pixels is frames[2].pixels
    assert one.stats()["faults"] == {"non-finite": 2} and one.stats()["frames"]["again"] == 1


def test_the_governor_goes_down_the_ladder_and_up_again() -> None:
    """On a virtual clock: frames cost what is told; then they are cheap."""
    clock = Clock()
    cost = [0.001]

    class Slow:
        table = ANIMATOR

        def prepare(self, keyframe: Keyframe) -> Performance:
            class Costly:
                def __init__(self) -> None:
                    self.keyframe = keyframe

                def frame(self, controls: np.ndarray, t: float) -> Drawing:
                    clock.now += cost[0]
                    return Drawing([keyframe.rgba], np.full((2, 1, 1), 1e-3 * t, np.float32))

            return Costly()

    one = AnimationSession(portrait(), Slow(), clock=clock, governed=True, interval=1 / 60, side=512)
    assert [rung.name for rung in animate_ladder(512, painting=False)] == ["asked", "size 384", "half rate"]
    cost[0] = 0.02
    sizes = []
    for _ in range(12):
        clock.now = max(clock.now, (len(sizes) + 1) / 60)
        frame = one.tick()
        sizes.append(0 if frame is None else len(frame.pixels))
    assert sizes[:2] == [512, 512] and sizes[2:4] == [384, 384] and 0 in sizes[4:]
    assert [move.taken for move in one.stats()["moves"]] == ["size 384", "half rate"]
    cost[0] = 0.002
    for _ in range(500):
        clock.now += 1 / 60
        one.tick()
    assert one.stats()["rung"] == "asked"


class Paints:
    """Keyframes at once, or refused."""

    def __init__(self) -> None:
        self.gate, self.painted = Gate(), 0

    def check(self, request: Request) -> None:
        if "bad" in request.prompts[0]:
            raise InputError("live", "prompt must be good", request.prompts[0])

    def paint(self, request: Request, current: Keyframe) -> Keyframe:
        self.painted += 1
        if "unsure" in request.prompts[0]:
            raise InputError("live.avatar", "the drawn face's parts are not sure", request.prompts[0])
        return replace(portrait(), name=request.prompts[0])


class Later:
    """An executor that runs what it was given when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[None], Any]] = []

    def submit(self, call: Any) -> Future[None]:
        future: Future[None] = Future()
        self.waiting.append((future, call))
        return future

    def go(self) -> None:
        for future, call in self.waiting:
            call()
            future.set_result(None)
        self.waiting.clear()


def test_a_prompt_becomes_a_keyframe_in_the_background() -> None:
    background, painter = Later(), Paints()
    one = session(painter=painter, background=background)
    assert one.stats()["version"] == 1 and painter.painted == 0
    number = one.set(prompt="a boy")
    frames = [one.tick(i / 60) for i in range(3)]
    assert [frame.stamp.version for frame in frames if frame is not None] == [1, 1, 1] and len(background.waiting) == 1
    background.go()
    after = [one.tick(i / 60) for i in range(3, 20)]
    assert {frame.stamp.version for frame in after if frame is not None} == {number}
    assert one.keyframe.name == "a boy" and one.stats()["keyframes"] == 1
    with pytest.raises(InputError, match="prompt must be good"):
        one.set(prompt="bad")
    with pytest.raises(InputError, match="blend must be 0"):
        one.set(prompt="a girl", blend=3)
    one.set(prompt="unsure")
    one.tick(1.0)
    background.go()
    one.tick(1.1)
    assert one.keyframe.name == "a boy" and "not sure" in one.stats()["refusal"] and one.stats()["version"] == number


def test_on_the_rung_that_pauses_keyframes_none_is_drawn() -> None:
    background = Later()
    one = session(painter=Paints(), background=background, governed=True)
    assert one.governor is not None and [rung.name for rung in one.governor.ladder][1] == "keyframes paused"
    one.governor.stand("keyframes paused")
    one.set(prompt="a boy")
    one.tick(0.0)
    assert not background.waiting
    one.governor.stand("asked")
    one.tick(0.02)
    assert len(background.waiting) == 1


def test_where_the_pause_lasts_a_keyframe_waits_for_a_second_and_is_drawn() -> None:
    background = Later()
    one = session(painter=Paints(), background=background, governed=True)
    assert one.governor is not None
    one.governor.stand("keyframes paused")
    one.tick(5.0)
    one.set(prompt="a boy")
    for t in (5.1, 5.5, 6.0):
        one.tick(t)
        assert not background.waiting
    one.tick(6.2)
    assert len(background.waiting) == 1
    background.go()
    one.tick(6.3)
    one.set(prompt="a girl")
    one.tick(6.4)
    assert not background.waiting


def test_a_black_frame_is_black_whatever_its_alpha() -> None:
    """And one bright pixel anywhere is enough to say that it is not."""
    black = np.zeros((64, 64, 4), np.uint8)
    black[..., 3] = 255
    assert fault_of(black) == "black"
    black[37, 21, 1] = 90
    assert fault_of(black) == ""
    assert fault_of(np.full((64, 64, 4), 70, np.uint8)) == "constant" and fault_of(None) == "non-finite"


def test_a_gate_lets_work_through_only_where_a_frame_leaves_room() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.wait()
    assert gate.waited < 0.2
    gate.close()
    before = gate.waited
    gate.wait()  # closed for good: it goes on in the end, so that nothing starves
    assert gate.waited - before >= 0.25
    gate.open(until=1.0)
    before = gate.waited
    gate.wait()
    assert gate.waited - before < 0.2
    clock.now, before = 1.5, gate.waited  # past the room that was left
    gate.wait()
    assert gate.waited - before >= 0.25


def test_bad_sessions_are_refused_in_one_line() -> None:
    for given, message in (
        ({"interval": 0}, "interval must be a number"), ({"side": 8}, "side must be a whole number"),
        ({"prompt": "x"}, "draws no keyframes"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            session(**given)
    with pytest.raises(InputError, match="the rig needs a keyframe's geometry"):
        session(keyframe=Keyframe(np.zeros((64, 64, 4), np.uint8), None, None, None))
    with pytest.raises(InputError, match=r"rgba of a keyframe must be uint8 \[64, 64, 4\]"):
        Keyframe(np.zeros((64, 64, 3), np.uint8), None, None, None)


def test_frames_come_on_a_real_clock_and_end() -> None:
    with AnimationSession(side=64, interval=1 / 50) as one:
        count = sum(1 for _ in one.frames(seconds=0.3))
        assert 1 <= count <= 16
    assert one.tick() is None and isinstance(one.bus, Bus)
