"""When the words of a speech are said: as the server tells it, and as subtitles."""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from html import unescape
from itertools import accumulate
from pathlib import Path
from typing import Any

LONGEST_CUE = 42  # characters of a subtitle, about what a line on a screen holds
LONGEST_PAUSE = 0.8  # seconds; a longer one ends a subtitle
PARAGRAPH = "\n\n"
SENTENCE_ENDS = frozenset(".!?…。！？")
_PAUSE, _TAG = re.compile(r"\[pause:[^\]]*\]"), re.compile(r"<!--.*?-->|<[^<>]*>", re.DOTALL)


@dataclass(frozen=True)
class TimedWord:
    """A word and when it is said.

    Attributes:
        word: as it stands in the text, without the punctuation around it.
        start, end: seconds from the beginning of the audio.
        index: its place in the text: code points before it.
    """

    word: str
    start: float
    end: float
    index: int


def words_of(metadata: dict[str, Any]) -> tuple[TimedWord, ...]:
    """The words in what the server says about a chunk."""
    return tuple(TimedWord(word["word"], word["start"], word["end"], word["index"]) for word in metadata.get("words", ()))


def of_long_form(text: str) -> str:
    """A part of a long text, without the pauses in it."""
    return _PAUSE.sub(" ", text)


def of_ssml(text: str) -> str:
    """A part of SSML that no tag is cut by, without its markup."""
    return unescape(_TAG.sub(" ", of_long_form(text)))


def of_dialogue(text: str, words: Sequence[TimedWord]) -> tuple[str, list[TimedWord]]:
    """What is said in a dialogue that the server has spoken, a paragraph an entry, and the words with their places in it."""
    said = [entry["text"] for entry in json.loads(text)]
    ends = list(accumulate(map(len, said)))
    return PARAGRAPH.join(said), [replace(word, index=word.index + len(PARAGRAPH) * bisect(ends, word.index)) for word in words]


def write_words(path: Path, words: Sequence[TimedWord], text: str, plain: Callable[[str], str] = str) -> None:
    """Write words in the format of the file's suffix, one of FORMATS: .json, or the subtitles .srt and .vtt.

    Args:
        plain: takes from a part of `text` what is not said, for subtitles.

    Raises:
        KeyError: another suffix.
    """
    path.write_text(FORMATS[path.suffix.lower()](words, text, plain), encoding="utf-8")


def _json(words: Sequence[TimedWord], text: str, _plain: Callable[[str], str]) -> str:
    return json.dumps({"text": text, "words": [asdict(word) for word in words]}, ensure_ascii=False, indent=1) + "\n"


def _srt(words: Sequence[TimedWord], text: str, plain: Callable[[str], str]) -> str:
    cues = enumerate(_cues(words, text, plain), 1)
    return "\n".join(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{cue}\n" for number, (start, end, cue) in cues)


def _vtt(words: Sequence[TimedWord], text: str, plain: Callable[[str], str]) -> str:
    escaped = [(start, end, cue.replace("&", "&amp;").replace("<", "&lt;")) for start, end, cue in _cues(words, text, plain)]
    return "WEBVTT\n\n" + "\n".join(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{cue}\n" for start, end, cue in escaped)


FORMATS: dict[str, Callable[[Sequence[TimedWord], str, Callable[[str], str]], str]] = {".json": _json, ".srt": _srt, ".vtt": _vtt}


def _cues(words: Sequence[TimedWord], text: str, plain: Callable[[str], str]) -> list[tuple[float, float, str]]:
    """Subtitles: start, end, and the text of some words with its punctuation, if that is known."""
    if any(text[word.index : word.index + len(word.word)] != word.word for word in words):  # numbers as words, an alias
        (words, text), plain = _without_text(words), str
    ends = [*(word.index for word in words[1:]), len(text)]
    cues, first = [], 0
    for number, word in enumerate(words):
        begin = words[first].index if first else 0
        shown = " ".join(plain(text[begin : ends[number]]).split())
        is_last = number + 1 == len(words)
        if not is_last:
            follows = words[number + 1]
            longer = " ".join(plain(text[begin : ends[number + 1]]).split())
            if (
                shown.rstrip("\"')]»”’")[-1:] not in SENTENCE_ENDS
                and follows.start - word.end <= LONGEST_PAUSE
                and PARAGRAPH not in text[word.index : follows.index]
                and len(longer) <= LONGEST_CUE
            ):
                continue
        cues.append((words[first].start, word.end, shown))
        first = number + 1
    return cues


def _without_text(words: Sequence[TimedWord]) -> tuple[list[TimedWord], str]:
    """The words, and a text of nothing else, in which they have their indices."""
    begins = accumulate((len(word.word) + 1 for word in words), initial=0)
    return [replace(word, index=begin) for word, begin in zip(words, begins, strict=False)], " ".join(word.word for word in words)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
