"""Recognises spoken digits: pocketsphinx with its English acoustic model and a grammar of digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr

from voice_in_the_box.speech import SAMPLE_RATE, Audio

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_RATE = 16000  # of the acoustic model
_GRAMMAR = f"#JSGF V1.0; grammar digits; public <digits> = ( {' | '.join(DIGITS)} )+ ;"


class DigitRecogniser:
    """A speech recogniser that knows only digits."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder  # with a model of 30 MB; the rest of the evaluation does not need it

        self._decoder = Decoder(lm=None, loglevel="FATAL")
        self._decoder.add_jsgf_string("digits", _GRAMMAR)
        self._decoder.activate_search("digits")

    def hear(self, audio: Audio) -> list[int]:
        """The digits in `audio` at SAMPLE_RATE."""
        samples = soxr.resample(audio, SAMPLE_RATE, _RATE)
        silence = np.zeros(_RATE // 5, np.float32)  # the recogniser needs some before and after
        pcm = (np.concatenate([silence, samples, silence]).clip(-1, 1) * 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return [DIGITS.index(word) for word in heard.hypstr.split() if word in DIGITS] if heard else []


def errors(said: Sequence[int], heard: Sequence[int]) -> int:
    """Levenshtein distance: digits replaced, missing or too many."""
    row = list(range(len(heard) + 1))
    for i, digit in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(before + (digit != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]
