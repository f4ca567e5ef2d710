"""The exporter's cache: one bundle per key, made once, never half, never altered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotloop.errors import BundleError, InputError
from hotloop_export import store as module
from hotloop_export.store import Store, beside, check_place, full_disk_is_one_line, key_of, put

KEY = key_of({"source": "a", "precision": "fp32"})


def fill(work: Path, content: str = "weights") -> None:
    (work / "unet").mkdir()
    (work / "unet/weights").write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    (work / "manifest.json").write_text(json.dumps({"key": work.name.split(".")[0], "files": {"unet/weights": digest}}))


def made(store: Store, key: str = KEY) -> Path:
    with store.making(key, waiting=lambda: None) as work:
        fill(work)
        return store.keep(work, key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_the_key_follows_every_part_and_not_their_order() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    keys = {key_of(parts) for parts in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"a": [1]})}
    assert len(keys) == 5


def test_a_bundle_is_found_under_its_key_only(store: Store) -> None:
    assert store.find(KEY) is None
    path = made(store)
    assert store.find(KEY) == path
    assert store.find(key_of({"source": "b"})) is None


def test_an_altered_bundle_is_never_served(store: Store) -> None:
    path = made(store)
    (path / "unet/weights").write_text("altered")
    assert store.find(KEY) is None
    assert not path.exists()


def test_a_missing_file_is_noticed(store: Store) -> None:
    path = made(store)
    (path / "unet/weights").unlink()
    assert store.find(KEY) is None


def test_a_flip_that_keeps_the_times_is_found_by_rehashing(store: Store) -> None:
    path = made(store)
    file = path / "unet/weights"
    stat = file.stat()
    file.write_text("w3ights")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.find(KEY, rehash=True) is None


def test_an_unchanged_bundle_is_not_read_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(store)
    put(path, tmp_path / "out")
    store.stamp(tmp_path / "out")
    monkeypatch.setattr(module, "sha256", lambda file: pytest.fail("hashed"))
    assert store.find(KEY) == path
    assert store.holds(tmp_path / "out", KEY)
    assert not store.holds(tmp_path / "out", "another")
    assert not store.holds(tmp_path / "nowhere", KEY)


def test_a_users_copy_that_was_altered_does_not_hold(store: Store, tmp_path: Path) -> None:
    put(made(store), tmp_path / "out")
    store.stamp(tmp_path / "out")
    (tmp_path / "out/unet/weights").write_text("altered")
    assert not store.holds(tmp_path / "out", KEY)
    assert store.find(KEY) is not None


def test_a_graph_is_made_once_and_an_altered_one_again(store: Store, tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> bytes:
        calls.append(1)
        return b"graph"

    assert store.graph("k", make) == store.graph("k", make) == b"graph" and len(calls) == 1
    cached = store.root / "graphs" / "k.onnx"
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    assert store.graph("k", make) == b"graph" and len(calls) == 2


def test_a_failure_midway_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.making(KEY, waiting=lambda: None) as work:
        fill(work)
        raise RuntimeError("power cut")
    assert store.find(KEY) is None
    assert list((store.root / "work").iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from hotloop_export.store import Store
with Store(Path(sys.argv[1])).making(sys.argv[2], waiting=lambda: None) as work:
    (work / "half").write_text("of it")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_exporter_leaves_no_bundle_and_the_next_one_clears_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.kill()
    assert len(list((store.root / "work").iterdir())) == 1
    assert store.find(KEY) is None
    path = made(store)  # the lock died with its holder
    assert [file.name for file in path.iterdir() if file.is_file()] == ["manifest.json"]
    assert list((store.root / "work").iterdir()) == []


def test_two_exporters_of_one_thing_do_the_work_once(store: Store) -> None:
    work_done, waited, found = [], [], []
    ready = threading.Event()

    def export() -> None:
        with store.making(KEY, waiting=lambda: waited.append(1)) as work:
            path = store.find(KEY)
            if path is None:
                work_done.append(1)
                ready.set()
                time.sleep(0.2)
                fill(work)
                path = store.keep(work, KEY)
            found.append(path)

    first, second = threading.Thread(target=export), threading.Thread(target=export)
    first.start()
    assert ready.wait(5)
    second.start()
    for thread in (first, second):
        thread.join(10)
    assert (len(work_done), len(waited), len(set(found))) == (1, 1, 1)


def test_the_least_recently_used_bundles_go_beyond_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of({"n": n}) for n in range(3)]
    size = sum(file.stat().st_size for file in made(store, keys[0]).rglob("*") if file.is_file())
    monkeypatch.setattr(module, "LIMIT", 2 * size)
    os.utime(store.root / "bundles" / keys[0], (1, 1))
    made(store, keys[1])
    made(store, keys[2])
    assert [store.find(key) is not None for key in keys] == [False, True, True]


def test_put_replaces_a_bundle_whole(store: Store, tmp_path: Path) -> None:
    path = made(store)
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    (out / "manifest.json").write_text("{}")
    put(path, out)
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "unet"]
    assert (out / "unet/weights").read_text() == "weights"
    assert (out / "unet/weights").stat().st_nlink == 1  # onnx refuses weights that have two names
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    check_place(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.png").write_text("dear")
    for place in ("photos", "photos/me.png"):
        with pytest.raises(InputError, match="must be a bundle to replace"):
            check_place(tmp_path / place)


def test_what_is_exported_is_never_replaced(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "unet").mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    (bundle / "unet/weights").write_text("dear")
    for out, read in ((bundle, bundle), (bundle, bundle / "unet/weights"), (bundle / "new", bundle)):
        with pytest.raises(InputError, match="must be apart from what is exported"):
            check_place(out, inputs=[read])
    check_place(tmp_path / "bundle-2", inputs=[bundle])
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(InputError, match="must be apart"):
        check_place(bundle, inputs=[tmp_path / "link"])


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a place that can be written"):
        check_place(tmp_path / "file/out")


def test_a_bundle_is_there_at_every_moment_while_it_is_replaced(store: Store, tmp_path: Path) -> None:
    path, out = made(store), tmp_path / "out"
    put(path, out)
    stop, missing = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            if not out.is_dir():
                missing.append(True)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(50):
        put(path, out)
    stop.set()
    watcher.join()
    assert not missing


def test_many_exporters_to_one_place_end_with_one_whole_bundle(store: Store, tmp_path: Path) -> None:
    path, out = made(store), tmp_path / "out"
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(put, path, out) for _ in range(64)]:
            done.result()
    assert (out / "unet/weights").read_text() == "weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]


def test_replacing_works_where_names_cannot_be_exchanged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = made(store), tmp_path / "out"
    put(path, out)
    (out / "unet/weights").write_text("older")
    monkeypatch.setattr(module, "_exchange", lambda a, b: False)
    put(path, out)
    assert (out / "unet/weights").read_text() == "weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]


def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = tmp_path / ".out.abc.making"
    killed.mkdir()
    with beside(out) as living:
        assert not killed.exists()
        with beside(out):
            assert living.exists()
    assert list(tmp_path.iterdir()) == []


def test_work_of_killed_exporters_of_other_bundles_goes(store: Store) -> None:
    made(store)
    stale = store.root / "work" / f"{key_of({'source': 'b'})}.killed"
    stale.mkdir()
    other = key_of({"source": "c"})
    with store.making(other, waiting=lambda: None) as living:
        made(store, key_of({"source": "d"}))
        assert living.exists()
    assert not stale.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full device is Linux's")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    rule = r"No space left on device at .*; nothing was left behind, got '.* GB free'"
    full = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(BundleError, match=rule), full_disk_is_one_line(tmp_path), full as file:
        file.write("x" * 100_000)
    with pytest.raises(ZeroDivisionError), full_disk_is_one_line(tmp_path):
        _ = 1 / 0
