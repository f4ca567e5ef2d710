"""LoRAs on a running pipeline: what stock diffusers draws with them, switched as a whole, gone without a trace."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hotloop
from hotloop.adapters import per_network
from hotloop.bundle import Bundle, builtin, write_manifest
from hotloop.errors import InputError
from hotloop.weights import Weights, save
from hotloop.weights.derived import phase_weights

PROMPT = "a girl with red hair, glasses"
QUICK = dict(num_inference_steps=3, guidance_scale=2.0, seed=3)
ENGINES = ["onnx-fp32", "openvino-fp32", "openvino-bf16", "native-fp32"]


def write_lora(path: Path, *, rank: int = 4, size: float = 0.12, seed: int = 0, components: str = "unet") -> Path:
    """diffusers' keys; every linear layer of the UNet's attentions, or the text encoder's projections."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for component, file in (
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("text_encoder", "text_encoder/model.safetensors"),
    ):
        if component not in components:
            continue
        weights = Weights.open(builtin() / file)
        chosen = (".to_q.", ".to_k.", ".to_v.", ".to_out.0.", ".q_proj.", ".v_proj.")
        for key in weights:
            if key.endswith(".weight") and any(part in key for part in chosen):
                out, inner = weights.shape(key)
                stem = f"{component}.{key.removesuffix('.weight')}"
                tensors[f"{stem}.lora_A.weight"] = size * rng.standard_normal((rank, inner), np.float32)
                tensors[f"{stem}.lora_B.weight"] = size * rng.standard_normal((out, rank), np.float32)
    return save(tensors, path)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in bundle with an entry for every engine that reads its graphs or weights as they are."""
    path = shutil.copytree(builtin(), tmp_path_factory.mktemp("bundle") / "many")
    manifest = json.loads((path / "manifest.json").read_text())
    first = next(entry for entry in manifest["engines"] if entry["kind"] == "onnx")
    weights = {name: entry["path"] for name, entry in manifest["weights"].items()}
    rows = Bundle.open(path).family.split(first["rewrites"])
    stored = {name: {"path": weights[rows[name].component]} for name in first["networks"]}
    manifest["engines"] = [first] + [
        first | {"kind": name.split("-")[0], "precision": name.split("-")[1]}
        | ({"networks": stored} if name.startswith("native") else {})
        for name in ENGINES[1:]
    ]  # fmt: skip
    write_manifest(path, manifest)
    return path


# "+": opened for adapters.
@pytest.fixture(params=[*ENGINES, "onnx-fp32+", "openvino-bf16+"])
def pipe(many: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    yield hotloop.load(many, engine=request.param.rstrip("+"), adapters=request.param.endswith("+"))


def draw(pipe: Any) -> np.ndarray:
    return pipe.txt2img(PROMPT, **QUICK).latents


def alike(pipe: Any, got: np.ndarray, want: np.ndarray) -> bool:
    if pipe.engine.endswith("bf16"):
        return bool(np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999)
    return bool(np.abs(got - want).max() <= 1e-3)


def test_a_lora_draws_what_stock_diffusers_draws_with_it(pipe: Any, stock: Any, lora: Path) -> None:
    swap = pipe.load_lora(lora, 0.8)
    assert swap.active == {"style": 0.8}
    assert swap.weights > 30 and swap.nbytes > 100_000 and 0 <= swap.merging <= swap.seconds
    got = draw(pipe)
    stock.use("plms")
    try:
        stock.txt2img.load_lora_weights(lora, adapter_name="style")
        stock.txt2img.set_adapters(["style"], [0.8])
        want = stock.txt2img(
            PROMPT, num_inference_steps=3, guidance_scale=2.0, generator=stock.generators([3])[0], output_type="latent"
        ).images.numpy()
    finally:
        stock.txt2img.unload_lora_weights()
    assert alike(pipe, got, want)
    assert np.abs(got - draw(hotloop.load())).max() > 0.1


def test_unloading_gives_the_original_back_bit_for_bit(pipe: Any, lora: Path) -> None:
    before = draw(pipe)
    pipe.load_lora(lora, 0.5, name="one")
    pipe.load_lora(lora, 0.25, name="two")
    mixed = draw(pipe)
    pipe.set_lora("one", 0.75)
    pipe.unload_lora("two")
    # 0.5 and 0.25 of one file are 0.75 of it, beyond rounding.
    assert alike(pipe, draw(pipe), mixed)
    assert np.abs(mixed - before).max() > 0.05
    pipe.unload_lora("one")
    assert np.array_equal(draw(pipe), before)
    assert pipe.adapters.active == {}


def test_a_scale_of_zero_is_no_lora_bit_for_bit(pipe: Any, lora: Path) -> None:
    before = draw(pipe)
    assert pipe.load_lora(lora, 0.0).networks == ()
    assert np.array_equal(draw(pipe), before)


def test_calls_under_way_end_with_the_weights_they_began_with(lora: Path) -> None:
    pipe = hotloop.load()
    before = draw(pipe)
    pipe.load_lora(lora, 1.0)
    after = draw(pipe)
    pipe.unload_lora("style")
    seen: list[np.ndarray] = []
    stop = threading.Event()

    def stream() -> None:
        while not stop.is_set():
            seen.append(draw(pipe))

    thread = threading.Thread(target=stream)
    thread.start()
    for _ in range(3):
        pipe.load_lora(lora, 1.0)
        pipe.unload_lora("style")
    stop.set()
    thread.join(60)
    assert len(seen) > 2
    assert all(np.array_equal(one, before) or np.array_equal(one, after) for one in seen)


def test_both_networks_change_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lora(tmp_path / "both.safetensors", components="unet text_encoder")
    pipe = hotloop.load()
    before, active = draw(pipe), pipe.networks
    assert set(pipe.load_lora(file, name="works").networks) >= {"text_encoder", "unet"}
    pipe.unload_lora("works")

    def fail(tensors: Any) -> Any:
        raise InputError("engine", "out of memory")

    monkeypatch.setattr(pipe.networks["unet"], "patched", fail)
    with pytest.raises(InputError, match="out of memory"):
        pipe.load_lora(file)
    assert pipe.networks is active and pipe.adapters.active == {}
    assert np.array_equal(draw(pipe), before)


def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path, lora: Path) -> None:
    pipe = hotloop.load()
    foreign = save(
        {
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": np.ones((2, 768), "f4"),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": np.ones((320, 2), "f4"),
        },
        tmp_path / "sd15.safetensors",
    )
    with pytest.raises(InputError, match="768"):
        pipe.load_lora(foreign)
    with pytest.raises(InputError, match="no such file"):
        pipe.load_lora(tmp_path / "nowhere.safetensors")
    pipe.load_lora(lora)
    with pytest.raises(InputError, match="is loaded"):
        pipe.load_lora(lora)
    with pytest.raises(InputError, match=r"one of the loaded LoRAs: \['style'\]"):
        pipe.set_lora("other", 1.0)
    with pytest.raises(InputError, match="scale"):
        pipe.set_lora("style", float("nan"))
    assert pipe.adapters.active == {"style": 1.0}


def test_a_swap_says_what_it_cost(lora: Path) -> None:
    pipe = hotloop.load()
    text = str(pipe.load_lora(lora, 0.5))
    assert text.startswith("style x 0.5: ") and "MB more" in text


def test_weights_go_where_the_rewrites_keep_them() -> None:
    rng = np.random.default_rng(0)
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    upsampler = "up_blocks.0.upsamplers.0.conv.weight"
    changed = {
        "text_encoder": {"text_model.x.weight": np.ones((2, 2), np.float32)},
        "unet": {
            f"{block}.attn1.to_k.weight": np.ones((2, 2), np.float32),
            f"{block}.attn2.to_k.weight": np.ones((2, 2), np.float32),
            f"{block}.attn2.to_q.weight": np.ones((2, 2), np.float32),
            "time_embedding.linear_1.weight": np.ones((2, 2), np.float32),
            "mid_block.resnets.0.time_emb_proj.weight": np.ones((2, 2), np.float32),
            upsampler: rng.standard_normal((3, 2, 3, 3), np.float32),
        },
    }
    plain = per_network(changed, ())
    assert plain == changed
    split = per_network(changed, ("kv", "time", "phase"))
    assert set(split) == {"text_encoder", "unet", "prompt", "time"}
    assert set(split["prompt"]) == {f"{block}.attn2.to_k.weight"}
    assert set(split["time"]) == {"time_embedding.linear_1.weight", "mid_block.resnets.0.time_emb_proj.weight"}
    # A convolution that became its phase sums is not in the graph any more.
    stem = upsampler.removesuffix("conv.weight")
    sums = {stem + name: value for name, value in phase_weights(changed["unet"][upsampler]).items()}
    assert set(split["unet"]) == {f"{block}.attn1.to_k.weight", f"{block}.attn2.to_q.weight", *sums}
    assert all(np.array_equal(split["unet"][name], value) for name, value in sums.items())
