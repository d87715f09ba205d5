"""`qwen3-tts batch`: many texts of one file into a folder of audio files; run again, it goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL, cli_options
from qwen3_tts_client.cli_errors import EXIT_INTERRUPTED, EXIT_INVALID, EXIT_STREAM_FAILED, exit_code, failed, words_of

EPILOG = """
Examples:

\b
  # a text a line: out/0001.wav, out/0002.wav, ...
  qwen3-tts batch lines.txt --out out --voice ryan
\b
  # a JSON object a line, with the options of a request
  {"text": "Hello.", "name": "greeting", "voice": "vivian"}
  {"text": "<speak>Bye.</speak>", "text_format": "ssml", "seed": 7}
  qwen3-tts batch jobs.jsonl --out out --at-once 8

A file is written under another name until it is complete. So the same command run again goes on where it was broken off: it
skips every job with a file in the folder. Delete a file to have it spoken again. While the server starts again, jobs wait.

\b
Exit codes:
  0    every job has its file
  1    some jobs failed; the table says why
  2    an option or a line of the file is not allowed, or another batch
       writes into the folder; nothing was spoken
  3    no server answers, or none within eight minutes of its end
  130  interrupted; run the same command again
"""


def batch(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text a line; a JSON object a line if its name ends with .jsonl.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the audio files; made if it is missing.")],
    suffix: Annotated[str, typer.Option(metavar="NAME", help="Format of the files: wav, flac, ogg, mp3.")] = "wav",
    at_once: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Jobs at a time.")] = 4,
    voice: cli_options.Voice = None,
    language: cli_options.Language = None,
    instruct: cli_options.Instruct = None,
    reference: cli_options.Reference = None,
    reference_text: cli_options.ReferenceText = None,
    x_vector_only: cli_options.XVectorOnly = False,
    model: cli_options.Model = DEFAULT_MODEL,
    url: cli_options.Url = DEFAULT_URL,
    timeout: cli_options.Timeout = None,
    priority: Annotated[
        str, typer.Option(metavar="interactive|batch", help="interactive does not wait while others' interactive requests wait.")
    ] = "batch",
    client_name: cli_options.ClientName = None,
    text_format: cli_options.TextFormat = None,
    long_form: cli_options.LongForm = None,
    lexicon: cli_options.LexiconFile = None,
    normalize_text: cli_options.NormalizeText = False,
    sentence_pause: cli_options.SentencePause = None,
    paragraph_pause: cli_options.ParagraphPause = None,
    speed: cli_options.Speed = None,
    sample_rate: cli_options.SampleRate = None,
    seed: cli_options.Seed = None,
    greedy: cli_options.Greedy = False,
    max_frames: cli_options.MaxFrames = None,
) -> None:
    """Speak the jobs of a file into a folder, several at a time; jobs that are done are skipped."""
    from rich.console import Console

    from qwen3_tts_client.batch import BatchRun, alone_in, read_jobs
    from qwen3_tts_client.errors import Qwen3TTSClientError

    options = cli_options.request_options(
        voice=voice,
        language=language,
        instruct=instruct,
        reference=reference,
        reference_text=reference_text,
        x_vector_only=x_vector_only,
        chunk_frames=None,
        greedy=greedy,
        sampling={"seed": seed, "max_frames": max_frames},
        priority=priority,
        client=client_name,
        audio={"speed": speed, "sample_rate": sample_rate},
    )
    options |= cli_options.text_options(
        text_format=text_format,
        long_form=long_form,
        lexicon=lexicon,
        normalize_text=normalize_text,
        sentence_pause=sentence_pause,
        paragraph_pause=paragraph_pause,
    )
    with ExitStack() as stack:
        try:
            jobs = read_jobs(file, out, suffix, options)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(out))
        except (OSError, ValueError) as error:
            raise failed(EXIT_INVALID, words_of(error)) from None
        run = BatchRun(Console(), jobs, timeout)
        try:
            run.speak(url, model, at_once)
        except Qwen3TTSClientError as error:
            raise failed(exit_code(error), error.message, error.hint) from None
        except KeyboardInterrupt:
            raise failed(EXIT_INTERRUPTED, "interrupted; run the same command again, and it skips what is done") from None
        finally:
            run.print_table()
    if run.has_failures:
        raise typer.Exit(EXIT_STREAM_FAILED)
