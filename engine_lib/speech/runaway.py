"""Finds speech that does not end: codes that repeat, and audio that stays silent.

Each detector watches one stream, at the cost of a little arithmetic of the host a frame. Good speech has pauses and held sounds, too.
So a stream has run away only after RUNAWAY_FRAMES of them; meanwhile its frames wait, as soon as there are more than speech has.
docs/speech/runaways.md has the figures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

RUNAWAY_FRAMES = 25  # 2 s of silence, or of one pattern that repeats
# Runs in speech that need not wait: frames that equal the one a period before, and silent frames.
REPEATS_IN_SPEECH = SILENCE_IN_SPEECH = 8
LONGEST_PERIOD = 8  # frames of a pattern

# A frame is silent below this share of the loudest one so far, within these limits (RMS; full scale is 1): a quiet recording makes a
# quiet voice, which is no silence.
SILENT_SHARE = 0.05
LEAST_SILENT_RMS, MOST_SILENT_RMS = 0.002, 0.005

Audio = npt.NDArray[np.float32]
_NOTHING: Audio = np.empty(0, np.float32)
_NO_CODE, _NO_RUNS = -1, [0] * LONGEST_PERIOD


class CodeLoops:
    """Looks for patterns of 1 to LONGEST_PERIOD frames that codebook 0 repeats.

    Attributes:
        num_doubtful: frames, up to the last, that may be bad, and so wait.
        num_repeats: frames, up to the last, that equal the one a period before; of the period with most of them.
        has_run_away: the last RUNAWAY_FRAMES frames are one pattern, again and again.
    """

    def __init__(self, codes: Iterable[int] = ()) -> None:
        """`codes`: of the frames so far."""
        self.num_doubtful = self.num_repeats = 0
        self.has_run_away = False
        self._last = deque([_NO_CODE] * LONGEST_PERIOD, LONGEST_PERIOD)  # the latest first
        self._runs = _NO_RUNS  # for each period: frames, up to the last, that equal the one a period before
        for code in codes:
            self.add(code)

    def add(self, code: int) -> None:
        """See codebook 0 of the next frame."""
        if code in self._last:
            self._runs = [run + 1 if code == earlier else 0 for run, earlier in zip(self._runs, self._last, strict=True)]
            self.num_repeats = max(self._runs)
            self.has_run_away = any(run + period >= RUNAWAY_FRAMES for period, run in enumerate(self._runs, 1))
        else:  # nearly always
            self._runs, self.num_repeats, self.has_run_away = _NO_RUNS, 0, False
        self._last.appendleft(code)
        self.num_doubtful = self.num_doubtful + 1 if self.num_repeats > REPEATS_IN_SPEECH else 0


class SilenceGate:
    """Lets audio pass, and keeps long silence back until sound follows.

    Attributes:
        num_good_frames: frames that have passed.
        num_silent: silent frames, up to the last.
        has_run_away: silence has lasted for RUNAWAY_FRAMES frames; nothing passes any more.
    """

    def __init__(self, samples_per_frame: int, num_good_frames: int = 0, loudest: float = 0.0) -> None:
        """
        Args:
            num_good_frames: frames that have passed before.
            loudest: RMS of the loudest of these.
        """
        self._samples_per_frame, self.num_good_frames, self._loudest = samples_per_frame, num_good_frames, loudest
        self.has_run_away = False
        self.num_silent = 0  # frames, up to the last
        self._kept: list[Audio] = []

    def after_good_frames(self) -> SilenceGate:
        """A gate for what is spoken anew behind the frames that have passed."""
        return SilenceGate(self._samples_per_frame, self.num_good_frames, self._loudest)

    def passed(self, audio: Audio) -> Audio:
        """The samples to send now that `audio` [frames * samples_per_frame] has come: perhaps none, or also those kept back before."""
        if self.has_run_away:
            return _NOTHING
        frames = audio.reshape(-1, self._samples_per_frame)
        energies = np.einsum("fs,fs->f", frames, frames).tolist()
        if energies and not self._kept and math.sqrt(min(energies) / self._samples_per_frame) >= MOST_SILENT_RMS:  # nearly always
            self._loudest = max(self._loudest, math.sqrt(max(energies) / self._samples_per_frame))
            self.num_silent, self.num_good_frames = 0, self.num_good_frames + len(energies)
            return audio
        num_good = 0
        for number, energy in enumerate(energies, 1):
            rms = math.sqrt(energy / self._samples_per_frame)
            self._loudest = max(self._loudest, rms)
            is_silent = rms < min(max(SILENT_SHARE * self._loudest, LEAST_SILENT_RMS), MOST_SILENT_RMS)
            self.num_silent = self.num_silent + 1 if is_silent else 0
            if self.num_silent <= SILENCE_IN_SPEECH:
                num_good = number
            if self.num_silent >= RUNAWAY_FRAMES:
                self.has_run_away = True
                break
        good, rest = audio[: num_good * self._samples_per_frame], audio[num_good * self._samples_per_frame :]
        if num_good:
            good = self._with_kept(good)
        if self.has_run_away:
            self._kept.clear()
        elif len(rest):
            self._kept.append(rest)
        self.num_good_frames += len(good) // self._samples_per_frame
        return good

    def release(self) -> Audio:
        """The samples kept back, for a stream that has ended well."""
        return self._with_kept(_NOTHING)

    def _with_kept(self, audio: Audio) -> Audio:
        if not self._kept:
            return audio
        kept, self._kept = self._kept, []
        return np.concatenate([*kept, audio])
