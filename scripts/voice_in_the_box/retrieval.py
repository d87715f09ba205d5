"""Finds the reference that sounds nearest: mel cepstra under dynamic time warping.

Time warping as in Sakoe and Chiba 1978.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from voice_in_the_box.codec_model import LogMel
from voice_in_the_box.speech import Audio

Cepstra = npt.NDArray[np.float32]

HOP, WINDOW, MELS = 480, 1024, 40  # 20 ms at 24 kHz
COEFFICIENTS = 13  # without the first, which is loudness


def cepstra(audio: Audio) -> Cepstra:
    """Mel cepstra [frames, COEFFICIENTS], 50 per second, minus the utterance's mean."""
    filled = np.pad(audio, (0, max(0, WINDOW - len(audio))))
    log_mel = LogMel(HOP, WINDOW, MELS)(torch.from_numpy(filled)[None])[0].numpy()
    return centred(cosine_transform(log_mel))


def cosine_transform(log_mel: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Mel cepstra [COEFFICIENTS, frames] of a log-mel spectrogram [MELS, frames]."""
    k, n = np.arange(1, COEFFICIENTS + 1)[:, None], np.arange(MELS)
    coefficients: npt.NDArray[np.float64] = np.cos(np.pi * k * (2 * n + 1) / (2 * MELS)) @ log_mel * np.sqrt(2 / MELS)
    return coefficients


def centred(features: npt.NDArray[np.float64]) -> Cepstra:
    """Features [features, frames] as [frames, features], less their means."""
    less_means: Cepstra = (features - features.mean(1, keepdims=True)).T.astype(np.float32)
    return less_means


def distances(query: Cepstra, references: Sequence[Cepstra]) -> npt.NDArray[np.float64]:
    """Warped distance of `query` to each reference, mean cost per step, [references].

    All references are warped together, one antidiagonal of the cost matrices after the other.
    """
    n, lengths = len(query), np.array([len(reference) for reference in references])
    width = int(lengths.max())
    costs = np.full((len(references), n, width), np.inf, np.float32)
    for i, reference in enumerate(references):
        square = (query**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * query @ reference.T
        costs[i, :, : len(reference)] = np.sqrt(np.maximum(square, 0))
    # Cell (i, j) is column i + 1 of diagonal i + j; column 0 holds infinity, for cells outside.
    outside = np.full((len(references), n + 1), np.inf)
    previous, last = outside.copy(), outside.copy()
    totals = np.empty(len(references))
    for diagonal in range(n + width - 1):
        first, stop = max(0, diagonal - width + 1), min(n, diagonal + 1)
        rows = np.arange(first, stop)
        step = np.minimum(np.minimum(last[:, rows], last[:, rows + 1]), previous[:, rows])  # from above, from the left, from both
        if diagonal == 0:
            step = np.zeros_like(step)
        current = outside.copy()
        current[:, rows + 1] = step + costs[:, rows, diagonal - rows]
        ended = lengths + n - 2 == diagonal
        totals[ended] = current[ended, n]
        previous, last = last, current
    return totals / (n + lengths)


def nearest(query: Audio, references: Sequence[Cepstra]) -> int:
    """Index of the reference that sounds most like `query`."""
    return int(distances(cepstra(query), references).argmin())
