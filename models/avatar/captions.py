"""Captions for rendered faces: sentences, tag lists and a few Chinese words, and what each of them claims.

The first edition's words, and more: ages, three-quarter views, two people. A caption mentions each attribute with
chance 0.7 (defects always), so that a prompt may leave anything open. Hair and eye colour stand side by side often, in
both `purple_hair` and `purple hair` forms: which colour belongs to which noun is the hardest thing for a small text
encoder to learn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from render_people import Face, Two

__all__ = ["Caption", "full_prompt", "make_caption", "two_caption"]


@dataclass(frozen=True)
class Caption:
    """text, and the attributes it states exactly (name -> value; of two people left_name and right_name); "glasses"
    alone names no kind and claims nothing."""

    text: str
    claims: dict[str, str]


HAIR_WORDS = {"silver": ("silver", "silver", "white"), "blonde": ("blonde", "blonde", "blond")}
STYLE_TAGS = {
    "short": ("short hair",), "long": ("long hair",), "bob": ("bob cut", "bob"), "ponytail": ("ponytail",),
    "twin tails": ("twin tails", "twintails"), "spiky": ("spiky hair",),
}  # fmt: skip
EXPRESSION_TAGS = {
    "neutral": ("neutral", "neutral expression", "calm"), "happy": ("happy", "smile", "smiling", "happy expression"),
    "angry": ("angry", "angry expression"), "cold": ("cold", "cold expression", "cold look"),
    "sad": ("sad", "crying", "sad expression"), "surprised": ("surprised", "surprised expression", "shocked"),
}  # fmt: skip
EXPRESSION_ADJECTIVES = {
    "neutral": ("calm",), "happy": ("smiling", "happy"), "angry": ("angry",), "cold": ("cold",),
    "sad": ("sad", "crying"), "surprised": ("surprised",),
}  # fmt: skip
EXPRESSION_CLAUSES = {
    "neutral": ("with a neutral expression", "looking calm"),
    "happy": ("smiling", "with a happy smile", "looking happy"),
    "angry": ("looking angry", "with an angry expression"), "cold": ("with a cold expression", "with a cold look"),
    "sad": ("looking sad", "crying", "with a sad expression"),
    "surprised": ("looking surprised", "with a surprised expression"),
}  # fmt: skip
BACKGROUND_TAGS = {
    "white": ("white background", "simple white background"), "blue sky": ("blue sky", "blue sky background"),
    "pink": ("pink background",), "green": ("green background",), "gray": ("gray background",),
    "night": ("night", "night sky"), "sunset": ("sunset",), "city": ("city", "city background"),
}  # fmt: skip
BACKGROUND_CLAUSES = {
    "white": ("on a white background",), "blue sky": ("under a blue sky",), "pink": ("on a pink background",),
    "green": ("on a green background",), "gray": ("on a gray background",),
    "night": ("at night", "under the night sky"),
    "sunset": ("at sunset",), "city": ("in the city",),
}  # fmt: skip
PERSON_TAGS = {
    "girl": ("1girl", "girl", "anime girl"),
    "boy": ("1boy", "boy", "anime boy"),
    "person": ("person", "1person"),
}
# (person, age) -> what the person is called.
NOUNS = {
    ("girl", "adult"): ("girl", "girl", "girl", "woman"), ("boy", "adult"): ("boy", "boy", "boy", "man"),
    ("person", "adult"): ("person",),
    ("girl", "child"): ("little girl", "child", "young girl"), ("boy", "child"): ("little boy", "child", "young boy"),
    ("person", "child"): ("child", "kid"),
    ("girl", "elder"): ("old woman", "elderly woman", "grandmother"),
    ("boy", "elder"): ("old man", "elderly man", "grandfather"), ("person", "elder"): ("old person", "elderly person"),
}  # fmt: skip
AGE_TAGS = {"adult": ("adult",), "child": ("child",), "elder": ("elderly", "old")}
VIEW_TAGS = {
    "front": ("front view", "looking at viewer"), "left": ("facing left", "looking left", "three-quarter view"),
    "right": ("facing right", "looking right", "three-quarter view"),
}  # fmt: skip
VIEW_CLAUSES = {
    "front": ("facing the viewer",), "left": ("facing left", "looking to the left", "in three-quarter view"),
    "right": ("facing right", "looking to the right", "in three-quarter view"),
}  # fmt: skip
CHINESE_COLOURS = {
    "black": "黑色", "brown": "棕色", "blonde": "金色", "golden": "金色", "red": "红色", "pink": "粉色",
    "purple": "紫色", "blue": "蓝色", "green": "绿色", "silver": "银色",
}  # fmt: skip
CHINESE = {
    "style": {"short": "短发", "long": "长发", "ponytail": "马尾", "twin tails": "双马尾"},
    "expression": {
        "neutral": "平静", "happy": "开心", "angry": "愤怒", "cold": "冷漠", "sad": "悲伤", "surprised": "惊讶",
    },
    "glasses": {"round": "圆形眼镜", "square": "方形眼镜"},
    "person": {"girl": "女孩", "boy": "男孩"}, "age": {"child": "小孩", "elder": "老人"},
}  # fmt: skip


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


class _Writer:
    """Turns the attributes that a caption may mention into words, and keeps count of what was claimed."""

    def __init__(self, face: Face, kept: set[str], rng: random.Random) -> None:
        self.face, self.kept, self.rng = face, kept, rng
        self.claims: dict[str, str] = {}

    def has(self, name: str) -> bool:
        return name in self.kept

    def say(self, name: str) -> str:
        """The value of an attribute, noted as claimed."""
        value: str = self.face[name]
        self.claims[name] = value
        return value

    def pick(self, table: dict[str, tuple[str, ...]], name: str) -> str:
        return self.rng.choice(table[self.say(name)])

    def hair_colour(self) -> str:
        value = self.say("hair")
        return self.rng.choice(HAIR_WORDS.get(value, (value,)))

    def glasses(self) -> str:
        """ "round glasses", or just "glasses"; empty where none are worn."""
        if self.face["glasses"] == "none":
            return ""
        return f"{self.say('glasses')} glasses" if self.rng.random() < 0.65 else "glasses"

    def view(self, table: dict[str, tuple[str, ...]]) -> str:
        """Words for the view; "three-quarter" says neither side and claims nothing. Frontal views are seldom said."""
        value = self.face["view"]
        if value == "front" and self.rng.random() > 0.06:
            return ""
        words = self.rng.choice(table[value])
        if "three-quarter" not in words:
            self.say("view")
        return words

    def noun(self) -> str:
        """What the person is called, as far as person and age are kept."""
        rng, person, age = self.rng, self.face["person"], self.face["age"]
        if not self.has("person"):
            if self.has("age") and age != "adult":
                self.say("age")
                return {"child": "child", "elder": "old person"}[age]
            return "person" if rng.random() < 0.1 else "face"
        if not self.has("age") or age == "adult":
            word = rng.choice(NOUNS[person, "adult"])
            if word in ("woman", "man"):
                if age != "adult":
                    word = person
                else:
                    self.say("age")
        else:
            word = rng.choice(NOUNS[person, age])
            self.say("age")
        if word not in ("child", "kid"):
            self.say("person")
        return word

    def clothes(self) -> str:
        clothes = self.say("clothes")
        return f"{self.say('colour')} {clothes}" if self.has("colour") else clothes

    # Tag lists.

    def tags(self) -> str:
        rng, face = self.rng, self.face
        core: list[str] = []
        if self.has("hair"):
            core.append(f"{self.hair_colour()} hair")
        if self.has("eyes"):
            core.append(f"{self.say('eyes')} eyes")
        if rng.random() < 0.4:
            core.reverse()
        rest: list[str] = []
        if self.has("style"):
            rest.append(self.pick(STYLE_TAGS, "style"))
        if self.has("skin"):
            rest.append(f"{self.say('skin')} skin")
        if self.has("expression"):
            rest.append(self.pick(EXPRESSION_TAGS, "expression"))
        if self.has("glasses"):
            if words := self.glasses():
                rest.append(words)
            elif rng.random() < 0.35:
                self.say("glasses")
                rest.append("no glasses")
        if self.has("accessory") and face["accessory"] != "none":
            rest.append(self.say("accessory"))
        if self.has("clothes"):
            rest.append(self.clothes())
        if self.has("background"):
            rest.append(self.pick(BACKGROUND_TAGS, "background"))
        if self.has("age") and (face["age"] != "adult" or rng.random() < 0.05):
            rest.append(self.pick(AGE_TAGS, "age"))
        if self.has("view") and (words := self.view(VIEW_TAGS)):
            rest.append(words)
        for name in ("floating", "detail"):
            if self.has(name) and face[name] != "none":
                rest.append(self.say(name))
        if face["defect"] == "none" and rng.random() < 0.08:
            rest.append(rng.choice(("best quality", "masterpiece")))
        rng.shuffle(rest)
        if rng.random() < 0.65:
            at = rng.randint(0, len(rest)) if rng.random() < 0.5 else 0
            rest[at:at] = core
        else:
            for word in core:
                rest.insert(rng.randint(0, len(rest)), word)
        if self.has("person"):
            rest.insert(0 if rng.random() < 0.7 else rng.randint(0, len(rest)), self.pick(PERSON_TAGS, "person"))
        if face["defect"] != "none":
            rest.insert(rng.randint(0, len(rest)), self.say("defect"))
        if rng.random() < 0.45:
            rest = [tag.replace(" ", "_") for tag in rest]
        return ", ".join(rest)

    # Sentences.

    def _hair_phrase(self) -> str:
        style = self.say("style") if self.has("style") else None
        colour = self.hair_colour() if self.has("hair") else ""
        if style in ("short", "long", "spiky"):
            return f"{style} {colour} hair".replace("  ", " ")
        if not colour:
            return {"bob": "a bob", "ponytail": "a ponytail", "twin tails": "twin tails"}[style] if style else ""
        tail = {"bob": "in a bob", "ponytail": "in a ponytail", "twin tails": "in twin tails"}.get(style or "", "")
        return f"{colour} hair {tail}".strip()

    def sentence(self) -> str:
        rng, face = self.rng, self.face
        noun = self.noun()
        adjectives = []
        expressed = self.has("expression")
        if expressed and rng.random() < 0.45:
            adjectives.append(self.pick(EXPRESSION_ADJECTIVES, "expression"))
            expressed = False
        if rng.random() < 0.25:
            adjectives.append("cute")
        if self.has("detail") and face["detail"] in ("chibi", "lively"):
            adjectives.append(self.say("detail"))
        if rng.random() < 0.3:
            adjectives.append("anime")
        text = _article(" ".join([*adjectives, noun]))
        features = [phrase for phrase in (self._hair_phrase(),) if phrase]
        if self.has("eyes"):
            features.append(f"{self.say('eyes')} eyes")
        if self.has("skin"):
            features.append(f"{self.say('skin')} skin")
        if rng.random() < 0.3:
            features.reverse()
        worn = []
        if self.has("clothes"):
            worn.append(_article(self.clothes()))
        if self.has("glasses") and (words := self.glasses()):
            (features if rng.random() < 0.5 else worn).append(words)
        if self.has("accessory") and face["accessory"] != "none":
            value = self.say("accessory")
            (features if rng.random() < 0.5 else worn).append(_article(value) if value == "ribbon" else value)
        if self.has("floating") and face["floating"] != "none":
            features.append(self.say("floating"))
        if features:
            text += " with " + (", ".join(features[:-1]) + " and " + features[-1] if len(features) > 1 else features[0])
        clauses = []
        if worn:
            clauses.append("wearing " + " and ".join(worn))
        if expressed:
            clauses.append(self.pick(EXPRESSION_CLAUSES, "expression"))
        if self.has("view") and (words := self.view(VIEW_CLAUSES)):
            clauses.append(words)
        if self.has("background"):
            clauses.append(self.pick(BACKGROUND_CLAUSES, "background"))
        rng.shuffle(clauses)
        if self.has("detail") and face["detail"] == "highly detailed":
            clauses.append(self.say("detail"))
        if face["defect"] != "none":
            clauses.append(self.say("defect"))
        text = ", ".join([text, *clauses])
        return text[0].upper() + text[1:] + ("." if rng.random() < 0.3 else "") if rng.random() < 0.5 else text

    # Chinese words, in a list or before a noun.

    def chinese(self) -> str:
        rng, face = self.rng, self.face
        words: list[str] = []
        if self.has("hair"):
            words.append(CHINESE_COLOURS[self.say("hair")] + "头发")
        if self.has("eyes"):
            words.append(CHINESE_COLOURS[self.say("eyes")] + "眼睛")
        for name, table in CHINESE.items():
            value = face[name]
            if self.has(name) and value in table and name != "person":
                if name == "glasses" and rng.random() < 0.5:
                    words.append("眼镜")
                else:
                    words.append(table[self.say(name)])
        rng.shuffle(words)
        if self.has("person") and face["person"] in CHINESE["person"]:
            noun = CHINESE["person"][self.say("person")]
            if words and words[-1].endswith(("头发", "眼睛")) and rng.random() < 0.5:
                words[-1] += "的" + noun
            else:
                words.insert(0, noun)
        if face["defect"] != "none":
            words.append(self.say("defect"))
        return rng.choice((", ", "\uff0c", " ", "、")).join(words)


_ALWAYS = {"defect"}


def _unusual(face: Face) -> set[str]:
    """What is always said because nobody who leaves it open expects it."""
    return {name for name, usual in (("age", "adult"), ("view", "front")) if face[name] != usual}


def make_caption(face: Face, seed: int, *, empty: float = 0.0) -> Caption:
    """The caption of a face that belongs to `seed`; empty (for guidance) with the given chance."""
    rng = random.Random(seed * 2654435761 % 2**61 + 17)
    if rng.random() < empty:
        return Caption("", {})
    form = rng.choices(("tags", "sentence", "chinese", "colours"), (0.46, 0.36, 0.07, 0.11))[0]
    names = ("hair", "style", "eyes", "skin", "expression", "glasses", "accessory", "clothes", "colour", "background",
             "person", "age", "view", "floating", "detail")  # fmt: skip
    drop = 0.3 if rng.random() < 0.85 else 0.75
    kept = {name for name in names if rng.random() >= drop} | _ALWAYS
    if form == "colours":
        kept = {"hair", "eyes"} | {name for name in kept if rng.random() < 0.3} | _ALWAYS
        form = rng.choice(("tags", "sentence"))
    writer = _Writer(face, kept | _unusual(face), rng)
    text = getattr(writer, form)()
    if not text:
        writer = _Writer(face, {"hair"}, rng)
        text = writer.tags()
    return Caption(text, writer.claims)


def full_prompt(face: Face, seed: int) -> Caption:
    """A caption, sentence or tag list, that mentions every attribute the face has: what scoring asks for."""
    rng = random.Random(seed * 40503 + 5)
    writer = _Writer(face, set(face.attributes), rng)
    text = writer.sentence() if rng.random() < 0.5 else writer.tags()
    return Caption(text, writer.claims)


def _one(face: Face, side: str, rng: random.Random) -> tuple[str, dict[str, str]]:
    """One of two people: "a smiling girl with pink hair and round glasses", and what that claims."""
    names = {"hair", "eyes", "expression", "glasses", "clothes", "colour", "person", "age", "style"}
    kept = {name for name in names if rng.random() < (0.9 if name in ("hair", "person") else 0.4)}
    writer = _Writer(face, kept | _unusual(face), rng)
    noun = writer.noun()
    noun = "person" if noun == "face" else noun
    if "expression" in kept and face["expression"] != "neutral":
        noun = f"{writer.pick(EXPRESSION_ADJECTIVES, 'expression')} {noun}"
    features = [words for words in (writer._hair_phrase(),) if words]
    if "eyes" in kept and features:
        features.append(f"{writer.say('eyes')} eyes")
    if "glasses" in kept and (words := writer.glasses()):
        features.append(words)
    text = _article(noun) + (" with " + " and ".join(features) if features else "")
    if "clothes" in kept:
        text += " wearing " + _article(writer.clothes())
    return text, {f"{side}_{name}": value for name, value in writer.claims.items()}


def two_caption(two: Two, seed: int, *, empty: float = 0.0) -> Caption:
    """A caption of two people that says who is on the left and who on the right, or only who is there."""
    rng = random.Random(seed * 2246822519 % 2**61 + 29)
    if rng.random() < empty:
        return Caption("", {})
    (left, claims), (right, more) = (_one(two.left, "left", rng), _one(two.right, "right", rng))
    form = rng.randrange(5)
    if form == 0:
        text = f"{left} on the left, {right} on the right"
    elif form == 1:
        text = f"two people, {left} on the left and {right} on the right"
    elif form == 2:
        text = f"on the left {left}, on the right {right}"
    elif form == 3:
        text = f"2people, side by side, left: {left}, right: {right}"
    else:
        text = f"{left} next to {right}, side by side"
    claims |= more
    if rng.random() < 0.5:
        text += ", " + rng.choice(BACKGROUND_CLAUSES[two.left["background"]])
        claims["background"] = two.left["background"]
    return Caption(text, claims)
