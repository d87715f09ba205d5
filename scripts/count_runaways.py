"""Count the false alarms of the detectors of runaway streams, and how near good speech comes to one.

    python scripts/count_runaways.py scripts/voice_in_the_box/checkpoint --streams 2000 --plot docs/speech/runaways.png

The engine speaks in this process, with `on_runaway` off, so that nothing is cut; the detectors see each stream afterwards. All texts are
new to the model, half of them with the text in the prompt, half with a row of it a frame; every stream has a seed of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from benching.arguments import HelpFormatter, require_matplotlib
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.speech.runaway import REPEATS_IN_SPEECH, RUNAWAY_FRAMES, SILENCE_IN_SPEECH, CodeLoops, SilenceGate
from voice_in_the_box.sentences import Sentences

SENTENCES_SEED = 21
BATCH = 64  # streams at a time


@dataclass(frozen=True)
class Stream:
    """One stream as the detectors saw it.

    Attributes:
        num_frames: its length.
        repeats, silence: the longest runs of frames that repeat, and of silent ones.
        has_run_away: whether a detector gave alarm.
        has_ended: by itself.
    """

    num_frames: int
    repeats: int
    silence: int
    has_run_away: bool
    has_ended: bool


def look_at(codes: npt.NDArray[np.int16], audio: npt.NDArray[np.float32], *, has_ended: bool) -> Stream:
    """Let the detectors see the codes [frames, num_code_groups] and the audio [samples] of one stream."""
    loops, gate = CodeLoops(), SilenceGate(len(audio) // len(codes))
    repeats, silence, alarm = 0, 0, False
    for frame, samples in zip(codes, np.split(audio, len(codes)), strict=True):
        loops.add(int(frame[0]))
        gate.passed(samples)
        repeats, silence = max(repeats, loops.num_repeats), max(silence, gate.num_silent)
        alarm |= loops.has_run_away or gate.has_run_away
    return Stream(len(codes), repeats, silence, alarm, has_ended)


def speak(tts: Qwen3TTS, num_streams: int, seed: int) -> Iterator[Stream]:
    """Speak `num_streams` sentences; `seed` is that of the first stream."""
    texts, speakers = Sentences(SENTENCES_SEED + seed).held_out(num_streams), list(islice(cycle(tts.get_supported_speakers()), num_streams))
    for first in range(0, num_streams, BATCH):
        batch = slice(first, first + BATCH)
        mode = first // BATCH % 2 == 0
        codes = tts.generate_codes(texts[batch], speakers[batch], "english", non_streaming_mode=mode, seed=seed + first, max_new_tokens=400)
        waves, _ = tts.decode(list(codes))
        for one, audio, reason in zip(codes, waves, codes.finish_reasons, strict=True):
            yield look_at(one, audio, has_ended=reason == "stop")


def report(streams: Sequence[Stream]) -> str:
    """The table of the streams."""
    lines = [
        f"{len(streams)} streams, {sum(stream.num_frames for stream in streams)} frames, "
        f"{sum(not stream.has_ended for stream in streams)} without an end, "
        f"{sum(stream.has_run_away for stream in streams)} alarms"
    ]
    for name, waits, values in (
        ("frames that repeat", REPEATS_IN_SPEECH, [stream.repeats for stream in streams]),
        ("silent frames", SILENCE_IN_SPEECH, [stream.silence for stream in streams]),
    ):
        lines.append(
            f"longest run of {name}: median {np.median(values):g}, 99 % {np.percentile(values, 99):g}, most {max(values)} "
            f"(kept back from {waits + 1} on, alarm at {RUNAWAY_FRAMES})"
        )
    return "\n".join(lines)


def plot(streams: Sequence[Stream], path: Path) -> None:
    """Draw how many streams have a longest run of each length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, title, waits, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("frames that repeat, codebook 0", "silent frames"),
        (REPEATS_IN_SPEECH, SILENCE_IN_SPEECH),
        ([stream.repeats for stream in streams], [stream.silence for stream in streams]),
        strict=True,
    ):
        axes.hist(values, np.arange(-0.5, RUNAWAY_FRAMES + 2), log=True)
        axes.axvline(waits + 0.5, linestyle="--", color="gray", label="wait")
        axes.axvline(RUNAWAY_FRAMES - 0.5, linestyle="-", color="red", label="runaway")
        axes.set(xlabel=f"longest run of {title}", xlim=(-1, RUNAWAY_FRAMES + 1))
        axes.legend(fontsize="small")
    figure.suptitle(f"{len(streams)} streams of good speech")
    figure.savefig(path, dpi=80)


def main() -> int:
    """Read the command line, speak, and return 1 if there was an alarm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the published layout")
    parser.add_argument("--device", default="auto", help="as in serve.py (default: auto)")
    parser.add_argument("--streams", type=int, default=2000, help="that are spoken")
    parser.add_argument("--seed", type=int, default=0, help="of the first stream")
    parser.add_argument("--plot", type=Path, help="also draw the longest runs into this file; needs matplotlib")
    arguments = parser.parse_args()
    if arguments.streams < 1:
        parser.error(f"--streams: {arguments.streams} is not allowed; give 1 or more")
    require_matplotlib(parser, arguments)
    started = time.monotonic()
    with Qwen3TTS.from_pretrained(arguments.checkpoint, arguments.device, max_num_seqs=BATCH, max_model_len=600) as tts:
        streams = list(speak(tts, arguments.streams, arguments.seed))
    print(report(streams))
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.plot:
        plot(streams, arguments.plot)
    return int(any(stream.has_run_away for stream in streams))


if __name__ == "__main__":
    sys.exit(main())
