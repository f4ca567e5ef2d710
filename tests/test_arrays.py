"""Arrays at the border: what is imported, from which library, what is refused; threads and instruction sets."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import hotloop_kernels as kernels
from hotloop_kernels import KernelError, backend, geglu, layer_norm
from hotloop_kernels.testing import BACKENDS, ISAS, use_isa

pytestmark = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")
torch = pytest.importorskip("torch")

ROOT = Path(kernels.__file__).parents[1]


def arguments(seed=0, shape=(3, 5, 24)):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, dtype=np.float32) for size in (shape, shape[-1:], shape[-1:])]


class Capsule:
    """An array that only speaks DLPack, of the version and with the device that a test asks for."""

    def __init__(self, array, *, versioned=True, device=(1, 0)):
        self.array, self.versioned, self.device = array, versioned, device
        self.dtype, self.shape = array.dtype, array.shape
        self.asked = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **keywords):
        if "max_version" in keywords and not self.versioned:
            raise TypeError("max_version")
        self.asked.append(keywords)
        capsule = self.array.__dlpack__(max_version=(1, 0) if self.versioned else None)
        if self.device[0] != 1:
            self._move(capsule)
        return capsule

    def _move(self, capsule):
        """Say in the capsule that its memory is a device's."""
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        place = get(capsule, name) + (32 if self.versioned else 0) + 8  # past the header and DLTensor.data
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int32))[0] = self.device[0]


@pytest.mark.parametrize("versioned", [True, False])
def test_any_library_with_dlpack_will_do(versioned):
    x, weight, bias = arguments()
    out = np.empty_like(x)
    layer_norm(Capsule(x, versioned=versioned), weight, bias, out=out)
    assert np.array_equal(out, layer_norm(x, weight, bias))


def test_a_kind_of_array_that_cannot_be_made_asks_for_out():
    x, weight, bias = arguments()
    with pytest.raises(
        KernelError, match=r"\[layer_norm\] out must be given for arrays that are not of numpy, .*Capsule"
    ):
        layer_norm(Capsule(x), weight, bias)


def test_a_device_array_comes_without_waiting_for_its_stream():
    x, weight, bias = (Capsule(a, device=(2, 0)) for a in arguments())
    with pytest.raises((KernelError, RuntimeError)):  # no CUDA in this build, or memory that is not the device's
        layer_norm(x, weight, bias, out=x)
    assert x.asked[0]["stream"] == -1


@pytest.mark.skipif(bool(backend.ops and backend.ops.cuda_architectures), reason="a build with CUDA")
def test_without_cuda_in_the_build_a_device_array_is_refused():
    x, weight, bias = (Capsule(a, device=(2, 0)) for a in arguments())
    rule = r"\[layer_norm\] arrays must be on the CPU: the operators were built without CUDA, got cuda:0"
    with pytest.raises(KernelError, match=rule):
        layer_norm(x, weight, bias, out=x)


def test_devices_must_not_be_mixed():
    x, weight, bias = arguments()
    rule = r"\[layer_norm\] arrays must be on one device, got x on cpu, weight on cuda:0"
    with pytest.raises(KernelError, match=rule):
        layer_norm(x, Capsule(weight, device=(2, 0)), bias)


def test_inputs_may_be_read_only_and_outputs_not():
    x, weight, bias = arguments()
    for array in (x, weight, bias):
        array.flags.writeable = False
    layer_norm(x, weight, bias)
    with pytest.raises(KernelError, match=r"\[layer_norm\] out must be writable, got a read-only array"):
        layer_norm(x, weight, bias, out=x)
    with pytest.raises(KernelError, match=r"\[layer_norm\] out must be writable, got a read-only array"):
        layer_norm(x, weight, bias, out=Capsule(x))


def test_libraries_may_be_mixed_on_the_cpu():
    x, weight, bias = arguments()
    want = layer_norm(x, weight, bias)
    got = layer_norm(torch.from_numpy(x), weight, torch.nn.Parameter(torch.from_numpy(bias)))
    assert isinstance(got, torch.Tensor) and np.array_equal(got.numpy(), want)


def test_what_no_operator_can_read_is_refused_in_one_line():
    x, weight, bias = arguments()
    big = x.astype(">f4")
    odd = np.frombuffer(bytes(x.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(x.shape)
    for message, array in {
        r"\[layer_norm\] x must be in this machine's byte order, got big-endian values": big,
        r"\[layer_norm\] x must be aligned to its dtype, got an odd address": odd,
        r"\[layer_norm\] x must have at most 5 axes, got 6": x.reshape(1, 1, 1, *x.shape),
        r"\[layer_norm\] x must be float32, float16 or bfloat16, got float64": x.astype(np.float64),
        r"\[layer_norm\] x must be float32, float16 or bfloat16, got list": x.tolist(),
        r"\[layer_norm\] x must be \[.., C\] with C at least 1, got \[\]": x[0, 0, 0],
    }.items():
        with pytest.raises(KernelError, match=message):
            layer_norm(array, weight, bias)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precisions_convert_exactly_and_round_to_nearest_even(dtype, isa):
    """geglu of (a, b) with b in 8..16 is a b, which float32 holds exactly: one rounding at the end, ties included."""
    kind = getattr(torch, dtype)
    a = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(kind)
    a = a[a.isfinite()]
    for b in (8.0, 9.0, 10.0625, 11.1875, 12.5, 15.9375):
        x = torch.stack([a, torch.full_like(a, b)])  # [2, values]
        with use_isa(isa):
            got = geglu(x.T)[:, 0]
        exact = x[0].double() * x[1].double()
        with np.errstate(over="ignore"):
            want = exact.numpy().astype(np.float16) if dtype == "float16" else exact.float().bfloat16().float().numpy()
        assert np.array_equal(got.float().numpy(), want.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precisions_keep_infinities_and_nan(dtype, isa):
    kind = getattr(torch, dtype)
    value = torch.tensor([float("inf"), -float("inf"), float("nan"), 65504.0, 2.0**-24, -0.0]).to(kind)
    nought = torch.zeros(1, 6, dtype=kind)
    with use_isa(isa):
        got = layer_norm(nought, torch.zeros(6, dtype=kind), value)[0]
    assert torch.equal(got.nan_to_num(7.0), value.nan_to_num(7.0)) and bool(got[2].isnan())


def test_the_count_of_threads_does_not_change_a_bit():
    x, weight, bias = arguments(shape=(700, 320))
    before = kernels.threads()
    try:
        kernels.set_threads(1)
        want = layer_norm(x, weight, bias)
        for count in (2, 3, 16):
            kernels.set_threads(count)
            assert kernels.threads() == count
            for _ in range(20):
                assert np.array_equal(layer_norm(x, weight, bias), want)
    finally:
        kernels.set_threads(before)


def test_operators_may_run_in_several_threads_at_once():
    x, weight, bias = arguments(shape=(700, 320))
    want, wrong = layer_norm(x, weight, bias), []

    def work():
        for _ in range(50):
            if not np.array_equal(layer_norm(x, weight, bias), want):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


SCRIPT = """
import os, sys, time, numpy as np, hotloop_kernels as k
x = np.ones((700, 320), np.float32); w = np.ones(320, np.float32)
k.set_threads(2)
k.layer_norm(x, w, w)
"""


def run(script, **environment):
    there = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + script], capture_output=True, text=True, env=there, timeout=60
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    done = run("""
child = os.fork()
if child == 0:
    k.layer_norm(x, w, w)
    os._exit(len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert done.stdout.strip() == "2", done.stderr


def test_idle_threads_use_no_processor_time():
    done = run("""
before = time.process_time(); time.sleep(0.5); print(time.process_time() - before)
""")
    assert float(done.stdout) < 0.05, done.stderr


def test_the_environment_sets_threads_and_a_lower_instruction_set():
    report = "print(k.build_info()['isa'], k.threads())"
    assert run("k.set_threads(3)\n" + report, HOTLOOP_ISA="scalar").stdout.split() == ["scalar", "3"]
    bad = run("", HOTLOOP_ISA="sse9").stderr
    assert "[kernels] HOTLOOP_ISA must be scalar, avx2 or avx512 and not above this machine's" in bad
    assert "[kernels] HOTLOOP_THREADS must be a whole number from 1, got two" in run("", HOTLOOP_THREADS="two").stderr


def test_build_info_says_what_runs():
    info = kernels.build_info()
    assert info["isa"] in ISAS and info["threads"] == kernels.threads()
    assert all(name.startswith("sm_") for name in info["cuda"])


def test_only_known_architectures_count_as_proved():
    assert all(name.startswith("sm_") and isinstance(ops, list) for name, ops in kernels.proved.items())


def test_an_array_without_memory_is_one_line():
    with pytest.raises(KernelError, match=r"\[geglu\] x must have memory that an operator can use, got .*meta") as told:
        geglu(torch.zeros(2, 8, device="meta"))
    assert "\n" not in str(told.value)
