"""When the words of the voice in the box are said: espeak-ng's times, carried over to our audio.

Both say the same words in nearly the same way, so a warping of one spectrogram onto the other (Sakoe and Chiba 1978) says which moment of
ours is which of espeak-ng's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from voice_in_the_box.codec_model import LogMel
from voice_in_the_box.retrieval import MELS, centred, cosine_transform
from voice_in_the_box.speech import SAMPLE_RATE, Audio, Espeak

HOP, WINDOW = 240, 1024  # 10 ms
LOUDNESS_WEIGHT = 2.0
FARTHEST = 1.4  # mean distance a step of a warping that is believed: beyond, ours says something else


def word_starts(espeak: Espeak, text: str, speaker: str, audio: Audio) -> list[tuple[int, float]]:
    """Index in the text and start in `audio`, in seconds, of the words that espeak-ng tells of; none if the two differ too much."""
    reference, words = espeak.speak_timed(text, speaker)
    path, distance = warp(features(audio), features(reference))
    if distance > FARTHEST:
        return []
    step = HOP / SAMPLE_RATE
    return [(index, float(np.interp(seconds / step, np.arange(len(path)), path)) * step) for index, seconds in words]


def features(audio: Audio) -> npt.NDArray[np.float32]:
    """Mel cepstra and loudness [steps, features], less their means."""
    filled = torch.from_numpy(np.pad(audio, (0, WINDOW)))[None]
    log_mel = LogMel(HOP, WINDOW, MELS)(filled)[0].numpy()
    return centred(np.concatenate([cosine_transform(log_mel), LOUDNESS_WEIGHT * log_mel.mean(0, keepdims=True)]))


def warp(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], float]:
    """The step of `ours` that fits each step of `theirs`, [steps], and the mean distance of the warping."""
    n, m = len(ours), len(theirs)
    costs = np.sqrt(np.maximum((ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T, 0))
    totals = np.full((n + 1, m + 1), np.inf)
    totals[0, 0] = 0
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        totals[i, j] = costs[i - 1, j - 1] + np.minimum(np.minimum(totals[i - 1, j], totals[i, j - 1]), totals[i - 1, j - 1])
    sums, counts = np.zeros(m), np.zeros(m)
    row, column = n, m
    while row and column:
        sums[column - 1] += row - 1
        counts[column - 1] += 1
        back = int(np.argmin([totals[row - 1, column - 1], totals[row - 1, column], totals[row, column - 1]]))
        row, column = row - (back != 2), column - (back != 1)
    return sums / counts, float(totals[n, m] / (n + m))
