"""Several runs in one call: each is what it is alone, whoever its neighbours are and whenever they come and go."""

import numpy as np
import pytest
from helpers import narrow_unet

from hotloop import Pipeline, loop, samplers
from hotloop.batch import BUCKETS, Batch
from hotloop.bundle import Bundle, builtin
from hotloop.call import Ran, finish
from hotloop.denoiser import UNetDenoiser
from hotloop.engines.native import NativeEngine
from hotloop.errors import InputError
from hotloop.loop import Inpaint
from hotloop.noise import SeededNoise
from hotloop.samplers.schedule import Schedule
from hotloop.spec import REWRITES

SHAPE = (1, 4, 8, 8)
SCHEDULE = Schedule.from_config({"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False})


class Fake:
    """A network that is nonlinear in input, time and condition; `calls` are the numbers of images it was given."""

    def __init__(self, weights):
        self.weights = weights

    def begin(self, cond, table, shape):
        self.cond, self.table, self.shape = cond, table, shape

    def step(self, x, rows):
        assert x.shape == self.shape and rows.dtype == np.int32
        self.weights.calls.append(len(x))
        u = self.table.c_in[rows][:, None, None, None] * x
        t = self.table.timesteps[rows][:, None, None, None]
        m_c = np.tanh(self.weights.scale * u + self.cond["context"] + t / 500).astype(np.float32)
        negative = self.cond.get("negative_context")
        return m_c, None if negative is None else np.sin(u + negative).astype(np.float32)


class Weights:
    def __init__(self, scale=1.0, kind=Fake):
        self.scale, self.kind, self.calls = scale, kind, []

    def denoiser(self):
        return self.kind(self)


class Small(Fake):
    small = True


def given(sampler="euler_a", steps=4, seed=0, *, guided=True, residual=False, shape=SHAPE):
    """What a slot is admitted with."""
    table = samplers.build(sampler, SCHEDULE, steps)
    rng = np.random.default_rng(seed)
    cond = {"context": rng.normal(size=(1, 1, 1, 1)).astype(np.float32)}
    if guided:
        cond["negative_context"] = rng.normal(size=(1, 1, 1, 1)).astype(np.float32)
    noise = rng.normal(size=(table.noises, *shape)).astype(np.float32) if table.noises else None
    return {
        "cond": cond, "table": table, "x": rng.normal(size=shape).astype(np.float32),
        "guidance": 1.5 + seed, "noise": noise,
    }  # fmt: skip


def alone(weights, slot):
    cond, table, x = slot["cond"], slot["table"], slot["x"]
    guidance = np.full(1, slot["guidance"], np.float32)
    rest = {name: value for name, value in slot.items() if name in ("noise", "inpaint")}
    return loop.run(weights.denoiser(), table, x, cond=cond, guidance=guidance, **rest)


def together(weights, slots, arrivals):
    """Slot name -> latents, slot i admitted before step arrivals[i]."""
    made = {}
    with Batch() as batch:
        step = 0
        while len(made) < len(slots):
            for name, slot in slots.items():
                if arrivals[name] == step:
                    batch.admit(name, weights=weights, **slot)
            for name in batch.step():
                made[name] = batch.retire(name)[0]
            step += 1
    return made


MIXED = {
    "a": given("euler_a", 4, 1), "b": given("plms", 6, 2, guided=False), "c": given("dpmpp_2m", 3, 3),
    "d": given("unipc", 5, 4), "e": given("lcm", 2, 5, guided=False), "f": given("heun", 3, 6),
}  # fmt: skip
ARRIVALS = {"a": 0, "b": 0, "c": 2, "d": 3, "e": 3, "f": 7}


@pytest.mark.parametrize("kind", [Fake, Small])
def test_runs_of_several_samplers_steps_seeds_and_guidance_are_their_runs_alone(kind):
    made = together(Weights(kind=kind), MIXED, ARRIVALS)
    for name, slot in MIXED.items():
        assert np.array_equal(made[name], alone(Weights(), slot)), name


def test_a_bucket_is_one_call_of_a_fixed_size_and_a_slot_keeps_its_place():
    weights = Weights()
    slots = {i: given("ddim", 9, i) for i in range(5)}
    with Batch() as batch:
        places = {}
        for i in range(3):
            places[i] = batch.admit(i, weights=weights, **slots[i])
            batch.step()
        assert places == {0: (1, 0), 1: (2, 1), 2: (4, 2)} and weights.calls == [1, 2, 4]
        batch.retire(1)
        assert batch.place(2) == (4, 2)
        assert batch.admit(3, weights=weights, **slots[3]) == (4, 1)
        batch.step()
        assert weights.calls[-1] == 4


def test_more_than_the_largest_bucket_run_in_two():
    weights = Weights()
    with Batch() as batch:
        for i in range(BUCKETS[-1] + 1):
            batch.admit(i, weights=weights, **given("ddim", 2, i))
        while len(batch):
            for name in batch.step():
                batch.retire(name)
    assert sorted(weights.calls) == [1, 1, 8, 8]


@pytest.mark.parametrize("kind", [Fake, Small])
def test_what_neighbours_hold_never_reaches_a_slot(kind):
    first = {"me": given("euler_a", 5, 1), "x": given("euler_a", 5, 2), "y": given("euler_a", 5, 3)}
    other = {"me": first["me"], "x": first["y"], "y": given("euler_a", 5, 9)}
    when = {"me": 0, "x": 0, "y": 2}
    weights = Weights(kind=kind)
    assert np.array_equal(together(weights, first, when)["me"], together(weights, other, when)["me"])


def test_a_neighbours_failure_to_stay_finite_is_its_own():
    broken = given("ddim", 3, 2)
    broken["x"] = np.full(SHAPE, np.nan, np.float32)
    good = given("ddim", 3, 1)
    made = together(Weights(), {"good": good, "bad": broken}, {"good": 0, "bad": 0})
    assert np.array_equal(made["good"], alone(Weights(), good)) and np.isnan(made["bad"]).all()


def test_groups_take_turns_by_the_earliest_deadline_and_else_in_turn():
    one, two = Weights(1.0), Weights(2.0)
    with Batch() as batch:
        batch.admit("late", weights=one, deadline=9.0, **given("ddim", 3, 1))
        batch.admit("soon", weights=two, deadline=1.0, **given("ddim", 3, 2))
        assert [batch.step() for _ in range(3)][-1] == ["soon"] and not one.calls
        batch.retire("soon")
        batch.admit("also", weights=two, deadline=9.0, **given("ddim", 3, 2))
        order = []
        for _ in range(4):
            before = len(one.calls)
            batch.step()
            order.append("one" if len(one.calls) > before else "two")
        assert order == ["one", "two", "one", "two"]


def test_unlike_slots_share_no_call_and_like_ones_do():
    weights = Weights()
    with Batch() as batch:
        batch.admit("a", weights=weights, **given("ddim", 2, 1))
        batch.admit("b", weights=weights, **given("lms", 2, 2))
        batch.admit("unguided", weights=weights, **given("ddim", 2, 3, guided=False))
        batch.admit("wide", weights=weights, **given("ddim", 2, 4, shape=(1, 4, 8, 12)))
        for _ in range(6):
            batch.step()
    assert sorted(weights.calls) == [1, 1, 1, 1, 2, 2]


def test_a_retired_slot_leaves_its_state_and_others_go_on():
    slot, other = given("plms", 6, 1), given("plms", 6, 2)
    with Batch() as batch:
        weights = Weights()
        batch.admit("a", weights=weights, **slot)
        batch.admit("b", weights=weights, **other)
        batch.step()
        state = batch.retire("a")
        assert state.shape == (samplers.K + 1, *SHAPE) and "a" not in batch and batch.row("b") == 1
        while "b" not in batch.step():
            pass
        assert np.array_equal(batch.retire("b")[0], alone(Weights(), other))


def test_inpainting_and_saved_states_are_a_slots_own():
    slot = given("ddim", 3, 1)
    rng = np.random.default_rng(3)
    mask = (rng.random((1, 1, 8, 8)) < 0.5).astype(np.float32)
    slot["inpaint"] = Inpaint(mask, *rng.normal(size=(2, *SHAPE)).astype(np.float32))
    plain, saved = given("ddim", 3, 2), rng.normal(size=SHAPE).astype(np.float32)
    with Batch() as batch:
        weights = Weights()
        batch.admit("masked", weights=weights, **slot)
        batch.admit("plain", weights=weights, saved={5: saved}, **plain)
        for _ in range(3):
            batch.step()
        assert np.array_equal(batch.retire("masked")[0], alone(Weights(), slot))
        state = batch.retire("plain")
        assert np.array_equal(state[0], alone(Weights(), plain)) and np.array_equal(state[5], saved)


@pytest.mark.parametrize("rewrites", [(), REWRITES])
def test_a_real_unet_in_buckets_is_near_its_run_alone_and_exact_whoever_the_neighbours_are(tmp_path, rewrites):
    """The split one too, whose time rows are kept by schedule."""
    row = narrow_unet(tmp_path / "unet")
    networks = row.split(rewrites)
    made = {n: NativeEngine(tmp_path / "unet", networks[n]) for n in ("unet", "prompt", "time") if n in networks}

    class Unets:
        def denoiser(self):
            return UNetDenoiser(**made)

    def slot(sampler, steps, seed):
        one, rng = given(sampler, steps, seed), np.random.default_rng(seed)
        one["cond"] = {name: rng.normal(size=(1, 7, row.context_dim)).astype(np.float32) for name in one["cond"]}
        return one

    slots = {"a": slot("euler_a", 3, 1), "b": slot("plms", 4, 2), "c": slot("ddim", 2, 3)}
    when, weights = {"a": 0, "b": 0, "c": 1}, Unets()
    found = together(weights, slots, when)
    for name, one in slots.items():
        single = alone(weights, one)
        assert np.abs(found[name] - single).max() <= 1e-5 * max(1, np.abs(single).max()), name
    others = {"a": slots["a"], "b": slot("plms", 4, 8), "c": slot("ddim", 2, 9)}
    assert np.array_equal(together(weights, others, when)["a"], found["a"])


class OnDevice(Fake):
    pixels = None

    def start(self, x, *, guidance, noise, inpaint): ...

    def advance(self): ...

    def run(self): ...


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros((2, 4, 8, 8), np.float32)}, r"batch.x\] must be float32 \[1, 4, 8, 8\], got"),
        ({"x": np.zeros((4, 8, 8), np.float32)}, r"batch.x\] must be float32 \[1, 'C', 'h', 'w'\]"),
        ({"noise": None}, r"batch.noise\] must be float32 \[4, 1, 4, 8, 8\], got None"),
        ({"cond": {"context": np.zeros((2, 1, 1, 1))}}, r"batch\] context must have the one row .* got \(2, 1, 1, 1\)"),
        ({"saved": {3: np.zeros(3)}}, r"batch.saved\[3\]\] must be float32"),
        ({"slot": "taken"}, r"batch\] a slot must be retired before it is taken again, got 'taken'"),
        ({"weights": Weights(kind=OnDevice)}, r"batch\] runs whose denoiser keeps the state on its device cannot join"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(change, message):
    weights = Weights()
    with Batch() as batch:
        batch.admit("taken", weights=weights, **given(seed=1))
        arguments = {"slot": "new", "weights": weights, **given(seed=2)} | change
        with pytest.raises(InputError, match=message) as refused:
            batch.admit(arguments.pop("slot"), **arguments)
        assert "\n" not in str(refused.value) and len(batch) == 1
        while "taken" not in batch.step():
            pass
        assert np.array_equal(batch.retire("taken")[0], alone(Weights(), given(seed=1)))


@pytest.mark.parametrize("engine", ["onnx", "openvino fp32", "openvino bf16"])
def test_on_every_cpu_engine_a_slot_of_the_built_in_model_is_its_run_alone(engine, pipe):
    """Three slots of different sampler, steps, seed, prompt and guidance, at different times; their neighbours too."""
    pipeline = pipe
    if engine != "onnx":
        from hotloop.engines.openvino import OpenVinoEngine

        networks, precision = pipe.networks, engine.split()[1]
        if precision not in OpenVinoEngine.precisions("cpu"):
            pytest.skip("this processor computes nothing in bfloat16")
        path = pipe.bundle.network_file(networks.entry, "unet")
        unet = OpenVinoEngine(path, networks.rows["unet"], precision=precision)
        pipeline = Pipeline(Bundle.open(builtin()), engine="onnx", given={"unet": unet})
        assert pipeline.networks.denoiser().small
    words = {"a": ("a smiling woman with red hair", ""), "b": ("an old man", None), "c": ("a girl", "hat")}
    plan = {"a": ("euler_a", 3, 2.5, 11), "b": ("lcm", 2, 1.0, 12), "c": ("plms", 4, 4.0, 13)}
    slots = {}
    for name, (sampler, steps, guidance, seed) in plan.items():
        table = pipeline.table(sampler, steps)
        prompt, negative = words[name]
        call = pipeline._begin(
            "txt2img", prompt, negative, {"guidance_scale": guidance, "sampler": sampler, "seed": seed}
        )
        cond, stream = call.condition(pipeline.conditioning, []), SeededNoise([seed])
        shape = pipeline.autoencoder.latent_shape(64, 64)
        x = stream.normal(shape) * np.float32(table.init_scale)
        noise = np.stack([stream.normal(shape) for _ in range(table.noises)]) if table.noises else None
        slots[name] = {"cond": cond, "table": table, "x": x, "guidance": guidance, "noise": noise}
    made = together(pipeline.networks, slots, {"a": 0, "b": 1, "c": 2})
    for name, slot in slots.items():
        with pipeline.networks.denoiser() as denoiser:
            guidance = np.full(1, slot["guidance"], np.float32)
            rest = {"cond": slot["cond"], "guidance": guidance, "noise": slot["noise"]}
            single = loop.run(denoiser, slot["table"], slot["x"], **rest)
        assert np.array_equal(made[name], single), name
        assert np.abs(single).max() > 0.1


@pytest.mark.parametrize("name", ["txt2img", "img2img", "inpaint"])
def test_a_call_whose_rows_a_batch_runs_is_that_call(pipe, name):
    """Both passes of hires, and progress that counts them together."""
    pixels = np.linspace(0, 255, 64 * 64 * 3).astype(np.uint8).reshape(64, 64, 3)
    mask = np.zeros((64, 64), bool)
    mask[20:50, 10:40] = True
    given = {"seed": 4, "num_inference_steps": 3, "num_images_per_prompt": 2, "guidance_rescale": 0.0}
    given |= {} if name == "txt2img" else {"image": pixels, "strength": 0.7}
    given |= {"mask_image": mask} if name == "inpaint" else {"hires": 1.5, "hires_steps": 4, "hires_fidelity": 0.0}
    told = []
    expected = getattr(pipe, name)("a girl", callback=lambda p: told.append((p.row, p.rows)), **given)
    drawing = pipe.drawing(name, "a girl", **given)
    counted = 0
    with Batch() as batch:
        try:
            run = next(drawing)
            while True:
                assert run.before[0] == counted
                for i in range(len(run.x)):
                    batch.admit(
                        i, {key: value[i : i + 1] for key, value in run.cond.items()}, run.table, run.x[i : i + 1],
                        weights=run.networks, guidance=float(run.guidance[i]),
                        noise=None if run.noise is None else run.noise[:, i : i + 1],
                        inpaint=None if run.inpaint is None else run.inpaint.of(i),
                    )  # fmt: skip
                while len(batch.step()) < len(run.x):
                    counted += 1
                counted += 1
                latents = np.concatenate([batch.latents(i) for i in range(len(run.x))])
                for i in range(len(run.x)):
                    batch.retire(i)
                run = drawing.send(Ran(latents))
        except StopIteration as ended:
            result = ended.value
    assert told == [(row, counted) for row in range(counted)] and run.whole[0] == counted
    for ours, theirs in zip(result.images, expected.images, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    again = finish(pipe.drawing(name, "a girl", **given))
    assert np.array_equal(np.asarray(again.images[1]), np.asarray(expected.images[1]))
