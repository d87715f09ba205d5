"""Calibration finds the heads that follow the text, and reads what a recogniser has heard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from calibrating.heads import Example, find_heads, share_within
from calibrating.spoken import Spoken, matched, read_timed, write_spoken

FRAME = 0.08
TEXT = "one two three four five six"
SPANS = [(0, 3), (3, 7), (7, 13), (13, 18), (18, 23), (23, 27)]
STARTS = [0.2, 0.6, 0.9, 1.4, 1.8, 2.5]


def example(seed: int) -> Example:
    """Three layers of two heads: (1, 0) follows the text a frame late, (2, 1) does at times, the others look anywhere."""
    random = np.random.default_rng(seed)
    starts = [start + random.uniform(-0.02, 0.02) for start in STARTS]
    frames = 40
    scores = random.normal(0, 1, (3, 2, frames, len(SPANS) + 1)).astype(np.float16)
    said = np.searchsorted(starts, (np.arange(frames) - 1) * FRAME, side="right") - 1
    for frame, token in enumerate(said.clip(min=0)):
        scores[1, 0, frame, token] += 9
        if random.random() < 0.4:
            scores[2, 1, frame, token] += 4
    scores[:, :, 0] = -np.inf
    indexes = [start + (start > 0) for start, _ in SPANS]
    spoken = Spoken({"text": TEXT}, np.zeros((frames, 16), np.int16), np.zeros(0, np.float32), list(zip(indexes, starts, strict=True)))
    return Example(spoken, scores, SPANS)


def test_the_head_that_follows_the_text_is_found_with_its_offset() -> None:
    examples = [example(seed) for seed in range(8)]
    alignment = find_heads(examples[::2], FRAME)
    assert (1, 0) in alignment.heads
    assert alignment.offset == pytest.approx(
        -2 * FRAME, abs=0.03
    )  # half a frame until the next one, the late one, half a frame to its middle
    assert alignment.lead == pytest.approx(0.2, abs=0.03)
    assert share_within(examples[1::2], alignment, FRAME)["within_100_ms"] == 1.0


def test_words_that_were_heard_otherwise_are_left_out() -> None:
    heard = [("Good,", 0.1), ("mourning", 0.5), ("DR", 1.0), ("O'Neil.", 1.2), ("hm", 2.0)]
    assert matched('"Good morning", Dr. O\'Neil!', heard) == [(1, 0.1), (16, 1.0), (20, 1.2)]


def test_what_was_spoken_is_read_back_once_it_has_been_heard(tmp_path: Path) -> None:
    fields = {"text": "Grüße an alle", "voice": "ada", "language": None, "instruct": None, "non_streaming_mode": False}
    codes = np.arange(32, dtype=np.int16).reshape(2, 16)
    file = write_spoken(tmp_path / "out", [Spoken(fields, codes, np.zeros(480, np.float32))], 24000)
    with pytest.raises(ValueError, match=r"spoken\.jsonl, line 1: TypeError"):
        read_timed(file)
    line = json.loads(file.read_text()) | {"words": [{"word": "grüße", "start": 0.2, "end": 0.5}]}
    file.write_text(json.dumps(line))
    [read] = read_timed(file)
    assert (read.fields, read.starts) == (fields, [(0, 0.2)])
    np.testing.assert_array_equal(read.codes, codes)


def test_espeak_tells_its_word_times_and_they_are_found_in_its_own_audio() -> None:
    pytest.importorskip("espeakng_loader")
    from voice_in_the_box.speech import Espeak
    from voice_in_the_box.word_times import word_starts

    espeak, text = Espeak(), "There is a small penguin in the window."
    audio, words = espeak.speak_timed(text, "ada")
    assert [text[index:].split()[0] for index, _ in words][:4] == ["There", "is", "a", "small"]
    found = word_starts(espeak, text, "ada", audio)
    np.testing.assert_allclose([start for _, start in found], [start for _, start in words], atol=0.02)
