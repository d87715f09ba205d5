"""Options that several commands have: `say`, `batch`, `bench`, `voices`; each is defined here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3_tts_client.cli_errors import naming, words_of

if TYPE_CHECKING:
    from qwen3_tts_client.protocol import RequestOptions
    from qwen3_tts_client.recording import Recording
    from qwen3_tts_client.words import TimedWord

Voice = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="A built-in speaker, or a stored voice for a Base checkpoint; or a blend, anna:0.7+ben:0.3. See: voices list."
    ),
]
Language = Annotated[str | None, typer.Option(metavar="NAME", help="Language of the text. [default: detected from the text]")]
Instruct = Annotated[
    str | None, typer.Option(metavar="TEXT", help="How to speak, in words; for VoiceDesign checkpoints a description of the voice.")
]
Reference = Annotated[Path | None, typer.Option(metavar="FILE", help="Clone the voice of this recording; for Base checkpoints.")]
ReferenceText = Annotated[str | None, typer.Option(metavar="TEXT", help="The words of the recording; needed unless --x-vector-only.")]
XVectorOnly = Annotated[bool, typer.Option("--x-vector-only", help="Clone only the timbre of the recording.")]
Model = Annotated[str, typer.Option(metavar="NAME", help="Model to use if the server has several: qwen3_tts_base, qwen3_tts_design, ..")]
Url = Annotated[
    str, typer.Option(envvar="QWEN3_TTS_URL", metavar="HOST:PORT", help="The server's gRPC port; grpcs://HOST:PORT if it speaks TLS.")
]
Timeout = Annotated[float | None, typer.Option(min=0.001, metavar="SECONDS", help="Give up after this time. [default: never]")]
Priority = Annotated[
    str | None, typer.Option(metavar="interactive|batch", help="batch waits while interactive requests wait. [default: interactive]")
]
ClientName = Annotated[
    str | None, typer.Option("--client", metavar="NAME", help="Clients with requests that wait take turns. [default: none]")
]
ChunkFrames = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Frames in the first, second, ... chunk; the last number repeats. [default: the server's]"),
]
Speed = Annotated[float | None, typer.Option(metavar="X", help="0.25 (slow) to 4 (fast), at the same pitch.")]
SampleRate = Annotated[int | None, typer.Option(metavar="HZ", help="8000 to 48000. [default: 24000]")]
Volume = Annotated[float | None, typer.Option(metavar="DB", help="Gain, -40 to 20; what is too loud is cut off.")]
TrimSilence = Annotated[bool, typer.Option("--trim-silence", help="Leave out the silence before the first sound.")]
Loudness = Annotated[
    str | None, typer.Option(metavar="LUFS|voice", help="Bring the voice to this loudness, once a whole utterance was heard; voice: -16.")
]
Fade = Annotated[int | None, typer.Option("--fade-ms", metavar="MS", help="0 to 100: the fade at the end of speech that is cut.")]
AudioFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="float32, pcm16, mulaw or alaw, as it is sent and written. [default: pcm16 file]"),
]
TextFormat = Annotated[
    str | None, typer.Option(metavar="NAME", help="plain, ssml or dialogue. [default: plain; by the suffix of a file, .ssml or .json]")
]
LongForm = Annotated[
    bool | None,
    typer.Option("--long-form/--one-piece", help="Cut the text at whole sentences, or not. [default: say cuts files, unless SSML]"),
]
LexiconFile = Annotated[Path | None, typer.Option("--lexicon", metavar="FILE", help='JSON of words and spellings, {"SQL": "sequel"}.')]
NormalizeText = Annotated[bool, typer.Option("--normalize-text", help="Write numbers, dates, times, amounts and units as words.")]
SentencePause = Annotated[int | None, typer.Option(metavar="MS", help="Silence between sentences of a long text; each is a piece then.")]
ParagraphPause = Annotated[int | None, typer.Option(metavar="MS", help="Silence between paragraphs of a long text. [default: 600]")]
Timestamps = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="When each word is said: .json, or subtitles: .srt, .vtt. Not every checkpoint can tell."),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same speech, up to rounding; -1: any.")]
Temperature = Annotated[float | None, typer.Option(metavar="X", help="Higher varies more.")]
TopK = Annotated[int | None, typer.Option(metavar="K", help="Sample from the K likeliest codes; 0 is all.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help="Sample from the likeliest codes that make up this probability.")]
RepetitionPenalty = Annotated[float | None, typer.Option(metavar="X", help="Above 1 repeats less.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always take the likeliest code, without sampling.")]
MaxFrames = Annotated[int | None, typer.Option(metavar="N", help="Cut the speech after this many frames of 80 ms.")]
NonStreaming = Annotated[
    bool | None,
    typer.Option(
        "--non-streaming/--streaming-text", help="Give the model the whole text before the first audio, or feed it while speaking."
    ),
]

OnRunaway = Annotated[
    str | None,
    typer.Option(metavar="stop|retry|off", help="What becomes of speech that stays silent or repeats itself. [default: the server's]"),
]


def request_options(
    *,
    voice: str | None,
    language: str | None,
    instruct: str | None,
    reference: Path | None,
    reference_text: str | None,
    x_vector_only: bool,
    chunk_frames: str | None,
    greedy: bool,
    sampling: dict[str, Any],
    priority: str | None = None,
    client: str | None = None,
    audio: RequestOptions | None = None,
) -> RequestOptions:
    """The options of a request from those of a command line.

    Args:
        voice, language, instruct, reference_text: as in RequestOptions.
        reference: file of the recording.
        x_vector_only: False is not sent.
        chunk_frames: whole numbers separated by commas.
        greedy: no sampling.
        sampling: other sampling parameters by name; None is not sent.
        audio: further options, as they are.
        priority, client: as `request_priority` and `client` in RequestOptions.

    Raises:
        typer.BadParameter: the recording cannot be read, or chunk_frames are not whole numbers.
    """
    from qwen3_tts_client.protocol import RequestOptions

    chosen = sampling | ({"do_sample": False, "subtalker_dosample": False} if greedy else {})
    options = RequestOptions(
        voice=voice,
        language=language,
        instruct=instruct,
        sampling={name: value for name, value in chosen.items() if value is not None},
        chunk_frames=None if chunk_frames is None else numbers(chunk_frames, int, "--chunk-frames"),
        reference_text=reference_text,
        x_vector_only=x_vector_only or None,
        request_priority=priority,
        client=client,
    )
    options |= audio or RequestOptions()
    if reference is not None:
        clip = _recording(reference)
        options |= RequestOptions(reference_audio=clip.audio, reference_sample_rate=clip.sample_rate)
    return options


def text_options(
    *,
    text_format: str | None,
    long_form: bool | None,
    lexicon: Path | None,
    normalize_text: bool,
    sentence_pause: int | None,
    paragraph_pause: int | None,
) -> RequestOptions:
    """The text fields of a request from the options of a command line; what is None is not sent.

    Raises:
        typer.BadParameter: the lexicon cannot be read.
    """
    from qwen3_tts_client.protocol import RequestOptions

    return RequestOptions(
        text_format=text_format,
        long_form=long_form,
        lexicon=read_lexicon(lexicon),
        normalize_text=normalize_text or None,
        sentence_pause_ms=sentence_pause,
        paragraph_pause_ms=paragraph_pause,
    )


def read_lexicon(path: Path | None) -> dict[str, str] | None:
    """The words and spellings of a JSON file; None without a file.

    Raises:
        typer.BadParameter: it cannot be read.
    """
    if path is None:
        return None
    try:
        lexicon = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise typer.BadParameter(words_of(error), param_hint="--lexicon") from None
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--lexicon") from None
    if not isinstance(lexicon, dict):
        raise typer.BadParameter(f"{path}: holds no words and spellings; give a JSON object", param_hint="--lexicon")
    return lexicon


def loudness(argument: str | None) -> float | str | None:
    """A number; anything else as it is, because the server checks it."""
    try:
        return argument if argument is None else float(argument)
    except ValueError:
        return argument


class WordsFile:
    """The file of --timestamps: gathers what is said and when."""

    def __init__(self, path: Path, text_format: str | None, *, long_form: bool) -> None:
        self.path, self._text_format, self._long_form = path, text_format, long_form
        self._pieces: list[str] = []
        self._words: list[TimedWord] = []

    def heard(self, text: str | Iterator[str]) -> str | Iterator[str]:
        """The same text, of which this keeps a copy."""
        if isinstance(text, str):
            self._pieces = [text]
            return text
        return self._keep(text)

    def _keep(self, pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            self._pieces.append(piece)
            yield piece

    def add(self, words: Sequence[TimedWord]) -> None:
        """Keep the words of a chunk."""
        self._words += words

    def write(self) -> None:
        """Write the file.

        Raises:
            typer.Exit: it cannot be written.
        """
        from qwen3_tts_client.words import of_dialogue, of_long_form, of_ssml, write_words

        plain: Callable[[str], str] = of_long_form
        text, words = "".join(self._pieces), self._words
        if self._text_format == "dialogue":
            text, words = of_dialogue(text, words)
        elif self._text_format == "ssml":
            plain = of_ssml
        elif not self._long_form:
            plain = str
        with naming(self.path):
            write_words(self.path, words, text, plain)


def words_file(path: Path | None, text_format: str | None, *, long_form: bool | None) -> WordsFile | None:
    """The file of --timestamps, for a text of this format.

    Raises:
        typer.BadParameter: its format is not known, or its folder does not exist.
    """
    if path is None:
        return None
    from qwen3_tts_client.words import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{str(path)!r} has no known suffix; give one of {', '.join(FORMATS)}", param_hint="--timestamps")
    check_file("--timestamps", path)
    return WordsFile(path, text_format, long_form=bool(long_form))


def check_file(option: str, path: Path) -> None:
    """Refuse the file of `option` if it could not be written.

    Raises:
        typer.BadParameter: it is a folder, its folder does not exist, or writing is not allowed.
    """
    from qwen3_tts_client.audio_file import check_place

    try:
        check_place(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def numbers(argument: str, kind: type, option: str) -> list[Any]:
    """Parse "1,2,4,8".

    Args:
        argument: the value of the option.
        kind: int or float.
        option: its name.

    Raises:
        typer.BadParameter: it holds something else.
    """
    try:
        return [kind(part) for part in argument.split(",")]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{argument!r} is not allowed; give {wanted} separated by commas, as 1,2,4,8", param_hint=option) from None


def _recording(path: Path) -> Recording:
    from qwen3_tts_client.recording import Recording

    try:
        return Recording.read(path)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror or error}", param_hint="--reference") from None
