"""The denoiser over engines of the plain and the split UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import narrow_unet, normal

from hotloop import samplers
from hotloop.denoiser import LRUCache, UNetDenoiser
from hotloop.engines.native import NativeContext, NativeEngine
from hotloop.errors import InputError
from hotloop.nets.unet import UNet
from hotloop.samplers import StepTable
from hotloop.samplers.schedule import Schedule
from hotloop.spec import GROUPS, REWRITES, WEIGHTED, Family, cells, family, resolve

VARIANTS = [(), ("kv",), ("time",), ("prefix",), REWRITES]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    folder = tmp_path_factory.mktemp("denoiser") / "unet"
    return folder, narrow_unet(folder)


def engines(unet: tuple[Path, Family], rewrites: Sequence[str] = (), groups: Sequence[str] = ()) -> dict[str, Any]:
    folder, row = unet
    networks = row.split(rewrites, groups)
    return {name: NativeEngine(folder, networks[name]) for name in ("unet", "prompt", "time") if name in networks}


@pytest.fixture(scope="module")
def table() -> StepTable:
    return samplers.build("plms", Schedule.from_config({}, family("avatar-tiny").schedule), 4)


def evaluate(
    made: Mapping[str, Any], table: StepTable, cond: Mapping[str, np.ndarray], x: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    with UNetDenoiser(**made) as denoiser:
        denoiser.begin(cond, table, x.shape)
        m_c, m_u = denoiser.step(x, rows)
        return m_c.copy(), None if m_u is None else m_u.copy()


def near(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    assert (a is None) == (b is None)
    return a is None or b is None or bool(np.abs(a - b).max() <= 1e-5 * np.abs(b).max())


def test_a_prompt_and_a_schedule_are_computed_once_for_all_runs(unet: Any, table: StepTable, monkeypatch: Any) -> None:
    made, kept = engines(unet, REWRITES), {"prompts": LRUCache(most=2), "times": LRUCache()}
    ran: list[str] = []
    first = NativeContext.run

    def counted(self: Any, stream: int | None = None) -> None:
        ran.append(next(name for name in ("timestep", "context", "sample") if name in self.inputs))
        first(self, stream)

    monkeypatch.setattr(NativeContext, "run", counted)
    contexts = [normal(1, 5, 24, seed=seed) for seed in range(3)]

    def drawn(context: np.ndarray) -> np.ndarray:
        with UNetDenoiser(**made, **kept) as denoiser:
            denoiser.begin({"context": context, "negative_context": contexts[0]}, table, (1, 4, 4, 4))
            return denoiser.step(normal(1, 4, 4, 4), np.zeros(1, np.int32))[0].copy()

    want = drawn(contexts[1])
    assert ran == ["context", "context", "timestep", "sample"]
    assert np.array_equal(drawn(contexts[1]), want) and ran[4:] == ["sample"]
    assert not np.array_equal(drawn(contexts[2]), want) and ran[5:] == ["context", "sample"]
    # The oldest is forgotten.
    assert np.array_equal(drawn(contexts[1]), want) and ran[7:] == ["context", "sample"]


@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rewrites", VARIANTS, ids=lambda r: "-".join(r) or "plain")
def test_split_engines_predict_what_the_network_does(
    unet: tuple[Path, Family], table: StepTable, rewrites: tuple[str, ...], n: int, guided: bool
) -> None:
    """Every image at a row of the table of its own; the unconditional prediction second."""
    cond = {"context": normal(n, 7, 24, seed=1)}
    if guided:
        cond["negative_context"] = normal(n, 7, 24, seed=2)
    x, rows = normal(n, 4, 8, 12, seed=3), np.arange(n)[::-1].copy()
    m_c, m_u = evaluate(engines(unet, rewrites), table, cond, x, rows)
    net = UNet.from_dir(unet[0])

    @torch.no_grad()
    def expected(context: np.ndarray) -> np.ndarray:
        u = x * table.c_in[rows][:, None, None, None]
        given = (torch.from_numpy(part) for part in (u, table.timesteps[rows], context))
        return net(*given).numpy()

    assert m_c.std() > 0.02
    assert near(m_c, expected(cond["context"]))
    assert near(m_u, expected(cond["negative_context"]) if guided else None)


@pytest.mark.parametrize("rewrites", [(), REWRITES], ids=["plain", "split"])
def test_mask_and_masked_image_stay_beside_the_latents(
    tmp_path: Path, table: StepTable, rewrites: tuple[str, ...]
) -> None:
    row = narrow_unet(tmp_path, in_channels=9)
    x, extra, context = normal(2, 4, 8, 8), normal(2, 5, 8, 8, seed=1), normal(2, 7, 24, seed=2)
    made = engines((tmp_path, row), rewrites)
    cond = {"context": context, "negative_context": context[::-1].copy(), "extra": extra}
    rows = np.array([1, 2])
    m_c, m_u = evaluate(made, table, cond, x, rows)
    u = x * table.c_in[rows][:, None, None, None]
    whole = torch.from_numpy(np.concatenate([u, extra], axis=1))
    net = UNet.from_dir(tmp_path)
    with torch.no_grad():
        for got, states in ((m_c, cond["context"]), (m_u, cond["negative_context"])):
            assert near(got, net(whole, torch.from_numpy(table.timesteps[rows]), torch.from_numpy(states)).numpy())
    with pytest.raises(InputError, match="latents and extra channels together must be 9, got 4"):
        evaluate(made, table, {"context": context}, x, rows)


def test_keys_are_computed_once_per_context_and_times_once_per_run(
    unet: tuple[Path, Family], table: StepTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engines(unet, REWRITES)
    runs: dict[str, list[int]] = {name: [] for name in made}
    for name, engine in made.items():
        original = engine.context

        def counted(*, name: str = name, original: Any = original, **dims: int) -> Any:
            context = original(**dims)
            run = context.run

            def record(stream: int | None = None) -> None:
                runs[name].append(len(next(iter(context.inputs.values()))))
                run(stream)

            context.run = record
            return context

        monkeypatch.setattr(engine, "context", counted)
    prompt, negative = normal(1, 7, 24, seed=1), normal(1, 7, 24, seed=2)
    cond = {"context": np.repeat(prompt, 3, axis=0), "negative_context": np.repeat(negative, 3, axis=0)}
    with UNetDenoiser(**made) as denoiser:
        denoiser.begin(cond, table, (3, 4, 8, 8))
        assert denoiser.seconds > 0
        for row in range(3):
            denoiser.step(normal(3, 4, 8, 8), np.full(3, row))
    assert runs == {"prompt": [1, 1], "time": [len(table.timesteps)], "unet": [3, 3, 3]}


@pytest.mark.parametrize("rewrites", [(), REWRITES], ids=["plain", "split"])
def test_optional_inputs_left_out_are_zero_again_in_the_next_run(
    unet: tuple[Path, Family], table: StepTable, rewrites: tuple[str, ...]
) -> None:
    """Contexts are used again: what one run was given must not reach the next."""
    row, optional = unet[1], [name for name in GROUPS if name not in WEIGHTED]
    made = engines(unet, rewrites, optional)
    n, x, rows = 2, normal(2, 4, 8, 8), np.array([0, 2])
    cond = {"context": normal(n, 7, 24, seed=1), "negative_context": normal(n, 7, 24, seed=2)}
    without = evaluate(made, table, cond, x, rows)
    assert all(
        near(a, b) for a, b in zip(without, evaluate(engines(unet, rewrites), table, cond, x, rows), strict=True)
    )
    dims = {"B": 2 * n, "N": n, "Ti": 1, **cells(8, 8)}
    groups = row.split((), optional)["unet"].groups
    for name, tensors in groups.items():
        # A row per image; the scale a row per row of the batch: the unconditional half takes none of the identity.
        given = {t.name: normal(n, *resolve(t.shape[1:], dims), seed=5) for t in tensors}
        if name == "identity":
            given["identity_scale"] = np.array([0, 0, 1, 0.5], np.float32)
        m_c, m_u = evaluate(made, table, cond | given, x, rows)
        assert np.abs(m_c - without[0]).max() > 1e-3, name
        assert np.array_equal(m_u, without[1]) == (name == "identity")  # type: ignore[arg-type]
        again = evaluate(made, table, cond, x, rows)
        assert all(np.array_equal(a, b) for a, b in zip(again, without, strict=True))  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("rewrites", [(), ("time",), ("prefix",), REWRITES], ids=lambda r: "-".join(r) or "plain")
def test_every_image_has_a_condition_of_its_own_on_the_timestep(
    unet: tuple[Path, Family], table: StepTable, rewrites: tuple[str, ...]
) -> None:
    made = engines(unet, rewrites, ("timestep_cond",))
    context, when = normal(2, 7, 24, seed=1), normal(2, 6, seed=4)
    cond = {"context": context, "negative_context": context, "timestep_cond": when}
    x, rows = normal(2, 4, 8, 8), np.array([3, 1])
    m_c, m_u = evaluate(made, table, cond, x, rows)
    u = torch.from_numpy(x * table.c_in[rows][:, None, None, None])
    expected = UNet.from_dir(unet[0])(
        u, torch.from_numpy(table.timesteps[rows]), torch.from_numpy(context), timestep_cond=torch.from_numpy(when)
    ).numpy()
    assert near(m_c, expected)
    assert near(m_u, expected)
    with pytest.raises(InputError, match=r"must be given, got \['timestep_cond'\]"):
        evaluate(made, table, {"context": context}, x, rows)


def test_what_does_not_fit_is_refused(unet: tuple[Path, Family], table: StepTable) -> None:
    split, plain = engines(unet, REWRITES), engines(unet)
    with pytest.raises(InputError, match="the engine prompt must be given when the UNet takes context_kv"):
        UNetDenoiser(split["unet"], time=split["time"])
    with pytest.raises(InputError, match="the engine time must be given"):
        UNetDenoiser(plain["unet"], time=split["time"])
    cond = {"context": normal(2, 7, 24)}
    x, rows = normal(2, 4, 8, 8), np.array([0, 0])
    with pytest.raises(InputError, match=r"declared at export, got \['identity_kv'\]"):
        evaluate(plain, table, cond | {"identity_kv": normal(2, 1, unet[1].kv_width)}, x, rows)
    with pytest.raises(InputError, match="identity_scale must have 2 or 2 rows"):
        given = cond | {"identity_kv": normal(2, 1, unet[1].kv_width), "identity_scale": np.ones(3, np.float32)}
        evaluate(engines(unet, (), ("identity",)), table, given, x, rows)
