"""The command line `qwen3-tts`.

A command loads slow packages (gRPC, numpy, rich) itself, when it needs them.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL, __version__, cli_batch, cli_bench, cli_gateway, cli_options, cli_voices
from qwen3_tts_client.cli_errors import EXIT_INTERRUPTED, EXIT_INVALID, EXIT_STREAM_FAILED, exit_code, failed, words_of
from qwen3_tts_client.closed_descriptors import open_closed_descriptors

if TYPE_CHECKING:
    from qwen3_tts_client.audio_file import AudioWriter
    from qwen3_tts_client.protocol import RequestOptions

STANDARD_STREAM = "-"
FORMATS = {".ssml": "ssml", ".xml": "ssml", ".json": "dialogue"}  # of files, by suffix
PIECE_BYTES = 4096  # of standard input, at most

# "\b" keeps the lines of a paragraph as they are.
EPILOG = """
Examples:

\b
  # speak into a file, watching the stream arrive
  qwen3-tts say "Good morning." -o morning.wav --voice vivian --chunks
\b
  # play while it is made
  qwen3-tts say "Good morning." --voice vivian -o - | aplay
\b
  # speak a text file, with the same result every time
  qwen3-tts say - -o chapter.flac --voice ryan --seed 7 < chapter.txt
\b
  # speak the words of a language model while it writes them
  llm "Tell me a story." | qwen3-tts say - --voice ryan -o - | aplay
\b
  # in the voice of a recording, with a Base checkpoint
  qwen3-tts say "Good morning." --reference anna.wav \\
      --reference-text "Nice to meet you."
\b
  # for a telephone line: mu-law at 8 kHz, a little faster and louder
  qwen3-tts say "Good morning." --format mulaw --sample-rate 8000 \\
      --speed 1.1 --volume 3 -o call.wav
\b
  # a book, as one stream of whole sentences
  qwen3-tts say book.txt -o book.flac --voice ryan --paragraph-pause 900
\b
  # pauses, rates and voices marked up
  qwen3-tts say '<speak>Now <break time="1s"/> then.</speak>' \\
      --text-format ssml
\b
  # with subtitles; or .vtt, or .json with the time of every word
  qwen3-tts say "Good morning." -o morning.wav --timestamps morning.srt
\b
  # the first audio as early as possible, then larger chunks
  qwen3-tts say "Good morning." --voice vivian --chunk-frames 1,1,2,4,8

Terms: a frame is 80 ms of audio. The time to first audio starts when the request is sent. The real-time factor is the
time taken divided by the seconds of audio; below 1 is faster than playback.

\b
Exit codes:
  0    spoken
  1    the stream broke; the audio that had arrived is in the file
  2    an option or the request is not allowed, or the file cannot be written
  3    no server answers, or its model is not ready
  4    the server is overloaded
  5    the timeout passed; the audio that had arrived is in the file
  130  interrupted
"""

app = typer.Typer(
    name="qwen3-tts",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's panels cut option names off on a terminal of 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


app.add_typer(cli_voices.app)
app.command(epilog=cli_gateway.EPILOG)(cli_gateway.gateway)
app.command("gateway-key")(cli_gateway.gateway_key)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwen3-tts {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version of client and server.")
    ] = False,
) -> None:
    """Speech from a Qwen3-TTS server (NVIDIA Triton), streamed while it is made. Start one with scripts/serve.py."""


@app.command(epilog=EPILOG)
def say(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="What to say, or the name of a file (.txt, .md, .ssml, .json); - speaks standard input. "
            "A text that begins with a dash goes behind --.",
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Speak this file, whatever its name.")] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Audio file, its format from the suffix (16-bit WAV, FLAC, ...); - streams a WAV to standard output.",
        ),
    ] = "speech.wav",
    voice: cli_options.Voice = None,
    language: cli_options.Language = None,
    instruct: cli_options.Instruct = None,
    reference: cli_options.Reference = None,
    reference_text: cli_options.ReferenceText = None,
    x_vector_only: cli_options.XVectorOnly = False,
    model: cli_options.Model = DEFAULT_MODEL,
    url: cli_options.Url = DEFAULT_URL,
    timeout: cli_options.Timeout = None,
    priority: cli_options.Priority = None,
    client_name: cli_options.ClientName = None,
    chunks: Annotated[
        bool, typer.Option("--chunks", help="Print each chunk as it arrives: index, time since the request, seconds of audio.")
    ] = False,
    chunk_frames: cli_options.ChunkFrames = None,
    speed: cli_options.Speed = None,
    sample_rate: cli_options.SampleRate = None,
    volume: cli_options.Volume = None,
    trim_silence: cli_options.TrimSilence = False,
    loudness: cli_options.Loudness = None,
    fade_ms: cli_options.Fade = None,
    audio_format: cli_options.AudioFormat = None,
    text_format: cli_options.TextFormat = None,
    long_form: cli_options.LongForm = None,
    lexicon: cli_options.LexiconFile = None,
    normalize_text: cli_options.NormalizeText = False,
    sentence_pause: cli_options.SentencePause = None,
    paragraph_pause: cli_options.ParagraphPause = None,
    timestamps: cli_options.Timestamps = None,
    seed: cli_options.Seed = None,
    temperature: cli_options.Temperature = None,
    top_k: cli_options.TopK = None,
    top_p: cli_options.TopP = None,
    repetition_penalty: cli_options.RepetitionPenalty = None,
    greedy: cli_options.Greedy = False,
    max_frames: cli_options.MaxFrames = None,
    non_streaming: cli_options.NonStreaming = None,
    on_runaway: cli_options.OnRunaway = None,
) -> None:
    """Speak a text and write the audio while it arrives."""
    from qwen3_tts_client.client import Client
    from qwen3_tts_client.errors import Qwen3TTSClientError
    from qwen3_tts_client.report import ReportConsole, StreamReport, expected_seconds

    source = _source(text, file)
    if isinstance(source, Path):
        text_format = text_format or FORMATS.get(source.suffix.lower())
        if long_form is None and text_format != "ssml":
            long_form = True
    options = cli_options.request_options(
        voice=voice,
        language=language,
        instruct=instruct,
        reference=reference,
        reference_text=reference_text,
        x_vector_only=x_vector_only,
        chunk_frames=chunk_frames,
        greedy=greedy,
        sampling={
            "seed": seed,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "max_frames": max_frames,
            "non_streaming_mode": non_streaming,
            "on_runaway": on_runaway,
        },
        priority=priority,
        client=client_name,
        audio={
            "speed": speed,
            "sample_rate": sample_rate,
            "volume_db": volume,
            "trim_silence": trim_silence or None,
            "loudness": cli_options.loudness(loudness),
            "fade_ms": fade_ms,
            "audio_format": audio_format,
        },
    )
    options |= cli_options.text_options(
        text_format=text_format,
        long_form=long_form,
        lexicon=lexicon,
        normalize_text=normalize_text,
        sentence_pause=sentence_pause,
        paragraph_pause=paragraph_pause,
    )
    as_it_arrives = not (non_streaming or _needs_whole_text(options))
    spoken, writer = _text(source, "TEXT" if file is None else "--file", as_it_arrives=as_it_arrives), _writer(output, audio_format)
    words_file = cli_options.words_file(timestamps, text_format, long_form=long_form)
    if words_file is not None:
        options["timestamps"], spoken = "word", words_file.heard(spoken)
    expected = expected_seconds(spoken) if isinstance(spoken, str) and long_form else None
    report = StreamReport(ReportConsole(stderr=output == STANDARD_STREAM), each_chunk=chunks, expected_seconds=expected)
    try:
        with Client(url, model) as client, writer, report, closing(client.stream(spoken, timeout=timeout, **options)) as stream:
            for chunk in stream:
                writer.write(chunk.audio, chunk.sample_rate)
                report.add(chunk)
                if words_file is not None:
                    words_file.add(chunk.words)
        if words_file is not None:
            words_file.write()
    except Qwen3TTSClientError as error:
        hint = "give --long-form" if "set long_form" in error.message else error.hint
        raise failed(exit_code(error), error.message, hint) from None
    except BrokenPipeError:
        sys.stdout = None  # otherwise the interpreter fails to flush it at exit
        raise failed(EXIT_STREAM_FAILED, "the reader of standard output has gone; the server was told to stop") from None
    except OSError as error:
        raise failed(EXIT_INVALID, f"{_name(output)}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        raise failed(EXIT_INTERRUPTED, "interrupted; the server was told to stop") from None
    finally:
        if report.has_chunks:
            report.line(f"{_name(output)}: {report.summary()}")


app.command(epilog=cli_batch.EPILOG)(cli_batch.batch)
app.command(epilog=cli_bench.EPILOG)(cli_bench.bench)


def main() -> None:
    """Entry point of the command `qwen3-tts`."""
    open_closed_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may be no text
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun, which takes care of its own
        raise SystemExit(EXIT_INTERRUPTED) from None
    except OSError as error:  # of the command's own output
        sys.exit(failed(EXIT_STREAM_FAILED, words_of(error)).exit_code)
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            sys.stdout = None  # otherwise the interpreter fails to flush it at exit


def _source(text: str | None, file: Path | None) -> str | Path:
    """What is to be said: a text, or a file of it."""
    if (text is None) == (file is None):
        raise typer.BadParameter("is missing" if file is None else "is given, and --file too; give one of them", param_hint="TEXT")
    if file is not None:
        return file
    text = text or ""
    if Path(text).suffix.lower() not in (*FORMATS, ".txt", ".md") or "\n" in text:
        return text
    if os.path.isfile(text):  # Path's raises an OSError of a long text
        return Path(text)
    if " " in text:
        return text
    raise typer.BadParameter(f"{text}: there is no such file; to say these words, give them to standard input: say -", param_hint="TEXT")


def _needs_whole_text(options: RequestOptions) -> bool:
    from qwen3_tts_client.protocol import TEXT_OPTIONS

    return any(options.get(name) is not None for name in TEXT_OPTIONS)


def _text(source: str | Path, option: str, *, as_it_arrives: bool) -> str | Iterator[str]:
    """The text that `option` gives, without the newlines at its end; in pieces if it comes from a program, through standard input."""
    if isinstance(source, Path):
        try:
            return source.read_text(encoding="utf-8-sig").rstrip("\n")
        except OSError as error:
            raise typer.BadParameter(words_of(error), param_hint=option) from None
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"{source} is not UTF-8: {error}", param_hint=option) from None
    if source != STANDARD_STREAM:
        return source
    if sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint=option)
    if as_it_arrives and not _is_file(sys.stdin.buffer):
        return _pieces(sys.stdin.buffer)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def _is_file(stream: BinaryIO) -> bool:
    """Whether the whole content is there already."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # no file descriptor: a stream in memory
        return True


def _pieces(stream: BinaryIO) -> Iterator[str]:
    """What comes from `stream`, as it comes, without the newlines at its end."""
    decoder, newlines = codecs.getincrementaldecoder("utf-8-sig")(), ""
    while data := os.read(stream.fileno(), PIECE_BYTES):
        try:
            text = newlines + decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _not_utf8(error) from None
        piece = text.rstrip("\n")
        newlines = text[len(piece) :]
        yield piece
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def _not_utf8(error: UnicodeDecodeError) -> typer.BadParameter:
    return typer.BadParameter(f"standard input is not UTF-8: {error}", param_hint="TEXT")


def _writer(output: str, audio_format: str | None) -> AudioWriter:
    from qwen3_tts_client.audio_file import AudioFile, WavPipe

    if output != STANDARD_STREAM:
        try:
            return AudioFile(Path(output), audio_format)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--output") from None
    if sys.stdout is None:
        raise typer.BadParameter("standard output is closed", param_hint="--output")
    if sys.stdout.isatty():
        raise typer.BadParameter("standard output is a terminal; send it to a player or a file, as in: -o - | aplay", param_hint="--output")
    return WavPipe(sys.stdout.buffer, audio_format)


def _name(output: str) -> str:
    return "standard output" if output == STANDARD_STREAM else output
