"""Words as JSON and as subtitles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_tts_client.words import TimedWord, write_words

TEXT = 'Good <morning>, Dr. O\'Neil! "It rains & pours," said the small penguin in the window of the house. Yes.'


def said(text: str) -> list[TimedWord]:
    """Each word of the text, four a second, with a pause before Yes."""
    words, place = [], 0
    for number, word in enumerate(word.strip('<>,.!"') for word in text.split() if word.strip("&")):
        place = text.index(word, place)
        start = number / 4 + (2 if word == "Yes" else 0)
        words.append(TimedWord(word, start, start + 0.25, place))
        place += len(word)
    return words


def written(path: Path) -> str:
    write_words(path, said(TEXT), TEXT)
    return path.read_text(encoding="utf-8")


def test_json_has_the_text_and_every_word(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path / "words.JSON"))
    assert content["text"] == TEXT
    assert content["words"][1] == {"word": "morning", "start": 0.25, "end": 0.5, "index": 6}


def test_subtitles_end_with_sentences_lines_and_pauses_and_show_the_text_as_it_is_written(tmp_path: Path) -> None:
    cues = written(tmp_path / "words.srt").split("\n\n")
    assert cues[0] == "1\n00:00:00,000 --> 00:00:00,750\nGood <morning>, Dr."
    lines = [cue.splitlines()[2] for cue in cues]
    assert " ".join(lines) == TEXT
    assert max(map(len, lines)) <= 42
    assert cues[-1].splitlines()[1].startswith("00:00:0")
    assert lines[-1] == "Yes."


def test_vtt_escapes_what_would_be_a_tag(tmp_path: Path) -> None:
    content = written(tmp_path / "words.vtt")
    assert content.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.750\nGood &lt;morning>, Dr.\n")
    assert "rains &amp; pours" in content


def test_times_beyond_an_hour_have_hours(tmp_path: Path) -> None:
    write_words(tmp_path / "a.srt", [TimedWord("late", 3661.2346, 3662.0, 0)], "late")
    assert "01:01:01,235 --> 01:01:02,000" in (tmp_path / "a.srt").read_text()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_words(tmp_path / "a.txt", [], "")
