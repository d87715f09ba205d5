"""Find the heads of a talker that follow the text, and write them to CHECKPOINT/alignment.json.

With that file a server, or Qwen3TTS, answers `timestamps=word`. Each checkpoint needs its own, once; speed and codes do not change.

The voice in the box, whose teacher espeak-ng knows when it says each word:

    python scripts/calibrate_alignment.py scripts/voice_in_the_box/checkpoint --espeak 64

Any other checkpoint, with the word times of a recogniser of yours (whisper with word_timestamps, a forced aligner, ..):

    python scripts/calibrate_alignment.py CHECKPOINT --speak TEXTS --out FOLDER
    # TEXTS has one sentence a line, 50 to 200 of them. FOLDER gets 0000.wav, 0001.wav, .. and spoken.jsonl. Put into each of its
    # lines what the recogniser heard: "words": [{"word": "Good", "start": 0.21}, {"word": "morning", "start": 0.43}, ..]
    python scripts/calibrate_alignment.py CHECKPOINT --times FOLDER/spoken.jsonl

Half of the sentences choose the heads; the figures that are printed are those of the other half. --check N asks the engine itself for
the times of N sentences of the voice in the box, with the file that is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parent))

from calibrating.heads import WITHIN, AttentionReader, find_heads, share_within
from calibrating.spoken import Spoken, read_timed, speak, write_spoken

from benching.arguments import HelpFormatter
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.checkpoint import Checkpoint
from engine_lib.devices import resolve_device, resolve_dtype
from engine_lib.errors import Qwen3TTSError

CALIBRATION_SEED, CHECK_SEED = 101, 202
FRAME_SECONDS = 0.08  # of the voice in the box
LAYOUTS = (True, False)  # non_streaming_mode
MIN_SENTENCES = 4


def main() -> int:
    """Read the command line and do what it says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that gets alignment.json")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--espeak", type=int, metavar="N", help="calibrate the voice in the box on N sentences")
    what.add_argument("--speak", type=Path, metavar="TEXTS", help="speak each line of this file into --out, for a recogniser")
    what.add_argument("--times", type=Path, metavar="FILE", help="calibrate on what --speak has made and a recogniser has heard")
    what.add_argument("--check", type=int, metavar="N", help="only measure, on N other sentences of the voice in the box")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of --speak")
    parser.add_argument("--voice", action="append", help="of --speak; repeat it for several, which take turns (default: all speakers)")
    parser.add_argument("--language", help="of --speak (default: auto)")
    parser.add_argument("--instruct", help="of --speak: how to speak, or the voice for a VoiceDesign checkpoint")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--dry-run", action="store_true", help="print the result and write no file")
    arguments = parser.parse_args()
    if arguments.speak and not arguments.out:
        parser.error("--speak needs --out FOLDER")
    count = arguments.espeak or arguments.check
    if count is not None and count < MIN_SENTENCES:
        parser.error(f"{count} sentences are not enough; give at least {MIN_SENTENCES}")
    try:
        return _run(arguments)
    except (Qwen3TTSError, ValueError, OSError) as error:
        print(f"calibrate_alignment.py: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    checkpoint = Checkpoint(arguments.checkpoint)
    codec = checkpoint.config.codec
    frame_seconds = codec.samples_per_frame / codec.sample_rate
    if arguments.check:
        return _check(arguments)
    if arguments.speak:
        with Qwen3TTS.from_pretrained(arguments.checkpoint, device=arguments.device) as tts:
            file = write_spoken(arguments.out, _speak_file(tts, arguments), tts.sample_rate)
        print(f"now put what your recogniser hears into {file}, then: --times {file}")
        return 0
    spoken = read_timed(arguments.times) if arguments.times else _speak_like_espeak(arguments, arguments.espeak, CALIBRATION_SEED)
    spoken = [one for one in spoken if one.starts]
    if len(spoken) < MIN_SENTENCES:
        raise ValueError(f"only {len(spoken)} sentences have known word times; at least {MIN_SENTENCES} are needed")
    device = resolve_device(arguments.device)
    reader = AttentionReader(checkpoint, device, resolve_dtype("auto", device))
    examples = [reader.read(one) for one in spoken]
    alignment = find_heads(examples[::2], frame_seconds)
    figures = share_within(examples[1::2], alignment, frame_seconds)
    alignment = type(alignment)(alignment.heads, alignment.offset, alignment.lead, round(figures["within_100_ms"], 3))
    _report("the half that chose nothing", figures)
    print(f"heads {list(alignment.heads)}, offset {alignment.offset:+.3f} s, first word at {alignment.lead:.3f} s")
    if not arguments.dry_run:
        print(f"wrote {alignment.write(checkpoint.path)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """Words as the engine gives them, against espeak-ng's."""
    from voice_in_the_box.sentences import Sentences
    from voice_in_the_box.speech import SPEAKERS, Espeak
    from voice_in_the_box.word_times import word_starts

    espeak, texts = Espeak(), Sentences(CHECK_SEED).held_out(arguments.check)
    seconds: dict[str, list[float]] = {"none": [], "word": []}  # a frame
    with Qwen3TTS.from_pretrained(arguments.checkpoint, device=arguments.device) as tts:
        for layout in LAYOUTS:
            distances: list[float] = []
            for number, text in enumerate(texts):
                speaker = list(SPEAKERS)[number % len(SPEAKERS)]
                for timestamps, taken in seconds.items():
                    begin = time.process_time()
                    chunks = list(
                        tts.stream_custom_voice(text, speaker, "english", non_streaming_mode=layout, seed=number, timestamps=timestamps)
                    )
                    frames = chunks[-1].samples_sent / tts.sample_rate / FRAME_SECONDS
                    taken.append((time.process_time() - begin) / max(frames, 1))
                starts = {word.index: word.start for chunk in chunks for word in chunk.words}
                truth = word_starts(espeak, text, speaker, np.concatenate([chunk.audio for chunk in chunks]))
                distances += [abs(starts[index] - true) for index, true in truth if index in starts]
            shares = {f"within_{round(limit * 1000)}_ms": float((np.array(distances) <= limit).mean()) for limit in (WITHIN, WITHIN / 2)}
            figures = {"words": len(distances), **shares, "median_ms": float(np.median(distances) * 1000)}
            _report("text in the prompt" if layout else "text fed while speaking", figures)
    off, on = (1000 * float(np.median(taken)) for taken in seconds.values())
    print(f"CPU time of a frame, from text to audio: {off:.2f} ms without, {on:.2f} ms with timestamps ({on / off - 1:+.1%})")
    return 0


def _speak_like_espeak(arguments: argparse.Namespace, count: int, seed: int) -> list[Spoken]:
    """Sentences that training never saw, in both layouts, with espeak-ng's word times."""
    from voice_in_the_box.sentences import Sentences
    from voice_in_the_box.speech import SPEAKERS, Espeak
    from voice_in_the_box.word_times import word_starts

    espeak, texts = Espeak(), Sentences(seed).held_out(count)
    with Qwen3TTS.from_pretrained(arguments.checkpoint, device=arguments.device) as tts:
        fields = {"language": "english", "instruct": None}
        spoken = [one for layout in LAYOUTS for one in speak(tts, texts, list(SPEAKERS), fields, layout)]
    for one in spoken:
        one.starts = word_starts(espeak, one.fields["text"], one.fields["voice"], one.audio)
    return spoken


def _speak_file(tts: Qwen3TTS, arguments: argparse.Namespace) -> list[Spoken]:
    texts = [line for line in arguments.speak.read_text(encoding="utf-8").splitlines() if line.strip()]
    voices: list[str | None] = arguments.voice or list(tts.get_supported_speakers()) or [None]
    fields: dict[str, Any] = {"language": arguments.language, "instruct": arguments.instruct}
    return [one for layout in LAYOUTS for one in speak(tts, texts, voices, fields, layout)]


def _report(name: str, figures: dict[str, Any]) -> None:
    """A line of figures."""
    shares = (
        f"within 100 ms {figures['within_100_ms']:.1%}, within 50 ms {figures['within_50_ms']:.1%}, median {figures['median_ms']:.0f} ms"
    )
    print(f"{name}: {figures['words']} words, starts {shares}")


if __name__ == "__main__":
    sys.exit(main())
