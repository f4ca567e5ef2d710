"""The tree's rules, held by parsing every import: layers point down, the runtime stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotloop.engines import KINDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# From the bottom up: a layer imports itself and what stands before it.
LAYERS = ["hotloop_kernels", "hotloop", "hotloop_export"]
FOLDERS = {"hotloop_kernels": "kernels", "hotloop": "runtime", "hotloop_export": "export"}

# What one module alone may import beyond the runtime's dependencies: optional engines, and the networks in torch.
OPTIONAL = {
    "hotloop/nets/": {"torch"},
    "hotloop/engines/native.py": {"torch"},
    "hotloop/denoiser/resident.py": {"torch"},
    "hotloop/engines/openvino.py": {"openvino"},
    "hotloop/engines/openvino_operators.py": {"openvino"},
    "hotloop/image/video.py": {"av"},
    "hotloop/live/sinks/camera.py": {"pyvirtualcam"},
    "hotloop/live/sources/face_mesh.py": {"openvino"},
    "hotloop/live/sources/osc.py": {"pythonosc"},
    "hotloop/live/sources/video.py": {"av"},
    "hotloop/live/sources/vtube_server.py": {"websockets"},
    "hotloop/serve/": {"fastapi", "starlette", "uvicorn"},
    "hotloop/serve/encoding.py": {"lz4", "simplejpeg"},
    "hotloop/serve/fields.py": {"lz4"},
    "hotloop/serve/webrtc/encoder.py": {"av"},
    "hotloop/serve/webrtc/incoming.py": {"aiortc", "av", "simplejpeg"},
    "hotloop/serve/webrtc/outgoing.py": {"aiortc", "av"},
    "hotloop/serve/webrtc/peers.py": {"aiortc"},
    "hotloop/engines/tensorrt.py": {"tensorrt", "tensorrt_rtx", "cuda"},
}
ENGINE_LIBRARIES = {"onnxruntime": "hotloop/engines/onnx.py"}
IMPORT_NAMES = {"pillow": "PIL"}
DEPENDENCIES = {name.split(">")[0] for name in PROJECT["dependencies"]}
THIRD_PARTY = {IMPORT_NAMES.get(name, name) for name in DEPENDENCIES}

# The floors of the runtime (docs/architecture.md), from the bottom up: a file imports from lower floors and its own
# room only. Rooms that are still to come have their place.
FLOORS = (
    ("errors", "telemetry"),
    ("checks", "files", "process"),
    ("spec", "tokenizer", "noise", "weights"),
    ("nets", "samplers", "image", "bundle"),
    ("engines",),
    ("selection", "denoiser"),
    ("networks", "loop", "batch", "fields"),
    ("adapters", "autoencoder", "generator", "request"),
    ("conditioning", "passes", "upscaling"),
    ("call",),
    ("pipeline",),
    ("evaluation", "live", "__init__"),
    ("avatar", "serve"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# `import hotloop` must not pay for these.
HEAVY = {"torch", "onnxruntime", "openvino", "tensorrt", "transformers", "diffusers", "scipy", "tokenizers"} | {
    "typer", "tqdm", "PIL", "safetensors",
}  # fmt: skip


def modules(layer: str) -> list[Path]:
    return sorted((ROOT / FOLDERS[layer] / layer).rglob("*.py"))


def scripts() -> list[Path]:
    return sorted(
        path for folder in ("benchmarks", "tests", "examples", "models") for path in (ROOT / folder).rglob("*.py")
    )


def name_of(path: Path) -> str:
    """`hotloop/engines/onnx.py` for runtime/hotloop/engines/onnx.py."""
    return path.relative_to(ROOT).as_posix().split("/", 1)[1]


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted name of everything a file imports, at any depth."""
    return imports_in(path.read_text(encoding="utf-8"), package=name_of(path).split("/")[:-1])


def imports_in(source: str, *, package: list[str]) -> Iterator[str]:
    """The same for the text of a module of `package`; for `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_the_parser_sees_imports_of_every_form():
    source = "import a.b\nfrom ..spec import F\ndef f():\n    from . import onnx\n    from torch import nn\n"
    seen = set(imports_in(source, package=["hotloop", "engines"]))
    assert seen >= {"a.b", "hotloop.spec", "hotloop.engines.onnx", "torch"}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_itself_and_lower_layers(layer):
    higher = {*LAYERS[LAYERS.index(layer) + 1 :], "benchmarks", "tests", "models", "examples"}
    wrong = {name_of(path): sorted(tops(path) & higher) for path in modules(layer) if tops(path) & higher}
    assert not wrong


def test_the_operators_need_only_numpy():
    allowed = {"numpy", "hotloop_kernels"} | sys.stdlib_module_names
    assert not {name_of(p): sorted(tops(p) - allowed) for p in modules("hotloop_kernels") if tops(p) - allowed}


def test_the_runtime_imports_only_its_declared_dependencies():
    """So no torch, transformers, diffusers or scipy, except torch in the networks and the native engine."""
    allowed = THIRD_PARTY | {"hotloop", "hotloop_kernels"} | sys.stdlib_module_names
    wrong = {}
    for path in modules("hotloop"):
        extra = {top for place, names in OPTIONAL.items() if name_of(path).startswith(place) for top in names}
        if beyond := tops(path) - allowed - extra:
            wrong[name_of(path)] = sorted(beyond)
    assert not wrong


def test_an_engine_library_is_imported_by_its_engine_only():
    for library, home in ENGINE_LIBRARIES.items():
        users = [name_of(path) for path in modules("hotloop") if library in tops(path)]
        assert set(users) <= {home}


def room_of(module: str) -> str | None:
    """The room of runtime/hotloop that a dotted name lies in; None for anything else."""
    parts = module.split(".")
    return parts[1] if parts[0] == "hotloop" and len(parts) > 1 and parts[1] in FLOOR else None


def rooms_imported(path: Path) -> set[str]:
    return {room for name in imports(path) if (room := room_of(name))}


def test_every_file_of_the_runtime_stands_on_a_floor():
    rooms = {name_of(path).split("/")[1].removesuffix(".py") for path in modules("hotloop")}
    assert rooms <= FLOOR.keys()


@pytest.mark.parametrize("room", [room for room in FLOOR if room != "__init__"])
def test_a_room_imports_only_lower_floors(room):
    """So there is no circle of imports between rooms."""
    wrong = {}
    for path in modules("hotloop"):
        parts = name_of(path).split("/")
        if parts[1].removesuffix(".py") == room and (
            above := {other for other in rooms_imported(path) - {room} if FLOOR[other] >= FLOOR[room]}
        ):
            wrong[name_of(path)] = sorted(above)
    assert not wrong


def test_engines_do_not_import_each_other():
    modules_of_kinds = {f"hotloop.engines{kind.module}" for kind in KINDS.values()}
    for path in modules("hotloop"):
        if name_of(path).startswith("hotloop/engines/") and path.name != "__init__.py":
            others = modules_of_kinds - {f"hotloop.engines.{path.stem}"}
            assert not others & set(imports(path)), name_of(path)


@pytest.mark.parametrize(
    "module", ["loop", "denoiser/unet", "samplers/library", "samplers/face", "samplers/schedule", "noise"]
)
def test_the_hot_loop_knows_no_engine(module):
    path = ROOT / "runtime/hotloop" / f"{module}.py"
    named = [n for n in imports(path) if n.startswith("hotloop.engines.") and n.split(".")[2] in ("onnx", "native")]
    assert not named


def test_import_hotloop_loads_nothing_heavy(record_property):
    code = "import hotloop, json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    started = time.perf_counter()
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    record_property("interpreter_and_import_seconds", round(time.perf_counter() - started, 3))
    assert "hotloop" in loaded
    assert not HEAVY & set(loaded)


def test_the_runtime_works_where_torch_is_not_installed():
    """Every module of the runtime imports while torch and the references are hidden, as in a user's environment."""
    optional = tuple(OPTIONAL)
    names = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in modules("hotloop")
        if not name_of(path).startswith(optional) and path.name != "__main__.py"
    ]
    code = (
        "import importlib, json, sys\n"
        "for name in ('torch', 'transformers', 'diffusers', 'scipy', 'onnx', 'onnxscript'): sys.modules[name] = None\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_parses_for_the_oldest_python():
    for path in [p for layer in LAYERS for p in modules(layer)] + scripts():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 11))


def test_the_package_tells_the_version_it_is_distributed_as():
    source = (ROOT / "runtime/hotloop/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["version"]}"' in source


def test_no_folder_shadows_a_package():
    """transformers looks up a package `kernels`; a conftest or package at the root would put the root on sys.path."""
    for path in ("kernels/__init__.py", "tests/kernels", "tests/__init__.py", "conftest.py", "__init__.py"):
        assert not (ROOT / path).exists(), path
