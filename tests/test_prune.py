"""Structured pruning: what is zero goes without a trace, importance is the change that it says, folders export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import NARROW, randomise

from hotloop.bundle import builtin
from hotloop.errors import BundleError, HotloopError, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from hotloop.nets.generators import CVAE, DCGAN, Critic, MLPGenerator, StyleGenerator  # noqa: E402
from hotloop.nets.rewrites import constants, split  # noqa: E402
from hotloop.nets.unet import UNet  # noqa: E402
from hotloop_export import cli  # noqa: E402
from hotloop_export import prune as module  # noqa: E402
from hotloop_export.pruned import prune_folder  # noqa: E402

NETS = {
    "mlp": lambda: MLPGenerator({"z": 6, "classes": 2, "widths": [16, 24], "size": 4}),
    "dcgan": lambda: DCGAN({"z": 6, "size": 16, "channels": 3, "widths": [16, 8]}),
    "cvae": lambda: CVAE({"z": 4, "classes": 2, "widths": [16, 8, 8]}),
    "unet": lambda: UNet(NARROW),
}


def ready(name: str):
    net, generator = randomise(NETS[name]()), torch.Generator().manual_seed(1)
    for key, value in net.named_buffers():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(generator=generator)
    return net


def batch(net, rows: int = 4, seed: int = 0):
    noise = torch.Generator().manual_seed(seed)
    if isinstance(net, UNet):
        return (torch.randn(rows, 4, 6, 4, generator=noise), torch.rand(rows, generator=noise) * 999,
                torch.randn(rows, 5, 24, generator=noise))  # fmt: skip
    z = torch.randn(rows, net.z, generator=noise)
    return (z, torch.arange(rows) % net.classes) if net.classes else (z,)


def run(net, given):
    return net(*given) if isinstance(net, UNet) else net.draw(*given)


def silence(net, places, units):
    """Nobody reads these units any more."""
    with torch.no_grad():
        for place, gone in zip(places, units, strict=True):
            reader = place.slices[-1]
            weight = dict(net.named_parameters())[reader.tensor]
            for unit in gone:
                channels = torch.arange(unit * place.group, (unit + 1) * place.group)
                weight.index_fill_(reader.axis, reader.index(channels, place.width), 0)


@pytest.mark.parametrize("name", NETS)
def test_zero_channels_go_first_and_without_a_trace(name):
    net = ready(name)
    where = module.places(net)
    gone = [torch.randperm(place.units, generator=torch.Generator().manual_seed(i))[: place.units // 2].tolist()
            for i, place in enumerate(where)]  # fmt: skip
    silence(net, where, gone)
    seen = [batch(net, 48)]
    weights = module.importance(net, where, seen, run)
    for weight, units in zip(weights, gone, strict=True):
        assert (weight[units] == 0).all() and int((weight == 0).sum()) == len(units)
    kept = [torch.tensor([u for u in range(p.units) if u not in g]) for p, g in zip(where, gone, strict=True)]
    small = module.without(net, where, kept)
    share = module.parameters(small) / module.parameters(net)
    again = module.prune(net, share, seen, run)
    with torch.no_grad():
        expected = run(net, batch(net, seed=1))
        for made in (small, again):
            torch.testing.assert_close(
                run(made, batch(net, seed=1)), expected, atol=1e-6 * expected.abs().max(), rtol=0
            )
    assert module.parameters(again) <= module.parameters(small) < module.parameters(net)


def steps_down(net, place, given, step: float = 1e-5):
    """By finite differences, float64 [units, rows, outputs]: (y with a unit's gate a little below one - y) / step."""
    found = []
    with torch.no_grad():
        y = run(net, given)
        for unit in range(place.units):
            gate = torch.ones(len(given[0]), place.width, dtype=torch.float64)
            gate[:, unit * place.group : (unit + 1) * place.group] -= step
            hook = net.get_submodule(place.reader).register_forward_pre_hook(module._gate(gate))
            found.append(((run(net, given) - y) / step).flatten(1))
            hook.remove()
    return torch.stack(found)


@pytest.mark.parametrize(("name", "which"), [("mlp", 0), ("dcgan", 0), ("unet", 0), ("unet", -1)])
def test_importance_is_the_squared_slope_of_the_outputs(name, which):
    net = ready(name)
    given = batch(net, rows=2)
    place = module.places(net)[which]
    # Of one output alone the random sign does not matter.
    found = module.importance(net, [place], [given], lambda n, x: run(n, x).flatten(1)[:, 7:8])[0]
    double = tuple(t.double() if t.is_floating_point() else t for t in given)
    expected = steps_down(net.double(), place, double)[:, :, 7].square().mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_random_signs_add_up_the_slopes_of_all_outputs():
    net = ready("mlp")
    place, given = module.places(net)[0], batch(net, rows=2)
    found = module.importance(net, [place], [given] * 1000, run)[0]
    expected = steps_down(net.double(), place, (given[0].double(), given[1])).square().sum(2).mean(1)
    np.testing.assert_allclose(found, expected, rtol=0.2)  # the mean over 1000 draws of the signs


def test_a_pruned_network_has_the_widths_that_its_config_states(tmp_path):
    net = ready("unet")
    small = module.prune(net, 0.7, [batch(net)], run)
    small.save(tmp_path, dtype=torch.float32)
    widths = json.loads((tmp_path / "config.json").read_text())["inner_widths"]
    again = UNet.from_dir(tmp_path)
    blocks = again.res_blocks() | again.feed_forwards()
    assert widths and widths.keys() <= blocks.keys()
    for path, width in widths.items():
        block = blocks[path]
        assert width == (block.conv1.out_channels if path in again.res_blocks() else block.net[2].in_features)
    assert {block.norm2.num_channels // block.norm2.num_groups for block in again.res_blocks().values()} == {2, 4}
    given = batch(net)
    torch.testing.assert_close(again(*given), small(*given))
    assert constants(again)["unet_widths"] == constants(net)["unet_widths"]
    assert constants(again)["time_width"] < constants(net)["time_width"]
    # The rewrites know nothing of it.
    parts = split(again, ["time"])
    rows = parts["time"](given[1])
    torch.testing.assert_close(parts["unet"](given[0], rows, given[2]), again(*given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "widths",
    [{"nowhere": 8}, {"mid_block.resnets.0": 6}, {"mid_block.resnets.0": 0}, ["a"], {"mid_block.resnets.0": "8"}],
)
def test_widths_that_are_none_are_refused(widths):
    with pytest.raises(BundleError, match="inner_widths"), torch.device("meta"):
        UNet(NARROW | {"inner_widths": widths})


def test_the_standing_example_reaches_its_size():
    net = MLPGenerator({})
    small = module.prune(net, 0.4645, [batch(net)], run)
    assert module.parameters(net) == 1_506_448 and 650_000 < module.parameters(small) <= 700_000
    assert len(small.widths) == 4 and small.draw(*batch(net)).shape == (4, 1, 28, 28)


def test_distillation_brings_the_pictures_back():
    net = ready("mlp")
    small = module.prune(net, 0.6, [batch(net, 32)], run)
    held = [batch(net, 64, seed=9)]
    before = module.likeness(net, small, held, run, peak=2.0)
    assert module.distil(net, small, lambda i: batch(net, 32, seed=100 + i), run, steps=150) == 150
    assert module.likeness(net, small, held, run, peak=2.0) > before + 3
    assert module.distil(net, small, lambda i: batch(net), run, steps=50, seconds=0) == 0


def test_likeness_is_peak_signal_to_noise():
    net, other = ready("mlp"), ready("mlp")
    given = batch(net)
    shift = 0.01

    def shifted(any_, rows):
        return torch.zeros(2, 3) + (shift if any_ is other else 0)

    assert module.likeness(net, other, [given], shifted, peak=2.0) == pytest.approx(20 * np.log10(2 / shift), abs=1e-4)


def test_distillation_that_does_harm_is_told_and_not_kept(tmp_path, monkeypatch):
    from hotloop_export import pruned

    net = ready("mlp")
    net.save(tmp_path / "in", dtype=torch.float32)
    monkeypatch.setattr(pruned, "_RATE", 10.0)
    lines = []
    options = {"keep": 0.8, "timed": False}
    report = prune_folder(tmp_path / "in", tmp_path / "a", steps=4, say=lines.append, **options)
    assert report.steps == 0 and report.distilled == report.pruned and "kept as it was" in lines[-1]
    prune_folder(tmp_path / "in", tmp_path / "b", steps=0, **options)
    a, b = (MLPGenerator.from_dir(tmp_path / name / "generator").state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in b)


# Folders.


def test_a_pruned_generator_is_a_source_like_any_other(tmp_path, capsys):
    net = randomise(DCGAN({"z": 6, "size": 8, "classes": 2, "widths": [16], "labels": {"hair": ["a", "b"]}}))
    net.save(tmp_path / "in" / "generator", dtype=torch.float32)
    Critic({"size": 8, "classes": 2}).save(tmp_path / "in" / "critic")
    cli.prune(tmp_path / "in", tmp_path / "out", keep=0.6, steps=3, unet=False, seed=0)
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.err.splitlines()][-4:] == ["parameters", "size", "speed", "quality"]
    assert told.out.strip() == str(tmp_path / "out")
    made = DCGAN.from_dir(tmp_path / "out" / "generator")
    assert made.widths[0] < 16 and made.config["labels"] == {"hair": ["a", "b"]}
    assert module.parameters(made) <= 0.6 * module.parameters(net)
    assert (tmp_path / "out" / "critic" / "model.safetensors").is_file()


def test_a_pruned_unet_is_in_a_checkpoint_like_any_other(tmp_path):
    from hotloop_export.sources import open_source

    report = prune_folder(builtin(), tmp_path / "out", keep=0.9, steps=0, unet=True, timed=False)
    assert 0.85 < report.parameters[1] / report.parameters[0] <= 0.9
    opened = open_source(tmp_path / "out")
    net = UNet.from_tensors(opened.configs["unet"], opened.tensors["unet"])
    assert net.config["inner_widths"] and module.parameters(net) == report.parameters[1]
    assert not list((tmp_path / "out").rglob("*.onnx"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": 0.0}, "keep must be a number"),
        ({"keep": 0.02}, "keep must be at least"),
        ({"steps": -1}, "steps"),
        ({"unet": True}, "no UNet"),
        ({"source": "nothing"}, "folder"),
        ({"source": builtin()}, "--unet"),
        ({"out": "full"}, "new name"),
        ({"source": "style"}, "MLPGenerator, a DCGAN"),
    ],
)
def test_what_cannot_be_pruned_is_refused_and_nothing_is_written(tmp_path, given, says):
    MLPGenerator({"z": 4, "widths": [16, 16], "size": 4}).save(tmp_path / "in")
    StyleGenerator({"widths": [4, 4]}).save(tmp_path / "style")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    options = {"source": "in", "out": "out", "keep": 0.5, "steps": 0} | given
    source, out = (tmp_path / Path(options.pop(name)) for name in ("source", "out"))
    with pytest.raises(HotloopError) as caught:
        prune_folder(source, out, **options, timed=False)
    assert isinstance(caught.value, InputError) and says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and [f.name for f in (tmp_path / "full").iterdir()] == ["note"]
