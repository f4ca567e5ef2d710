"""Errors that name the place, the rule and the value, in one line."""

from __future__ import annotations

__all__ = [
    "BundleError", "DeviceMemoryError", "HotloopError", "InputError", "NonFiniteError", "TruncationWarning",
    "printable",
]  # fmt: skip

_NOTHING = object()
_LONGEST = 120
_LONGEST_RULE = 1000


class HotloopError(Exception):
    """Base of every error that hotloop raises on purpose: `[place] rule, got value`."""

    def __init__(self, place: str, rule: str, got: object = _NOTHING) -> None:
        self.place, self.rule = place, printable(rule, _LONGEST_RULE)
        message = f"[{printable(place, _LONGEST)}] {self.rule}"
        if got is not _NOTHING:
            message += f", got {_shown(got)}"
        super().__init__(message)


def printable(text: str, longest: int = _LONGEST) -> str:
    """One line of what may come from a file, for a terminal or a log: whatever moves a cursor, colours or hides is
    escaped as Python writes it, line ends are spaces, and beyond `longest` characters it is cut."""
    cut = text[:longest]
    plain = "".join(c if c.isprintable() else " " if c in "\n\r" else repr(c)[1:-1] for c in cut)
    return plain[:longest] + "…" if len(text) > longest or len(plain) > longest else plain


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # an object's own repr may fail, and Python refuses integers of thousands of digits
        text = f"a {type(value).__name__} that cannot be shown"
    text = " ".join(text.splitlines())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


class InputError(HotloopError, ValueError):
    """An argument, a prompt, an image or an option that breaks a rule. The CLI exits with code 2."""


class BundleError(HotloopError, RuntimeError):
    """A bundle whose files are missing, altered, malformed or not for this machine."""


class NonFiniteError(HotloopError, ArithmeticError):
    """A result with NaN or infinity in it: raised instead of showing a black image."""


class DeviceMemoryError(HotloopError, MemoryError):
    """The device has too little memory for a run; what was loaded stays usable."""


class TruncationWarning(UserWarning):
    """A prompt was longer than the text encoder takes and was cut."""
