"""The native engine's tunings: the plain network's results with every combination, on every rewrite."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fill, narrow_unet, random_inputs

import hotloop_kernels as kernels
from hotloop.bundle import builtin
from hotloop.engines.native import NativeEngine
from hotloop.errors import InputError
from hotloop.nets.tunings import TUNINGS, at_hand, tune
from hotloop.spec import GROUPS, REWRITES, Family, cells, family

DIMS = {"N": 1, "B": 2, "T": 5, "Ti": 3, **cells(6, 4)}
pytestmark = pytest.mark.skipif(not kernels.compiled(), reason="no compiled operators: nothing to tune with")


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, count) for count in range(len(names) + 1))


@pytest.fixture(scope="module", params=[False, True], ids=["conv", "linear"])
def unet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    folder = tmp_path_factory.mktemp("tunings") / "unet"
    return folder, narrow_unet(folder, block_out_channels=(32, 64), use_linear_projection=request.param)


def outputs(engine: NativeEngine, dims: dict[str, int]) -> list[np.ndarray]:
    """By a context of its own: a tuned copy shares the plain engine's."""
    network = engine.network
    context = fill(engine.context(**network.pick(dims)), random_inputs(network, dims, ids=100))
    context.run()
    return [value.copy() for value in context.outputs.values()]


def tuned(plain: NativeEngine, tunings: tuple[str, ...]) -> NativeEngine:
    """The same network tuned; its weights are copied, the file is not read again."""
    other = copy.copy(plain)
    other.call = tune(copy.deepcopy(plain.call), tunings)
    return other


def near(got: list[np.ndarray], want: list[np.ndarray], bound: float = 1e-4) -> bool:
    return all(np.abs(a - b).max() <= bound * max(1, np.abs(b).max()) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("rewrites", list(subsets(REWRITES)), ids=lambda r: "-".join(r) or "plain")
@pytest.mark.parametrize("unet", [False], ids=["conv"], indirect=True)
def test_every_combination_of_tunings_is_the_plain_network(unet: Any, rewrites: tuple[str, ...]) -> None:
    folder, row = unet
    network = row.split(rewrites, tuple(GROUPS))["unet"]
    plain = NativeEngine(folder, network, tunings=())
    want = outputs(plain, DIMS)
    for tunings in subsets(tuple(TUNINGS)):
        assert near(outputs(tuned(plain, tunings), DIMS), want), tunings


def test_every_combination_is_the_plain_network_with_linear_projections(unet: Any) -> None:
    test_every_combination_of_tunings_is_the_plain_network(unet, REWRITES)


@pytest.mark.parametrize("name", ["vae_decoder", "vae_encoder", "text_encoder"])
def test_every_combination_is_the_plain_vae_and_text_encoder(name: str) -> None:
    network = family("avatar-tiny").networks[name]
    folder = builtin() / ("vae" if "vae" in name else "text_encoder")
    dims = {"B": 2, "h": 5, "w": 7, "H": 20, "W": 28, "T": 77}
    plain = NativeEngine(folder, network, tunings=())
    want = outputs(plain, dims)
    for tunings in subsets(tuple(TUNINGS)):
        assert near(outputs(tuned(plain, tunings), dims), want), tunings


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_tuned_networks_are_as_near_as_plain_ones(unet: Any, precision: str) -> None:
    folder, row = unet
    network = row.split(REWRITES, ())["unet"]
    exact = outputs(NativeEngine(folder, network, tunings=()), DIMS)[0]
    plain, fast = (
        outputs(NativeEngine(folder, network, precision=precision, tunings=tunings), DIMS)[0]
        for tunings in ((), tuple(TUNINGS))
    )
    assert np.abs(fast - exact).max() <= 2 * np.abs(plain - exact).max()
    assert np.corrcoef(fast.ravel(), exact.ravel())[0, 1] >= 0.999


def test_weights_are_replaced_where_they_were_packed(unet: Any) -> None:
    folder, row = unet
    network = row.split((), ())["unet"]
    plain, fast = (NativeEngine(folder, network, tunings=names) for names in ((), tuple(TUNINGS)))
    rng = np.random.default_rng(3)
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    patches = {
        name: rng.standard_normal(tuple(plain.call.net.get_parameter(name).shape)).astype(np.float32) * 0.3
        for name in (f"{block}.attn1.to_k.weight", f"{block}.attn2.to_v.weight", "conv_in.weight")
    }
    before = outputs(fast, DIMS)
    patched = fast.patched(patches)
    assert near(outputs(patched, DIMS), outputs(plain.patched(patches), DIMS))
    assert not near(outputs(patched, DIMS), before)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(fast, DIMS), before, strict=True))
    weight = patched.call.net.get_parameter("conv_in.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    # What was not replaced is shared, packed tensors too.
    other = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    a, b = (engine.call.net.get_submodule(other).packed for engine in (fast, patched))
    assert a.data_ptr() == b.data_ptr()


def test_tunings_have_what_they_need_and_are_known() -> None:
    assert at_hand("cpu") == list(TUNINGS)
    with pytest.raises(InputError, match="tunings must be among channels_last, qkv"):
        NativeEngine(builtin() / "unet", family("avatar-tiny").networks["unet"], tunings=("warp",))
