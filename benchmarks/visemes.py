"""How often the microphone's visemes are right, on speech whose phonemes' times are known: espeak-ng's.

    python benchmarks/visemes.py          # accuracy of the table in microphone.py on a language it has not seen
    python benchmarks/visemes.py --fit    # fits that table again and prints it; each language by a table without it

The speech is Debian's `espeak-ng` (a formant synthesiser), five voices at two pitches; half of what is fitted has white
noise 20 dB below it. Needs the shared library `libespeak-ng`.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from hotloop.live.controls import VISEMES
from hotloop.live.sources import microphone
from hotloop.live.sources.microphone import FRAME, RATE, Visemes, cepstrum

VOWELS = "aiueo"
HELD_OUT = "ja"
TEXTS = {
    "ja": "わたしは あおい うみを みた。 えきの うえに おおきい いえが ある。 いぬと ねこ。",
    "es": "Mi amigo come una manzana roja. La luna sube poco a poco. Oye, este pueblo es bonito.",
    "it": "La mia amica mangia una mela rossa. Il lupo vive nel bosco. Una piccola luce.",
    "sw": "Habari yako rafiki. Ninapenda kula chakula kizuri. Watoto wote wanaimba.",
    "de": "Meine Mutter hat eine rote Blume. Wir gehen immer zum Ufer. Das Boot ist gut.",
}
VOICES = ("", "+f2", "+f4", "+m3", "+m7")
PITCHES = (30, 55)
# espeak's names of phonemes -> vowel; without marks of length and stress.
_PHONEMES = dict(zip("aAiIuUMeEoO", "aaiiuuueeoo", strict=True))


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("message", ctypes.c_uint), ("text", ctypes.c_int), ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int), ("sample", ctypes.c_int), ("data", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


_PHONEME = 7  # espeakEVENT_PHONEME
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """samples float32 [frames * 160] at 16 kHz; labels: of every frame a vowel, "_" in a pause, "" for what else."""

    samples: np.ndarray
    labels: list[str]


@cache
def _library() -> tuple[Any, int, list[np.ndarray], list[tuple[int, str]], Any]:
    if not (name := ctypes.util.find_library("espeak-ng")):
        raise FileNotFoundError("libespeak-ng is not installed: apt-get install espeak-ng")
    library, sound, phonemes = ctypes.CDLL(name), [], []

    @_Callback
    def take(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == _PHONEME:
                phonemes.append((events[i].sample, events[i].id.string.decode("utf-8", "replace")))
            i += 1
        return 0

    rate = library.espeak_Initialize(2, 0, None, 1)  # synchronous, with events of phonemes
    library.espeak_SetSynthCallback(take)
    return library, rate, sound, phonemes, take  # the callback must outlive the calls


def speak(text: str, voice: str, *, pitch: int = 50, words_a_minute: int = 150) -> Speech:
    """Raises FileNotFoundError where espeak-ng is not installed."""
    library, rate, sound, phonemes, _ = _library()
    sound.clear()
    phonemes.clear()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise FileNotFoundError(f"espeak-ng has no voice {voice}")
    library.espeak_SetParameter(1, words_a_minute, 0)
    library.espeak_SetParameter(3, pitch, 0)
    spoken = text.encode() + b"\0"
    library.espeak_Synth(spoken, len(spoken), 0, 1, 0, 1, None, None)
    samples = _resampled(np.concatenate(sound) / 32768, rate)
    labels = [""] * (len(samples) // FRAME)
    ends = [at for at, _ in phonemes[1:]] + [len(labels) * FRAME * rate // RATE]
    for (begin, name), end in zip(phonemes, ends, strict=True):
        vowel = "_" if name.startswith("_") else _PHONEMES.get(name.strip("'").rstrip(":"), "")
        first, last = (round(at / rate * RATE / FRAME) for at in (begin, end))
        labels[first:last] = [vowel] * len(labels[first:last])
    return Speech(samples[: len(labels) * FRAME].astype(np.float32), labels)


def _resampled(x: np.ndarray, rate: int) -> np.ndarray:
    """To 16 kHz, by cutting the spectrum."""
    count = len(x) * RATE // rate
    return np.fft.irfft(np.fft.rfft(x)[: count // 2 + 1], count) * count / len(x)


def corpus(language: str) -> list[Speech]:
    return [speak(TEXTS[language], language + voice, pitch=pitch) for voice in VOICES for pitch in PITCHES]


def accuracy(speeches: list[Speech]) -> dict[str, float]:
    """Shares of frames: vowels told right (the largest weight, 10 ms later), vowels taken for a voice, pauses for none;
    and the mean time a frame takes, in ms."""
    right = vowels = voiced = pauses = quiet = frames = 0
    seconds = 0.0
    for speech in speeches:
        source, told, silence = Visemes(), [], []
        started = time.process_time()
        for frame in speech.samples.reshape(-1, FRAME):
            told.append(source.feed(frame))
            silence.append(source.silence)
        seconds += time.process_time() - started
        frames += len(told)
        for i, label in enumerate(speech.labels[:-1]):
            if label and label in VOWELS:
                vowels += 1
                right += max(VISEMES, key=told[i + 1].__getitem__) == VISEMES[VOWELS.index(label)]
                voiced += silence[i + 1] < 0.5
            elif label == "_" and all(other == "_" for other in speech.labels[max(0, i - 4) : i + 1]):
                pauses += 1
                quiet += silence[i + 1] > 0.5
    return {
        "right": right / vowels, "voiced": voiced / vowels, "quiet": quiet / pauses, "ms": 1000 * seconds / frames,
        "frames": float(vowels),
    }  # fmt: skip


def fit(speeches: list[Speech], *, seed: int = 0) -> np.ndarray:
    """Linear discriminants, [5, 13]: of class means and their mean covariance, every vowel alike likely."""
    rng, rows, classes = np.random.default_rng(seed), [], []
    for speech in speeches:
        for noise in (0.0, 0.1):
            samples = speech.samples + noise * np.sqrt((speech.samples**2).mean()) * rng.normal(
                size=len(speech.samples)
            )
            padded = np.concatenate([np.zeros(512 - FRAME), samples])
            for i, label in enumerate(speech.labels[:-1]):
                if label and label in VOWELS:
                    rows.append(cepstrum(padded[(i + 1) * FRAME : (i + 1) * FRAME + 512]))
                    classes.append(VOWELS.index(label))
    x, y = np.array(rows), np.array(classes)
    means = np.array([x[y == k].mean(0) for k in range(5)])
    covariance = np.mean([np.cov(x[y == k].T) for k in range(5)], axis=0)
    weights = np.linalg.solve(covariance, means.T).T
    return np.column_stack([weights, -0.5 * (weights * means).sum(1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the table again and print it")
    speeches = {language: corpus(language) for language in TEXTS}
    if not parser.parse_args().fit:
        print(HELD_OUT, accuracy(speeches[HELD_OUT]))
        return
    for held in TEXTS:
        microphone._DISCRIMINANTS = fit([one for other in TEXTS if other != held for one in speeches[other]])
        print(held, accuracy(speeches[held]))
        if held == HELD_OUT:
            table = microphone._DISCRIMINANTS
    for row in table:
        print("    [" + ", ".join(f"{v:.3g}" for v in row) + "],")


if __name__ == "__main__":
    main()
