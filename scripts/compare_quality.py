"""Compare what two settings say: word errors, runaways, lengths, likeness, with their confidence.

    python scripts/compare_quality.py MODEL --b-option dtype=float32 --recogniser "COMMAND {file}"
    python scripts/compare_quality.py MODEL --other-model FINETUNED --recogniser MODEL_OF_TRANSFORMERS --language english
    python scripts/compare_quality.py BASE_MODEL --reference me.wav --b-option codec_dtype=bfloat16 --texts texts.txt
    python scripts/compare_quality.py scripts/voice_in_the_box/checkpoint --texts-count 8 --device cpu      # try it: A against A

A is MODEL with --option and --a-option; B is --other-model (else MODEL) with --option and --b-option. Each speaks every text with every
seed, in this process; no server is needed. 100 texts x 3 seeds are enough to see a difference of one or two words in a hundred.

word errors: words wrong, missing or too many, of 100 that the texts have, as --recogniser hears them. Its own mistakes are in A and in B,
so look at the difference. It is one of
  - a command with {file}: it is run for each file, and prints the words;
  - a command with {files}: it is run once with all files, and prints a line of words for each, so that it loads its model once;
  - anything else: a model for the pipeline "automatic-speech-recognition" of transformers (a name, or a folder).
Case and punctuation do not count. A recogniser that writes 7 for "seven" makes mistakes of its own: give texts without digits. For
languages without spaces, --characters. Needs jiwer (pip install jiwer).

runaways: takes that the engine's detectors would stop (docs/speech/runaways.md). They are not cut here, so that their length counts.
without an end: takes that ended at the limit of frames. length: log2 of B's frames / A's, mean: 0 is the same, 1 is twice as long.
likeness: cosine of the speaker's embedding of a take and of the reference recording; without one, of A's take of the same text with the
next seed, so that A's figure says how far A is from itself. A base checkpoint has a speaker encoder (that of A is used); for others name
a command as --embedder, with {file} or {files} as above, that prints the numbers of an embedding.

95 %: the interval that holds the difference with 95 % confidence (paired bootstrap over texts). An interval with 0 inside does not show
that both are equal: it says how large a difference could still be. More texts make it narrower, more seeds help less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import numpy as np
from rich.console import Console
from rich.table import Table

from benching.arguments import HelpFormatter, add_engine_options, require_matplotlib, require_packages
from benching.measuring import command, machine
from comparing.figures import EQUAL, LESS, MORE, Figure, Values, cosine, figure, sums, word_errors
from comparing.recognising import Embed, embedder, recogniser
from comparing.speaking import Take, Voice, speak
from engine_lib.errors import Qwen3TTSError
from qwen3_tts_client.load.texts import read_utterances
from voice_in_the_box.sentences import Sentences

SENTENCES_SEED = 31
FEW_TEXTS = 20  # fewer do not say how much texts differ
Takes = list[list[Take]]  # of each text, by seed


@dataclass(frozen=True)
class Setting:
    """A or B: a checkpoint and engine options."""

    name: str
    checkpoint: Path
    options: dict[str, str]

    def __str__(self) -> str:
        return " ".join([f"{self.name}: {self.checkpoint}", *(f"{name}={value}" for name, value in self.options.items())])


def main() -> None:
    """Speak, listen, and print the table."""
    parser = _parser()
    arguments = parser.parse_args()
    _check(parser, arguments)
    shared = {"device": arguments.device, **dict(arguments.option)}
    a = Setting("A", arguments.model, shared | dict(arguments.a_option))
    b = Setting("B", arguments.other_model or arguments.model, shared | dict(arguments.b_option))
    print(f"command: {command()}\n{machine()}\n{a}\n{b}\n{len(arguments.texts)} texts x {arguments.seeds} seeds", flush=True)
    with nullcontext(arguments.audio) if arguments.audio else tempfile.TemporaryDirectory() as folder:
        try:
            takes_a, takes_b = (_speak(setting, arguments, Path(folder)) for setting in (a, b))
            figures, heard = _compare(takes_a, takes_b, arguments)
        except (ValueError, Qwen3TTSError) as error:
            parser.error(str(error))
    Console(width=100).print(_table(figures))
    if len(arguments.texts) < FEW_TEXTS:
        print(f"only {len(arguments.texts)} texts: the intervals are too narrow below {FEW_TEXTS}")
    if arguments.output:
        pairs = _pairs(arguments.texts, takes_a, takes_b, heard)
        record: dict[str, object] = {"machine": machine(), "command": command(), "a": str(a), "b": str(b)}
        record |= {"figures": [asdict(each) | {"verdict": each.verdict} for each in figures], "takes": pairs}
        arguments.output.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    if arguments.plot:
        from comparing.picture import draw

        draw(figures, f"{a}\n{b}", arguments.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint folder of A")
    parser.add_argument("--other-model", type=Path, metavar="FOLDER", help="checkpoint folder of B (default: that of A)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    for name, whose in (("--option", "of A and B"), ("--a-option", "of A alone"), ("--b-option", "of B alone")):
        add_engine_options(parser, name, whose)
    parser.add_argument("--texts", type=Path, help="a text a line, or a .json that perf_analyzer takes (default: our own sentences)")
    parser.add_argument("--texts-count", type=int, metavar="N", help="take the first N texts (default: all of --texts, or 100)")
    parser.add_argument("--seeds", type=int, default=3, help="takes of each text")
    parser.add_argument("--max-frames", type=int, metavar="N", help="limit of a take (default: 100 and 2 a character of the longest text)")
    parser.add_argument("--recogniser", metavar="COMMAND|MODEL", help="what hears the words; see above")
    parser.add_argument("--characters", action="store_true", help="count characters instead of words")
    parser.add_argument("--embedder", metavar="COMMAND", help="what gives the embedding of a speaker; see above")
    parser.add_argument("--voice", help="speaker of a CustomVoice checkpoint (default: all in turn)")
    parser.add_argument("--language", help="of the texts (default: detected)")
    parser.add_argument("--instruct", help="how to speak; for VoiceDesign checkpoints the voice")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="recording to clone; for Base checkpoints")
    parser.add_argument("--reference-text", help="its words; without them only its timbre is cloned")
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="keep the takes there, in A and B")
    parser.add_argument("--output", type=Path, help="write figures and takes as JSON")
    parser.add_argument("--plot", type=Path, help="draw the differences into this file; needs matplotlib")
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what could not be used after minutes of speaking; read the texts."""
    for option, value in (("--texts-count", arguments.texts_count), ("--seeds", arguments.seeds), ("--max-frames", arguments.max_frames)):
        if value is not None and value < 1:
            parser.error(f"{option}: {value} is not allowed; give 1 or more")
    if arguments.recogniser:
        require_packages(parser, "jiwer", option="--recogniser")
    if arguments.embedder and arguments.reference is None and arguments.seeds < 2:
        parser.error("--embedder compares takes of two seeds: give --seeds 2 or more")
    require_matplotlib(parser, arguments)
    try:
        if arguments.texts:
            arguments.texts = [utterance.text for utterance in read_utterances(arguments.texts)][: arguments.texts_count]
        else:
            arguments.texts = Sentences(SENTENCES_SEED).held_out(arguments.texts_count or 100)
    except ValueError as error:
        parser.error(f"--texts: {error}")


def _speak(setting: Setting, arguments: argparse.Namespace, folder: Path) -> Takes:
    voice = Voice(arguments.voice, arguments.language, arguments.instruct, arguments.reference, arguments.reference_text)
    started = time.monotonic()
    texts, seeds = arguments.texts, arguments.seeds
    takes = speak(setting.checkpoint, setting.options, texts, seeds, voice, folder / setting.name, arguments.max_frames)
    print(f"{setting.name} has spoken, {time.monotonic() - started:.0f} s", flush=True)
    return takes


def _compare(takes_a: Takes, takes_b: Takes, arguments: argparse.Namespace) -> tuple[list[Figure], dict[Path, str]]:
    """All figures that can be computed, and the words that were heard in each file."""

    def values(of: Callable[[Take], float]) -> tuple[Values, Values]:
        a, b = (np.array([[of(take) for take in text] for text in takes], np.float64) for takes in (takes_a, takes_b))
        return a, b

    figures, heard = [], {}
    files = [take.file for takes in (takes_a, takes_b) for text in takes for take in text]
    if arguments.recogniser:
        heard = dict(zip(files, recogniser(arguments.recogniser, arguments.device)(files), strict=True))
        said = [text for text in arguments.texts for _ in range(arguments.seeds)] * 2
        wrong, total = word_errors(said, list(heard.values()), characters=arguments.characters)
        shape = (2, len(arguments.texts), arguments.seeds)
        (wrong_a, wrong_b), (total_a, total_b) = wrong.reshape(shape) * 100, total.reshape(shape)
        name = f"{'character' if arguments.characters else 'word'} errors, % of those said"
        figures.append(figure(name, LESS, sums(wrong_a, wrong_b, total_a, total_b)))
    figures.append(figure("runaways, % of takes", LESS, sums(*values(lambda take: 100 * take.has_run_away)), is_rate=True))
    figures.append(figure("without an end, % of takes", LESS, sums(*values(lambda take: 100 * (not take.has_ended))), is_rate=True))
    frames_a, frames_b = values(lambda take: max(1, take.num_frames))
    figures.append(figure("length, log2 of B / A", EQUAL, sums(np.zeros_like(frames_a), np.log2(frames_b / frames_a))))
    if (embed := embedder(arguments.embedder, arguments.model)) is not None:
        figures.append(figure("likeness of the voice, cosine", MORE, sums(*_likeness(embed, takes_a, takes_b, arguments.reference))))
    return figures, heard


def _likeness(embed: Embed, takes_a: Takes, takes_b: Takes, reference: Path | None) -> tuple[Values, Values]:
    """Likeness to the recording of A's and B's takes [texts, seeds]; without one, to A's take with the next seed."""
    a, b = ([embed([take.file for take in text]) for text in takes] for takes in (takes_a, takes_b))
    if reference is not None:
        [target] = embed([reference])
        targets = [[target] * len(text) for text in a]
    else:
        targets = [text[1:] + text[:1] for text in a]
    likeness_a, likeness_b = (
        np.array([list(map(cosine, text, target)) for text, target in zip(spoken, targets, strict=True)]) for spoken in (a, b)
    )
    return likeness_a, likeness_b


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("figure")
    for heading in ("A", "B", "B - A", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for each in figures:
        interval = f"{each.low:+.3f} to {each.high:+.3f}"
        table.add_row(each.name, f"{each.a:.3f}", f"{each.b:.3f}", f"{each.difference:+.3f}", interval, each.verdict)
    return table


def _pairs(texts: Sequence[str], takes_a: Takes, takes_b: Takes, heard: dict[Path, str]) -> list[dict[str, object]]:
    """Every take, for the file."""

    def facts(take: Take) -> dict[str, object]:
        known = {"frames": take.num_frames, "ended": take.has_ended, "runaway": bool(take.has_run_away)}
        return known | ({"heard": heard[take.file]} if take.file in heard else {})

    return [
        {"text": text, "seed": seed, "a": facts(a), "b": facts(b)}
        for text, of_a, of_b in zip(texts, takes_a, takes_b, strict=True)
        for seed, (a, b) in enumerate(zip(of_a, of_b, strict=True))
    ]


if __name__ == "__main__":
    main()
