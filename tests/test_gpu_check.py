"""gpu-check: what its tests prove is read from their report; the whole of it is rehearsed on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check import GPU_TESTS, Outcome, proved_by, read_tests
from jsonschema import validate

from hotloop_kernels import OPERATORS

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_attention" name="a"/>
<testcase classname="tests.test_attention" name="b"/>
<testcase classname="tests.test_geglu" name="a"/>
<testcase classname="tests.test_geglu" name="b"><failure message="off by one&#10;more">trace</failure></testcase>
<testcase classname="tests.test_rgb" name="a"><skipped message="no"/></testcase>
<testcase classname="tests.test_layer_norm" name="a"><error message="no device">trace</error></testcase>
</testsuite></testsuites>"""


def test_an_operator_is_proved_by_green_tests_of_its_own_and_by_nothing_else(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    tests = read_tests(report)
    assert tests.passed == {"test_attention": 2, "test_geglu": 1}
    assert tests.failed == {"test_geglu": 1, "test_layer_norm": 1}
    assert tests.first == "test_geglu::b: off by one"
    assert proved_by(tests, ("attention", "geglu", "rgb.pack", "layer_norm", "cfg_step")) == ["attention"]
    assert proved_by(Outcome({}, {}, None), ("attention",)) == []
    assert proved_by(tests, ("attention", "attention_wgmma")) == ["attention"]  # a kernel with a file of its own


def test_every_file_with_gpu_tests_is_run_and_every_operator_has_one() -> None:
    files = {path.stem for path in (ROOT / "tests").glob("test_*.py") if "mark." + "gpu" in path.read_text()}
    assert files - {"test_tensorrt"} == {f"test_{name}" for name in GPU_TESTS}
    assert {name.partition(".")[0] for name in OPERATORS} < set(GPU_TESTS)


# What a machine with a GPU may have is torch, numpy and pytest; the rest is imported by the tests that need it.
BARE = """
import sys

MISSING = {
    "PIL", "diffusers", "jsonschema", "ml_dtypes", "onnx", "onnxruntime", "platformdirs", "safetensors", "scipy",
    "tokenizers", "tqdm", "transformers", "typer",
}

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(name)

def pytest_sessionstart(session):
    sys.meta_path.insert(0, Missing)
"""


@pytest.mark.long
def test_the_gpu_tests_are_collected_where_there_is_nothing_but_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "bare.py").write_text(BARE)
    files = [f"tests/test_{name}.py" for name in GPU_TESTS]
    collect = ["-p", "bare", "-p", "no:cacheprovider", "-m", "gpu", "--collect-only", "-q", *files]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *collect], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert all(f"tests/test_{name}.py::" in done.stdout for name in GPU_TESTS)


@pytest.mark.long
def test_the_rehearsal_writes_what_the_schema_says(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--rehearse", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "W4 batch 16, 50 steps, guidance" in done.stdout and " 0 failed" in done.stdout
    schema = json.loads((ROOT / "benchmarks" / "result.schema.json").read_text())
    (file,) = tmp_path.glob("*-gpu-check.jsonl")
    records = [json.loads(text) for text in file.read_text().splitlines()]
    assert {record["benchmark"] for record in records} == {"gpu-operators", "gpu-workloads"}
    for record in records:
        validate(record, schema)


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "needs a CUDA device" in done.stderr
    assert not [*tmp_path.iterdir()]
