"""The loop that stays on its device: the host loop's bits, uploads in place of captures, and no host reads.

Whether a captured run equals the uncaptured one is for a GPU to show.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import narrow_unet, normal

import hotloop
import hotloop_kernels as kernels
from hotloop import loop, samplers
from hotloop.bundle import builtin
from hotloop.denoiser import DeviceDenoiser, UNetDenoiser, resident
from hotloop.denoiser.resident import ResidentLoop
from hotloop.engines.native import NativeEngine
from hotloop.errors import DeviceMemoryError, InputError, NonFiniteError
from hotloop.loop import Inpaint
from hotloop.samplers import StepTable
from hotloop.samplers.schedule import Schedule
from hotloop.samplers.table import K
from hotloop.spec import REWRITES, Family, family

N, T = 2, 5
pytestmark = pytest.mark.skipif(not kernels.compiled(), reason="without compiled operators torch's stand in for them")
GUIDED = [False, True]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    folder = tmp_path_factory.mktemp("resident") / "unet"
    return folder, narrow_unet(folder)


def engines(unet: tuple[Path, Family], rewrites: tuple[str, ...] = REWRITES, groups: Any = ()) -> dict[str, Any]:
    folder, row = unet
    networks = row.split(rewrites, groups)
    return {name: NativeEngine(folder, networks[name]) for name in ("unet", "prompt", "time") if name in networks}


def table_of(sampler: str, steps: int = 4, **options: Any) -> StepTable:
    schedule = Schedule.from_config({"clip_sample": False}, family("avatar-tiny").schedule)
    return samplers.build(sampler, schedule, steps, **options)


def given(table: StepTable, *, guided: bool = True, n: int = N, seed: int = 0, inpaint: bool = False) -> dict[str, Any]:
    shape = (n, 4, 6, 4)
    cond = {"context": normal(n, T, 24, seed=seed + 1)}
    if guided:
        cond["negative_context"] = normal(n, T, 24, seed=seed + 2)
    mask = (normal(n, 1, 6, 4, seed=seed + 5) > 0).astype(np.float32)
    known = Inpaint(mask, normal(*shape, seed=seed + 6), normal(*shape, seed=seed + 7)) if inpaint else None
    return dict(
        table=table, x=normal(*shape, seed=seed), cond=cond, inpaint=known,
        guidance=np.linspace(1.5, 3, n, dtype=np.float32),
        noise=normal(table.noises, *shape, seed=seed + 3) if table.noises else None,
    )  # fmt: skip


def resident_run(made: Mapping[str, Any], run: Mapping[str, Any], **options: Any) -> np.ndarray:
    with ResidentLoop(**made, **options) as denoiser:
        return loop.run(denoiser, **run)


def hosted_run(made: Mapping[str, Any], run: Mapping[str, Any]) -> np.ndarray:
    with UNetDenoiser(**made) as denoiser:
        return loop.run(denoiser, **run)


@pytest.mark.parametrize("guided", GUIDED, ids=["unguided", "guided"])
@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_every_sampler_ends_as_on_the_host_bit_for_bit(unet: Any, sampler: str, guided: bool) -> None:
    made, run = engines(unet), given(table_of(sampler), guided=guided)
    assert np.array_equal(resident_run(made, run), hosted_run(made, run))


@pytest.mark.parametrize("rewrites", [(), ("kv",), ("time",), ("prefix",), ("phase",)], ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_every_split_and_batch_ends_as_on_the_host(unet: Any, rewrites: tuple[str, ...], n: int) -> None:
    made, run = engines(unet, rewrites), given(table_of("dpmpp_2m"), n=n)
    assert np.array_equal(resident_run(made, run), hosted_run(made, run))


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "plms"])
def test_inpainting_ends_as_on_the_host(unet: Any, sampler: str) -> None:
    made, run = engines(unet), given(table_of(sampler, 8, start=3), inpaint=True)
    assert np.array_equal(resident_run(made, run), hosted_run(made, run))


def test_rows_one_by_one_and_a_whole_run_give_the_same_bits(unet: Any) -> None:
    made, run = engines(unet), given(table_of("euler_a"))
    whole = resident_run(made, run)
    with ResidentLoop(**made) as denoiser:
        rows = list(loop.denoise(denoiser, **run))
    assert [progress.row for progress in rows] == list(range(len(run["table"])))
    assert np.array_equal(rows[-1].latents, whole)
    # Each row's latents are the caller's own.
    assert not np.array_equal(rows[0].latents, rows[1].latents)


def test_nine_channels_and_optional_inputs_end_as_on_the_host(tmp_path: Path) -> None:
    groups = ("controlnet", "identity", "timestep_cond")
    wide = tmp_path / "unet", narrow_unet(tmp_path / "unet", in_channels=9)
    made, run = engines(wide, REWRITES, groups), given(table_of("euler"))
    row = made["unet"].network
    width = next(t.shape[-1] for t in row.inputs if t.name == "identity_kv")
    run["cond"] |= {
        "extra": normal(N, 5, 6, 4, seed=11), "identity_kv": normal(N, 3, width, seed=12),
        "identity_scale": np.float32([0.5, 1.0]), "timestep_cond": normal(N, 6, seed=13),
        "control_mid": normal(N, 32, 3, 2, seed=14),
    }  # fmt: skip
    got = resident_run(made, run)
    assert np.array_equal(got, hosted_run(made, run))
    del run["cond"]["identity_kv"], run["cond"]["identity_scale"]
    assert not np.array_equal(resident_run(made, run), got)


def test_only_what_must_be_is_captured_anew(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, seed, guidance scale, table and sampler are uploads: one plan serves them all."""
    made, plans = engines(unet), []
    first = resident._CapturedRun.__init__

    def counted(self: Any, *arguments: Any, **named: Any) -> None:
        plans.append(named)
        first(self, *arguments, **named)

    monkeypatch.setattr(resident._CapturedRun, "__init__", counted)
    runs = [given(table_of("euler"), seed=seed) for seed in (0, 20)]
    runs += [given(table_of("ddim", eta=0.0), seed=40), given(table_of("dpmpp_2m"), seed=60)]
    for run in (*runs, runs[0]):
        run["guidance"] = run["guidance"] + np.float32(0.5)
        assert np.array_equal(resident_run(made, run), hosted_run(made, run))
    assert len(plans) == 1
    for changed in (
        given(table_of("euler", 5)), given(table_of("euler"), guided=False), given(table_of("euler"), n=1),
        given(table_of("euler_a")), given(table_of("euler"), inpaint=True),
    ):  # fmt: skip
        resident_run(made, changed)
    assert len(plans) == 6


def test_two_runs_at_a_time_do_not_share_a_state(unet: Any) -> None:
    made = engines(unet)
    runs = [given(table_of("euler"), seed=seed) for seed in (0, 30)]
    want = [hosted_run(made, run) for run in runs]
    with ResidentLoop(**made) as a, ResidentLoop(**made) as b:
        turns = [loop.denoise(a, **runs[0]), loop.denoise(b, **runs[1])]
        last = [[turn.latents for turn in pair][-2:] for pair in zip(*turns, strict=True)][-1]
    assert all(np.array_equal(x, y) for x, y in zip(last, want, strict=True))


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_the_update_in_torch_is_cfg_step(unet: Any, sampler: str, inpaint: bool, monkeypatch: Any) -> None:
    made, run = engines(unet), given(table_of(sampler), inpaint=inpaint)
    want = resident_run(made, run)
    monkeypatch.setattr(resident, "fused_step", resident.update_step)
    got = resident_run(made, run)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_residual_guidance_in_torch_is_cfg_step() -> None:
    rng = np.random.default_rng(0)
    e, shape = 3, (N, 4, 6, 4)
    plan = copy.copy(object.__new__(resident._CapturedRun))
    columns = rng.standard_normal((K + 3, *shape)).astype(np.float32)
    tables = {name: rng.standard_normal(e).astype(np.float32) for name in ("p_x", "p_m", "k_img", "k_eps")}
    update = rng.standard_normal((e, K + 1, K + 3)).astype(np.float32)
    residual, rows = rng.standard_normal((e, K + 1)).astype(np.float32), np.array([2, 0])
    guidance, m_c = np.float32([1.5, 2.0]), rng.standard_normal(shape).astype(np.float32)
    plan.columns = torch.from_numpy(columns.copy())
    plan.state, plan.rows, plan.guidance = plan.columns[: K + 1], torch.from_numpy(rows), torch.from_numpy(guidance)
    plan.update, plan.residual = torch.from_numpy(update), torch.from_numpy(residual)
    plan.p_x, plan.p_m = torch.from_numpy(tables["p_x"]), torch.from_numpy(tables["p_m"])
    plan.mask = plan.known = plan.eps = None
    resident.update_step(plan, torch.from_numpy(m_c), None)
    want = columns[: K + 1].copy()
    kernels.cfg_step(
        want, m_c, None, rows, guidance, update, tables["p_x"], tables["p_m"], z=columns[-1], residual=residual
    )
    assert np.abs(plan.state.numpy() - want).max() <= 1e-5 * np.abs(want).max()


def on_meta(engine: NativeEngine) -> NativeEngine:
    """The engine with tensors that have no values: whatever reads one, or mixes devices, fails."""
    other = copy.copy(engine)
    memo: dict[int, torch.Tensor] = {
        id(p): torch.nn.Parameter(p.detach().to("meta", torch.float16), requires_grad=False)
        for p in engine.call.parameters()
    }
    memo |= {id(b): b.to("meta", torch.float16) for b in engine.call.buffers()}
    other.device, other.call = "meta", copy.deepcopy(engine.call, memo)
    other.call.dtype = torch.float16
    return other


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize("guided", GUIDED)
def test_a_run_reads_nothing_from_its_device(guided: bool, inpaint: bool) -> None:
    row = family("avatar-tiny")
    networks = row.split(REWRITES, ())
    # Fused operators need memory to read; the tunings of torch's own do not.
    unet, decoder = (
        on_meta(NativeEngine(builtin() / folder, networks[name], tunings=("channels_last", "qkv")))
        for folder, name in (("unet", "unet"), ("vae", "vae_decoder"))
    )
    plan = resident._CapturedRun(
        unet, decoder=decoder, scaling=0.18, rows=3, images=2, shape=(2, 4, 8, 8), noise=True, inpaint=inpaint,
        dims=tuple({"N": 2, "B": 4 if guided else 2, "T": 77, "h": 8, "w": 8}.items()), residual=False, extra=0,
        times=1, graphs=False,
    )  # fmt: skip
    with torch.inference_mode():
        plan.run()
    factor = row.vae_factor
    assert plan.pixels.is_meta and plan.pixels.dtype == torch.uint8
    assert tuple(plan.pixels.shape) == (2, 8 * factor, 8 * factor, 3)


@pytest.fixture(scope="module")
def pipe() -> hotloop.Pipeline:
    return hotloop.load(engine="native")


QUICK = dict(num_inference_steps=3, seed=3, sampler="euler")


def test_a_pipeline_draws_in_one_run_with_its_decoder(pipe: Any) -> None:
    with pipe.networks.denoiser(decoder="vae_decoder", scaling=pipe.family.scaling_factor) as denoiser:
        assert isinstance(denoiser, DeviceDenoiser)
    drawn = pipe.txt2img("a girl", **QUICK)
    assert np.array_equal(np.asarray(drawn.images[0]), pipe.decode(drawn.latents)[0])
    seen: list[np.ndarray] = []
    again = pipe.txt2img("a girl", callback=lambda progress: seen.append(progress.latents), **QUICK)
    assert np.array_equal(again.latents, drawn.latents) and np.array_equal(seen[-1], drawn.latents)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(drawn.images[0]))


def test_too_little_memory_is_one_line_and_the_pipeline_goes_on(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = pipe.txt2img("a girl", **QUICK).latents

    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(resident._CapturedRun, "row", full)
        with pytest.raises(DeviceMemoryError, match=r"fewer or smaller images.*2\.00 GiB") as error:
            pipe.txt2img("a girl", **QUICK)
    assert "\n" not in str(error.value)
    assert np.array_equal(pipe.txt2img("a girl", **QUICK).latents, want)


def test_a_broken_image_is_an_error(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pipe.networks["vae_decoder"]
    monkeypatch.setattr(decoder, "call", lambda latents: (torch.full((1, 3, 64, 64), float("nan")),))
    with pytest.raises(NonFiniteError, match="image must be finite"):
        pipe.txt2img("a girl", num_inference_steps=2, seed=1, sampler="ddim")


def test_other_engines_are_refused(unet: Any) -> None:
    made = engines(unet)
    with pytest.raises(InputError, match="native engines, got 'onnx'"):
        ResidentLoop(**made, decoder=hotloop.load().networks["vae_decoder"])


def test_pixels_packed_in_torch_are_the_operators(pipe: Any) -> None:
    image = torch.from_numpy(normal(2, 3, 33, 47, seed=1))
    for made, want in zip(resident.pack(image), resident.fused_pack(image), strict=True):
        assert torch.equal(made, want)
    image[1, 2, 3, 4] = float("inf")
    assert not resident.pack(image)[1] and not resident.fused_pack(image)[1]
