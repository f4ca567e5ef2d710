"""The second avatar's training queue: every stage for a few steps in small, resuming, pausing, who may import whom."""

from __future__ import annotations

import ast
import importlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import bare_modules

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

HERE = Path(__file__).resolve().parents[1] / "models" / "avatar"


@pytest.fixture(scope="module", autouse=True)
def _modules():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with bare_modules(HERE):
        yield
    torch.set_num_threads(threads)


def the(name: str):
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Options of a small run in a folder of its own, its data drawn."""
    train = the("train")
    options = the("training").Options(root=tmp_path_factory.mktemp("avatar"), small=True, steps=6)
    train._data(options)
    return options


def run(options, *names: str, **changes):
    train = the("train")
    for name in names:
        stage = replace(train.STAGES[name], segments=(1,), **changes)
        importlib.import_module(stage.module).stage(stage, options, train._needs(options, stage, "test"))
        assert train.progress(options, name)["segments"] == 1
    return train.progress(options, names[-1])


# Data.


def test_shards_hold_what_they_say_and_no_held_out_person(small):
    data, render = the("data"), the("render")
    faces = data.Shards(small.build / "data", "faces")
    assert len(faces) == 16
    images, labels, seeds = faces.rows(np.array([3, 15]), "images", "labels", "seeds")
    assert images.shape == (2, 128, 128, 3) and images.dtype == np.uint8
    if not data.couple(int(seeds[0])):
        np.testing.assert_array_equal(labels[0], render.labels(render.sample_face(int(seeds[0]))))
        np.testing.assert_array_equal(images[0], render.render(render.sample_face(int(seeds[0])), 128).image)
    for seed in faces.all("seeds"):
        assert not render.held_out(render.sample_face(int(seed)))
    held = data.Shards(small.build / "data", "even", held=True)
    assert len(held) and all(render.held_out(render.sample_face(int(s), natural=False)) for s in held.all("seeds"))


def test_drawing_goes_on_where_it_stopped_and_never_twice(tmp_path):
    data = the("data")
    wanted = [("even", 8, False)]
    asked = iter([False, True])
    assert not data.fill(tmp_path, wanted, shard=4, stop=lambda: next(asked))
    first = (tmp_path / "even-000" / "images.npy").stat().st_mtime_ns
    assert data.fill(tmp_path, wanted, shard=4)
    assert (tmp_path / "even-000" / "images.npy").stat().st_mtime_ns == first
    assert len(set(data.Shards(tmp_path, "even").all("seeds").tolist())) == 8


def test_seeds_of_the_two_probes_never_meet(small):
    data = the("data")
    for a, b in (("even", "other"), ("pairs", "judged")):
        one, two = (set(data.Shards(small.build / "data", k).all("seeds").tolist()) for k in (a, b))
        assert not one & two


# Losses and layers, against closed forms.


def test_adversarial_losses_have_their_closed_forms():
    adversary = the("adversary")
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -2.0])
    one = np.log(2)
    up, down = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    expected = {
        "non-saturating": (2 * (one + up) / 2, (one + down) / 2),
        "least squares": (0.5 * (1 + 1) / 2 + 0.5 * (0 + 4) / 2, 0.5 * (1 + 9) / 2),
        "hinge": ((1 + 0) / 2 + (1 + 0) / 2, 1.0),
        "wgan-gp": (-1 - 1, 1.0),
    }  # fmt: skip
    for name, loss in adversary.LOSSES.items():
        for got, wanted in zip(loss(real, fake), expected[name], strict=True):
            assert float(got) == pytest.approx(wanted, abs=1e-6), name
    weight = torch.randn(6)
    slope = float(weight.norm())

    def linear(x):
        return x @ weight

    a, b = torch.randn(5, 6), torch.randn(5, 6)
    assert float(adversary.gradient_penalty(linear, a, b)) == pytest.approx((slope - 1) ** 2, rel=1e-4)
    assert float(adversary.r1(linear, a)) == pytest.approx(0.5 * slope**2, rel=1e-4)


def test_penalties_are_taken_where_they_say():
    """Of the critic |x|^2 / 2, whose slope at x is |x|: R1 at the real ones, the other one on the way to the fakes."""
    adversary = the("adversary")

    def critic(x):
        return 0.5 * x.square().sum(1)

    real, fake = torch.zeros(20_000, 4), torch.zeros(20_000, 4)
    fake[:, 1] = 3.0  # slopes 3 t of t uniform in 0..1: the mean of (3 t - 1)^2 is 1
    assert float(adversary.gradient_penalty(critic, real, fake).detach()) == pytest.approx(1.0, abs=0.03)
    assert float(adversary.gradient_penalty(critic, fake, fake).detach()) == pytest.approx(4.0, rel=1e-5)
    assert float(adversary.r1(critic, fake).detach()) == pytest.approx(4.5, rel=1e-5)
    assert float(adversary.r1(critic, real).detach()) == 0


def test_generators_descend_where_the_critic_likes_them_more():
    """Closed forms of the generator's slope at a logit f: -sigmoid(-f), f - 1, -1, -1."""
    adversary, f = the("adversary"), torch.tensor([0.7], requires_grad=True)
    expected = {"non-saturating": -1 / (1 + np.exp(0.7)), "least squares": -0.3, "hinge": -1.0, "wgan-gp": -1.0}
    for name, loss in adversary.LOSSES.items():
        (slope,) = torch.autograd.grad(loss(torch.zeros(1), f)[1], f)
        assert float(slope) == pytest.approx(expected[name], abs=1e-6), name


def test_the_textbook_networks_have_their_sizes():
    parameters, recipe = the("adversary").parameters, the("textbook").RECIPES["gan"]
    assert parameters(recipe.make()) == 1_506_448 and parameters(recipe.critic()) == 94_721


def test_divergence_of_gaussians_is_torchs():
    post, prior = torch.randn(2, 4, 16)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(post[:, :8], (0.5 * post[:, 8:]).exp()),
        torch.distributions.Normal(prior[:, :8], (0.5 * prior[:, 8:]).exp()),
    ).mean(0)
    torch.testing.assert_close(the("animation").divergence(post, prior), expected)


def test_consistency_answers_are_the_input_at_no_noise():
    skip, out = the("student").boundary(torch.tensor([0, 999]))
    assert float(skip[0]) == 1 and float(out[0]) == 0 and float(skip[1]) < 1e-6 and float(out[1]) > 0.999


def test_a_still_field_leaves_a_picture_alone_and_a_shift_moves_it():
    from hotloop.nets.animator import REACH

    warp = the("warp")
    key, reveal = torch.rand(2, 1, 4, 32, 32)
    still = torch.zeros(1, 9, 8, 8)
    still[:, 4], still[:, 5:] = -30, -30  # nothing revealed, nothing painted
    torch.testing.assert_close(warp.blend(key, reveal, still), key, atol=1e-5, rtol=0)
    shown = still.clone()
    shown[:, 4] = 30
    torch.testing.assert_close(warp.blend(key, reveal, shown), reveal, atol=1e-5, rtol=0)
    moved = still.clone()
    moved[:, 0] = float(np.arctanh(4 / 32 / REACH))  # from four pixels to the right
    got = warp.blend(key, reveal, moved)
    torch.testing.assert_close(got[..., :-4], key[..., 4:], atol=1e-4, rtol=0)
    assert float(got[..., -4:].abs().max()) < 1e-4  # outside is transparent


def test_parts_paste_where_they_were_cropped():
    warp = the("warp")
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    picture = torch.rand(1, 2, 64, 64)
    part = warp.crop(picture, box, 32)
    torch.testing.assert_close(part, picture[..., 16:48, 16:48], atol=1e-5, rtol=0)
    back = warp.paste(part, box, 64)
    torch.testing.assert_close(back[..., 17:47, 17:47], picture[..., 17:47, 17:47], atol=1e-5, rtol=0)
    assert float(back[..., :15, :].abs().max()) == 0


def test_quick_group_norm_is_group_norm():
    quick = the("quick")
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 16, 5, 7) + 0.5
    results = []
    for kind in (torch.nn.GroupNorm, quick.QuickGroupNorm):
        norm.__class__, y = kind, x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        norm.zero_grad()
        out = norm(y)
        (out * torch.linspace(0, 1, 35).view(5, 7)).square().sum().backward()
        results.append((out, y.grad, norm.weight.grad.clone(), norm.bias.grad.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# Captions.


def test_the_first_models_prompts_are_single_tokens_a_word_and_couples_claim_by_side(small):
    texts, vocabulary, model = the("texts"), the("vocabulary"), the("model")
    clip = model.Tokenizer().clip
    for prompt in the("base").PREVIEW:
        if prompt.isascii():
            assert len(clip.tokenize(prompt)) == sum(vocabulary.words([prompt]).values()), prompt
    pair = next(seed for seed in range(400) if the("data").couple(seed))
    claims = texts.caption_of(pair, 0, empty=0).claims
    assert claims and all(name.split("_")[0] in ("left", "right") or name == "background" for name in claims)
    assert set(claims) <= set(texts.CLAIMS)
    written = texts.write(np.arange(12), forms=2)
    assert written.ids.shape == (12, 2, 77) and written.claims.shape == (12, 2, len(texts.CLAIMS))


# Stages.


@pytest.fixture(scope="module")
def begun(small):
    """The first stages, a few steps each."""
    run(small, "probe_train", "autoencoder", "text", "base")
    return small


def test_every_first_stage_runs_and_stock_diffusers_loads_the_folder(begun):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(begun.build / "folder", safety_checker=None)
    assert pipe.vae_scale_factor == 4 and type(pipe.scheduler).__name__ == "PNDMScheduler"
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a girl with pink hair", num_inference_steps=1, output_type="np").images.shape == (1, 128, 128, 3)
    assert abs(pipe.vae.config.scaling_factor - the("autoencoder").scaling(begun)) < 1e-6


def test_the_later_stages_run(begun):
    known = run(begun, "student")
    from safetensors import safe_open

    with safe_open(begun.build / "student.safetensors", "pt") as file:
        names = set(file.keys())
    assert names and all(name.startswith("unet.") and "lora_" in name for name in names)
    known = run(begun, "upscaler")
    assert {"over bicubic, clean (dB)", "edge band error"} <= set(known["figures"])
    known = run(begun, "animator")
    assert {"psnr", "controls: r, mean error"} <= set(known["figures"]) and (begun.build / "animator.png").exists()
    before = the("animation").load(begun)[1].state_dict()
    run(begun, "sharpening")
    after = the("animation").load(begun, "sharpening")[1].state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    known = run(begun, "tinyvae", "segmenter", "clip")
    assert any(name.startswith("R@1") for name in known["figures"])
    run(begun, "motions")
    check_folder(begun)


def test_pictures_differ_in_a_readers_maps_by_shares_of_those_maps():
    perceived = the("autoencoder").perceived
    x = torch.full((2, 3, 8, 8), 0.5)
    maps = lambda v: [v, 4 * v]  # noqa: E731  (each map counts by its own size)
    assert perceived(maps, x, x) == 0
    assert perceived(maps, x, 0.75 * x).item() == pytest.approx(0.25, rel=1e-3)
    y = (0.75 * x).requires_grad_()
    (slope,) = torch.autograd.grad(perceived(maps, x, y), y)
    assert (slope < 0).all()


def test_the_finetuned_animator_ships_only_where_the_judge_prefers_it(tmp_path):
    options = the("training").Options(root=tmp_path)
    options.weights.mkdir()
    (options.weights / "sharpening.safetensors").write_bytes(b"weights")
    digest = the("training").digest(options.weights / "sharpening.safetensors")
    chosen = the("animation").chosen
    assert chosen(options) == "animator"
    for marks, name in (
        ({"weights": digest, "preferred": True}, "sharpening"), ({"weights": digest, "preferred": False}, "animator"),
        ({"weights": "of others", "preferred": True}, "animator"),
    ):  # fmt: skip
        (tmp_path / "scores.json").write_text(json.dumps({"sharpening": marks}))
        assert chosen(options) == name


def test_a_critic_of_crops_sees_eyes_and_mouths_that_show(begun):
    sharpening = the("sharpening")
    b = the("animation").Pairs(begun).batch(np.random.RandomState(0), 4)
    pairs, controls, parts = sharpening.crops(b.targets, b)
    shown = (b.boxes[..., 2] > b.boxes[..., 0]).all(1)  # in both frames
    assert len(pairs) == int(shown.sum()) > 0 and pairs.shape[1:] == (6, 48, 48)
    assert parts.tolist() == [0] * int(shown[:, 0].sum()) + [1] * int(shown[:, 1].sum())
    assert torch.equal(controls, torch.cat([b.controls[shown[:, 0]], b.controls[shown[:, 1]]]))
    assert sharpening.CropCritic(8)(pairs, controls, parts).shape == (len(pairs),)


def check_folder(options):
    """What was trained lies in one folder: the trained networks, and what stock diffusers loads as its own."""
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    from hotloop.nets.parts import PARTS
    from hotloop_export.sources import open_source

    folder = options.root / "source"
    parts = the("folder").assemble(options, folder)
    assert parts == ["animator", "clip_image", "clip_text", "motions", "segmenter", "tiny_vae", "upscaler"]
    source = open_source(folder)
    assert source.family == "avatar" and set(source.tensors) == {"unet", "vae", "text_encoder", *parts}
    nets = {
        part.folder: part.choose(source.configs[part.folder]).from_tensors(
            source.configs[part.folder], source.tensors[part.folder]
        )
        for part in PARTS.values() if part.folder in parts
    }  # fmt: skip
    encoder, _ = the("animation").load(options)
    words = the("clip").load(options)[1]
    rgba, ids = torch.rand(1, 4, 128, 128), torch.tensor([[1097, 5, 6, 1098, 1098]])
    with torch.no_grad():
        torch.testing.assert_close(nets["animator"].encode(rgba)[5], encoder(rgba).reveal)
        torch.testing.assert_close(nets["clip_text"](ids), words(ids), atol=1e-5, rtol=1e-4)
        z = torch.randn(1, 4, 32, 32)
        tiny = AutoencoderTiny.from_pretrained(folder / "tiny_vae")
        torch.testing.assert_close(nets["tiny_vae"].decode(z), tiny.decode(z).sample, atol=1e-5, rtol=1e-4)
    assert nets["segmenter"].config["parts"] == list(the("render").PARTS)
    assert [name for name, _, _ in nets["motions"].config["controls"]] == list(the("controls").NAMES)
    assert StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).unet.config.sample_size == 32


def test_a_tuned_decoder_leaves_the_latents_alone(begun):
    autoencoder, training = the("autoencoder"), the("training")
    x = the("pixels").to_tensor(the("data").Shards(begun.build / "data", "even").rows(np.arange(2), "images")[0])
    before = autoencoder.load(begun)
    run(begun, "decoder")
    after = autoencoder.load(begun)
    torch.testing.assert_close(after.encode(x).latent_dist.mean, before.encode(x).latent_dist.mean)
    z = torch.randn(1, 4, 32, 32)
    assert not torch.equal(after.decode(z).sample, before.decode(z).sample)
    # Of other latents it is not taken.
    path = begun.weights / "decoder.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"needs": known["needs"] | {"autoencoder": "another"}}))
    torch.testing.assert_close(autoencoder.load(begun).decode(z).sample, before.decode(z).sample)
    assert training.progress(begun, "autoencoder")["segments"] == 1


def test_an_empty_lora_changes_nothing_and_only_it_is_trained(begun):
    base, student = the("base"), the("student")
    _, unet = base.load(begun)
    x, t, context = torch.randn(2, 4, 32, 32), torch.tensor([5, 900]), torch.randn(2, 77, 128)
    before = unet(x, t, context).sample
    lora = student.adapted(unet, 4)
    torch.testing.assert_close(unet(x, t, context).sample, before)
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in lora.parameters()}


def test_clips_begin_and_end_still_and_never_jump(small):
    motions, controls = the("motions"), the("controls")
    for name in motions.CLIPS:
        moved = motions.sequence(name, 100)
        assert moved.shape == (100, len(controls.NAMES))
        still = moved.copy()
        still[:, controls.NAMES.index("breath")] = 0
        assert np.abs(still[[0, -1]]).max() < 0.05 and np.abs(still).max() > 0.2, name
        assert np.abs(np.diff(moved, axis=0)).max() < 0.3, name
    run(small, "motions")


@pytest.mark.parametrize("name", ["gan", "gan-class", "dcgan", "wgan", "style", "cvae"])
def test_the_textbook_generators_run_and_become_folders(small, name, tmp_path):
    from hotloop.nets.generators import Critic
    from hotloop_export.generators import read_generator

    figures = run(replace(small, steps=3), name)["figures"]
    assert 1 <= figures["colours drawn"] <= 9
    the("textbook").write_folder(name, small, tmp_path)
    net, _ = read_generator(tmp_path)
    stored = the("training").load_file(small.weights / f"{name}.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, stored[f"generator.{key}"].to(value.dtype)), key
    hair = net.config.get("labels", {"hair": []})["hair"]
    assert len(hair) == net.classes and set(hair) <= set(the("render").ATTRIBUTES["hair"])
    if name != "cvae":
        critic = Critic.from_dir(tmp_path / "critic")
        assert (critic.size, critic.channels) == (net.size, net.channels)


def test_folding_centres_the_latents(begun):
    autoencoder, data = the("autoencoder"), the("data")
    images = data.Shards(begun.build / "data", "even").rows(np.arange(16), "images")[0]
    means, _ = autoencoder.encode(autoencoder.load(begun), images)
    scaled = means * autoencoder.scaling(begun)
    assert scaled.mean((0, 2, 3)).abs().max() < 0.05 and abs(float(scaled.std()) - 1) < 0.05


def test_losses_fall(small, tmp_path):
    """The probe learns 32 rows in a few dozen steps."""
    options = replace(small, steps=50, root=tmp_path)
    options.build.mkdir()
    (options.build / "data").symlink_to(small.build / "data")
    run(options, "probe_train")
    # 16 heads' chance level is 24, the first step stands at 26.
    assert the("train").progress(options, "probe_train")["figures"]["loss"] < 24


def test_a_stage_resumes_from_the_commit_alone_with_a_new_cosine(begun, tmp_path):
    """Killed, its build folder lost: weights/ is enough."""
    training, probe_train = the("training"), the("probe_train")
    import shutil

    shutil.copytree(begun.weights, tmp_path / "weights")
    options = replace(begun, root=tmp_path)
    stage = replace(the("train").STAGES["probe_train"], segments=(1, 1))
    needs = training.progress(options, "probe_train")["needs"]
    fresh = probe_train.Probe()
    again = training.Run(stage, {"probe": fresh}, options, needs=needs)
    stored = probe_train.load(options)
    for a, b in zip(fresh.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert again.step == 6 and again.segment == 1 and again.part == 0 and again.rate() < 0.1 * stage.peak
    assert not again.optimizer.state


def test_a_stopped_stage_goes_on_inside_its_segment(begun, tmp_path, monkeypatch):
    training = the("training")
    options = replace(begun, root=tmp_path, steps=0)
    stage = training.Stage("part", "part", (10, 10), peak=1e-2)
    now = [0.0]
    monkeypatch.setattr(training.Run, "_now", lambda self: now[0])

    def begin():
        torch.manual_seed(0)
        return training.Run(stage, {"net": torch.nn.Linear(3, 1)}, options, needs={"a": "1"})

    one = begin()
    for _ in range(4):
        now[0] += 1
        one.descend(one.modules["net"](torch.ones(2, 3)).square().mean())
    assert one.close() is False and training.progress(options, "part")["segments"] == 0
    two = begin()
    assert two.step == 4 and two.spent == 4 and two.optimizer.state
    one.local.unlink()
    three = begin()
    assert three.spent == 4 and three.rate() < 0.1 * stage.peak  # the rest of the segment, warming up
    now[0] += 4
    three.count()
    assert 0.2 * stage.peak < three.rate() < 0.9 * stage.peak
    now[0] += 3
    three.count()
    assert not three.going() and three.close() is True
    assert training.progress(options, "part")["segments"] == 1
    assert begin().segment == 1


def test_weights_of_other_versions_are_never_mixed_silently(begun, tmp_path):
    training, probe_train, train = the("training"), the("probe_train"), the("train")
    stage = train.STAGES["probe_train"]
    with pytest.raises(SystemExit, match="other versions"):
        training.Run(stage, {"probe": probe_train.Probe()}, begun, needs={"renderer": "tomorrow's"})
    adopted = training.Run(stage, {"probe": probe_train.Probe()}, replace(begun, adopt=True), needs={"renderer": "x"})
    assert adopted.step == 6


def test_training_waits_while_somebody_measures(monkeypatch, tmp_path):
    training = the("training")
    monkeypatch.setattr(training, "PAUSE", tmp_path / "pause")
    assert not training.paused()
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: None)
        with training.quiet():
            assert training.paused()
    assert not training.paused()
    training.PAUSE.write_text("999999999")  # who paused is gone
    assert not training.paused() and not training.PAUSE.exists()
    the("train").main(["--pause"])
    assert training.paused()
    the("train").main(["--resume"])
    assert not training.paused()


def test_two_processes_never_work_at_one_stage(tmp_path):
    train, training = the("train"), the("training")
    options = training.Options(root=tmp_path)
    with train._locked(options, "base") as mine:
        assert mine
        with train._locked(options, "base") as also:
            assert not also
    with train._locked(options, "base") as mine:
        assert mine


def test_the_queue_names_stages_that_exist_and_every_stage():
    train = the("train")
    assert {name for name, _ in train.QUEUE} == set(train.STAGES)
    for stage in train.STAGES.values():
        assert max(stage.segments) <= 60
        assert max(k for name, k in train.QUEUE if name == stage.name) == len(stage.segments)
        assert set(stage.needs) <= set(train.STAGES) and set(stage.data) <= set(train.DATA)
        assert (HERE / f"{stage.module}.py").exists()


def test_nothing_is_built_on_an_autoencoder_that_failed_its_gate(tmp_path):
    train, training = the("train"), the("training")
    options = training.Options(root=tmp_path)
    options.weights.mkdir()
    done = {"segments": 9, "figures": {"gate": False}}
    for name in train.STAGES:
        (options.weights / f"{name}.json").write_text(json.dumps(done))
    assert train._missing(options, train.STAGES["base"]) == ["the autoencoder's gate"]
    assert not train._missing(replace(options, adopt=True), train.STAGES["base"])
    (options.weights / "autoencoder.json").write_text(json.dumps(done | {"figures": {"gate": True}}))
    assert not train._missing(options, train.STAGES["base"])


# Who judges.


def test_nothing_that_trains_or_ranks_imports_the_judge():
    allowed = {"probe_judge.py", "score.py"}
    for path in HERE.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        assert "probe_judge" not in names or path.name in allowed, path.name


@pytest.mark.parametrize("path", sorted((HERE / "weights").glob("*.json")), ids=lambda path: path.stem)
def test_committed_weights_are_those_of_their_progress_and_small(path):
    known, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
    assert known["weights"] == the("training").digest(weights)
    assert os.path.getsize(weights) <= 12e6
