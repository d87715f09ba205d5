"""Words as JSON and as subtitles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_tts_client.cli_options import words_file
from qwen3_tts_client.words import TimedWord, of_dialogue, of_long_form, of_ssml, write_words

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


def test_subtitles_show_neither_tags_nor_pauses(tmp_path: Path) -> None:
    text = '<speak><!-- a > b -->Hi &quot;<break time="1s"/> [pause:1s] you.</speak>'
    words = [TimedWord("Hi", 0, 0.2, text.index("Hi")), TimedWord("you", 1.4, 1.6, text.index("you"))]
    write_words(tmp_path / "a.srt", words, text, of_ssml)
    assert [cue.splitlines()[2] for cue in (tmp_path / "a.srt").read_text().split("\n\n")] == ['Hi "', "you."]
    write_words(tmp_path / "a.srt", [TimedWord("Hi", 0, 0.2, 0), TimedWord("you", 0.2, 0.4, 13)], "Hi [pause:1s]you <b>", of_long_form)
    assert (tmp_path / "a.srt").read_text().splitlines()[2] == "Hi you <b>"


def test_each_entry_of_a_dialogue_has_subtitles_of_its_own(tmp_path: Path) -> None:
    dialogue = json.dumps([{"text": "Hello there"}, {"voice": "ben", "text": "Good day, [pause:1s] Ada!"}])
    heard = [("Hello", 0), ("there", 6), ("Good", 11), ("day", 16), ("Ada", 32)]
    words = [TimedWord(word, number / 4, number / 4 + 0.2, place) for number, (word, place) in enumerate(heard)]
    text, placed = of_dialogue(dialogue, words)
    assert [text[word.index :].startswith(word.word) for word in placed] == [True] * 5
    write_words(tmp_path / "a.srt", placed, text, of_long_form)
    assert [cue.splitlines()[2] for cue in (tmp_path / "a.srt").read_text().split("\n\n")] == ["Hello there", "Good day, Ada!"]


@pytest.mark.parametrize(
    ("text", "text_format", "long_form", "place", "shown"),
    [
        ('[{"text": "Hi! [pause:1s]"}]', "dialogue", None, 0, "Hi!"),
        ("<speak>Hi! [pause:1s]</speak>", "ssml", None, 7, "Hi!"),
        ("Hi! [pause:1s]", None, True, 0, "Hi!"),
        ("Hi! [pause:1s]", None, None, 0, "Hi! [pause:1s]"),
    ],
)
def test_the_command_line_knows_what_is_said_in_each_format(
    tmp_path: Path, text: str, text_format: str | None, long_form: bool | None, place: int, shown: str
) -> None:
    file = words_file(tmp_path / "a.srt", text_format, long_form=long_form)
    assert file is not None
    file.heard(text)
    file.add([TimedWord("Hi", 0, 0.2, place)])
    file.write()
    assert (tmp_path / "a.srt").read_text().splitlines()[2] == shown


def test_times_beyond_an_hour_have_hours(tmp_path: Path) -> None:
    write_words(tmp_path / "a.srt", [TimedWord("late", 3661.2346, 3662.0, 0)], "late")
    assert "01:01:01,235 --> 01:01:02,000" in (tmp_path / "a.srt").read_text()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_words(tmp_path / "a.txt", [], "")
