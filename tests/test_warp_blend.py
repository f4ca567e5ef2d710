"""warp_blend: against float64 arithmetic, torch's interpolate and grid_sample, and the animator's own form of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hotloop_kernels import KernelError, set_threads, threads, warp_blend
from hotloop_kernels import backend as kernels_backend
from hotloop_kernels.testing import BACKENDS, ISAS, use, use_isa
from hotloop_kernels.warp_blend import MAX_LAYERS, MAX_SOURCES

compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")

ROOT = Path(__file__).parents[1]
WHOLE = (0.0, 0.0, 1.0, 1.0)
# Half a level, and what taps of 1/16384, masks of 1/32768 and steps of 1/128 of a level can add.
ROUNDED = 0.5 + 0.07
# The sources' sizes, the frame's, the grids', with a colour or without, boxes.
CASES = {
    "two of the frame's size": ([(40, 40)] * 2, (40, 40), (8, 8), True, 2),
    "one": ([(17, 23)], (17, 23), (4, 5), False, 0),
    "one and colour": ([(20, 70)], (31, 33), (5, 3), True, 1),
    "enlarged": ([(16, 16), (30, 11)], (45, 67), (6, 6), False, 3),
    "reduced": ([(90, 64), (64, 90)], (20, 24), (7, 9), True, 2),
    "three sources": ([(24, 24), (12, 40), (31, 5)], (27, 50), (6, 7), True, 3),
    "four sources of odd sizes": ([(1, 9), (8, 1), (2, 2), (1, 1)], (19, 18), (3, 2), True, 2),
    "a grid finer than the frame": ([(20, 20)] * 2, (15, 37), (50, 70), True, 2),
    "one node": ([(9, 9)] * 2, (12, 34), (1, 1), True, 1),
    "one column": ([(9, 9)] * 2, (33, 1), (4, 4), False, 1),
}


def picture(rng, size):
    """Premultiplied, some of it transparent."""
    alpha = rng.integers(0, 256, (*size, 1)) * (rng.random((*size, 1)) < 0.8)
    return np.concatenate([rng.integers(0, 256, (*size, 3)) * alpha // 255, alpha], -1).astype(np.uint8)


def field(rng, sources, grid, colour, reach=0.2):
    """Masks and colours from below 0 to above 1, half of the nodes' at 0."""
    flows = rng.uniform(-reach, reach, (2 * sources, *grid))
    shares = rng.uniform(-0.2, 1.2, (sources - 1 + 4 * colour, *grid)) * (rng.random(grid) < 0.5)
    shares[np.abs(shares) < 0.01] = 0
    return np.concatenate([flows, shares]).astype(np.float32)


def corners(rng, count):
    low = rng.uniform(-0.2, 0.8, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.1, 0.7, (count, 2))], -1)


def case(name, seed=0):
    """Sources, whole, and the keywords of a call."""
    rng = np.random.default_rng(seed)
    sizes, frame, grid, colour, boxes = CASES[name]
    fields = [field(rng, len(sizes), grid, colour) for _ in range(1 + boxes)]
    keywords = {"parts": fields[1:], "boxes": corners(rng, boxes), "size": frame}
    return [picture(rng, size) for size in sizes], fields[0], keywords


def hats(places, count):
    """[.., count]: 1 at the place, falling to 0 at its neighbours; nothing for places outside."""
    return np.maximum(1 - np.abs(places[..., None] - np.arange(count)), 0)


def exact(sources, whole, *, parts=(), boxes=(), size):
    """The definition in float64: dense hats over all nodes and all pixels. float64 [H, W, 4] in levels."""
    centres = [(np.arange(n) + 0.5) / n for n in size]
    frame, count = np.zeros((*size, 4)), len(sources)
    for nodes, (x0, y0, x1, y1) in [(whole, WHOLE), *zip(parts, boxes, strict=True)]:
        nodes = nodes.astype(np.float64)
        nodes[2 * count :] = np.clip(nodes[2 * count :], 0, 1)
        inside = [(low <= u) & (u < high) for u, low, high in zip(centres, (y0, x0), (y1, x1), strict=True)]
        if not all(one.any() for one in inside):
            continue
        v, u = (one[where] for one, where in zip(centres, inside, strict=True))
        along = [
            hats(np.clip((at - low) / (high - low) * n - 0.5, 0, n - 1), n)
            for at, low, high, n in ((v, y0, y1, nodes.shape[1]), (u, x0, x1, nodes.shape[2]))
        ]
        values = np.einsum("ya,xb,cab->cyx", *along, nodes)
        mixed = 0.0
        for s, source in enumerate(sources):
            x = (u + values[2 * s]) * source.shape[1] - 0.5
            y = (v[:, None] + values[2 * s + 1]) * source.shape[0] - 0.5
            taken = np.einsum("yxj,yxi,jic->yxc", hats(y, source.shape[0]), hats(x, source.shape[1]), source)
            mixed = taken if s == 0 else mixed + values[2 * count + s - 1][..., None] * (taken - mixed)
        colour = values[3 * count - 1 :]
        if len(colour):
            mixed = 255 * np.moveaxis(colour, 0, -1) + (1 - colour[3])[..., None] * mixed
        frame[np.ix_(*inside)] = mixed
    return np.clip(frame, 0, 255)


def by_value(sources, whole, *, parts=(), boxes=(), size):
    out = np.empty((*size, 4), np.uint8)
    layers = [(whole, WHOLE), *zip(parts, np.asarray(boxes).tolist(), strict=True)]
    kernels_backend.ops.warp_blend(sources, layers, out, 0, False, True)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_a_frame_is_its_definition_in_float64_rounded(backend, name):
    sources, whole, keywords = case(name)
    with use(backend):
        got = warp_blend(sources, whole, **keywords)
    assert got.dtype == np.uint8 and got.shape == (*keywords["size"], 4)
    assert np.abs(got - exact(sources, whole, **keywords)).max() <= ROUNDED


@compiled
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_a_cuda_thread_and_several_threads_give_the_same_bytes(name):
    sources, whole, keywords = case(name, seed=7)
    want = by_value(sources, whole, **keywords)
    for isa in ISAS:
        with use_isa(isa):
            assert np.array_equal(warp_blend(sources, whole, **keywords), want), isa
    with use("reference"):
        difference = np.abs(warp_blend(sources, whole, **keywords).astype(int) - want)
    assert difference.max() <= 1 and (difference > 0).mean() <= 0.02


@compiled
@pytest.mark.parametrize("isa", ISAS)
def test_a_frame_large_enough_for_threads_is_the_same_in_any_number_of_them(isa):
    rng = np.random.default_rng(3)
    sources, boxes = [picture(rng, (64, 64)), picture(rng, (300, 200))], corners(rng, 2)
    whole, parts = field(rng, 2, (16, 16), True), np.stack([field(rng, 2, (16, 16), True) for _ in range(2)])
    before, frames = threads(), []
    try:
        for count in (1, 2, 3):
            set_threads(count)
            with use_isa(isa):
                frames.append(warp_blend(sources, whole, parts=parts, boxes=boxes, size=(131, 140)))
    finally:
        set_threads(before)
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 47)], ids=str)
def test_no_flow_and_no_mask_give_the_keyframes_bytes(backend, size):
    rng = np.random.default_rng(0)
    key, reveal = picture(rng, size), picture(rng, (5, 9))
    with use(backend):
        assert np.array_equal(warp_blend([key, reveal], np.zeros((9, 6, 7), np.float32)), key)
        assert np.array_equal(warp_blend([key], np.zeros((2, 3, 3), np.float32)), key)
    shown = np.zeros((9, 6, 7), np.float32)
    shown[4] = 1
    with use(backend):
        assert np.array_equal(warp_blend([reveal, key], shown, size=size), key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flow_of_whole_pixels_moves_the_picture_and_outside_is_transparent(backend):
    key = picture(np.random.default_rng(1), (16, 32))
    flows = np.zeros((2, 4, 4), np.float32)
    flows[0], flows[1] = 3 / 32, -5 / 16  # from three pixels to the right, five above
    with use(backend):
        got = warp_blend([key], flows)
    want = np.zeros_like(key)
    want[5:, :-3] = key[:-5, 3:]
    assert np.array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 17.0])
def test_flows_without_bounds_show_nothing_and_read_nothing_outside(backend, value):
    key, reveal = (picture(np.random.default_rng(i), (19, 37)) for i in range(2))
    for isa in ISAS if backend == "compiled" else ("scalar",):
        with use(backend), use_isa(isa) if backend == "compiled" else use(backend):
            for channel in range(4):
                whole = np.zeros((9, 5, 5), np.float32)
                whole[4] = 0.5
                whole[channel] = value
                got = warp_blend([key, reveal], whole)
                other = (reveal if channel < 2 else key) / 2
                assert np.abs(got - other).max() <= 0.6
            whole = np.zeros((9, 5, 5), np.float32)
            whole[0, 2, 2] = value  # one node: the others' cells stay as they are
            got = warp_blend([key, reveal], whole)
            assert np.array_equal(got[:5], key[:5]) and np.array_equal(got[:, -8:], key[:, -8:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_and_colours_that_are_no_numbers_count_as_nothing(backend):
    key, reveal = (picture(np.random.default_rng(i), (12, 20)) for i in range(2))
    whole = np.zeros((9, 3, 4), np.float32)
    whole[4:] = np.nan
    with use(backend):
        assert np.array_equal(warp_blend([key, reveal], whole), key)
    whole[4], whole[5:] = np.inf, -np.inf
    with use(backend):
        assert np.array_equal(warp_blend([key, reveal], whole), reveal)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_too_small_to_see_change_a_byte_by_one_at_most(backend):
    rng = np.random.default_rng(2)
    sources, whole = [picture(rng, (20, 20)) for _ in range(4)], field(rng, 4, (5, 5), True)
    whole[8:] = rng.uniform(0, 2 / 2048, (7, 5, 5))
    with use(backend):
        got = warp_blend(sources, whole)
    want = exact(sources, whole, size=(20, 20))
    assert np.abs(got - want).max() <= ROUNDED + 4 * 255 / 2048
    assert np.abs(got.astype(int) - np.rint(want)).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_later_boxes_stand_for_earlier_ones_and_empty_ones_for_nothing(backend):
    red, green, blue = (np.full((10, 10, 4), (*colour, 255), np.uint8) for colour in np.eye(3, dtype=int) * 255)
    still, shown = np.zeros((2, 8, 3, 3), np.float32), np.zeros((3, 8, 3, 3), np.float32)
    shown[0, 6], shown[1, 7] = 1, 1  # green, blue, red
    parts = [*shown[:2], shown[0], *still, shown[1], shown[2]]
    boxes = [
        (0.1, 0.1, 0.6, 0.6), (0.4, 0.4, 0.9, 0.9),  # overlap
        (0.5, 0.2, 0.5, 0.8), (0.8, 0.1, 0.2, 0.9), (0.31, 0.31, 0.34, 0.34),  # none; none; between centres
        (-3.0, -3.0, 0.1, 0.2), (0.9, -0.5, 1e5, 0.3),  # beyond the picture
    ]  # fmt: skip
    with use(backend):
        got = warp_blend([red, green, blue], np.zeros((8, 2, 2), np.float32), parts=parts, boxes=boxes)
    want = red.copy()
    want[1:6, 1:6] = green[0, 0]
    want[4:9, 4:9] = blue[0, 0]
    want[:2, :1] = blue[0, 0]
    assert np.array_equal(got, want)


@compiled
def test_boxes_anywhere_give_the_same_bytes_on_every_instruction_set():
    rng = np.random.default_rng(11)
    sources, whole = [picture(rng, (30, 26)), picture(rng, (26, 30))], field(rng, 2, (8, 8), True)
    for _ in range(8):
        parts = np.stack([field(rng, 2, (rng.integers(1, 20),) * 2, True)] * 3)
        boxes = np.sort(rng.choice([-0.5, 0.0, 0.02, 0.25, 0.5, 0.51, 0.77, 1.0, 1.2], (3, 4)), axis=1)[:, [0, 2, 1, 3]]
        keywords = {"parts": parts, "boxes": boxes, "size": (25, 43)}
        want = by_value(sources, whole, **keywords)
        assert np.abs(want - exact(sources, whole, **keywords)).max() <= ROUNDED
        for isa in ISAS:
            with use_isa(isa):
                assert np.array_equal(warp_blend(sources, whole, **keywords), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_need_not_be_contiguous(backend):
    sources, whole, keywords = case("enlarged", seed=5)
    with use(backend):
        want = warp_blend(sources, whole, **keywords)
        rows = np.zeros((16, 40, 4), np.uint8)[:, 7:23]  # gaps between rows
        rows[...] = sources[0]
        planes = np.ascontiguousarray(sources[1].transpose(2, 0, 1)).transpose(1, 2, 0)
        mirrored = np.ascontiguousarray(sources[1][::-1, ::-1])[::-1, ::-1]
        upside = np.ascontiguousarray(sources[1][::-1])[::-1]  # rows backwards, pixels forwards
        last = np.ascontiguousarray(whole.transpose(1, 2, 0)).transpose(2, 0, 1)
        parts = np.stack(keywords["parts"])
        spaced = np.zeros((*parts.shape[:2], 12, 18), np.float32)[..., ::2, ::3]
        spaced[...] = parts
        for other in (sources[1], planes, mirrored, upside):
            assert np.array_equal(warp_blend([rows, other], last, **keywords | {"parts": spaced}), want)
        room = np.full((45, 70, 4), 9, np.uint8)
        warp_blend([rows, upside], last, **keywords, out=room[:, 2:69])
        assert np.array_equal(room[:, 2:69], want) and (room[:, [0, 1, 69]] == 9).all()
        room = np.full((4, 45, 67), 9, np.uint8)
        warp_blend(sources, whole, **keywords, out=room.transpose(1, 2, 0))
        assert np.array_equal(room.transpose(1, 2, 0), want)


def test_torchs_interpolate_and_grid_sample_give_the_same_frame():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    rng = np.random.default_rng(4)
    key, reveal, size = picture(rng, (30, 44)), picture(rng, (22, 18)), (37, 53)
    whole = field(rng, 2, (9, 7), True)
    whole[4:] = np.clip(whole[4:], 0, 1)
    values = F.interpolate(torch.from_numpy(whole)[None].double(), size, mode="bilinear", align_corners=False)[0]
    still = F.affine_grid(torch.eye(2, 3, dtype=torch.float64)[None], [1, 4, *size], align_corners=False)[0]

    def moved(source, flow):
        pixels = torch.from_numpy(source).permute(2, 0, 1)[None].double()
        at = still + 2 * flow.permute(1, 2, 0)
        return F.grid_sample(pixels, at[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]

    mixed = torch.lerp(moved(key, values[:2]), moved(reveal, values[2:4]), values[4])
    want = (255 * values[5:] + (1 - values[8]) * mixed).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(warp_blend([key, reveal], whole, size=size) - want).max() <= ROUNDED


def test_the_animators_fields_give_the_frame_it_was_trained_on():
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("animators_warp", ROOT / "models" / "avatar" / "warp.py")
    warp = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(warp)
    rng, generator = np.random.default_rng(6), torch.Generator().manual_seed(0)
    key, reveal = picture(rng, (48, 48)), picture(rng, (48, 48))
    raw = torch.randn(1, 9, 16, 16, generator=generator)
    textures = [torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255 for one in (key, reveal)]
    want = 255 * warp.blend(*textures, raw)[0].permute(1, 2, 0).clamp(0, 1).numpy()
    whole = torch.cat(warp.split(raw), dim=1)[0]
    got = warp_blend([torch.from_numpy(key), torch.from_numpy(reveal)], whole)
    assert isinstance(got, torch.Tensor)  # mask, colour and alpha may each lack what is below 1/2048
    assert np.abs(got.numpy() - want).max() <= ROUNDED + 3 * 255 / 2048


@compiled
def test_an_engines_arrays_pass_without_a_copy():
    """One array for all parts, read-only, and of another library than the sources."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    sources, boxes = [picture(rng, (21, 21)) for _ in range(2)], corners(rng, 2)
    fields = np.stack([field(rng, 2, (8, 8), True) for _ in range(3)])
    fields.flags.writeable = False
    want = warp_blend(sources, fields[0], parts=list(fields[1:].copy()), boxes=boxes.tolist())
    assert np.array_equal(warp_blend(sources, fields[0], parts=fields[1:], boxes=boxes.astype(np.float32)), want)
    tensor = torch.from_numpy(fields.copy())
    assert np.array_equal(warp_blend(sources, tensor[0], parts=tensor[1:], boxes=torch.from_numpy(boxes)), want)
    out = torch.empty(21, 21, 4, dtype=torch.uint8)
    assert warp_blend(sources, tensor[0], parts=tensor[1:], boxes=boxes, out=out) is out
    assert np.array_equal(out.numpy(), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused_in_one_line(backend):
    key, whole = np.zeros((8, 8, 4), np.uint8), np.zeros((9, 4, 4), np.float32)
    part, box = whole[None], [(0, 0, 1, 1)]
    refused = [
        (r"sources must be 1 to 4, got 0", ([], whole), {}),
        (r"sources must be 1 to 4, got 5", ([key] * 5, whole), {}),
        (r"a source must be uint8 \[h, w, 4\], sizes 1..16384, got uint8 \[8, 8\]", ([key[..., 0]], whole), {}),
        (r"a source must be uint8 .*, got float32 \[9, 4, 4\]", ([whole], whole), {}),
        (r"a source must be uint8 .*, got uint8 \[0, 8, 4\]", ([key[:0]], whole), {}),
        (r"a source must be uint8 .*, got list", ([key.tolist()], whole), {}),
        (r"whole must have 5 channels, or 9 with a colour, got 8", ([key] * 2, whole[:8]), {}),
        (r"whole must have 2 channels, or 6 with a colour, got 9", ([key], whole), {}),
        (r"whole must be float32 \[C, gh, gw\], sizes 1..16384, got float64", ([key] * 2, whole.astype(float)), {}),
        (r"whole must be .*, got float32 \[9, 0, 4\]", ([key] * 2, whole[:, :0]), {}),
        (r"a part must be float32 \[9, gh, gw\].*, got float32 \[5, 4, 4\]", ([key] * 2, whole),
         {"parts": part[:, :5], "boxes": box}),
        (r"parts must be at most 15, got 16", ([key] * 2, whole), {"parts": [whole] * 16, "boxes": box * 16}),
        (r"boxes must be numbers \[1, 4\] of the host, .*, got \[0\]", ([key] * 2, whole), {"parts": part}),
        (r"boxes must be numbers \[0, 4\] of the host, .*, got \[1, 4\]", ([key] * 2, whole), {"boxes": box}),
        (r"boxes must be .* within 1000000 pictures, got nan", ([key] * 2, whole),
         {"parts": part, "boxes": [(0, np.nan, 1, 1)]}),
        (r"boxes must be .* within 1000000 pictures, got inf", ([key] * 2, whole),
         {"parts": part, "boxes": [(0, 0, np.inf, 1)]}),
        (r"boxes must be numbers .*, got list", ([key] * 2, whole), {"parts": part, "boxes": [("a", 0, 1, 1)]}),
        (r"sizes must lie in 1..16384, got 0 x 8", ([key] * 2, whole), {"size": (0, 8)}),
        (r"out must be uint8 \[8, 8, 4\], got uint8 \[8, 8, 3\]", ([key] * 2, whole), {"out": key[..., :3]}),
    ]  # fmt: skip
    for message, given, keywords in refused:
        with use(backend), pytest.raises(KernelError, match=rf"^\[warp_blend\] {message}") as error:
            warp_blend(*given, **keywords)
        assert "\n" not in str(error.value)


def test_the_compiled_limits_are_those_of_the_public_function():
    ops = kernels_backend.ops
    assert ops is None or (ops.max_sources, ops.max_layers) == (MAX_SOURCES, MAX_LAYERS)


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_draws_the_cpus_bytes(name):
    torch = pytest.importorskip("torch")
    sources, whole, keywords = case(name, seed=9)
    want = warp_blend(sources, whole, **keywords)
    on = {"parts": [torch.from_numpy(part).cuda() for part in keywords["parts"]]}
    pictures = [torch.from_numpy(source).cuda() for source in sources]
    got = warp_blend(pictures, torch.from_numpy(whole).cuda(), **keywords | on, unproved=True)
    assert np.array_equal(got.cpu().numpy(), want)
    planes = torch.empty(4, *keywords["size"], dtype=torch.uint8, device="cuda").permute(1, 2, 0)
    warp_blend(pictures, torch.from_numpy(whole).cuda(), **keywords | on, out=planes, unproved=True)
    assert np.array_equal(planes.cpu().numpy(), want)


@pytest.mark.gpu
@compiled
def test_a_captured_graph_follows_its_fields(capture):
    torch = pytest.importorskip("torch")
    sources, whole, keywords = case("two of the frame's size")
    pictures, field = [torch.from_numpy(source).cuda() for source in sources], torch.from_numpy(whole).cuda()
    keywords = {"parts": [torch.from_numpy(part).cuda() for part in keywords["parts"]], "boxes": keywords["boxes"]}
    out = torch.empty(40, 40, 4, dtype=torch.uint8, device="cuda")
    replay = capture(lambda stream: warp_blend(pictures, field, **keywords, out=out, stream=stream, unproved=True))
    field.neg_()
    replay()
    want = warp_blend(pictures, field, **keywords, unproved=True)
    assert torch.equal(out, want)
