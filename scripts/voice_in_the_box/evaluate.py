"""Check the speech of the voice in the box, through a real Triton server, against espeak-ng.

    python scripts/voice_in_the_box/evaluate.py CHECKPOINT                      on the CPU, every mode
    python scripts/voice_in_the_box/evaluate.py CHECKPOINT --device cuda        on the GPU, bfloat16
    python scripts/voice_in_the_box/evaluate.py CHECKPOINT --codec-only RUN     the codec alone, on its own codes

All texts are new to the model; espeak-ng's audio of a text is its reference. Three questions: Is the right one of all references
the nearest to the audio? Did the audio end by itself within 1.5 times the reference's length? In strings of digits, how many does
a recogniser get wrong, compared with espeak-ng's own audio? A mode is a text layout, greedy or sampled ids, and audio in chunks or
in one piece.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benching.arguments import HelpFormatter, add_engine_options
from voice_in_the_box.digits import DigitRecogniser, errors
from voice_in_the_box.retrieval import cepstra, nearest
from voice_in_the_box.sentences import Sentences
from voice_in_the_box.speech import SAMPLE_RATE, SAMPLES_PER_FRAME, SPEAKERS, Audio, Espeak

SENTENCES_SEED, DIGITS_SEED = 11, 12
DIGITS_LENGTH = 5
LONGEST = 1.5  # times the reference
STREAMS = 8  # at a time
LIMITS = {"retrieved": 0.95, "ended": 0.99, "digit_excess": 0.10}
CODEC_LIMIT = 0.99  # of sentences retrieved after the codec alone


@dataclass(frozen=True)
class Mode:
    """One way to ask for speech."""

    non_streaming_mode: bool
    do_sample: bool
    streamed: bool

    @property
    def name(self) -> str:
        """Name for people to read."""
        parts = ("whole text" if self.non_streaming_mode else "text a frame", "sampled" if self.do_sample else "greedy")
        return ", ".join((*parts, "streamed" if self.streamed else "offline"))

    def sampling_parameters(self, max_frames: int, seed: int) -> dict[str, Any]:
        """Sampling parameters of the request."""
        return {
            "non_streaming_mode": self.non_streaming_mode,
            "do_sample": self.do_sample,
            "subtalker_dosample": self.do_sample,
            "seed": seed,
            "max_frames": max_frames,
            "chunk_frames": [1, 2, 4, 8] if self.streamed else [64],
        }


MODES = [Mode(*values) for values in product((True, False), (True, False), (True, False))]
QUICK_MODES = [Mode(True, True, True), Mode(False, True, False), Mode(True, False, False), Mode(False, False, True)]


@dataclass
class Utterance:
    """One text with its reference and its spoken audio.

    Attributes:
        ended: by EOS, not by the limit of frames.
        speed: of the audio.
    """

    text: str
    speaker: str
    reference: Audio
    audio: Audio = field(default_factory=lambda: np.zeros(0, np.float32))
    ended: bool = False
    speed: float = 1.0

    @property
    def max_frames(self) -> int:
        """Frames that a request may have: a few more than count as ended in time."""
        return int(LONGEST * len(self.reference) / SAMPLES_PER_FRAME) + 8

    @property
    def ended_in_time(self) -> bool:
        """Whether it ended by EOS within LONGEST times the reference."""
        return self.ended and len(self.audio) * self.speed <= LONGEST * len(self.reference)


@dataclass(frozen=True)
class Score:
    """Results of one mode; shares are of 1.

    Attributes:
        retrieved: share of sentences nearest to the right reference.
        ended: share of sentences and digit strings that ended in time.
        digit_error, reference_digit_error: the recogniser's errors per digit, on our audio and on espeak-ng's.
        real_time_factor: seconds of work per second of audio, STREAMS at a time.
        wrong: sentences that were not retrieved.
    """

    mode: str
    retrieved: float
    ended: float
    digit_error: float
    reference_digit_error: float
    real_time_factor: float
    wrong: list[str]

    @property
    def failures(self) -> list[str]:
        """The limits that were missed."""
        excess = self.digit_error - self.reference_digit_error
        misses = {
            f"retrieved {self.retrieved:.2f}, at least {LIMITS['retrieved']}": self.retrieved < LIMITS["retrieved"],
            f"ended {self.ended:.2f}, at least {LIMITS['ended']}": self.ended < LIMITS["ended"],
            f"digit error {excess:.2f} above espeak-ng's, at most {LIMITS['digit_excess']}": excess > LIMITS["digit_excess"],
        }
        return [f"{self.mode}: {miss}" for miss, missed in misses.items() if missed]

    def line(self) -> str:
        """A row of the table."""
        return (
            f"{self.mode:34} retrieved {self.retrieved:5.1%}  ended {self.ended:5.1%}  digit error {self.digit_error:5.1%}"
            f" (espeak-ng {self.reference_digit_error:5.1%})  real-time factor {self.real_time_factor:.2f}"
        )


# (text, speaker, sampling parameters) -> (audio, finish reason)
Say = Callable[[str, str, dict[str, Any]], tuple[Audio, str]]


def evaluate(
    say: Say, modes: Sequence[Mode], num_sentences: int, num_digits: int, out: Path | None = None, speed: float = 1.0, first_seed: int = 0
) -> list[Score]:
    """Score each mode, at a speed. `out`: folder for the audio of the first sentences. `first_seed`: of the first text; the next adds 1."""
    espeak = Espeak()
    sentences = _utterances(espeak, Sentences(SENTENCES_SEED).held_out(num_sentences))
    digits = _utterances(espeak, Sentences(DIGITS_SEED).held_out_digits(num_digits, DIGITS_LENGTH))
    recogniser = DigitRecogniser() if digits else None
    reference_error = _digit_error(recogniser, digits, [u.reference for u in digits])
    scores = []
    for mode in modes:
        started = time.monotonic()

        def speak(numbered: tuple[int, Utterance], mode: Mode = mode) -> None:
            seed, utterance = numbered
            parameters = mode.sampling_parameters(utterance.max_frames, seed) | ({} if speed == 1.0 else {"speed": speed})
            utterance.speed = speed
            utterance.audio, reason = say(utterance.text, utterance.speaker, parameters)
            utterance.ended = reason == "stop"

        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(speak, enumerate(sentences + digits, first_seed)))
        seconds = time.monotonic() - started
        if out is not None:
            _write_audio(out, mode, sentences[:4] + digits[:2])
        retrieved = _retrieved(sentences)
        scores.append(
            Score(
                mode.name,
                retrieved=sum(retrieved) / len(sentences),
                ended=np.mean([u.ended_in_time for u in sentences + digits]).item(),
                digit_error=_digit_error(recogniser, digits, [u.audio for u in digits]),
                reference_digit_error=reference_error,
                real_time_factor=seconds * SAMPLE_RATE / max(1, sum(len(u.audio) for u in sentences + digits)),
                wrong=[u.text for u, right in zip(sentences, retrieved, strict=True) if not right],
            )
        )
        print(scores[-1].line(), flush=True)
    return scores


def evaluate_codec(checkpoint: Path, run: Path, num_sentences: int) -> float:
    """Share of sentences retrieved after the codec has coded and decoded espeak-ng's audio."""
    import torch
    from safetensors.torch import load_file

    from engine_lib.checkpoint_config import CheckpointConfig
    from voice_in_the_box.codec_model import Encoder, Quantiser, decode

    config = CheckpointConfig.read(checkpoint).codec
    weights = {name: tensor.float() for name, tensor in load_file(checkpoint / "speech_tokenizer" / "model.safetensors").items()}
    encoder = Encoder(config.codebook_dim)
    encoder.load_state_dict(load_file(run / "state" / "encoder.safetensors"))
    sentences = _utterances(Espeak(), Sentences(SENTENCES_SEED).held_out(num_sentences))
    with torch.no_grad():
        for utterance in sentences:
            latents = Quantiser(weights, config)(encoder(torch.from_numpy(utterance.reference)[None])).latents
            utterance.audio = decode(weights, config, latents)[0].clamp(-1, 1).numpy()
    return sum(_retrieved(sentences)) / len(sentences)


@contextmanager
def server_say(checkpoint: Path, options: dict[str, str]) -> Iterator[Say]:
    """Speech from a Triton server of our own."""
    from engine_lib.server.process import FREE_PORTS, TritonServer
    from qwen3_tts_client import Client

    server = TritonServer(options={"model_path": str(checkpoint.resolve()), **options}, ports=FREE_PORTS)
    with server, Client(f"localhost:{server.grpc_port}") as client:

        def say(text: str, speaker: str, parameters: dict[str, Any]) -> tuple[Audio, str]:
            speech = client.synthesize(text, voice=speaker, language="english", sampling=parameters)
            return speech.audio, speech.finish_reason

        yield say


@contextmanager
def in_process_say(checkpoint: Path, options: dict[str, str]) -> Iterator[Say]:
    """Speech from the engine in this process, for machines without Triton."""
    from engine_lib.api.qwen3_tts import Qwen3TTS
    from engine_lib.checkpoint import Checkpoint
    from engine_lib.config import EngineConfig

    config = EngineConfig.from_options({"model_path": str(checkpoint), **options})
    with Qwen3TTS(Checkpoint(checkpoint), config) as tts:

        def say(text: str, speaker: str, parameters: dict[str, Any]) -> tuple[Audio, str]:
            chunks = list(tts.stream_custom_voice(text, speaker, "english", **parameters))
            return np.concatenate([chunk.audio for chunk in chunks]), chunks[-1].finish_reason

        yield say


def _utterances(espeak: Espeak, texts: Sequence[str]) -> list[Utterance]:
    return [Utterance(text, speaker, espeak.speak(text, speaker)) for text, speaker in zip(texts, cycle(SPEAKERS), strict=False)]


def _retrieved(sentences: Sequence[Utterance]) -> list[bool]:
    """For each sentence, whether its own reference is the nearest of all."""
    references = [cepstra(utterance.reference) for utterance in sentences]
    return [len(u.audio) > 0 and nearest(u.audio, references) == i for i, u in enumerate(sentences)]


def _digit_error(recogniser: DigitRecogniser | None, digits: Sequence[Utterance], audio: Sequence[Audio]) -> float:
    """Wrong digits per digit said."""
    if recogniser is None:
        return 0.0
    said = [[int(digit) for digit in utterance.text.split()] for utterance in digits]
    wrong = sum(errors(one, recogniser.hear(samples)) for one, samples in zip(said, audio, strict=True))
    return wrong / sum(map(len, said))


def _write_audio(folder: Path, mode: Mode, utterances: Sequence[Utterance]) -> None:
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for i, utterance in enumerate(utterances):
        stem = "".join(letter if letter.isalnum() else "-" for letter in mode.name)
        soundfile.write(folder / f"{stem}-{i}.wav", utterance.audio, SAMPLE_RATE)
        soundfile.write(folder / f"reference-{i}.wav", utterance.reference, SAMPLE_RATE)


def main() -> int:
    """Read the command line, evaluate, and return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder to serve")
    parser.add_argument("--device", default="cpu", help="as in serve.py (default: cpu)")
    add_engine_options(parser)
    parser.add_argument("--quick", action="store_true", help="four modes that cover both values of each setting, instead of all eight")
    parser.add_argument("--sentences", type=int, default=100, help="that are spoken in each mode")
    parser.add_argument("--digits", type=int, default=50, help=f"number of strings of {DIGITS_LENGTH} digits")
    parser.add_argument("--speed", type=float, default=1.0, help="of the speech, 0.25 to 4; the reference stays as it is")
    parser.add_argument("--seed", type=int, default=0, help="of the first text; each further text has the next one (default: 0)")
    parser.add_argument("--in-process", action="store_true", help="use the engine in this process, for machines without Triton")
    parser.add_argument("--codec-only", type=Path, metavar="RUN", help="check only the codec, with the encoder in train.py's folder RUN")
    parser.add_argument("--report-only", action="store_true", help="exit with 0 for any scores")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="also write some of the audio into this folder")
    arguments = parser.parse_args()
    if arguments.sentences < 1:
        parser.error(f"--sentences: {arguments.sentences} is not allowed; give 1 or more")
    if arguments.digits < 0:
        parser.error(f"--digits: {arguments.digits} is not allowed; give 0 or more")
    if arguments.codec_only:
        share = evaluate_codec(arguments.checkpoint, arguments.codec_only, arguments.sentences)
        print(f"codec alone: retrieved {share:.1%}")
        return 0 if arguments.report_only or share >= CODEC_LIMIT else 1
    options = {"device": arguments.device, **dict(arguments.option)}
    open_say = in_process_say if arguments.in_process else server_say
    with open_say(arguments.checkpoint, options) as say:
        modes = QUICK_MODES if arguments.quick else MODES
        scores = evaluate(say, modes, arguments.sentences, arguments.digits, arguments.audio, arguments.speed, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n", encoding="utf-8")
    failures = [failure for score in scores for failure in score.failures]
    print("\n".join(failures) or "every limit is kept")
    return 0 if arguments.report_only or not failures else 1


if __name__ == "__main__":
    sys.exit(main())
