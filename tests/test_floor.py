"""Counted work against diffusers' and transformers' own networks under torch's counter, closed forms and published
figures; floors against arithmetic by hand. Everything is on the meta device: shapes, no numbers."""

from __future__ import annotations

import sys
from typing import Any

import floor
import pytest
import torch
from ceilings import Ceiling, Ceilings
from floor import BYTES, CLASSES, CROSS, Calls, Counted, Model, Op, of_picture, work_of
from torch.utils.flop_counter import FlopCounterMode

from hotloop import spec
from hotloop.nets.parts import PARTS, module_of
from hotloop.nets.unet import CrossAttention

GIGA = 1e9
SD15, TINY = Model.named("sd15"), Model.named("avatar-tiny")


def count(network: str, *, model: Model = SD15, size: tuple[int, int] = (512, 512), batch: int = 1, **more: Any):
    images = more.pop("images", None)
    dims = model.family.dims(width=size[0], height=size[1], batch=batch, images=images)
    return work_of(model, network, dims, **more)


def torch_counts(run: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def stock(model: Model, network: str) -> Any:
    """The network as diffusers or transformers have it."""
    import diffusers
    import transformers

    config = dict(model.configs[PARTS[network].folder])
    with torch.device("meta"):
        if network == "text_encoder":
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
        cls = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "tiny_vae": "AutoencoderTiny"}
        return getattr(diffusers, cls[PARTS[network].folder]).from_config(config)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Against torch's counter.


@pytest.mark.parametrize(
    ("model", "size", "batch"),
    [("sd15", (512, 512), 2), ("sd15-inpaint", (520, 264), 3), ("sd21-v", (768, 768), 1), ("avatar-tiny", (64, 96), 2)],
)
def test_a_unet_has_the_flops_and_parameters_of_diffusers(model, size, batch):
    model = Model.named(model)
    theirs = stock(model, "unet")
    height, width = (side // model.family.vae_factor for side in reversed(size))
    sample = meta(batch, model.family.unet_channels, height, width)
    states = meta(batch, 77, model.family.context_dim)
    expected = torch_counts(lambda: theirs(sample, meta(batch), states))
    ours = count("unet", model=model, size=size, batch=batch)
    assert ours.flops == expected
    assert ours.parameters == ours.weights == theirs.num_parameters()


@pytest.mark.parametrize(("model", "size"), [("sd15", (512, 256)), ("avatar-tiny", (64, 64))])
def test_an_autoencoder_has_the_flops_and_parameters_of_diffusers(model, size):
    model = Model.named(model)
    theirs = stock(model, "vae_decoder")
    height, width = (side // model.family.vae_factor for side in reversed(size))
    latents, pixels = meta(2, 4, height, width), meta(2, 3, *reversed(size))
    decoder, encoder = (count(f"vae_{way}", model=model, size=size, batch=2) for way in ("decoder", "encoder"))
    assert decoder.flops == torch_counts(lambda: theirs._decode(latents))
    assert encoder.flops == torch_counts(lambda: theirs._encode(pixels))
    decoding = [theirs.decoder, theirs.post_quant_conv]
    assert decoder.weights == sum(p.numel() for part in decoding for p in part.parameters())
    assert decoder.weights + encoder.weights == decoder.parameters == theirs.num_parameters()


def test_the_tiny_autoencoder_has_the_flops_and_parameters_of_diffusers():
    theirs = stock(SD15, "tiny_vae_decoder")
    decoder, encoder = count("tiny_vae_decoder", batch=2), count("tiny_vae_encoder", batch=2)
    assert decoder.flops == torch_counts(lambda: theirs.decoder(meta(2, 4, 64, 64)))
    assert encoder.flops == torch_counts(lambda: theirs.encoder(meta(2, 3, 512, 512)))
    assert decoder.weights + encoder.weights == decoder.parameters == theirs.num_parameters()


@pytest.mark.parametrize("model", ["sd15", "sd21", "avatar-tiny"])
def test_a_text_encoder_has_the_flops_and_parameters_of_transformers(model):
    model = Model.named(model)
    theirs = stock(model, "text_encoder")
    ids = meta(2, 77, dtype=torch.int64)
    ours = count("text_encoder", model=model, size=model.family.default_size, batch=2)
    assert ours.flops == torch_counts(lambda: theirs(input_ids=ids))
    assert ours.parameters == theirs.num_parameters()


@pytest.mark.parametrize(
    ("model", "rewrites"),
    [(SD15, spec.REWRITES), *((TINY, names) for names in ((), ("kv",), ("time",), ("prefix",), ("phase",)))],
    ids=lambda value: getattr(value, "name", None) or "-".join(value) or "plain",
)
def test_every_network_with_every_rewrite_has_the_flops_that_torch_counts(model, rewrites):
    """The modules are ours here: another counter, below torch's public functions, on what the engines run."""
    dims = model.family.dims(width=256, height=256, batch=4, images=2)
    for name in model.networks(rewrites):
        network, part = model.family.split(rewrites)[name], PARTS[name]
        config = model.configs[part.folder]
        with torch.device("meta"):
            call = module_of(part.choose(config)(config), network)
        inputs = [meta(*spec.resolve(t.shape, dims), dtype=getattr(torch, t.dtype)) for t in network.inputs]
        assert work_of(model, name, dims, rewrites=rewrites).flops == torch_counts(lambda c=call, i=inputs: c(*i)), name


# Against what is known.


def test_sd15_has_the_published_figures():
    assert round(count("unet").flops / GIGA, 1) == 803.3
    assert round(count("unet", batch=2).flops / GIGA, 1) == 1606.5
    assert round(count("vae_decoder").flops / GIGA, 1) == 2514.5
    assert round(count("text_encoder").flops / GIGA, 1) == 13.3
    assert round((count("tiny_vae_encoder").flops + count("tiny_vae_decoder").flops) / GIGA) == 264
    assert count("unet").parameters == 859_520_964
    assert count("text_encoder").parameters == 123_060_480
    assert count("vae_decoder").parameters == count("vae_encoder").parameters == 83_653_863
    assert (count("vae_decoder").weights, count("vae_encoder").weights) == (49_490_199, 34_163_664)
    assert round(count("unet").weights * BYTES["fp16"] / GIGA, 2) == 1.72


def test_sd15s_classes_have_the_published_shares():
    counted = count("unet", batch=2)
    per_cent = {kind: round(100 * part.flops / counted.flops, 1) for kind, part in counted.by_class().items()}
    assert per_cent == dict(zip(CLASSES, (49.8, 19.1, 15.0, 15.2, 0.8, 0.0, 0.0), strict=True))
    products = {
        name: sum(op.flops for op in counted.ops if op.path.endswith(name)) / counted.flops
        for name in ("attn1", "attn2")
    }
    assert round(100 * (products["attn1"] + products["attn2"]), 1) == 15.7  # published as self-attention's
    finest = sum(op.flops for op in counted.by_level()[0].ops if op.path.endswith("attn1"))
    assert round(100 * finest / counted.flops, 1) == 13.4


def test_the_coarsest_level_is_little_arithmetic_and_many_weights():
    counted = count("unet")
    coarsest = counted.by_level()[3]
    assert round(100 * coarsest.flops / counted.flops) == 5
    assert 0.37 < coarsest.weights / counted.weights < 0.38


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder", "vae_encoder", "tiny_vae_decoder"])
def test_classes_share_out_the_whole(network):
    counted = count(network)
    parts = counted.by_class().values()
    assert sum(part.flops for part in parts) == counted.flops
    assert sum(part.weights for part in parts) == counted.weights


def test_levels_share_out_all_but_the_time_embedding():
    counted = count("unet")
    timing = 2 * (320 * 1280 + 1280 * 1280)
    assert counted.flops - sum(part.flops for part in counted.by_level().values()) == timing


@pytest.mark.parametrize(
    ("path", "flops", "weights"),
    [
        ("conv_in", 2 * (64 * 64 * 320) * (4 * 9), 4 * 320 * 9 + 320),
        ("down_blocks.0.downsamplers.0.conv", 2 * (32 * 32 * 320) * (320 * 9), 320 * 320 * 9 + 320),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1", 2 * 2 * 4096 * 4096 * 320, 0),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", 2 * 2 * 4096 * 77 * 320, 0),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 2 * 77 * 768 * 320, 768 * 320),
        ("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj", 2 * 4096 * 320 * 2560, 321 * 2560),
        ("up_blocks.0.resnets.0.conv_shortcut", 2 * 64 * 2560 * 1280, 2561 * 1280),
        ("mid_block.resnets.0.time_emb_proj", 2 * 1280 * 1280, 1281 * 1280),
        ("conv_norm_out", 0, 2 * 320),
    ],
)
def test_an_op_is_its_closed_form(path, flops, weights):
    (op,) = (op for op in count("unet").ops if op.path == path)
    assert (op.flops, op.weights) == (flops, weights)


def test_a_resampling_belongs_to_the_level_that_it_makes():
    levels = {op.path: op.level for op in count("unet").ops}
    assert [levels[f"down_blocks.{i}.downsamplers.0.conv"] for i in range(3)] == [1, 2, 3]
    assert [levels[f"up_blocks.{i}.upsamplers.0.conv"] for i in range(3)] == [2, 1, 0]
    assert levels["up_blocks.3.resnets.2.conv1"] == levels["conv_in"] == levels["conv_out"] == 0
    assert levels["mid_block.resnets.1.conv2"] == levels["up_blocks.0.resnets.0.conv1"] == 3


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder", "vae_encoder", "tiny_vae_encoder"])
def test_work_grows_with_the_batch_and_weights_do_not(network):
    one, three = count(network), count(network, batch=3)
    assert three.flops == 3 * one.flops and three.tensors == 3 * one.tensors
    # Of a table of embeddings, a row for each token.
    rows = 2 * 77 * 768 if network == "text_encoder" else 0
    assert three.weights == one.weights + rows


def test_a_picture_of_four_times_the_area_has_sixteen_times_the_attention():
    small, large = (count("unet", size=(side, side)).by_class() for side in (512, 1024))
    assert large["3x3 conv"].flops - 4 * small["3x3 conv"].flops == 0
    assert large["self-attention"].flops == 16 * small["self-attention"].flops
    prompts = sum(op.flops for op in small[CROSS].ops if not op.path.endswith("attn2"))
    assert large[CROSS].flops - prompts == 4 * (small[CROSS].flops - prompts)


def test_bytes_are_weights_inputs_and_outputs_once():
    latents, states = 2 * 2 * 4 * 64 * 64, 2 * 77 * 768
    assert count("unet", batch=2).bytes("fp16") == 2 * (859_520_964 + latents + states + 2)
    assert count("vae_decoder").bytes("fp32") == 4 * (49_490_199 + 4 * 64 * 64 + 3 * 512 * 512)


def test_the_text_encoder_reads_the_rows_of_its_tokens_only():
    counted = count("text_encoder")
    assert counted.weights == counted.parameters - (49408 - 77) * 768


# The rewrites.


def test_keys_values_and_time_leave_the_unet_for_networks_of_their_own():
    plain = count("unet", batch=2)
    for rewrite, network in (("kv", "prompt"), ("time", "time")):
        parts = [count(name, batch=2, rewrites=(rewrite,)) for name in ("unet", network)]
        assert sum(part.flops for part in parts) == plain.flops
        assert sum(part.weights for part in parts) == plain.weights
    assert count("prompt", rewrites=("kv",)).flops == 2 * 77 * 768 * 24960


def test_the_rewrites_save_what_the_readme_says():
    def saved(network: str, rewrites: tuple[str, ...], **more: Any) -> float:
        return 1 - count(network, rewrites=rewrites, **more).flops / count(network, batch=more.get("batch", 1)).flops

    assert round(100 * saved("unet", spec.REWRITES, batch=2, images=1), 1) == 7.6
    assert round(100 * saved("unet", ("prefix",), batch=2, images=1), 1) == 2.5
    assert round(100 * saved("vae_decoder", ("phase",))) == 15
    assert saved("vae_encoder", ("phase",)) == 0


def test_the_shared_prefix_is_counted_once_for_both_halves_of_guidance():
    plain, shared = count("unet", batch=2), count("unet", batch=2, images=1, rewrites=("prefix",))
    halves = {op.path: op.flops for op in shared.ops}
    once = {op.path for op in plain.ops if op.flops and halves[op.path] * 2 == op.flops}
    block = "down_blocks.0.attentions.0"
    assert {"conv_in", "down_blocks.0.resnets.0.conv2", f"{block}.transformer_blocks.0.attn1"} <= once
    assert f"{block}.transformer_blocks.0.attn2" not in once and "conv_out" not in once


def test_optional_inputs_are_counted():
    more = count("unet", groups=("identity",))
    extra = more.flops - count("unet").flops
    # One token more to look at in each of 16 cross-attentions, beside the prompt's 77.
    looks = sum(op.flops for op in count("unet").ops if op.path.endswith("attn2"))
    assert extra * 77 == looks


# Floors.


def machine(flops: float = 100.0, copy: float = 10.0) -> Ceilings:
    rates = {"fp32": Ceiling(flops, "made up"), "bf16": Ceiling(2 * flops, "made up")}
    return Ceilings("made up", 1, rates, Ceiling(copy, "made up"))


def counted(*ops: tuple[int, int], tensors: int = 0) -> Counted:
    """Of (FLOPs, weights)."""
    made = tuple(Op(str(i), "other", None, *op) for i, op in enumerate(ops))
    return Counted("made up", made, sum(weights for _, weights in ops), tensors)


def test_an_op_takes_the_longer_of_arithmetic_and_reading_and_ops_add_up():
    # 4 s of arithmetic against 2 s of reading; then 1 s against 6 s.
    work = counted((400, 5), (100, 15))
    assert floor.floor(work, machine(), "fp32").seconds == pytest.approx(4 + 6)
    # In half the width: 2 against 1; 0.5 against 3.
    assert floor.floor(work, machine(), "bf16").seconds == pytest.approx(2 + 3)


def test_inputs_and_outputs_bind_where_they_take_longer_than_all_else():
    assert floor.floor(counted((100, 0), tensors=100), machine(), "fp32").seconds == pytest.approx(40)
    assert floor.floor(counted((10_000, 0), tensors=100), machine(), "fp32").seconds == pytest.approx(100)


def test_calls_add_up():
    one, other = counted((400, 5)), counted((100, 15), tensors=1)
    made = floor.floor(Calls(((3, one), (1, other))), machine(), "fp32")
    assert made.seconds == pytest.approx(3 * 4 + 6.4)
    assert (made.flops, made.bytes) == (1300, 4 * (3 * 5 + 16))


def test_a_record_sets_a_time_beside_its_floor():
    record = floor.floor(counted((400, 5)), machine(), "fp32").record(16.0)
    assert record == {
        "seconds": 4.0, "share": 0.25, "flops": 400, "bytes": 20, "dtype": "fp32", "ceiling_flops": 100.0,
        "ceiling_bytes": 10.0,
    }  # fmt: skip


def test_a_floor_never_falls_below_all_arithmetic_or_all_reading():
    ceilings = machine(400e9, 20e9)
    for network in SD15.networks():
        made = floor.floor(count(network), ceilings, "fp32")
        assert made.seconds >= max(made.flops / 400e9, made.bytes / 20e9) * (1 - 1e-9)


def test_a_dtype_without_a_ceiling_is_refused():
    with pytest.raises(ValueError, match=r"\[floor\] dtype must be one of fp32, bf16, got int8"):
        floor.floor(counted((1, 1)), machine(), "int8")


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"\[floor\] network must be one of .*unet.*, got prompt"):
        count("prompt")


def test_a_product_by_another_name_is_not_overlooked(monkeypatch):
    # A batch of its own: counts are remembered.
    monkeypatch.setattr(CrossAttention, "attend", lambda self, q, k, v: q @ k.transpose(1, 2) @ v)
    with pytest.raises(NotImplementedError, match="got matmul"):
        count("unet", batch=5)


# Pictures.


def test_a_picture_is_its_prompts_its_evaluations_and_its_decoder():
    made = of_picture(SD15, size=(512, 512), evaluations=50, guided=True)
    expected = 2 * count("text_encoder").flops + 100 * count("unet").flops + count("vae_decoder").flops
    assert made.flops == expected
    unguided = of_picture(SD15, size=(512, 512), evaluations=4, guided=False, images=3, tiny=True, encode=True)
    tiny = count("tiny_vae_encoder").flops + count("tiny_vae_decoder").flops
    assert unguided.flops == count("text_encoder").flops + 12 * count("unet").flops + 3 * tiny


def test_a_rewritten_picture_counts_once_what_is_computed_once():
    made = of_picture(TINY, size=(64, 64), evaluations=21, guided=True, rewrites=spec.REWRITES)
    times = {part.network: n for n, part in made.parts}
    assert times == {"text_encoder": 1, "prompt": 1, "time": 1, "unet": 21, "vae_decoder": 1}
    assert made.flops < of_picture(TINY, size=(64, 64), evaluations=21, guided=True).flops


# The command.


def test_the_command_prints_counts_and_with_ceilings_times(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["floor.py", "--family", "sd15", "--batch", "2", "--dtype", "bf16"])
    floor.main()
    plain = capsys.readouterr().out
    assert "1,606.55" in plain and "859,520,964" in plain and "floor ms" not in plain
    monkeypatch.setattr(floor, "measure", lambda **_: machine(200e9, 50e9))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--measure"])
    floor.main()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("in all"))
    assert float(line.split()[5]) == pytest.approx(1606.54688256 / 400 * 1e3)
    assert float(line.split()[7]) > float(line.split()[5])  # the bandwidth binds some ops
