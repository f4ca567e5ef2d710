r"""What a prompt asks for step by step, in A1111's syntax: prompt editing, alternating words, several prompts at once.

    [from:to:when]   `from` up to the step `when`, `to` after it; [to:when] adds, [from::when] takes away
    [a|b|c]          a in the first step, b in the second, and round again
    a AND b :0.5     conditions of their own, each evaluated, each with its weight (Liu et al. 2022, "Compositional
                     Visual Generation with Composable Diffusion Models")

`when` with a point is a share of the steps that are run, else a number of steps; of hires' second pass the shares go
from 1 to 2 and the numbers go on. Brackets nest; what fits no form is text; `\` before a bracket, `:` or `|` makes it
text. The rules were taken from A1111's documentation and its tests' tables; its own loop is one evaluation late beside
these (`from` stands for `when` + 1), and it takes a number that ends a prompt without AND for a weight: hotloop does
neither. Weights of words and BREAK are the tokenizer's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InputError
from .tokenizer import MAX_DEPTH, MAX_WEIGHT

__all__ = ["MAX_PARTS", "Part", "Prompt", "composes", "parts"]

MAX_PARTS = 16
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\Z")
_WHEN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\]")
_PLAIN = re.compile(r"(?:[^\\()\[\]:|]|\\.)+", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins, and its weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class _Editing:
    """[before:after:when]"""

    before: list[_Node]
    after: list[_Node]
    when: str


@dataclass(frozen=True)
class _Alternating:
    """[a|b|c]"""

    options: list[list[_Node]]


_Node = str | _Editing | _Alternating


def parts(text: str) -> list[Part]:
    """What AND joins; a number after a colon at the end of one is its weight.

    Raises InputError for more than MAX_PARTS of them and for weights outside -100 .. 100.
    """
    each = _AND.split(text)
    if len(each) == 1:
        return [Part(text)]
    if len(each) > MAX_PARTS:
        raise InputError("prompt", f"AND must join at most {MAX_PARTS} prompts", len(each))
    found = []
    for one in each:
        match = _WEIGHT.search(one)
        weight = float(match.group(1)) if match else 1.0
        if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
            raise InputError("prompt", f"weights must be from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}", one.strip())
        found.append(Part(one[: match.start()] if match else one, weight))
    return found


def composes(text: str) -> bool:
    """Whether a prompt is more than one text for all steps. Raises InputError as `parts` and `Prompt` do."""
    return len(parts(text)) > 1 or Prompt(text).changes


class Prompt:
    """A text that may change from step to step.

    Raises InputError for brackets more than 100 deep.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._groups: dict[int, tuple[list[_Node], int] | None] = {}  # where a bracket opens -> what it holds, its end
        self._nodes: list[_Node] = [text] if "[" not in text else self._whole()
        self.changes = any(not isinstance(node, str) for node in self._nodes)

    def at(self, step: int, steps: int, before: int | None = None) -> str:
        """The text of a step, counted from 1, of a pass of `steps`; before: steps of the pass before, of hires' second.

        Every bracket that is neither editing nor alternating is still in it.
        """
        return self._said(self._nodes, step, steps, before)

    def _said(self, nodes: list[_Node], step: int, steps: int, before: int | None) -> str:
        words = []
        for node in nodes:
            if isinstance(node, str):
                words.append(node)
            elif isinstance(node, _Alternating):
                words.append(self._said(node.options[(step - 1) % len(node.options)], step, steps, before))
            else:
                when = float(node.when)
                last = (when - (before is not None)) * steps if "." in node.when else when - (before or 0)
                chosen = node.before if step <= int(min(last, steps)) else node.after
                words.append(self._said(chosen, step, steps, before))
        return "".join(words)

    # Reading: a bracket is a group, or a letter where it is none.

    def _whole(self) -> list[_Node]:
        nodes: list[_Node] = []
        i = 0
        while i < len(self._text):
            found, i = self._sequence(i, 0)
            nodes += found
            if i < len(self._text):  # what would end a group ends nothing here
                nodes.append(self._text[i])
                i += 1
        return nodes

    def _sequence(self, i: int, depth: int) -> tuple[list[_Node], int]:
        """Nodes up to what may end them: `|`, `:`, a closing bracket, the end of the text."""
        nodes: list[_Node] = []
        while i < len(self._text) and (letter := self._text[i]) not in "|:])":
            if letter in "[(":
                if depth == MAX_DEPTH:
                    raise InputError("prompt", f"brackets must nest at most {MAX_DEPTH} deep", self._text)
                if i not in self._groups:
                    self._groups[i] = (self._square if letter == "[" else self._round)(i, depth + 1)
                group = self._groups[i]
                found, i = ([letter], i + 1) if group is None else group
                nodes += found
            else:
                match = _PLAIN.match(self._text, i)
                end = match.end() if match else i + 1  # a backslash that ends the text
                nodes.append(self._text[i:end])
                i = end
        return nodes, i

    def _square(self, i: int, depth: int) -> tuple[list[_Node], int] | None:
        first, j = self._sequence(i + 1, depth)
        if self._is(j, "]"):
            return ["[", *first, "]"], j + 1
        if self._is(j, "|"):
            options = [first]
            while self._is(j, "|"):
                option, j = self._sequence(j + 1, depth)
                options.append(option)
            return ([_Alternating(options)], j + 1) if self._is(j, "]") else None
        if not self._is(j, ":"):
            return None
        if match := _WHEN.match(self._text, j + 1):
            return [_Editing([], first, match.group(1))], match.end()
        second, j = self._sequence(j + 1, depth)
        if self._is(j, ":") and (match := _WHEN.match(self._text, j + 1)):
            return [_Editing(first, second, match.group(1))], match.end()
        return None

    def _round(self, i: int, depth: int) -> tuple[list[_Node], int] | None:
        """(words) or (words:weight), which stay text around what they hold."""
        nodes: list[_Node] = ["("]
        found, j = self._sequence(i + 1, depth)
        nodes += found
        if self._is(j, ":"):
            found, j = self._sequence(j + 1, depth)
            nodes += [":", *found]
        return ([*nodes, ")"], j + 1) if self._is(j, ")") else None

    def _is(self, i: int, letter: str) -> bool:
        return self._text[i : i + 1] == letter
