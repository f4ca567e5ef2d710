"""Safetensors files read as the reference library reads them; everything else is refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from hotloop.errors import BundleError
from hotloop.weights import Weights, refuse_non_finite, save
from hotloop.weights.keys import From


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def written(tmp_path: Path, content: bytes, name: str = "model.safetensors") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Weights.open(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert path.name in message
    return message


def every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(3, 5, generator=generator) * 100
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16,
             torch.int32, torch.int64, torch.bool)  # fmt: skip
    made = {str(kind).removeprefix("torch."): values.to(kind) for kind in kinds}
    return made | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "odd": torch.ones(3, dtype=torch.uint8)}


def test_every_dtype_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = every_dtype()
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    weights = Weights.open(tmp_path / "a.safetensors")
    assert set(weights) == set(tensors) and len(weights) == len(tensors)
    assert weights.metadata == {"format": "pt"}
    assert weights.dtype("bfloat16") == "BF16" and weights["bfloat16"].dtype == np.float32
    for name, value in safetensors.torch.load_file(tmp_path / "a.safetensors").items():
        expected = value.float() if value.dtype == torch.bfloat16 else value
        got = weights[name]
        assert got.dtype == expected.numpy().dtype and got.shape == weights.shape(name) == tuple(value.shape), name
        assert np.array_equal(got, expected.numpy()), name
        assert weights.nbytes(name) == value.numel() * value.element_size()
        begin, end = weights.span(name)
        assert (tmp_path / "a.safetensors").read_bytes()[begin:end] == bytes(weights.bits(name))


def test_arrays_are_read_only(tmp_path: Path) -> None:
    safetensors.torch.save_file(every_dtype(), tmp_path / "a.safetensors")
    weights = Weights.open(tmp_path / "a.safetensors")
    for name in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match="read-only"):
            weights[name][0] = 1


def test_the_library_reads_what_save_writes(tmp_path: Path) -> None:
    arrays = {name: t.numpy() for name, t in every_dtype().items() if t.dtype != torch.bfloat16}
    path = save(arrays, tmp_path / "b.safetensors", metadata={"made": "hier: ä"})
    back = safetensors.numpy.load_file(path)
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], value) and back[name].dtype == value.dtype for name, value in arrays.items())
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"made": "hier: ä"}
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
    again = save(dict(reversed(arrays.items())), tmp_path / "c.safetensors", metadata={"made": "hier: ä"})
    assert again.read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["b.safetensors", "c.safetensors"]


def test_save_converts_floating_weights_and_refuses_those_that_do_not_fit(tmp_path: Path) -> None:
    arrays = {"a": np.arange(4, dtype=np.float32), "n": np.arange(4)}
    weights = Weights.open(save(arrays, tmp_path / "h.safetensors", dtype="F16"))
    assert (weights.dtype("a"), weights.dtype("n")) == ("F16", "I64")
    with pytest.raises(BundleError, match="finite as F16, got 'a'"):
        save({"a": np.array([1e6], np.float32)}, tmp_path / "h.safetensors", dtype="F16")
    assert np.array_equal(Weights.open(tmp_path / "h.safetensors")["a"], np.arange(4)), "the old file stands"
    assert os.listdir(tmp_path) == ["h.safetensors"]
    with pytest.raises(BundleError, match="dtype"):
        save({"a": np.array(["text"])}, tmp_path / "t.safetensors")
    with pytest.raises(BundleError, match="writable"):
        save(arrays, tmp_path / "nowhere" / "t.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_saved_files_are_readable_by_all(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = save({"a": np.zeros(1)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / f".a.safetensors.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(BundleError, match="No space left"):
        save({"a": np.zeros(1 << 16)}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_unaligned_tensor_is_read_whole(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    header = {"a": tensor("U8", (1,), (0, 1)), "b": tensor("F32", (4,), (1, 17))}
    path = written(tmp_path, raw(header, b"\x07" + values.tobytes()))
    got = Weights.open(path)["b"]
    assert got.flags.aligned and np.array_equal(got, values)


def torch_file(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


FOREIGN = {
    "torch": (torch_file(zipped=True), "zip of pickles"),
    "old-torch": (torch_file(zipped=False), "pickle"),
    **{f"pickle-{p}": (pickle.dumps({"state_dict": [1.0] * 9}, protocol=p), "pickle") for p in range(6)},
    "pickle-list": (pickle.dumps([1], protocol=0), "pickle"),
    "empty-zip": (zipped(), "zip"),
    "tar": (tarred(), "pickle"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + b"\x00" * 64, "GGUF"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "git lfs pull"),
    "page": (b"<!doctype html><title>404</title>", "web page"),
}


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_safetensors_is_named_whatever_it_is_called(tmp_path: Path, kind: str, suffix: str) -> None:
    content, said = FOREIGN[kind]
    message = refused(written(tmp_path, content, "model" + suffix))
    assert said in message
    if "pickle" in said:
        assert "weights_only=True" in message and "save_file" in message


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for protocol in range(6):
        refused(written(tmp_path, pickle.dumps(Evil(), protocol=protocol)))
    assert not (tmp_path / "ran").exists()


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    for length in (0x280, 0x480):
        text = json.dumps({"a": tensor()}).encode().ljust(length)
        assert Weights.open(written(tmp_path, raw(text, b"\0" * 8)))["a"].shape == (2,)


HEADERS = {
    "no bytes": (b"", "header"),
    "four bytes": (b"\x01\0\0\0", "header"),
    "a length of zero": (b"\0" * 8, "header"),
    "a length beyond the file": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "a length beyond the limit": ((1 << 62).to_bytes(8, "little") + b"{}", "100,000,000"),
    "a cut header": (raw(b'{"a": {"dtype"'), "JSON"),
    "a list": (raw(b"[]"), "object"),
    "text that is not UTF-8": (raw(b'{"\xff": 1}'), "JSON"),
    "nesting": (raw(b'{"a":' + b"[" * 100_000), "JSON"),
    "an integer of many digits": (raw(b'{"a": ' + b"9" * 5000 + b"}"), "JSON"),
    "a name twice": (raw(b'{"a": {}, "a": {}}'), "twice"),
    "an entry that is no object": (raw({"a": 1}), "described"),
    "metadata that is no text": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "an unknown dtype": (raw({"a": tensor("F8_E4M3", (8,))}, b"\0" * 8), "F8_E4M3"),
    "a dtype that is a list": (raw({"a": tensor() | {"dtype": ["F32"]}}, b"\0" * 8), "one of"),
    "a rank of nine": (raw({"a": tensor(shape=[1] * 8 + [2])}, b"\0" * 8), "at most 8"),
    "a size below zero": (raw({"a": tensor(shape=(-1, -2))}, b"\0" * 8), "shape"),
    "a size that is a float": (raw({"a": tensor(shape=(2.0,))}, b"\0" * 8), "shape"),
    "a size that is true": (raw({"a": tensor("F64", shape=(True,))}, b"\0" * 8), "shape"),
    "a huge count": (raw({"a": tensor(shape=[1 << 62] * 8)}, b"\0" * 8), "bytes"),
    "a shape that is a number": (raw({"a": tensor() | {"shape": 2}}, b"\0" * 8), "shape"),
    "a wrong item size": (raw({"a": tensor("F16")}, b"\0" * 8), "must take 4 bytes"),
    "offsets below zero": (raw({"a": tensor(offsets=(-8, 0))}, b"\0" * 8), "data_offsets"),
    "offsets turned round": (raw({"a": tensor(offsets=(8, 0))}, b"\0" * 8), "must take 8"),
    "one offset": (raw({"a": tensor(offsets=(0,))}, b"\0" * 8), "data_offsets"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "data_offsets"),
    "offsets beyond the file": (raw({"a": tensor(offsets=(8, 16))}, b"\0" * 8), "truncated"),
    "data cut short": (raw({"a": tensor()}, b"\0" * 7), "truncated"),
    "overlap": (raw({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"\0" * 12), "overlap"),
    "the same bytes twice": (raw({"a": tensor(), "b": tensor()}, b"\0" * 8), "overlap"),
    "a gap": (raw({"a": tensor(), "b": tensor(offsets=(12, 20))}, b"\0" * 20), "gap"),
    "a rest": (raw({"a": tensor()}, b"\0" * 9), "belong"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_malformed_file_is_refused_by_its_rule(tmp_path: Path, case: str) -> None:
    content, said = HEADERS[case]
    path = written(tmp_path, content)
    assert said in refused(path)


OUR_OWN = {"a length of zero", "an unknown dtype", "a rank of nine", "a name twice"}


@pytest.mark.parametrize("case", [case for case in HEADERS if case not in OUR_OWN])
def test_the_library_has_the_same_view_of_malformed_files(tmp_path: Path, case: str) -> None:
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(written(tmp_path, HEADERS[case][0]), "numpy").__enter__()


def test_a_header_with_any_byte_altered_is_read_or_refused(tmp_path: Path) -> None:
    """Nothing but BundleError comes out, and what is read stays inside the file."""
    header = {"__metadata__": {"a": "b"}, "x": tensor(), "y": tensor("F16", (2, 2), (8, 16))}
    content = raw(header, bytes(range(16)))
    rng = np.random.default_rng(1)
    opened = 0
    for _ in range(3000):
        altered = bytearray(content)
        for at in rng.integers(0, len(content) - 16, rng.integers(1, 4)):
            altered[at] = rng.integers(0, 256)
        try:
            weights = Weights.open(written(tmp_path, bytes(altered)))
        except BundleError as error:
            assert "\n" not in str(error)
            continue
        opened += 1
        for name, value in weights.items():
            assert value.nbytes == weights.nbytes(name) and weights.span(name)[1] <= len(content)
    assert 0 < opened < 1500


@pytest.mark.parametrize(
    "name",
    ["a\0b", "../a", "a/../../b", "a..b", "a\nb", "a\x1bb", "a\x7fb", "\u202eb", "\ud800", "", "x" * 513],
    ids=ascii,
)
def test_a_name_that_could_mislead_is_refused(tmp_path: Path, name: str) -> None:
    assert "names must be plain" in refused(written(tmp_path, raw({name: tensor()}, b"\0" * 8)))
    with pytest.raises(BundleError, match="plain text"):
        save({name: np.zeros(1)}, tmp_path / "out.safetensors")


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    header = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
    assert "100,000" in refused(written(tmp_path, raw(header)))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.safetensors")
    assert "no such file" in refused(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert "no such file" in refused(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_value_that_is_not_finite_is_found_anywhere(tmp_path: Path, kind: torch.dtype, value: float) -> None:
    size = (1 << 20) + 7  # past the first chunk
    path = tmp_path / "a.safetensors"
    whole = torch.full((size,), torch.finfo(kind).max, dtype=kind)
    safetensors.torch.save_file({"fine": whole, "counts": torch.full((9,), -1)}, path)
    refuse_non_finite(Weights.open(path))
    for at in (0, size - 1):
        broken = whole.clone()
        broken[at] = value
        safetensors.torch.save_file({"fine": whole, "broken": broken}, path)
        with pytest.raises(BundleError, match=r"NaN or infinity in a\.safetensors, got 'broken'"):
            refuse_non_finite(Weights.open(path))


def test_shards_join_and_may_not_repeat_a_tensor(tmp_path: Path) -> None:
    one = Weights.open(save({"a": np.arange(3.0)}, tmp_path / "1.safetensors"))
    two = Weights.open(save({"b": np.arange(5.0)}, tmp_path / "2.safetensors"))
    both = Weights.join([one, two])
    assert dict(sorted((k, v.size) for k, v in both.items())) == {"a": 3, "b": 5}
    assert both.file("b").name == "2.safetensors"
    with pytest.raises(BundleError, match=r"1\.safetensors and 1\.safetensors both hold, got 'a'"):
        Weights.join([one, two, one])


def test_a_view_renames_divides_and_flattens_without_copying(tmp_path: Path) -> None:
    fused, conv = np.arange(18, dtype=np.float16).reshape(6, 3), np.ones((4, 2, 1, 1), np.float32)
    weights = Weights.open(
        save({"qkv": fused, "conv": conv, "wide": np.ones((2, 2, 3, 3))}, tmp_path / "a.safetensors")
    )
    view = weights.view({"k": From("qkv", 1, 3), "proj": From("conv", matrix=True), "qkv": From("qkv", matrix=True)})
    assert set(view) == {"k", "proj", "qkv"}
    assert np.array_equal(view["k"], fused[2:4]) and view.span("k") == (weights.span("qkv")[0] + 12, view.span("k")[1])
    assert view["proj"].shape == (4, 2) and np.shares_memory(view["k"], weights["qkv"])
    again = view.view({"second row of k": From("k", 1, 2)})
    assert np.array_equal(again["second row of k"], fused[3:4])
    for table, said in (
        ({"x": From("nothing")}, "lacks"), ({"x": From("qkv", 0, 4)}, "equal parts"),
        ({"x": From("wide", matrix=True)}, "1x1"),
    ):  # fmt: skip
        with pytest.raises(BundleError, match=said):
            weights.view(table)
