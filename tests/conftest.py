"""Fixtures that several test files share: the built-in model in hotloop and in stock diffusers; devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import commands
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Narrow networks are traced in a fifth less time so, to the same graphs but for the names of sizes.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

# hotloop's sampler -> diffusers' scheduler and what from_config is told beyond the bundle's own configuration.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": False}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def pytest_sessionfinish() -> None:
    commands.end()


@pytest.fixture(scope="session")
def pipe() -> Any:
    """hotloop on the built-in model."""
    import hotloop

    return hotloop.load()


@pytest.fixture(scope="session")
def stock() -> Any:
    """Stock diffusers pipelines on the same files, sharing one set of modules; `use(sampler)` sets the scheduler."""
    import diffusers
    import torch

    from hotloop.bundle import builtin

    torch.manual_seed(0)
    txt2img = diffusers.StableDiffusionPipeline.from_pretrained(
        builtin(), safety_checker=None, dtype=torch.float32, local_files_only=True
    )
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**txt2img.components, requires_safety_checker=False)
    inpaint = diffusers.StableDiffusionInpaintPipeline(**txt2img.components, requires_safety_checker=False)
    config = dict(txt2img.scheduler.config)
    for one in (txt2img, img2img, inpaint):
        one.set_progress_bar_config(disable=True)

    def use(sampler: str, *others: Any) -> None:
        name, extra = SCHEDULERS[sampler]
        for one in (txt2img, img2img, inpaint, *others):
            one.scheduler = getattr(diffusers, name).from_config(config, **extra)

    def generators(seeds: list[int]) -> list[Any]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    return SimpleNamespace(txt2img=txt2img, img2img=img2img, inpaint=inpaint, use=use, generators=generators)


@pytest.fixture(scope="session")
def schedulers() -> dict[str, tuple[str, dict[str, Any]]]:
    """hotloop's sampler -> diffusers' scheduler class and what from_config is told beyond the configuration."""
    return SCHEDULERS


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A device of torch that the compiled operators run on."""
    if request.param == "cuda":
        need_cuda()
    return request.param


@pytest.fixture
def capture() -> Callable[[Callable[[int], None]], Callable[[], None]]:
    """capture(work): does work(stream) once, captures it in a CUDA graph, and gives what replays that and waits."""
    import torch

    need_cuda()

    def capture(work: Callable[[int], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work(side.cuda_stream)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            work(side.cuda_stream)

        def replay() -> None:
            torch.cuda.synchronize()
            graph.replay()
            torch.cuda.synchronize()

        return replay

    return capture


def need_cuda() -> None:
    import hotloop_kernels

    if not hotloop_kernels.build_info().get("cuda"):
        pytest.fail("the operators must be compiled for this GPU")
