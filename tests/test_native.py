"""The native engine on the built-in model: the networks of hotloop.nets, nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import cosine, random_inputs, run

from hotloop.bundle import builtin
from hotloop.engines.native import NativeEngine
from hotloop.errors import BundleError, InputError
from hotloop.nets.parts import PARTS, module_of
from hotloop.spec import REWRITES, Network, family
from hotloop.weights import Weights, derived

ROW = family("avatar-tiny")
DIMS = ROW.dims(width=64, height=96, batch=4, images=2, tokens=9)
PLAIN = {name: row for name, row in ROW.split().items() if (builtin() / PARTS[name].folder).is_dir()}
SPLIT = {name: row for name, row in ROW.split(REWRITES).items() if name in PLAIN or name in ("prompt", "time")}
CASES = [*PLAIN.values(), *(row for name, row in SPLIT.items() if row != PLAIN.get(name))]


def label(network: Network) -> str:
    return "-".join([network.name, *network.rewrites])


def folder(network: Network) -> Path:
    return builtin() / PARTS[network.name].folder


@torch.inference_mode()
def modules(network: Network, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    part = PARTS[network.name]
    net = part.choose(json.loads((folder(network) / "config.json").read_text())).from_dir(folder(network))
    out = module_of(net, network)(*(torch.from_numpy(value) for value in inputs.values()))
    return {tensor.name: value.numpy() for tensor, value in zip(network.outputs, out, strict=True)}


@pytest.mark.parametrize("network", CASES, ids=label)
def test_in_float32_untuned_it_is_the_modules_bit_for_bit(network: Network) -> None:
    inputs = random_inputs(network, DIMS)
    got = run(NativeEngine(folder(network), network, tunings=()), inputs, DIMS)
    expected = modules(network, inputs)
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[name], expected[name]) and got[name].std() > 0.01 for name in got)


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9995), ("bf16", 0.999)])
@pytest.mark.parametrize("network", CASES, ids=label)
def test_half_precision_stays_near(network: Network, precision: str, least: float) -> None:
    inputs = random_inputs(network, DIMS)
    exact = run(NativeEngine(folder(network), network), inputs, DIMS)
    half = run(NativeEngine(folder(network), network, precision=precision), inputs, DIMS)
    for name, value in half.items():
        assert value.dtype == np.float32
        if not (name == "logvar" and np.ptp(exact[name]) == 0):
            assert cosine(value, exact[name]) >= least, name
    if network.name == "time":
        assert np.array_equal(half["time_rows"], exact["time_rows"]), "a half timestep is another timestep"


def test_the_file_of_the_weights_stands_for_its_folder() -> None:
    network = PLAIN["unet"]
    file = folder(network) / "diffusion_pytorch_model.safetensors"
    inputs = random_inputs(network, DIMS)
    a, b = (run(NativeEngine(path, network), inputs, DIMS)["out"] for path in (file, file.parent))
    assert np.array_equal(a, b)


def test_contexts_are_separate() -> None:
    engine = NativeEngine(folder(PLAIN["vae_decoder"]), PLAIN["vae_decoder"], threads=1)
    one, two = (engine.context(B=1, h=8, w=8, H=32, W=32) for _ in range(2))
    one.inputs["latents"][:] = 1
    one.run()
    kept = one.outputs["image"].copy()
    two.run()
    assert np.array_equal(one.outputs["image"], kept)
    assert not np.array_equal(two.outputs["image"], kept)


@pytest.mark.parametrize("rewrites", [(), REWRITES], ids=["plain", "split"])
def test_patched_weights_are_those_of_another_checkpoint_and_the_first_stays(
    rewrites: tuple[str, ...], tmp_path: Path
) -> None:
    network = ROW.split(rewrites)["unet"]
    stored = Weights.open(folder(network) / "diffusion_pytorch_model.safetensors")
    rng = np.random.default_rng(0)
    changed = {
        key: (stored[key].astype(np.float32) + 0.05 * rng.standard_normal(stored.shape(key), np.float32))
        for key in ("conv_in.weight", "up_blocks.0.upsamplers.0.conv.weight", "conv_out.bias")
    }
    inputs = random_inputs(network, DIMS)
    engine = NativeEngine(folder(network), network)
    before = run(engine, inputs, DIMS)["out"]
    patches = {
        key: value
        for key, value in (changed | derived.derive(changed)).items()
        if "upsamplers" not in key or derived.is_derived(key) == bool(rewrites)
    }
    after = run(engine.patched(patches), inputs, DIMS)["out"]
    assert abs(after - before).max() > 0.01
    assert np.array_equal(run(engine, inputs, DIMS)["out"], before)

    other = shutil.copytree(folder(network), tmp_path / "unet")
    net = PARTS["unet"].choose({}).from_dir(other)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in changed.items()}, strict=False)
    net.save(other, dtype=torch.float32)
    assert np.array_equal(run(NativeEngine(other, network), inputs, DIMS)["out"], after)


def test_what_cannot_be_patched_is_refused_by_name() -> None:
    engine = NativeEngine(folder(SPLIT["unet"]), SPLIT["unet"])
    for name in ("conv_in.stray", "nowhere.weight", "up_blocks.0.upsamplers.0.conv.weight",
                 "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"):  # fmt: skip
        with pytest.raises(InputError, match=f"weights to replace must be of unet.*{name}"):
            engine.patched({name: np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"conv_in\.bias must have the shape \(64,\), got \(3,\)"):
        engine.patched({"conv_in.bias": np.zeros(3, np.float32)})


def test_wrong_settings_and_files_are_refused(tmp_path: Path) -> None:
    network = PLAIN["unet"]
    with pytest.raises(InputError, match=r"device must be one of .*got 'abacus'"):
        NativeEngine(folder(network), network, device="abacus")
    with pytest.raises(InputError, match="precision must be one of fp32, bf16, fp16, got 'int8'"):
        NativeEngine(folder(network), network, precision="int8")
    with pytest.raises(BundleError, match=r"config\.json"):
        NativeEngine(tmp_path, network)
    wrong = shutil.copytree(folder(PLAIN["vae_decoder"]), tmp_path / "unet")
    shutil.copyfile(folder(network) / "config.json", wrong / "config.json")
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.safetensors"):
        NativeEngine(wrong, network)


def test_threads_are_set_for_the_run_and_set_back() -> None:
    before = torch.get_num_threads()
    seen = []
    engine = NativeEngine(folder(PLAIN["text_encoder"]), PLAIN["text_encoder"], threads=before + 1)
    engine.call.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    engine.prepare([{"B": 1, "T": 3}])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("fp16", 0.9995), ("bf16", 0.999)])
@pytest.mark.parametrize("network", CASES, ids=label)
def test_cuda_agrees_with_the_cpu(network: Network, precision: str, least: float) -> None:
    inputs = random_inputs(network, DIMS)
    expected = run(NativeEngine(folder(network), network), inputs, DIMS)
    got = run(NativeEngine(folder(network), network, device="cuda", precision=precision), inputs, DIMS)
    assert all(cosine(got[name], expected[name]) >= least for name in got)
