"""An endless supply of training sentences, from our own templates and words.

They cover statements, questions, greetings, numbers, times, dates, prices, strings of digits, names, and words in any order. So
the model cannot guess the next word and has to read. One sentence in a hundred, chosen by its hash, is held out: training never
sees it with any seed, and evaluate.py speaks no other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

HELD_OUT_ONE_IN = 100
MAX_CHARACTERS = 110
WORD_SALADS, PAIRS = 0.30, 0.08  # shares of all; the others are one filled template
KINDS = {"statements": 40, "questions": 18, "greetings": 12, "numbers": 20, "digits": 10}


class Sentences:
    """Random sentences of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        lines = read_sections(Path(__file__).parent / "words.txt")
        self._words = {name: " ".join(section).split() for name, section in lines.items()}
        self._all = sorted({word for section in self._words.values() for word in section})
        self._templates = read_sections(Path(__file__).parent / "templates.txt")
        self._slots: dict[str, Callable[[], str]] = {
            "thing": lambda: self._pick("things"),
            "things": lambda: plural(self._pick("things")),
            "person": lambda: self._pick("people"),
            "persons": lambda: plural(self._pick("people")),
            "verb": lambda: self._pick("verbs"),
            "ing": lambda: ing(self._pick("verbs")),
            "adjective": lambda: self._pick("adjectives"),
            "other": lambda: self._pick("others"),
            "name": lambda: self._pick("names"),
            "place": lambda: self._pick("places"),
            "preposition": lambda: self._pick("prepositions"),
            "ordinal": lambda: self._random.choice([self._pick("ordinals"), f"{self._random.randint(4, 20)}th"]),
            "spelled": lambda: self._pick("numbers"),
            "weekday": lambda: self._pick("weekdays"),
            "month": lambda: self._pick("months"),
            "day": lambda: str(self._random.randint(1, 31)),
            "year": lambda: str(self._random.choice([self._random.randint(1900, 2040), self._random.randint(1500, 1900)])),
            "small": lambda: str(self._random.randint(1, 99)),
            "number": self._number,
            "decimal": lambda: f"{self._random.randint(0, 99)}.{self._random.randint(1, 9)}",
            "price": lambda: self._random.choice([f"${self._random.randint(1, 500)}", f"{self._random.randint(2, 99)} dollars"]),
            "time": self._time,
            "digits": lambda: " ".join(str(self._random.randint(0, 9)) for _ in range(self._random.randint(2, 9))),
        }

    def __iter__(self) -> Iterator[str]:
        """Yield sentences to train on, without end."""
        while True:
            parts = self._parts()
            sentence = " ".join(parts)
            if len(sentence) <= MAX_CHARACTERS and not any(map(is_held_out, (*parts, sentence))):
                yield sentence

    def held_out(self, count: int) -> list[str]:
        """`count` different sentences of two words or more that training never sees."""
        found: dict[str, None] = {}
        while len(found) < count:
            sentence = " ".join(self._parts())
            if 12 <= len(sentence) <= MAX_CHARACTERS and is_held_out(sentence):
                found[sentence] = None
        return list(found)

    def held_out_digits(self, count: int, length: int) -> list[str]:
        """`count` strings of `length` digits that training never sees."""
        found: dict[str, None] = {}
        while len(found) < count:
            digits = " ".join(str(self._random.randint(0, 9)) for _ in range(length))
            if is_held_out(digits):
                found[digits] = None
        return list(found)

    def _parts(self) -> list[str]:
        """One sentence, or two to be spoken together."""
        choice = self._random.random()
        if choice < WORD_SALADS:
            return [self._word_salad()]
        return [self._templated() for _ in range(2 if choice < WORD_SALADS + PAIRS else 1)]

    def _templated(self) -> str:
        [kind] = self._random.choices(list(KINDS), list(KINDS.values()))
        sentence = re.sub(r"\{(\w+)\}", lambda slot: self._filled(slot[1]), self._random.choice(self._templates[kind]))
        return sentence[0].upper() + sentence[1:]

    def _filled(self, slot: str) -> str:
        if slot.startswith("a_"):
            word = self._slots[slot[2:]]()
            return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
        return self._slots[slot]()

    def _word_salad(self) -> str:
        """Words in any order, some with an ending, some with a comma: only their letters tell how they sound."""
        words = []
        for _ in range(self._random.choice((1, 1, 2, 3, 4, 5, 6, 8, 10, 12))):
            word = self._random.choice(self._all)
            if self._random.random() < 0.2:
                word = self._random.choice((plural, ing, past))(word)
            words.append(word + ("," if self._random.random() < 0.06 else ""))
        sentence = " ".join(words).rstrip(",") + self._random.choice((".", ".", "?", "!", ""))
        return sentence[0].upper() + sentence[1:] if self._random.random() < 0.7 else sentence

    def _number(self) -> str:
        magnitude = self._random.choice((10, 100, 100, 1000, 10_000, 1_000_000))
        number = self._random.randint(0, magnitude)
        return self._random.choice((f"{number:,}", str(number))) if number < 10_000 else f"{number:,}"

    def _time(self) -> str:
        hour, minute = self._random.randint(1, 12), self._random.randint(0, 59)
        return self._random.choice(
            (
                f"{hour}:{minute:02}",
                f"{hour}:{minute:02}",
                f"{hour} o'clock",
                f"half past {hour}",
                f"{minute} past {hour}",
                f"quarter to {hour}",
            )
        )

    def _pick(self, section: str) -> str:
        return self._random.choice(self._words[section])


def is_held_out(sentence: str) -> bool:
    """Whether training never uses `sentence`; letter case and punctuation make no difference."""
    key = " ".join(re.findall(r"[a-z0-9]+", sentence.lower()))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def read_sections(path: Path) -> dict[str, list[str]]:
    """The lines of each section of the file."""
    sections: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            section.append(line)
    return sections


def plural(word: str) -> str:
    """Regular plural of a noun."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def ing(word: str) -> str:
    """Regular present participle of a verb."""
    return (word[:-1] if re.search(r"[^eo]e$", word) else word) + "ing"


def past(word: str) -> str:
    """Regular past of a verb."""
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ied"
    return word + ("d" if word.endswith("e") else "ed")
