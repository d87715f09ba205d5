"""Long texts in pieces: no word is lost, and borders are where a reader would pause."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.speech.compiler import MAX_SILENCE_MS, PARAGRAPH_PAUSE_MS, SENTENCE_PAUSE_MS, TextCompiler
from engine_lib.speech.script import Script
from engine_lib.speech.sentences import paragraphs, sentences
from engine_lib.speech.text_options import DEFAULT_TEXT

CHARACTERS = "aB1 \t\n\r.,;:!?…\"'“”«»()[]-—*@。，！？「」你好かカ가ก้é\u0301\u200b\u2028\x00👩‍👩‍👧𝒳"
PARTS = st.one_of(st.text(alphabet=CHARACTERS, max_size=40), st.sampled_from(["Dr. Smith", "3.14", "z. B. ", "\n\n", "word " * 9]))
TEXTS = st.lists(PARTS).map("".join)


def compiled(text: str, *, piece_length: int = 40, max_text_length: int = 60, **fields: Any) -> Script:
    compiler = TextCompiler(max_text_length=max_text_length, max_script_length=100_000, piece_length=piece_length)
    script = compiler.compile(text, DEFAULT_TEXT.updated({"long_form": True} | fields), "english")
    assert isinstance(script, Script)
    return script


def lines_of(text: str, **options: Any) -> list[str]:
    return [line.text for line in compiled(text, **options).lines]


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, piece_length=st.integers(20, 80), each=st.booleans())
def test_the_words_that_go_in_come_out_in_order(text: str, piece_length: int, each: bool) -> None:
    fields: dict[str, Any] = {"sentence_pause_ms": 0} if each else {}
    words = re.findall(r"\w", text)
    if not any(character.isalnum() for character in text):
        with pytest.raises(InvalidRequestError, match="text: is empty"):
            compiled(text, **fields)
        return
    script = compiled(text, piece_length=piece_length, **fields)
    assert [character for line in script.lines for character in re.findall(r"\w", line.text)] == words
    for line in script.lines:
        assert len(line.text) <= piece_length
        assert line.text == line.text.strip()
        assert text[line.begin] == line.text[0]
    assert [line.begin for line in script.lines] == sorted(line.begin for line in script.lines)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, language=st.sampled_from(["en", "zh", "ja", "xx", "", "de"]))
def test_sentences_and_paragraphs_cover_a_text(text: str, language: str) -> None:
    found = sentences(text, language)
    assert "".join(text[begin:end] for begin, end in found) == text
    within = [text[begin:end] for begin, end in paragraphs(text)]
    assert "".join("".join(within).split()) == "".join(text.split())


def test_sentences_end_where_a_reader_would_say() -> None:
    text = "Dr. Smith paid $3.50 at 5 p.m. for it. Did he? M. Dupont did."
    assert [text[a:b].strip() for a, b in sentences(text, "en")] == ["Dr. Smith paid $3.50 at 5 p.m. for it.", "Did he?", "M. Dupont did."]
    text = "Am 3. Oktober kam er z. B. um 12.30 Uhr. Ende."
    assert [text[a:b].strip() for a, b in sentences(text, "de")] == ["Am 3. Oktober kam er z. B. um 12.30 Uhr.", "Ende."]
    text = "你好。今天天气很好！价格是3.5元。"
    assert [text[a:b] for a, b in sentences(text, "zh")] == ["你好。", "今天天气很好！", "价格是3.5元。"]
    text = "彼は「本当？」と言った。そう。"
    assert [text[a:b] for a, b in sentences(text, "ja")] == ["彼は「本当？」と言った。", "そう。"]


def test_lines_of_a_paragraph_belong_together_and_blank_lines_end_it() -> None:
    script = compiled("One goes\non here.\r\n\r\nTwo.\n * * *\n\nThree.")
    assert [(line.text, line.pause_ms) for line in script.lines] == [
        ("One goes on here.", 0),
        ("Two.  * * *", PARAGRAPH_PAUSE_MS),
        ("Three.", PARAGRAPH_PAUSE_MS),
    ]


def test_sentences_are_gathered_unless_a_pause_between_them_is_asked_for() -> None:
    text = "One. Two. Three. Four and some more words. Five."
    assert lines_of(text) == ["One. Two. Three.", "Four and some more words. Five."]
    assert {line.pause_ms for line in compiled(text).lines[1:]} == {SENTENCE_PAUSE_MS}
    script = compiled(text, sentence_pause_ms=70)
    assert [line.text for line in script.lines] == ["One.", "Two.", "Three.", "Four and some more words.", "Five."]
    assert [line.pause_ms for line in script.lines] == [0, 70, 70, 70, 70]


def test_a_sentence_that_is_too_long_is_cut_at_clauses_then_spaces_then_characters() -> None:
    assert lines_of("This one is long enough, it has a clause, and goes on.") == [
        "This one is long enough,",
        "it has a clause, and goes on.",
    ]
    assert lines_of("no clause " * 6) == ["no clause no clause no clause", "no clause no clause no clause"]
    assert lines_of("x" * 90) == ["x" * 30] * 3
    assert all(line.count("e") == line.count("\u0301") for line in lines_of("e\u0301" * 50))
    assert [line.pause_ms for line in compiled("x" * 90).lines] == [0, 0, 0]


def test_text_without_spaces_is_cut_between_words() -> None:
    assert lines_of("สวัสดีครับวันนี้อากาศดีมาก", piece_length=20) == ["สวัสดีครับวัน", "นี้อากาศดีมาก"]
    assert lines_of("今天天气很好我们去公园散步", piece_length=25) == ["今天天气很好", "我们去公园散步"]


def test_characters_of_chinese_count_as_three() -> None:
    assert lines_of("今天天气很好我们去公园吧。" * 2) == ["今天天气很好我们去公园吧。"] * 2


def test_pauses_are_read_and_refused_by_what_is_allowed() -> None:
    script = compiled("[pause:1s]One.[pause:500ms] [PAUSE: 0.25 s]Two.[pause:2s]")
    assert [(line.text, line.pause_ms) for line in script.lines] == [("One.", 1000), ("Two.", 750)]
    assert script.pause_after_ms == 2000
    for text, allowed in (
        ("a[pause:1m]", "[pause:500ms]"),
        ("a[pause:61s]", "at most 60s"),
        ("a[pause:40s][pause:40s]", "at most 60000ms"),
    ):
        with pytest.raises(InvalidRequestError, match=re.escape(allowed)) as error:
            compiled(text)
        assert error.value.field == "text"
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_SILENCE_MS // 1000}s"):
        compiled("a[pause:60s]" * 61)


def test_pieces_are_as_long_as_the_option_or_the_checkpoint_says() -> None:
    assert TextCompiler.of(EngineConfig(), None).piece_length == 300
    assert TextCompiler.of(EngineConfig(), 90).piece_length == 90
    assert TextCompiler.of(EngineConfig(piece_length=50), 90).piece_length == 50


def test_a_text_without_fields_is_not_touched() -> None:
    compiler = TextCompiler(max_text_length=10)
    for text in ("[pause:1s] <b>", "", "x" * 100, "\ud800"):
        assert compiler.compile(text) is text


def test_hostile_texts_take_no_time() -> None:
    compiler = TextCompiler(max_text_length=4000)
    options = DEFAULT_TEXT.updated({"long_form": True, "normalize_text": True})
    for unit in (",", "“", "M. ", "(a. ", "e\u0301", ". ", " ", "\n \n", "a@", "1,", "1", "x"):
        with contextlib.suppress(InvalidRequestError):
            compiler.compile(unit * (100_000 // len(unit)), options, "english")
