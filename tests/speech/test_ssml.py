"""SSML: what is understood, what is refused by name, and hostile documents."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape, unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.compiler import TextCompiler
from engine_lib.speech.script import Line, Script
from engine_lib.speech.ssml import MAX_DEPTH
from engine_lib.speech.text_options import DEFAULT_TEXT

COMPILER = TextCompiler(max_text_length=4000)


def compiled(text: str, **fields: Any) -> Script:
    script = COMPILER.compile(text, DEFAULT_TEXT.updated({"text_format": "ssml"} | fields))
    assert isinstance(script, Script)
    return script


def lines_of(body: str) -> tuple[Line, ...]:
    return compiled(f"<speak>{body}</speak>").lines


def test_every_element_does_what_it_says() -> None:
    text = (
        '<?xml version="1.0"?><speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en-GB">\n'
        '  <p><s>Hello &amp; größe &#x4F60; <sub alias="World Wide Web">WWW</sub>.</s> <s>Two<break time="1.5s"/> parts.</s></p>\n'
        '  <prosody rate="fast" volume="+3dB">Quick <voice name="ben">Ben <lang xml:lang="de">hallo</lang></voice></prosody>'
        '<say-as interpret-as="ordinal">21</say-as><break strength="strong"/></speak>'
    )
    script = compiled(text)
    assert [(line.text, line.voice, line.language, line.pause_ms, line.speed, line.volume_db) for line in script.lines] == [
        ("Hello & größe 你 World Wide Web.", None, "english", 0, 1.0, 0.0),
        ("Two", None, "english", 200, 1.0, 0.0),
        ("parts.", None, "english", 1500, 1.0, 0.0),
        ("Quick", None, "english", 600, 1.25, 3.0),
        ("Ben", "ben", "english", 0, 1.25, 3.0),
        ("hallo", "ben", "german", 0, 1.25, 3.0),
        ("twenty-first", None, "english", 0, 1.0, 0.0),
    ]
    assert script.pause_after_ms == 700
    assert [text[line.begin : line.begin + 2] for line in script.lines] == ["He", "Tw", "pa", "Qu", "Be", "ha", "21"]


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("characters", "A1.b", "A, one, dot, b"),
        ("digits", "012", "zero one two"),
        ("telephone", "+1 (555) 010", "plus one, five five five, zero one zero"),
        ("cardinal", "1,234.50", "one thousand two hundred thirty-four point five zero"),
        ("number", "-3", "minus three"),
        ("date", "2026-10-03", "October third, twenty twenty-six"),
        ("time", "5:07pm", "five oh seven p m"),
    ],
)
def test_say_as_reads_words_as_asked(kind: str, words: str, said: str) -> None:
    assert [line.text for line in lines_of(f'<say-as interpret-as="{kind}">{words}</say-as>')] == [said]


def test_rates_and_volumes_multiply_and_add_up() -> None:
    lines = lines_of('<prosody rate="50%" volume="soft"><prosody rate="+20%" volume="-2.5dB">a</prosody></prosody>')
    assert lines[0].speed == pytest.approx(0.6)
    assert lines[0].volume_db == -8.5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<speak><foo/></speak>", "<foo>, which is unknown; allowed: <speak>, <p>"),
        ("<speak><mstts:express-as>a</mstts:express-as></speak>", "<mstts:express-as>, which is unknown"),
        ("<p>a</p>", "begins with <p>; SSML begins with <speak>"),
        ("<speak><speak>a</speak></speak>", "<speak> within <speak>"),
        ("<speak><s><p>a</p></s></speak>", "<p> within <s>; allowed there: <break>"),
        ('<speak><sub alias="b">a<break/></sub></speak>', "<break> within <sub>; allowed there: no elements"),
        ('<speak><prosody pitch="high">a</prosody></speak>', "attribute pitch in <prosody>, which is unknown; allowed: rate, volume"),
        ('<speak><prosody rate="9">a</prosody></speak>', "allowed: 0.25 to 4"),
        ('<speak><prosody rate="quick">a</prosody></speak>', "rate='quick' in <prosody>, which is not allowed; give x-slow"),
        ('<speak><prosody volume="50">a</prosody></speak>', "give x-soft, soft"),
        ('<speak><break time="2m"/>a</speak>', "500ms or 1.5s"),
        ('<speak><break time="99s"/>a</speak>', "at most 60s"),
        ('<speak><break strength="huge"/>a</speak>', "none, x-weak, weak"),
        ("<speak><break>a</break></speak>", "words within <break>"),
        ("<speak><sub>a</sub></speak>", "<sub> without alias"),
        ('<speak><sub alias="b"> </sub></speak>', "<sub> without words"),
        ('<speak><say-as interpret-as="currency">5</say-as></speak>', "unknown; allowed: characters, spell-out"),
        ('<speak><say-as interpret-as="digits">five</say-as></speak>', "no digits"),
        ('<speak><say-as interpret-as="date" format="ym">2026</say-as></speak>', "mdy, dmy, ymd"),
        ('<speak><say-as interpret-as="date">2026-13-40</say-as></speak>', "no date"),
        ('<speak xml:lang="th"><say-as interpret-as="ordinal">3</say-as></speak>', "without rules, th"),
        ("<speak>a", "line 1, column 9"),
        ("plain", "SSML begins with <speak>"),
        ("<speak>a & b</speak>", "& as &amp;"),
        ("<speak> <p/> </speak>", "is empty"),
        ("<speak>[pause:x]</speak>", "[pause:500ms]"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(problem)) as error:
        compiled(text)
    assert error.value.field == "text"


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    "text",
    [
        f'<!DOCTYPE lolz [<!ENTITY l0 "lol">{LAUGHS}]><speak>&l9;</speak>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><speak>&x;</speak>',
        '<!DOCTYPE speak PUBLIC "-//W3C//DTD SYNTHESIS 1.0//EN" "http://localhost/x.dtd"><speak>a</speak>',
        "<speak>" + "<prosody>" * 100_00 + "a</speak>",
        "<speak>" + "<p>" * MAX_DEPTH + "a" + "</p>" * MAX_DEPTH + "</speak>",
        '<?xml version="1.0" encoding="utf-7"?><speak>&nbsp;</speak>',
        "<speak>\x00</speak>",
        "<speak>\ud800</speak>",
        "<speak>&#xD800;</speak>",
        "<speak " + " ".join(f'a{n}="1"' for n in range(10_000)) + "/>",
        "<speak>" + "a" * 300_000 + "</speak>",
        "<![CDATA[" * 1000,
    ],
)
def test_hostile_documents_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        compiled(text)
    assert error.value.field == "text"
    assert len(str(error.value)) < 400


# XML has no control characters, and no surrogates.
WORDS = st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc", "Cn")), max_size=12)
WRAPS = (
    "<p>{}</p>",
    "<s>{}</s>",
    '<prosody rate="fast">{}</prosody>',
    '<voice name="x">{}</voice>',
    "{}<break/>",
    '<lang xml:lang="fr">{}</lang>',
)
BODIES = st.recursive(
    WORDS.map(escape), lambda inner: st.tuples(st.sampled_from(WRAPS), inner).map(lambda pair: pair[0].format(pair[1])), max_leaves=6
)


def refusal_of(text: str, **fields: Any) -> InvalidRequestError | None:
    try:
        compiled(text, **fields)
    except InvalidRequestError as error:
        return error
    return None


@settings(max_examples=150, deadline=None)
@given(bodies=st.lists(BODIES, max_size=5), long_form=st.booleans())
def test_the_words_that_go_in_come_out_in_order(bodies: list[str], long_form: bool) -> None:
    document = f"<speak>{' '.join(bodies)}</speak>"
    letters = [character for character in unescape(re.sub("<.*?>", "", document)) if character.isalnum()]
    if (refusal := refusal_of(document, long_form=long_form)) is not None:
        assert not letters or "within" in str(refusal), str(refusal)  # a paragraph within a sentence
        return
    lines = compiled(document, long_form=long_form).lines
    assert [character for line in lines for character in line.text if character.isalnum()] == letters


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="<>/&;=\"' abpsk!?-[]", max_size=60))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    for whole in (text, f"<speak>{text}</speak>"):
        refusal = refusal_of(whole)
        assert refusal is None or refusal.field == "text"
