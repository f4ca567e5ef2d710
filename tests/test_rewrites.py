"""The exact rewrites and the optional inputs of the UNet: against the plain networks and diffusers'."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from helpers import randomise
from torch.utils.flop_counter import FlopCounterMode

from hotloop.errors import BundleError, InputError
from hotloop.nets.rewrites import REWRITES, constants, split, with_phase
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL
from hotloop.spec import FAMILIES, family, resolve
from hotloop.weights import derived

COMBINATIONS = [rewrites for k in range(1, 5) for rewrites in itertools.combinations(REWRITES, k)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def config(widths: tuple[int, ...], **entries: Any) -> dict[str, Any]:
    """The lowest level without attention, as in SD."""
    down = ("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",)
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    return {"block_out_channels": widths, "down_block_types": down, "up_block_types": up, **entries}


UNETS = {
    "sd15": config((32, 64, 96, 96), attention_head_dim=8, cross_attention_dim=48, norm_num_groups=16),
    "sd21": config((32, 64, 96, 96), attention_head_dim=[1, 2, 4, 4], cross_attention_dim=56, norm_num_groups=16,
                   use_linear_projection=True),
    "avatar-tiny": config((64, 96, 96), attention_head_dim=4, cross_attention_dim=128, norm_num_groups=16,
                          layers_per_block=1),
    # The context comes in one level later: the shared prefix holds a downsampler and several skips.
    "late": config((16, 32, 32), attention_head_dim=4, cross_attention_dim=24, norm_num_groups=8)
    | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
       "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
}  # fmt: skip
FULL = {"sd15": config((320, 640, 1280, 1280), attention_head_dim=8, cross_attention_dim=768),
        "sd21": config((320, 640, 1280, 1280), attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024,
                       use_linear_projection=True)}  # fmt: skip


def normal(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def plain() -> dict[str, UNet]:
    return {name: randomise(UNet(entries)) for name, entries in UNETS.items()}


@torch.no_grad()
def relative_error(
    net: UNet, rewrites: tuple[str, ...], *, images: int, guided: bool, size: tuple[int, int], tokens: int
) -> float:
    dtype = net.conv_in.weight.dtype
    rows = images * (2 if guided else 1)
    sample, context = normal(images, 4, *size, dtype=dtype), normal(rows, tokens, net.context_dim, seed=4, dtype=dtype)
    timestep = torch.tensor([999.0, 12.25, 500.0])[:images]
    both = torch.arange(rows) % images
    expected = net(sample[both], timestep[both], context)

    parts = split(net, rewrites)
    given = parts["prompt"](context) if "kv" in rewrites else context
    when = parts["time"](timestep) if "time" in rewrites else timestep
    own = slice(None) if "prefix" in rewrites else both
    out = parts["unet"](sample[own], when[own], given)
    assert expected.std() > 0.02
    return float((out - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rewrites", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("name", UNETS)
def test_every_combination_equals_the_plain_network(
    plain: dict[str, UNet], name: str, rewrites: tuple[str, ...]
) -> None:
    for images, guided, size, tokens in ((2, True, (8, 16), 7), (1, False, (16, 8), 77)):
        error = relative_error(plain[name], rewrites, images=images, guided=guided, size=size, tokens=tokens)
        assert error <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("name", ["sd15", "avatar-tiny"])
def test_in_float64_all_rewrites_together_are_exact(
    plain: dict[str, UNet], name: str, images: int, guided: bool
) -> None:
    net = UNet(UNETS[name]).double()
    net.load_state_dict(plain[name].state_dict())
    # The sinusoids are made in float32 on both sides; everything after is float64.
    error = relative_error(net, REWRITES, images=images, guided=guided, size=(16, 24), tokens=13)
    assert error <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("size", [(11, 13), (9, 8)], ids=str)
def test_without_phase_the_latents_may_have_any_size(plain: dict[str, UNet], size: tuple[int, int]) -> None:
    error = relative_error(plain["sd15"], ("kv", "time", "prefix"), images=2, guided=True, size=size, tokens=3)
    assert error <= TOLERANCE[torch.float32]


def test_the_plain_network_stays_plain_and_lends_its_weights(plain: dict[str, UNet]) -> None:
    net = plain["sd15"]
    before = list(net.state_dict())
    parts = split(net, REWRITES)
    assert list(net.state_dict()) == before
    assert type(net) is UNet
    own = {id(p) for p in net.parameters()}
    tensors = {key: value for part in parts.values() for key, value in part.named_parameters()}
    made = {key for key, value in tensors.items() if id(value) not in own}
    assert made == {f"up_blocks.{i}.upsamplers.0.{phase}" for i in range(3) for phase in derived.PHASES}
    assert set(before) - set(tensors) == {f"up_blocks.{i}.upsamplers.0.conv.weight" for i in range(3)}
    # No weight is in two networks.
    assert sum(len(part.state_dict()) for part in parts.values()) == len(tensors)


def test_derived_weights_in_numpy_are_those_of_the_modules(plain: dict[str, UNet]) -> None:
    net = plain["avatar-tiny"]
    made = derived.derive({key: value.numpy() for key, value in net.state_dict().items()})
    module = split(net, ["phase"])["unet"].state_dict()
    assert set(made) == {key for key in module if derived.is_derived(key)} == set(module) - set(net.state_dict())
    assert all(np.array_equal(value, module[key].numpy()) for key, value in made.items())
    one = "up_blocks.0.upsamplers.0.conv.weight"
    assert set(derived.derive({one: net.state_dict()[one].numpy()}, [one, "conv_in.weight"])) == {
        f"up_blocks.0.upsamplers.0.{phase}" for phase in derived.PHASES
    }


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_vae_decoder_with_phases_equals_the_plain_one(dtype: torch.dtype) -> None:
    net = randomise(AutoencoderKL({"block_out_channels": (32, 48, 64), "norm_num_groups": 8})).to(dtype)
    latents = normal(2, 4, 5, 7, dtype=dtype)
    expected = net.decode(latents)
    changed = with_phase(net)
    assert set(changed.state_dict()) != set(net.state_dict())
    error = (changed.decode(latents) - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[dtype]
    image = normal(1, 3, 16, 24, dtype=dtype)
    assert torch.equal(changed.encode(image)[0], net.encode(image)[0])


def test_what_cannot_be_rewritten_is_refused(plain: dict[str, UNet]) -> None:
    with pytest.raises(InputError, match="kv, time, prefix, phase, got \\['magic'\\]"):
        split(plain["sd15"], ["kv", "magic"])
    levels = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet(config((16, 32), norm_num_groups=8, cross_attention_dim=24) | levels)
    with pytest.raises(BundleError, match="CrossAttnDownBlock2D"):
        split(net, ["prefix"])
    with pytest.raises(InputError, match=r"rewrites .*got \['magic'\]"):
        family("sd15").split(["magic"])
    with pytest.raises(InputError, match=r"groups .*got \['music'\]"):
        family("sd15").split([], ["music"])


@pytest.mark.parametrize("name", FULL)
def test_the_spec_has_the_networks_own_widths(name: str) -> None:
    with torch.device("meta"):
        found = constants(UNet(FULL[name]))
    row = FAMILIES[name]
    assert found == {"unet_widths": [320, 640, 1280, 1280], "unet_layers": 2, "kv_width": 24960, "time_width": 20160}
    assert {key: getattr(row, key) for key in found} == found | {"unet_widths": tuple(found["unet_widths"])}


def test_split_networks_take_and_give_what_the_spec_says(plain: dict[str, UNet]) -> None:
    net = plain["avatar-tiny"]
    row = FAMILIES["avatar-tiny"].with_constants(constants(net))
    assert row == FAMILIES["avatar-tiny"], "the row is the built-in model's"
    dims = row.dims(width=64, height=32, batch=4, images=2, tokens=9)
    parts = split(net, REWRITES)
    for name, network in row.split(REWRITES).items():
        if name in parts:
            inputs = [normal(*resolve(tensor.shape, dims)) for tensor in network.inputs]
            with torch.no_grad():
                assert tuple(parts[name](*inputs).shape) == resolve(network.outputs[0].shape, dims)


# What each rewrite saves, from the architecture: operations are twice the multiply-adds.


@pytest.mark.parametrize("images", [1, 2])
def test_rewrites_save_the_work_the_shapes_say(images: int) -> None:
    """SD 1.5, 512x512, guidance on: batch 2 N."""
    with torch.device("meta"):
        net = UNet(FULL["sd15"])
        rows, cells, width = 2 * images, 64 * 64, 320
        inputs = {"sample": torch.empty(rows, 4, 64, 64), "timestep": torch.empty(rows),
                  "context": torch.empty(rows, 77, 768)}  # fmt: skip
        samples, rows_of_time = torch.empty(images, 4, 64, 64), torch.empty(rows, 20160)
        packed = torch.empty(rows, 77, 24960)
    embedding = 2 * (320 * 1280 + 1280 * 1280)
    residual = 2 * (2 * 9 * width * width * cells + 1280 * width)
    attention = 2 * (5 * width * width * cells + 2 * width * cells * cells)  # proj_in, q, k, v, out; scores, values
    saved = {
        "kv": rows * 2 * 77 * 768 * 24960,
        "time": rows * (embedding + 2 * 1280 * 20160),
        "prefix": images * (2 * 9 * 4 * width * cells + embedding + residual + attention),
        "phase": rows * 2 * (36 - 16) * (1280 * 1280 * (8 * 8 + 16 * 16) + 640 * 640 * 32 * 32),
    }

    def work(module: torch.nn.Module, *given: torch.Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            module(*given)
        return counter.get_total_flops()

    sample, timestep, context = inputs.values()
    whole = work(net, sample, timestep, context)
    given = {"kv": (sample, timestep, packed), "time": (sample, rows_of_time, context),
             "prefix": (samples, timestep[:images], context), "phase": (sample, timestep, context)}  # fmt: skip
    for rewrite, tensors in given.items():
        assert whole - work(split(net, [rewrite])["unet"], *tensors) == saved[rewrite], rewrite
    assert 0.07 < (saved["kv"] + saved["prefix"] + saved["phase"]) / whole < 0.08


# Optional inputs.


@torch.no_grad()
def test_controlnet_residuals_equal_diffusers(plain: dict[str, UNet]) -> None:
    net = plain["sd15"]
    stock = diffusers.UNet2DConditionModel(**UNETS["sd15"])
    stock.load_state_dict(net.state_dict())
    row = FAMILIES["sd15"].with_constants(constants(net))
    dims = row.dims(width=88, height=104, batch=2)  # 11 x 13 cells: odd at every level
    tensors = row.split(groups=["controlnet"])["unet"].groups["controlnet"]
    control = {t.name: normal(*resolve(t.shape, dims), seed=i) for i, t in enumerate(tensors)}
    sample, timestep, context = normal(2, 4, 13, 11), torch.tensor([3.0, 800.0]), normal(2, 77, 48)
    *down, mid = control.values()
    expected = stock(
        sample, timestep, context, down_block_additional_residuals=tuple(down), mid_block_additional_residual=mid
    ).sample
    assert (net(sample, timestep, context) - expected).abs().max() > 0.1
    assert (net(sample, timestep, context, **control) - expected).abs().max() <= 1e-4


@torch.no_grad()
def test_timestep_cond_equals_diffusers() -> None:
    """The guidance embedding of distilled latent consistency models."""
    entries = UNETS["sd15"] | {"time_cond_proj_dim": 24}
    stock = randomise(diffusers.UNet2DConditionModel(**entries))
    net = UNet(entries).eval()
    net.load_state_dict(stock.state_dict())
    assert constants(net)["cond_width"] == 24
    inputs = normal(2, 4, 8, 8), torch.tensor([3.0, 800.0]), normal(2, 5, 48)
    cond = normal(2, 24, seed=9)
    expected = stock(*inputs, timestep_cond=cond).sample
    assert (net(*inputs) - expected).abs().max() > 0.01
    assert (net(*inputs, timestep_cond=cond) - expected).abs().max() <= 1e-4
    parts = split(net, ["time"])
    rows = parts["time"](inputs[1], cond)
    assert (parts["unet"](inputs[0], rows, inputs[2]) - expected).abs().max() <= 1e-4
    with pytest.raises(InputError, match="time_cond_proj_dim"):
        UNet(UNETS["sd15"])(*inputs, timestep_cond=cond)


@torch.no_grad()
def test_identity_adds_a_second_attention_by_its_scale(plain: dict[str, UNet]) -> None:
    """Every cross-attention gives softmax(q k) v + scale softmax(q k') v', before its output layer."""
    net = plain["avatar-tiny"]
    sample, timestep, context = normal(2, 4, 8, 8), torch.tensor([3.0, 800.0]), normal(2, 5, 128)
    face, scale = normal(2, 3, 128, seed=8), torch.tensor([0.7, 0.2])
    identity = split(net, ["kv"])["prompt"](face)  # a layer's K' and V' stand where the prompt's stand

    def decoupled(module: Any, inputs: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        x, heads = inputs[0], module.heads
        q, k, v = (
            t.reshape(t.shape[0], t.shape[1], heads, -1).movedim(2, 1).double()
            for t in (module.to_q(x), module.to_k(face), module.to_v(face))
        )
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        second = (weights @ v).movedim(1, 2).flatten(2).float() * scale[:, None, None]
        return out + second @ module.to_out[0].weight.T

    got = net(sample, timestep, context, identity_kv=identity, identity_scale=scale)
    without = net(sample, timestep, context)
    hooks = [layer.register_forward_hook(decoupled) for layer in net.cross_attentions().values()]
    expected = net(sample, timestep, context)
    for hook in hooks:
        hook.remove()
    assert (without - expected).abs().max() > 0.1
    assert (got - expected).abs().max() <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("rewrites", [(), REWRITES], ids=["plain", "split"])
def test_optional_inputs_at_zero_change_no_bit(rewrites: tuple[str, ...]) -> None:
    entries = UNETS["avatar-tiny"] | {"time_cond_proj_dim": 8}
    net = randomise(UNet(entries))
    row = FAMILIES["avatar-tiny"].with_constants(constants(net))
    groups = ("controlnet", "identity", "timestep_cond")
    networks = row.split(rewrites, groups)
    assert set(networks["unet"].groups) | set(networks.get("time", networks["unet"]).groups) == set(groups)
    dims = row.dims(width=32, height=64, batch=4, images=2, tokens=5, identity_tokens=3)
    parts = split(net, rewrites)
    for name in parts:
        network = networks[name]
        optional = {t.name: torch.zeros(resolve(t.shape, dims)) for ts in network.groups.values() for t in ts}
        inputs = [normal(*resolve(t.shape, dims)) for t in network.inputs if t.name not in optional]
        if "identity_kv" in optional:
            optional["identity_kv"] = normal(*optional["identity_kv"].shape)
        assert torch.equal(parts[name](*inputs, **optional), parts[name](*inputs))
