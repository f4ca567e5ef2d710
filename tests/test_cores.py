"""How many threads are used: the process's affinity and the quotas of its control groups, on made-up file trees."""

from __future__ import annotations

from pathlib import Path

import pytest

import hotloop_kernels
from hotloop.engines import onnx
from hotloop_kernels import cores

V2 = "31 23 0:28 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"


def tree(root: Path, group: str, mounts: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "mounts", "files", "granted"),
    [
        # docker --cpus=1.5, its own namespace: the group is the root that it sees.
        ("0::/\n", V2.format(shown="/"), {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", V2.format(shown="/"), {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        # systemd: the smallest of the unit, its slice and what is above.
        ("0::/a.slice/b.service\n", V2.format(shown="/"), {
            "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a.slice/b.service\n", V2.format(shown="/"), {
            "sys/fs/cgroup/a.slice/b.service/cpu.max": "25000 100000\n",
            "sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n"}, 0.25),
        # No limit of its own, and folders above it that are not there.
        ("0::/gone/here\n", V2.format(shown="/"), {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        # The host's path, but the mount begins at the container's group.
        ("0::/docker/12ab\n", V2.format(shown="/docker/12ab"), {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/docker/12ab/in\n", V2.format(shown="/docker/12ab"),
         {"sys/fs/cgroup/in/cpu.max": "100000 100000\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 1.0),
        ("0::/../else\n", V2.format(shown="/"), {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        # v1, whose quota of -1 is none.
        ("4:cpu,cpuacct:/docker/12ab\n0::/\n", V1.format(shown="/docker/12ab"), {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("4:cpu,cpuacct:/\n", V1.format(shown="/"), {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpu,cpuacct:/\n", V1.format(shown="/"), {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "0\n"}, None),
        # Both, as on a machine in transition; a place with a space in it, as mountinfo writes it.
        ("4:cpu:/\n0::/\n", "1 2 0:1 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n", {
            "sys/my groups/cpu.max": "75000 50000\n"}, 1.5),
        # cpuset and cpuacct limit no time.
        ("3:cpuset:/\n2:cpuacct:/\n", "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n", {}, None),
        # What cannot be read sets no limit.
        ("0::/\n", V2.format(shown="/"), {"sys/fs/cgroup/cpu.max": "much\n"}, None),
        ("", "broken - \n - cgroup2\n", {}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_read(tmp_path, group, mounts, files, granted):
    assert cores.quota(tree(tmp_path, group, mounts, files)) == granted


def test_a_system_without_proc_has_no_quota(tmp_path):
    assert cores.quota(tmp_path) is None


@pytest.mark.parametrize(("granted", "threads"), [("150000", 2), ("200000", 2), ("10000", 1), ("900000", 4)])
def test_threads_are_the_smaller_of_affinity_and_quota_rounded_up(tmp_path, monkeypatch, granted, threads):
    monkeypatch.setattr(cores, "affinity", lambda: 4)
    root = tree(tmp_path, "0::/\n", V2.format(shown="/"), {"sys/fs/cgroup/cpu.max": f"{granted} 100000\n"})
    assert cores.usable_cores(root) == threads


def test_the_engines_and_the_operators_agree(monkeypatch):
    """The pool is told a quota as it starts; else it knows its affinity itself."""
    set_to = []
    monkeypatch.setattr(hotloop_kernels.backend, "ops", type("", (), {"set_threads": staticmethod(set_to.append)}))
    monkeypatch.setattr(hotloop_kernels.backend, "quota", lambda: 1.5)
    monkeypatch.setattr(hotloop_kernels.backend, "usable_cores", lambda: 2)
    hotloop_kernels.backend._configure({})
    hotloop_kernels.backend._configure({"HOTLOOP_THREADS": "7"})
    monkeypatch.setattr(hotloop_kernels.backend, "quota", lambda: None)
    hotloop_kernels.backend._configure({})
    assert set_to == [2, 7]
    assert onnx.usable_cores is hotloop_kernels.usable_cores


def test_doctor_shows_both(monkeypatch):
    from hotloop.cli import doctor

    monkeypatch.setattr(hotloop_kernels, "affinity", lambda: 8)
    monkeypatch.setattr(hotloop_kernels, "quota", lambda: 1.5)
    monkeypatch.setattr(hotloop_kernels, "usable_cores", lambda: 2)
    assert doctor._host().found.endswith("2 usable cores (affinity 8, cgroup quota 1.5)")


@pytest.mark.parametrize(("cores", "asked", "threads"), [(1, None, 1), (64, None, 3), (1, 2, 2)])
def test_torch_keeps_to_the_quota_too(monkeypatch, cores, asked, threads):
    torch = pytest.importorskip("torch")
    from hotloop.engines import native

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(hotloop_kernels, "usable_cores", lambda: cores)
    try:
        with native.settings(asked):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
