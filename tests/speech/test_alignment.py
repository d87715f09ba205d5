"""Words come out once, in order, with times that never go back, whatever the input."""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_lib.speech.alignment import LOOKAHEAD_FRAMES, Timing, WordAligner
from engine_lib.speech.words import Span, TimedWord, places, word_spans

TIMING = Timing(frame_seconds=0.08, offset=0.03, lead=0.16)
TEXTS = st.text(st.sampled_from("ab 'é,.\n-7世かกー😀$%\u0301"), max_size=40)


def in_tokens(text: str, sizes: list[int]) -> list[Span]:
    """Spans of tokens of these sizes, over and over; 0 is a part of the character before, as a byte of it."""
    spans: list[Span] = []
    start = 0
    while start < len(text):
        size = sizes[len(spans) % len(sizes)] or 1
        spans.append((start, min(start + size, len(text))))
        start += size if sizes[len(spans) % len(sizes)] or spans[-2:-1] == spans[-1:] else 0
    return spans


def looking_at(rows: list[int], num_rows: int) -> npt.NDArray[np.float16]:
    """Scores [frames, 1, rows] of a head that looks at one row in each frame."""
    scores = np.zeros((len(rows), 1, num_rows), np.float16)
    scores[np.arange(len(rows)), 0, rows] = 12
    return scores


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Good morning, Dr. O'Neil!", ["Good", "morning", "Dr", "O'Neil"]),
        ('"Well-known" - 3.5 % of $12,000 & more...', ["Well-known", "3.5", "%", "of", "$12,000", "&", "more"]),
        ("你好，世界。OK", ["你", "好", "世", "界", "OK"]),
        ("안녕 세계", ["안녕", "세계"]),
        (" \n . ", []),
    ],
)
def test_words_are_what_stands_between_spaces_without_its_punctuation(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in word_spans(text)] == words


def test_characters_of_one_token_share_its_time() -> None:
    (first, middle), (_, last) = (places("你好 世", (i, i + 1), [(0, 2), (2, 4)]) for i in (0, 1))
    assert (first.token, first.share, middle.share, last.share) == (0, 0.0, 0.5, 1.0)
    assert places("a b", (2, 3), [(0, 1), (1, 3)])[0].share == 0.0  # the space in front takes no time


def test_a_word_begins_where_half_of_the_attention_has_passed_its_first_token() -> None:
    aligner = WordAligner(TIMING)
    aligner.add_text("one two", [(0, 3), (3, 7)])
    scores = looking_at([0, 0, 0, 1, 1, 1, 1, 1, 2, 2], 3)
    words = [*aligner.add(scores), *aligner.end()]
    boundary = (3 + 0.5) * 0.08 + 0.03
    assert [(word.word, word.index) for word in words] == [("one", 0), ("two", 4)]
    np.testing.assert_allclose([words[0].start, words[0].end, words[1].start], [0.16, boundary, boundary], atol=1e-3)
    np.testing.assert_allclose(words[1].end, 8.5 * 0.08 + 0.03, atol=1e-3)


def test_a_word_comes_out_as_soon_as_the_frames_ahead_of_it_allow() -> None:
    aligner = WordAligner(TIMING)
    aligner.add_text("one two", [(0, 3), (3, 7)])
    rows = [0, 0, 0, *[1] * 20]
    out = [len(aligner.add(scores[None])) for scores in looking_at(rows, 3)]
    assert out.index(1) == rows.index(1) + LOOKAHEAD_FRAMES
    assert sum(out) == 1  # the end of the second word has not been seen yet


def test_an_aligner_that_goes_back_says_the_rest_of_the_words_and_none_twice() -> None:
    def spoken(rows: list[int], num_kept: int | None = None, anew: list[int] | None = None) -> list[tuple[str, float]]:
        aligner = WordAligner(TIMING)
        aligner.add_text("one two three", [(0, 3), (3, 7), (7, 13)])
        words = aligner.add(looking_at(rows, 4))
        if num_kept is not None and anew is not None:
            aligner.go_back(num_kept)
            words = [word for word in words if round(word.start, 3) < round(num_kept * 0.08, 3)] + aligner.add(looking_at(anew, 4))
        return [(word.word, round(word.start, 3)) for word in words + aligner.end()]

    rows = [0] * 5 + [1] * 5 + [2] * 5 + [3]
    assert spoken([*rows[:7], *[2] * 9], 7, rows[7:]) == spoken(rows)
    assert spoken([0] * 5 + [3] * 9, 5, rows[5:]) == spoken(rows)
    assert spoken(rows, 0, rows) == spoken(rows)


def test_a_cut_stream_has_only_the_words_that_were_begun() -> None:
    aligner = WordAligner(TIMING)
    aligner.add_text("one two three", [(0, 3), (3, 7), (7, 13)])
    aligner.add(looking_at([0, 0, 0, 1, 1, 1], 4))
    assert [word.word for word in aligner.end(is_complete=False)] == ["one", "two"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_word_comes_once_and_in_order_whatever_the_input(data: st.DataObject) -> None:
    text = data.draw(TEXTS)
    tokens = in_tokens(text, data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=6)))
    seed, num_frames, piece = (data.draw(st.integers(low, high)) for low, high in ((0, 99), (0, 30), (1, 9)))
    random = np.random.default_rng(seed)
    scores = random.normal(0, data.draw(st.sampled_from([0, 1, 20])), (num_frames, 2, len(tokens) + 1)).astype(np.float16)
    scores[random.random(scores.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))] = -np.inf
    scores[random.random(scores.shape) < data.draw(st.sampled_from([0.0, 0.1]))] = np.nan
    aligner, words = WordAligner(TIMING), []
    cut = data.draw(st.integers(0, len(text))) if text.isascii() else 0
    cut = next((start for start, _ in tokens if start >= cut), 0)
    early = [token for token in tokens if token[1] <= cut]
    if cut and cut == (early[-1][1] if early else 0):  # the text comes in two pieces
        aligner.add_text(text[:cut], early, is_last=False)
        words += aligner.add(scores[:3, :, : len(early)])
        scores = scores[3:]
        aligner.add_text(text[cut:], [(start - cut, end - cut) for start, end in tokens[len(early) :]])
    else:
        aligner.add_text(text, tokens)
    for first in range(0, len(scores), piece):
        words += aligner.add(scores[first : first + piece])
    words += aligner.end()
    check(text, words, num_frames * TIMING.frame_seconds)


def check(text: str, words: list[TimedWord], seconds: float) -> None:
    assert [(word.index, word.index + len(word.word)) for word in words] == word_spans(text)
    assert all(text[word.index :].startswith(word.word) for word in words)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert not times or (min(times) >= 0 and words[-1].end <= max(seconds, 0) + 1e-9)
    said = "".join(word.word for word in words)
    assert [c for c in text if unicodedata.category(c)[0] in "LN"] == [c for c in said if unicodedata.category(c)[0] in "LN"]
