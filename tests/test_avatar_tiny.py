"""The built-in model's recipe: renderer, captions, vocabulary, and a very short run of every training stage."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

HERE = Path(__file__).resolve().parents[1] / "models" / "avatar_tiny"
sys.path.insert(0, str(HERE))

import captions  # noqa: E402
import data  # noqa: E402
import model  # noqa: E402
import probe  # noqa: E402
import render  # noqa: E402
import score  # noqa: E402
import train_diffusion  # noqa: E402
import train_vae  # noqa: E402
import vocabulary  # noqa: E402
from training import Run, batches  # noqa: E402

FACES = [render.sample_face(seed) for seed in range(400)]
PLAIN = replace(
    FACES[0], hair="pink", style="long", eyes="green", skin="pale", expression="neutral", glasses="none",
    accessory="none", clothes="hoodie", colour="blue", background="gray", person="girl", floating="none",
    detail="none", defect="none",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return data.draw(data.seeds(96, held=False))


# Renderer.


def test_same_seed_gives_the_same_bytes():
    for face in FACES[:20]:
        first = render.render(face)
        render.render(FACES[50])
        assert first.image.tobytes() == render.render(face, masks=True).image.tobytes()
        assert face == render.sample_face(face.seed)


def test_every_value_of_every_attribute_is_drawn_and_changes_the_picture():
    for name, values in render.ATTRIBUTES.items():
        pictures = {value: render.render(replace(PLAIN, **{name: value})).image.tobytes() for value in values}
        assert len(set(pictures.values())) == len(values), name


def test_masks_cover_each_pixel_once_and_boxes_hold_them():
    for face in FACES[:20]:
        drawn = render.render(face, 64, masks=True)
        assert set(drawn.masks) == set(render.PARTS)
        np.testing.assert_allclose(sum(drawn.masks.values()), 1, atol=1e-5)
        for part in ("hair", "eyes", "mouth", "clothes"):
            rows, columns = np.nonzero(drawn.masks[part] > 0.5)
            if len(rows) and face.defect != "cropped":
                x0, y0, x1, y1 = drawn.boxes[part]
                assert columns.min() >= x0 * 64 - 2 and columns.max() <= x1 * 64 + 2, part
                assert rows.min() >= y0 * 64 - 2 and rows.max() <= y1 * 64 + 2, part


@pytest.mark.parametrize("name, value, parts", [
    ("hair", "blue", {"hair", "face"}), ("eyes", "red", {"eyes"}), ("colour", "red", {"clothes"}),
    ("background", "night", {"background"}),
])  # fmt: skip
def test_an_attribute_changes_pixels_of_its_own_parts_only(name, value, parts):
    before, after = (render.render(f, 64, masks=True) for f in (PLAIN, replace(PLAIN, **{name: value})))
    changed = (before.image != after.image).any(-1)
    covered = sum(before.masks[part] for part in parts) > 0
    assert changed.sum() > 20
    assert not (changed & ~covered).any()


def test_hair_mask_covers_pixels_of_the_hair_colour():
    drawn = render.render(PLAIN, 128, masks=True)
    inside = drawn.image[drawn.masks["hair"] > 0.99]
    assert len(inside) > 1000
    np.testing.assert_allclose(np.median(inside, axis=0), render.HAIR["pink"], atol=2)


def test_the_picture_is_the_same_at_every_size():
    from PIL import Image

    for face in (PLAIN, FACES[1]):
        large = Image.fromarray(render.render(face, 192).image).resize((64, 64), Image.Resampling.BOX)
        difference = np.abs(np.asarray(large, np.float32) - render.render(face, 64).image)
        assert difference.mean() < 4


# Split.


def test_held_out_combinations_are_two_per_cent_and_never_trained_on():
    trained = {replace(render.sample_face(s), seed=0) for s in data.seeds(4000, held=False)}
    held = {replace(render.sample_face(s), seed=0) for s in data.seeds(60, held=True)}
    assert not trained & held
    share = np.mean([render.held_out(render.sample_face(s)) for s in range(8000)])
    assert 0.014 < share < 0.026
    assert all(render.held_out(replace(face, seed=7)) == render.held_out(face) for face in FACES)


# Captions and vocabulary.

SYNONYMS = {
    ("hair", "silver"): ("silver hair", "white hair", "silver", "银色头发"), ("hair", "blonde"): ("blond", "金色头发"),
    ("expression", "neutral"): ("neutral", "calm", "平静"), ("expression", "happy"): ("happy", "smil", "开心"),
    ("expression", "angry"): ("angry", "愤怒"), ("expression", "cold"): ("cold", "冷漠"),
    ("expression", "sad"): ("sad", "crying", "悲伤"), ("expression", "surprised"): ("surprised", "shocked", "惊讶"),
    ("style", "twin tails"): ("twin tails", "twintails", "双马尾"), ("style", "ponytail"): ("ponytail", "马尾"),
    ("style", "short"): ("short", "短发"), ("style", "long"): ("long", "长发"),
    ("glasses", "none"): ("no glasses",), ("glasses", "round"): ("round glasses", "圆形眼镜"),
    ("glasses", "square"): ("square glasses", "方形眼镜"), ("person", "girl"): ("girl", "女孩"),
    ("person", "boy"): ("boy", "男孩"),
}  # fmt: skip


def test_captions_state_what_they_claim_and_claim_only_what_is_drawn():
    for seed in range(3000):
        face = render.sample_face(seed)
        caption = captions.make_caption(face, seed)
        text = caption.text.lower().replace("_", " ")
        for name, value in caption.claims.items():
            assert getattr(face, name) == value
            chinese = captions.CHINESE_COLOURS.get(value, "?") + {"hair": "头发", "eyes": "眼睛"}.get(name, "?")
            words = (*SYNONYMS.get((name, value), (value,)), chinese)
            assert any(word in text for word in words), (name, value, text)


def test_colours_are_written_beside_their_own_noun():
    for seed in range(2000):
        face = render.sample_face(seed)
        text = captions.full_prompt(face, seed).text.lower().replace("_", " ")
        assert f"{face.eyes} eyes" in text
        assert f"{face.colour} {face.clothes}" in text


def test_defect_words_are_never_dropped_and_a_tenth_of_captions_is_empty():
    damaged = [face for face in (render.sample_face(s) for s in range(2000)) if face.defect != "none"]
    assert 200 < len(damaged) < 400
    for face in damaged:
        assert face.defect in captions.make_caption(face, face.seed).text.replace("_", " ")
    empty = np.mean([captions.make_caption(FACES[0], seed, empty=0.1).text == "" for seed in range(3000)])
    assert 0.08 < empty < 0.12


@pytest.fixture(scope="module")
def clip():
    return transformers.CLIPTokenizer.from_pretrained(HERE / "tokenizer")


def test_the_vocabulary_has_a_token_for_every_word_of_the_grammar(clip):
    texts = [captions.make_caption(render.sample_face(s), s).text for s in range(20_000, 21_500)]
    texts += [captions.full_prompt(render.sample_face(s), s).text for s in range(20_000, 20_500)]
    lengths = []
    for text in texts:
        tokens = clip.tokenize(text)
        lengths.append(len(tokens) + 2)
        if text.isascii():
            assert len(tokens) == sum(vocabulary.words([text]).values()), tokens
    assert max(lengths) <= 77


def test_any_text_encodes_without_unknown_tokens(clip):
    for text in ("Ωmega ünïcode", "🙂🚀 emoji", "한국어 русский", "tab\tand\nnewline", "x" * 30):
        ids = clip(text).input_ids
        assert ids[0] == clip.bos_token_id and ids[-1] == clip.eos_token_id
        assert clip.eos_token_id not in ids[1:-1]
        assert clip.decode(ids, skip_special_tokens=True).replace(" ", "") == "".join(text.lower().split())


def test_merges_are_learned_most_frequent_pair_first_and_the_committed_ids_are_dense():
    counts = vocabulary.words(["pink hair, pink eyes", "粉色头发"])
    merges = vocabulary.learn(counts)
    assert merges[0][0] + merges[0][1] in "pink</w>"
    ids = json.loads((HERE / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    lines = (HERE / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(ids.values()) == list(range(len(ids)))
    assert len(ids) == 512 + len(lines) - 1 + 2


# Training stages, each for a few steps.


def _falls(losses: list[float], share: float) -> bool:
    return float(np.mean(losses[-5:])) < share * float(np.mean(losses[:3]))


@pytest.mark.long  # the first model is trained
def test_a_few_steps_teach_the_autoencoder_and_folding_centres_it_exactly(tiny, tmp_path):
    torch.manual_seed(0)
    vae = train_vae.make_vae(block_out_channels=(16, 16, 16))
    losses = train_vae.train(tiny, Run(tmp_path / "vae.pt", steps=14, peak=6e-3), batch=8, vae=vae)
    assert _falls(losses, 0.7)
    vae.eval().requires_grad_(False)
    x = train_vae.to_tensor(tiny["images"][:4])
    before = vae.decode(vae.encode(x).latent_dist.mode()).sample
    scaling = train_vae.fold(vae, tiny["images"])
    torch.testing.assert_close(vae.decode(vae.encode(x).latent_dist.mode()).sample, before, atol=2e-4, rtol=1e-3)
    means, _ = train_vae.encode(vae, tiny["images"])
    # The encoding runs in bfloat16: three digits.
    assert means.mean((0, 2, 3)).abs().max() < 0.02 / scaling
    assert abs((means * scaling).std().item() - 1) < 0.01

    # The decoder may learn on alone: the latents of the finished model must not move.
    # Eight faces, all in every batch: a loss that falls is learning and not the luck of the batch.
    few = {name: array[:8] for name, array in tiny.items()}
    stored = {"means": (means * scaling)[:8], "stds": torch.zeros_like(means[:8]), "scaling": scaling}
    losses = train_vae.tune_decoder(vae, few, stored, Run(tmp_path / "unused", steps=14, peak=6e-3), batch=8)
    assert _falls(losses, 0.95)
    torch.testing.assert_close(train_vae.encode(vae, tiny["images"])[0], means)


def test_an_interrupted_stage_goes_on_where_it_stopped(tiny, tmp_path):
    def vae():
        return train_vae.make_vae(block_out_channels=(16, 16, 16))

    path = tmp_path / "vae.pt"
    train_vae.train(tiny, Run(path, steps=4), batch=4, vae=vae())
    again = Run(path, steps=10)
    assert len(train_vae.train(tiny, again, batch=4, vae=vae())) == 6
    assert again.step == 10


def test_a_few_steps_teach_the_probe(tiny, tmp_path):
    judge, losses = probe.train(tiny, Run(tmp_path / "unused", steps=40, peak=2e-3), batch=24)
    assert _falls(losses, 0.8)
    guesses, features = probe.predict(judge, tiny["images"][:8])
    assert guesses.shape == (8, len(render.ATTRIBUTES)) and features.shape == (8, 128)


@pytest.mark.long
def test_a_few_steps_teach_text_encoder_and_unet_and_stock_diffusers_loads_them(tiny, tmp_path):
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    written = train_diffusion.write_captions(tiny["seeds"])
    text = model.make_text_encoder(num_hidden_layers=1)
    reader = train_diffusion.Reader(128)
    losses = train_diffusion.pretrain_text(
        text, reader, written, Run(tmp_path / "unused", steps=24, peak=4e-3), batch=16
    )
    assert _falls(losses, 0.8)

    # Widths of 32 and 48 keep the head size whole and the test short.
    unet = model.make_unet(block_out_channels=(32, 32, 48), attention_head_dim=2)
    latents = {
        "means": torch.randn(96, 4, 16, 16) * torch.linspace(0.2, 1.5, 4).view(4, 1, 1),
        "stds": torch.zeros(96, 4, 16, 16),
    }
    detail = train_diffusion.detail_cells(tiny["detail"])
    assert detail.shape == (96, 1, 16, 16) and detail.min() >= 0 and detail.max() <= 1
    saved = []
    run = Run(tmp_path / "diffusion.pt", steps=18, peak=4e-3)
    losses = train_diffusion.train(
        text, unet, reader, written, latents, detail, run, batch=8, on_save=lambda *_: saved.append(1)
    )
    assert _falls(losses, 0.8) and saved == [1]

    model.write_folder(tmp_path / "folder", text.eval(), unet.eval(), train_vae.make_vae(scaling_factor=0.7))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert type(pipe.scheduler).__name__ == "PNDMScheduler" and pipe.vae_scale_factor == 4
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a girl with pink hair", num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)


def test_the_learning_rate_follows_the_clock(monkeypatch, tmp_path):
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = Run(tmp_path / "x", minutes=10, peak=1.0, warmup=0.1)
    rates = []
    for now[0] in (0, 60, 300, 599):
        rates.append(run.rate())
    assert rates[0] < 0.1 and rates[1] == pytest.approx(1.0, abs=0.01) and 0.3 < rates[2] < 0.7 and rates[3] < 0.02
    now[0] = 600
    assert run.done


def test_every_pass_over_the_data_visits_everything_once():
    stream = batches(12, 4, 0)
    for _ in range(3):
        assert sorted(np.concatenate([next(stream) for _ in range(3)])) == list(range(12))


# Judging.


def test_only_what_a_prompt_states_is_scored():
    texts, truth = score.claimed([PLAIN])
    column = {name: i for i, name in enumerate(render.ATTRIBUTES)}
    assert "pink" in texts[0].lower()
    assert truth[0, column["accessory"]] == -1 and truth[0, column["hair"]] == render.ATTRIBUTES["hair"].index("pink")


@pytest.mark.skipif(not probe.PATH.exists(), reason="no probe trained yet")
def test_the_committed_probe_reads_held_out_renders():
    held = data.draw(data.seeds(300, held=True))
    guesses, _ = probe.predict(probe.load_probe(), held["images"])
    accuracy = probe.accuracy(guesses, probe.clean_truth(held["labels"]))
    # Nothing but lashes and jaw tells a "person" from a girl or a boy.
    assert accuracy.pop("person") > 0.85
    assert min(accuracy.values()) > 0.98
    assert probe.PATH.stat().st_size < 1_000_000
