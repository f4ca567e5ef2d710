"""The native engine on a GPU: captured runs equal uncaptured ones bit for bit, and draw what the CPU draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hotloop
import hotloop_kernels as kernels
from hotloop import loop, samplers
from hotloop.bundle import builtin
from hotloop.denoiser.resident import ResidentLoop, captured_runs
from hotloop.engines import devices, open_engine
from hotloop.errors import DeviceMemoryError
from hotloop.loop import Inpaint
from hotloop.samplers.schedule import Schedule
from hotloop.spec import REWRITES, family

pytestmark = pytest.mark.gpu
FAMILY = family("avatar-tiny")
SHAPE = (2, 4, 16, 16)


@pytest.fixture(scope="module", params=["torch", "fused"])
def made(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The built-in networks in half precision on the GPU, by torch's operators and by ours."""
    assert "cuda" in devices("native")
    before = dict(kernels.proved)
    if request.param == "fused":
        trust_all()
    networks = FAMILY.split(REWRITES, ())
    folders = {"vae_decoder": "vae"}
    yield {
        name: open_engine("native", builtin() / folders.get(name, "unet"), networks[name], device="cuda",
                          precision="fp32" if name == "time" else "fp16")
        for name in ("unet", "prompt", "time", "vae_decoder")
    }  # fmt: skip
    kernels.proved.clear()
    kernels.proved.update(before)
    if kernels.compiled():
        kernels.backend.ops.set_proved(kernels.proved)


def trust_all() -> None:
    """Run every operator fused on this GPU, proved or not."""
    import torch

    if not kernels.compiled() or not kernels.build_info()["cuda"]:
        pytest.fail("the operators must be compiled for this GPU")
    major, minor = torch.cuda.get_device_capability()
    kernels.proved[f"sm_{major}{minor}"] = list(kernels.OPERATORS)
    kernels.backend.ops.set_proved(kernels.proved)


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def given(sampler: str, *, seed: int = 0, guided: bool = True, inpaint: bool = False, steps: int = 5) -> dict[str, Any]:
    schedule = Schedule.from_config({"clip_sample": False}, FAMILY.schedule)
    table = samplers.build(sampler, schedule, steps, start=1 if inpaint and sampler != "pndm" else 0)
    cond = {"context": normal(2, 77, FAMILY.context_dim, seed=seed + 1)}
    if guided:
        cond["negative_context"] = normal(2, 77, FAMILY.context_dim, seed=seed + 2)
    mask = (normal(2, 1, *SHAPE[2:], seed=seed + 5) > 0).astype(np.float32)
    known = Inpaint(mask, normal(*SHAPE, seed=seed + 6), normal(*SHAPE, seed=seed + 7)) if inpaint else None
    return dict(
        table=table, x=normal(*SHAPE, seed=seed), cond=cond, inpaint=known, guidance=np.float32([1.5, 3]),
        noise=normal(table.noises, *SHAPE, seed=seed + 3) if table.noises else None,
    )  # fmt: skip


def drawn(made: dict[str, Any], run: dict[str, Any], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    parts = {name: made[name] for name in ("prompt", "time")}
    with ResidentLoop(made["unet"], decoder=made["vae_decoder"], scaling=0.5, **parts, **options) as denoiser:
        latents = loop.run(denoiser, **run)
        assert denoiser.pixels is not None
        return latents, denoiser.pixels.copy()


@pytest.mark.parametrize("inpaint", [False, True], ids=["whole", "inpaint"])
@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_a_captured_run_is_the_uncaptured_one_bit_for_bit(made: Any, sampler: str, guided: bool, inpaint: bool) -> None:
    run = given(sampler, guided=guided, inpaint=inpaint)
    want, picture = drawn(made, run, graphs=False)
    assert np.isfinite(want).all() and picture.std() > 0
    for _ in range(2):  # the first captures, the second replays
        latents, pixels = drawn(made, run)
        assert np.array_equal(latents, want) and np.array_equal(pixels, picture)


def test_rows_one_by_one_are_the_run(made: Any) -> None:
    run = given("euler_a")
    parts = {name: made[name] for name in ("prompt", "time")}
    with ResidentLoop(made["unet"], **parts) as denoiser:
        rows = [progress.latents for progress in loop.denoise(denoiser, **run)]
    assert np.array_equal(rows[-1], drawn(made, run)[0])


def test_prompt_seed_guidance_table_and_mask_need_no_capture(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hotloop.denoiser import resident

    captures = []
    first = resident._captured

    def counted(work: Any) -> Any:
        captures.append(work)
        return first(work)

    monkeypatch.setattr(resident, "_captured", counted)
    captured_runs(made["unet"]).clear()
    runs = [given(name, seed=seed, inpaint=True) for name, seed in (("euler", 0), ("euler", 20), ("ddim", 40))]
    for run in (*runs, runs[0]):
        run["guidance"] = run["guidance"] + np.float32(0.5)
        assert np.array_equal(drawn(made, run)[0], drawn(made, run, graphs=False)[0])
    assert len(captures) == 1


def test_half_precision_on_the_gpu_draws_what_the_cpu_draws(made: Any) -> None:
    pipes = [hotloop.load(engine="native", device="cpu")]
    gpu = hotloop.load(engine="native", device="cpu")
    for name in ("unet", "prompt", "time", "vae_decoder"):
        gpu.networks._open[name] = made[name]
    pipes.append(gpu)
    for sampler in ("plms", "dpmpp_2m", "euler_a"):
        images = [
            np.asarray(pipe.txt2img("a girl with red hair", seed=5, sampler=sampler, num_inference_steps=10).images[0])
            for pipe in pipes
        ]
        error = np.mean((images[0].astype(np.float64) - images[1]) ** 2)
        assert 10 * np.log10(255**2 / error) >= 40


def test_too_little_memory_is_one_line_and_the_engine_goes_on(made: Any) -> None:
    import torch

    run = given("euler")
    want = drawn(made, run)[0]
    captured_runs(made["unet"]).clear()
    free = torch.cuda.mem_get_info()[0]
    hog = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
    big = given("euler")
    big["x"] = normal(2, 4, 256, 256, seed=1)
    with pytest.raises(DeviceMemoryError, match="fewer or smaller images"):
        drawn(made, big)
    del hog
    torch.cuda.empty_cache()
    assert np.array_equal(drawn(made, run)[0], want)
