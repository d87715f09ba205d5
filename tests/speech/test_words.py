"""Words as they are said: dialogue, lexicon and normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.errors import ConfigError, InvalidRequestError
from engine_lib.speech.compiler import TextCompiler
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon
from engine_lib.speech.script import Line, Script
from engine_lib.speech.text_options import DEFAULT_TEXT

COMPILER = TextCompiler(max_text_length=400)


def said(text: str, language: str = "english", **fields: Any) -> str:
    spoken = COMPILER.compile(text, DEFAULT_TEXT.updated(fields), language)
    return spoken if isinstance(spoken, str) else " ".join(line.text for line in spoken.lines)


def refusal_of(*arguments: Any, **fields: Any) -> InvalidRequestError | None:
    try:
        said(*arguments, **fields)
    except InvalidRequestError as error:
        return error
    return None


def refused(field: str, problem: str, text: str, language: str = "english", **fields: Any) -> None:
    with pytest.raises(InvalidRequestError) as error:
        said(text, language, **fields)
    assert error.value.field == field
    assert problem in str(error.value)


# dialogue


def test_entries_of_a_dialogue_become_lines() -> None:
    entries = [
        {"voice": "ada", "text": "Hello [pause:1s] there."},
        {"voice": "ben", "text": "Hi.", "pause_ms": 5, "speed": 2, "language": "de", "volume_db": -3, "instruct": "softly"},
    ]
    assert COMPILER.compile(json.dumps(entries), DEFAULT_TEXT.updated({"text_format": "dialogue"})) == Script(
        (
            Line(text="Hello", voice="ada"),
            Line(text="there.", voice="ada", pause_ms=1000, begin=17),
            Line(text="Hi.", voice="ben", language="german", instruct="softly", pause_ms=5, speed=2.0, volume_db=-3.0, begin=23),
        )
    )


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"text": "a"}, {"text": 1}], "entry 2, text: Expected `str`"),
        ([{"text": "a"}, {"voice": "ada"}], "entry 2: Object missing required field `text`; allowed in an entry: text, voice"),
        ([{"text": "a", "x": 1}], "entry 1: Object contains unknown field `x`"),
        ([{"text": "a"}, {"text": " \u200d"}], "entry 2: text is empty"),
        ([{"text": "a", "speed": 7}], "entry 1, speed: Expected `float` <= 4.0"),
        ([{"text": "a", "instruct": "b" * 500}], "entry 1: instruct has 500 characters; at most 400"),
        ([], "without entries"),
        ({"text": "a"}, "give a list, as [{"),
    ],
)
def test_an_error_names_the_entry(entries: object, problem: str) -> None:
    refused("text", problem, json.dumps(entries), text_format="dialogue")


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet='[]{}",:texvoic1 \\u\n', max_size=40))
def test_any_dialogue_is_read_or_refused_by_name(text: str) -> None:
    refusal = refusal_of(text, text_format="dialogue")
    assert refusal is None or refusal.field == "text"


# lexicon


def test_whole_words_are_spelt_as_the_lexicon_says() -> None:
    lexicon = {
        "sql": "sequel",
        "Nice": "Neece",
        "new york": "Noo York",
        "york": "Yawk",
        "天气": "tiān qì",
        "c++": "see plus plus",
        "café": "kaffay",
    }
    for text, spoken in {
        "SQL and MySQL, sql's.": "sequel and MySQL, sequel's.",
        "Nice is nice.": "Neece is nice.",
        "New York, York": "Noo York, Yawk",
        "今天天气很好": "今天tiān qì很好",
        "C++!": "see plus plus!",
        "Cafe\u0301.": "kaffay.",
        "nothing": "nothing",
    }.items():
        assert said(text, lexicon=lexicon) == spoken


def test_a_plain_text_without_words_of_the_lexicon_stays_as_it_is() -> None:
    compiler = TextCompiler(max_text_length=100, lexicon=Lexicon({"sql": "sequel"}))
    assert compiler.compile(" [pause:1s] <b> ") == " [pause:1s] <b> "
    assert compiler.compile("an SQL") == Script((Line(text="an sequel"),))
    options = DEFAULT_TEXT.updated({"lexicon": {"sql": "S Q L"}})
    assert compiler.compile("an SQL", options) == Script((Line(text="an S Q L"),))
    assert COMPILER.compile("sub SQL", DEFAULT_TEXT.updated({"lexicon": {"sql": "x"}})) == Script((Line(text="sub x"),))
    document = '<speak><sub alias="SQL">sql</sub> sql</speak>'  # what an element says is left alone
    assert said(document, text_format="ssml", lexicon={"sql": "sequel"}) == "SQL sequel"


def test_words_of_the_request_win_over_those_of_the_voice_and_these_over_those_of_the_server() -> None:
    compiler = TextCompiler(max_text_length=100, lexicon=Lexicon({"sql": "server", "tcp": "server", "ip": "server", "SQL": "SERVER"}))
    voices = {None: Lexicon({"sql": "own", "tcp": "own"}), "anna": Lexicon({"sql": "Anna", "tcp ip": "Anna's"})}

    def said(text: str, **fields: Any) -> list[str]:
        options = DEFAULT_TEXT.updated(fields)
        script = compiler.compile(text, options, lexicon_of=lambda voice: voices.get(voice, NO_LEXICON))
        return [text] if isinstance(script, str) else [line.text for line in script.lines]

    assert said("SQL, TCP, IP, UDP", lexicon={"sql": "request"}) == ["request, own, server, UDP"]
    assert said("SQL, TCP, IP, UDP") == ["own, own, server, UDP"]
    assert compiler.compile("UDP") == "UDP"
    entries = [{"text": "SQL TCP IP"}, {"voice": "anna", "text": "SQL TCP IP"}, {"voice": "nobody", "text": "sql TCP IP"}]
    expected = ["own own server", "Anna Anna's", "server server server"]  # the longest word wins, of whichever lexicon
    assert said(json.dumps(entries), text_format="dialogue") == expected
    document = '<speak>SQL <voice name="anna">SQL</voice> SQL</speak>'
    assert said(document, text_format="ssml") == ["own", "Anna", "own"]


def test_a_lexicon_that_is_none_is_refused() -> None:
    refused("lexicon", "give an object of up to 1000 words", "a", lexicon=["sql"])
    refused("lexicon", "1001 words", "a", lexicon={str(n): "a" for n in range(1001)})
    refused("lexicon", "the spelling of entry 'sql'", "a", lexicon={"sql": ""})
    refused(
        "lexicon",
        "the spelling of entry 'sql' is not allowed; give 1 to 200 characters that are not all blank",
        "a",
        lexicon={"sql": "\u200d"},
    )
    refused("lexicon", "the word of entry", "a", lexicon={"\u200b\u2060": "a"})
    refused("lexicon", "the word of entry", "a", lexicon={"x" * 201: "a"})


def test_the_lexicon_of_a_server_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lexicon.json"
    file.write_text('{"sql": "sequel"}', encoding="utf-8")
    assert Lexicon.read(str(file)).spellings == {"sql": "sequel"}
    assert not Lexicon.read("")
    for content in ("[", "[]", '{"a": 1}', "[" * 100_000):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"^lexicon_file: .*give a JSON file"):
            Lexicon.read(str(file))
    with pytest.raises(ConfigError, match="No such file"):
        Lexicon.read(str(tmp_path / "none"))


# normalisation


@pytest.mark.parametrize(
    ("language", "text", "spoken"),
    [
        ("english", "It costs $3.50, 5 km, 50%.", "It costs three dollars fifty, five kilometers, fifty percent."),
        ("english", "On 3 October 2026 at 12:30 p.m. he ran.", "On the third of October twenty twenty-six at twelve thirty p m he ran."),
        (
            "english",
            "In 1999, 1,234 people; the 21st.",
            "In nineteen ninety-nine, one thousand two hundred thirty-four people; the twenty-first.",
        ),
        ("english", "a@b.com or https://b.com/c.", "a at b dot com or b dot com slash c."),
        ("english", "Paid $3 million at -5 °C.", "Paid three million dollars at minus five degrees Celsius."),
        ("english", "Call +1 555 010.", "Call plus one, five five five, zero one zero."),
        ("english", "1/2, v1.2.3, A4, 007", "1/2, v1.2.3, A4, zero zero seven"),
        ("english", "2020-02-30, 10-20 km, 5€50, .5, $-5, 1e309, 00:61", "2020-02-30, 10-20 km, 5€50, .5, $-5, 1e309, 00:61"),
        ("english", "-$5, −5 kg, -0", "minus five dollars, minus five kilograms, minus zero"),
        ("english", "0020-01-02, 1500-03-01", "January second, twenty, March first, fifteen hundred"),
        ("chinese", "0020-01-02，1500-03-01", "二十年一月二日，一五〇〇年三月一日"),
        ("german", "Am 3. Oktober 2026 um 12:30 Uhr.", "Am dritten Oktober zweitausendsechsundzwanzig um zwölf Uhr dreißig."),
        ("german", "1.234,5 km, 3,50 €", "eintausendzweihundertvierunddreißig Komma fünf Kilometer, drei Euro fünfzig"),
        ("french", "1er mai à 12h30, 12 345 km", "premier mai à douze heures trente, douze mille trois cent quarante-cinq kilomètres"),
        ("spanish", "3,50 € a las 12:30", "tres euros con cincuenta a las doce y treinta"),
        ("italian", "1º maggio, 5 kg", "primo maggio, cinque chilogrammi"),
        ("portuguese", "10% de 3 km", "dez por cento de três quilômetros"),
        ("russian", "5 км, 3 октября 2026 г.", "пять километров, третье октября две тысячи двадцать шестого года"),
        ("chinese", "2026年10月3日，3.5元，50%", "二〇二六年十月三日，三点五元，百分之五十"),
        ("japanese", "5km、3.5円", "五 キロメートル、三点五円"),
        ("korean", "3:30, 50%", "세 시 삼십 분, 오십 퍼센트"),
    ],
)
def test_numbers_and_the_like_become_words(language: str, text: str, spoken: str) -> None:
    assert said(text, language, normalize_text=True) == spoken


def test_a_text_without_numbers_stays_as_it_is_and_a_language_without_rules_is_refused() -> None:
    text = " No numbers. "
    assert COMPILER.compile(text, DEFAULT_TEXT.updated({"normalize_text": True}), "english") is text
    refused("normalize_text", "no rules for the language klingon; there are rules for de, en", "3", "klingon", normalize_text=True)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="0123456789.,:/-+%$€ kmh°Cpast@年月日g", max_size=30),
    language=st.sampled_from(["english", "german", "french", "russian", "chinese", "japanese", "korean"]),
)
def test_any_text_is_normalised(text: str, language: str) -> None:
    refusal = refusal_of(text, language, normalize_text=True, long_form=True)
    assert refusal is None or "is empty" in str(refusal)
