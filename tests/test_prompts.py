"""A1111's prompt editing, alternating words, AND and BREAK: tables of texts, rows and tokens, and stock networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hotloop.denoiser import Composed, Composition, Words
from hotloop.errors import InputError, TruncationWarning
from hotloop.prompts import Part, Prompt, parts

# Ten steps: (last step, text), as A1111's own tests have them.
EDITED = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)],
    "[fe|]male": [(step, "female" if step % 2 else "male") for step in range(1, 11)],
    "[fe|||]male": [(step, "female" if step % 4 == 1 else "male") for step in range(1, 11)],
    # Not from there: forms and letters that only look like them.
    "[a::4] b": [(4, "a b"), (10, " b")],
    "[a:b:99]": [(10, "a")],
    "[a:b:-1]": [(10, "b")],
    r"[a\:b:3]": [(3, ""), (10, r"a\:b")],
    r"\[a:b:3]": [(10, r"\[a:b:3]")],
    "[a]": [(10, "[a]")],
    "[a:b]": [(10, "[a:b]")],
    "[a:b:c:3]": [(10, "[a:b:c:3]")],
    "16:9 | [x:3": [(10, "16:9 | [x:3")],
    "[[a|b]:c:2]": [(1, "a"), (2, "b"), (10, "c")],
    "(a [b:c:4]:1.3)": [(4, "(a b:1.3)"), (10, "(a c:1.3)")],
    "\\": [(10, "\\")],
}
STEPS = 5
QUICK: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "sampler": "euler", "seed": 11}


# Texts.


@pytest.mark.parametrize("text", EDITED)
def test_an_edited_prompt_is_the_text_that_the_table_has(text: str) -> None:
    prompt = Prompt(text)
    for step in range(1, 11):
        assert prompt.at(step, 10) == next(said for last, said in EDITED[text] if step <= last)
    assert prompt.changes == (len({said for _, said in EDITED[text]}) > 1 or text in ("[a:b:99]", "[a:b:-1]"))


@pytest.mark.parametrize(("text", "last"), [("a [b:.5] c", 0), ("a [b:1.5] c", 5), ("a [b:12] c", 2), ("a [b:9] c", 0)])
def test_of_the_second_pass_shares_go_from_one_to_two_and_numbers_go_on(text: str, last: int) -> None:
    """Ten steps of the first pass, ten of the second."""
    said = [Prompt(text).at(step, 10, before=10) for step in range(1, 11)]
    assert said == ["a  c"] * last + ["a b c"] * (10 - last)


def test_and_splits_words_of_their_own_and_reads_weights() -> None:
    assert parts("a cat :1.2 AND a dog AND SAND:-.5") == [Part("a cat ", 1.2), Part(" a dog "), Part(" SAND", -0.5)]
    assert parts("a ratio of 16:9") == [Part("a ratio of 16:9")]
    assert parts("LAND and (b:1.2) AND c:x") == [Part("LAND and (b:1.2) "), Part(" c:x")]


@pytest.mark.parametrize(("text", "rule"), [
    (" AND ".join("a" * 17), "at most 16 prompts"), ("a AND b:101", "from -100 to 100"), ("[" * 101, "100 deep"),
    ("[a:(" * 60, "100 deep"),
])  # fmt: skip
def test_what_goes_too_far_is_one_line(text: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        [Prompt(part.text) for part in parts(text)]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_many_brackets_take_no_time() -> None:
    """Each is read once, whether it closes or not: to read again what stands in it would double with every one."""
    assert Prompt("[a:b " * 99).changes is False
    assert Prompt("[a|b] (c) [d:e:3] " * 3000).at(9, 9).startswith("a (c) e a (c) e")


# Tokens.


def test_behind_break_a_window_begins(pipe: Any) -> None:
    tokenizer, plain = pipe.tokenizer, lambda text: pipe.tokenizer.encode(text, syntax="plain").ids[0, 0]
    for text, said in {
        "a girl BREAK pink hair": ["a girl", "pink hair"], "a girl\nBREAK\n": ["a girl"], "BREAK a": ["", "a"],
        "a BREAK BREAK b": ["a", "", "b"], "BREAKFAST": ["BREAKFAST"],
    }.items():  # fmt: skip
        assert np.array_equal(tokenizer.encode(text).ids[0], [plain(one) for one in said])
    both = tokenizer.encode("(a girl BREAK pink:1.3) hair")
    assert both.weights[0, 0, 1:4].tolist() == pytest.approx([1.3, 1.3, 1.0])
    assert both.weights[0, 1, 1:4].tolist() == pytest.approx([1.3, 1.0, 1.0])
    assert tokenizer.encode("a BREAK b", syntax="plain").ids.shape[1] == 1
    with pytest.warns(TruncationWarning, match="dropped: x x"):
        assert tokenizer.encode("x " * 77 + "BREAK y").ids.shape[1] == 2
    assert tokenizer.encode("x " * 77 + "BREAK y", long_prompt="chunk").ids.shape[1] == 3
    with pytest.raises(InputError, match="at most 32 windows"):
        tokenizer.encode("a BREAK " * 40)


# Pictures: stock networks, told by hand.


def states(stock: Any, text: str) -> torch.Tensor:
    """[1, 77 a window, C]; windows as a list."""
    pipe = stock.txt2img
    each = []
    for one in text.split(" BREAK "):
        ids = pipe.tokenizer(one, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        each.append(pipe.text_encoder(ids)[0])
    return torch.cat(each, dim=1)


def drawn(stock: Any, said: list[list[tuple[str, float]]], negative: list[str], noise: np.ndarray) -> np.ndarray:
    """Latents of Euler's steps of guidance 3; said: of every step its texts and their weights."""
    stock.use("euler")
    scheduler, unet = stock.txt2img.scheduler, stock.txt2img.unet
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t, texts, against in zip(scheduler.timesteps, said, negative, strict=True):
            told = scheduler.scale_model_input(x, t)
            longest = max(len(one.split(" BREAK ")) for one in (against, *(text for text, _ in texts)))
            each = [against, *(text for text, _ in texts)]
            padded = [one + " BREAK " * (longest - 1 - one.count(" BREAK ")) for one in each]
            unguided, *others = (unet(told, t, states(stock, one)).sample for one in padded)
            moves = [weight * (one - unguided) for one, (_, weight) in zip(others, texts, strict=True)]
            x = scheduler.step(unguided + 3.0 * sum(moves), t, x).prev_sample
    return x.numpy()


EDITING = [[("a smiling girl", 1.0)]] * 2 + [[("a smiling boy", 1.0)]] * 3
CASES = {
    "editing": ("a smiling [girl:boy:2]", "", EDITING, [""] * 5),
    "alternating": ("a [girl|boy] with a hat", "", [[(f"a {one} with a hat", 1.0)] for one in
                    ("girl", "boy", "girl", "boy", "girl")], [""] * 5),
    "and": ("a girl with pink hair AND a girl with glasses :0.4 AND a boy :-0.3", "sad",
            [[("a girl with pink hair ", 1.0), (" a girl with glasses ", 0.4), (" a boy ", -0.3)]] * 5, ["sad"] * 5),
    "negative": ("a girl", "[angry:sad:.5]", [[("a girl", 1.0)]] * 5, ["angry"] * 2 + ["sad"] * 3),
    "break": ("a girl BREAK pink hair", "", [[("a girl BREAK pink hair", 1.0)]] * 5, [""] * 5),
    "all": ("a [girl:boy:3] AND glasses BREAK angry:.5", "blue",
            [[("a girl ", 1.0), (" glasses BREAK angry", 0.5)]] * 3
            + [[("a boy ", 1.0), (" glasses BREAK angry", 0.5)]] * 2, ["blue"] * 5),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_latents_are_those_of_stock_networks_told_by_hand(pipe: Any, stock: Any, case: str) -> None:
    prompt, against, said, negative = CASES[case]
    got = pipe.txt2img(prompt, against, **QUICK)
    noise = torch.randn(got.latents.shape, generator=torch.Generator().manual_seed(11)).numpy()
    want = drawn(stock, said, negative, noise)
    assert np.abs(got.latents - want).max() <= 1e-3
    plain = pipe.txt2img(prompt, against, **QUICK, prompt_syntax="plain").latents
    assert np.abs(plain - want).max() > 0.05, "the syntax makes no difference here"


@pytest.mark.parametrize(("engine", "bound"), [("onnx", 0.0), ("native", 1e-4)])
def test_an_image_is_its_single_run_and_no_change_is_no_change(engine: str, bound: float) -> None:
    import hotloop

    pipe = hotloop.load("avatar-tiny", engine=f"{engine}-fp32", threads=1)
    prompts = ["a boy", "a girl AND a hat", "a [cat|girl]"]
    together = pipe.txt2img(prompts, **QUICK | {"seed": [1, 2, 3]}).latents
    for i, prompt in enumerate(prompts):
        assert np.abs(together[i] - pipe.txt2img(prompt, **QUICK | {"seed": i + 1}).latents[0]).max() <= bound
    same = pipe.txt2img("a [smiling:smiling:2] girl", **QUICK)
    assert np.array_equal(same.latents, pipe.txt2img("a smiling girl", **QUICK).latents)
    assert 0 < same.timings["engine"] <= same.timings["loop"]


def test_the_same_prompt_twice_is_twice_the_guidance(pipe: Any) -> None:
    twice = pipe.txt2img("a girl AND a girl", **QUICK).latents
    assert np.abs(twice - pipe.txt2img(" a girl", **QUICK | {"guidance_scale": 6.0}).latents).max() <= 1e-3


def test_without_guidance_and_counts_from_the_empty_prompt(pipe: Any) -> None:
    off = QUICK | {"guidance_scale": 1.0}
    twice = pipe.txt2img("a girl AND a girl", **off).latents
    assert np.abs(twice - pipe.txt2img("a girl", **off | {"guidance_scale": 2.0}).latents).max() <= 1e-3


def test_the_steps_of_a_sampler_of_second_order_and_of_a_share_are_steps(pipe: Any) -> None:
    for more in ({"sampler": "heun"}, {"sampler": "dpmpp_2m"}):
        edited = pipe.txt2img("a [girl:boy:2]", **QUICK | more)
        assert not np.array_equal(edited.latents, pipe.txt2img("a girl", **QUICK | more).latents)
    first = pipe.txt2img("a girl", **QUICK).images[0]
    given = QUICK | {"num_inference_steps": 10, "strength": 0.4}
    halves = pipe.img2img("a [girl:boy:.5]", image=first, **given).latents
    assert np.array_equal(halves, pipe.img2img("a [girl:boy:2]", image=first, **given).latents)


def test_the_second_pass_of_hires_is_told_its_own_words(pipe: Any) -> None:
    given = QUICK | {"hires": 2.0, "hires_strength": 0.5, "hires_fidelity": 0.0}
    late = pipe.txt2img("a girl [angry:1.0]", **given)
    plain = pipe.txt2img("a girl ", **given)
    first = pipe.txt2img("a girl [angry:1.0]", **QUICK).latents
    assert np.array_equal(first, pipe.txt2img("a girl ", **QUICK).latents)
    assert not np.array_equal(late.latents, plain.latents)


def test_what_cannot_be_drawn_so_is_one_line(pipe: Any) -> None:
    many = "|".join(f"a{i}" for i in range(30))
    with pytest.raises(InputError, match="at most 256 texts"):
        pipe.txt2img([f"[{many}] {i}" for i in range(10)], **QUICK | {"num_inference_steps": 30})
    with pytest.raises(InputError, match="one number of 75-token windows"):
        pipe.txt2img(["a girl", "a BREAK b"], **QUICK)
    with pytest.raises(InputError, match="for calls, not for streams"):
        pipe.live(prompt="a [girl:boy:2]")


def test_outputs_are_put_together_as_the_equation_says() -> None:
    """Oracle: the equation in float64, on networks that are affine in x with a coefficient of each text."""
    rng = np.random.default_rng(4)
    states_, x = rng.standard_normal((4, 1, 3)).astype(np.float32), rng.standard_normal((2, 4, 2, 2)).astype(np.float32)
    seen: list[dict[str, np.ndarray]] = []

    class Affine:
        def begin(self, cond: Any, table: Any, shape: tuple[int, ...]) -> None:
            assert len(cond["context"]) == shape[0]
            seen.append(cond)

        def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, None]:
            told = seen[-1]
            return x * told["context"][:, :, :1, None] + told["extra"], None

    extra = rng.standard_normal((2, 1, 1, 1)).astype(np.float32)
    words = Words((((1, 0.5), (2, -2.0)), ((3, 1.0),)), (0, 2))
    denoiser = Composed(Affine(), Composition(states_, (words,)))  # type: ignore[arg-type]
    denoiser.begin({"extra": extra}, None, x.shape)  # type: ignore[arg-type]
    m_c, m_u = denoiser.step(x, np.zeros(2, np.int32))
    assert m_u is not None

    def m(text: int, i: int) -> np.ndarray:
        return x[i].astype(np.float64) * float(states_[text, 0, 0]) + float(extra[i, 0, 0, 0])

    np.testing.assert_allclose(m_u[0], m(0, 0), atol=1e-6)
    np.testing.assert_allclose(m_u[1], m(2, 1), atol=1e-6)
    np.testing.assert_allclose(m_c[0], m(0, 0) + 0.5 * (m(1, 0) - m(0, 0)) - 2 * (m(2, 0) - m(0, 0)), atol=1e-5)
    np.testing.assert_allclose(m_c[1], m(3, 1), atol=1e-6)
