"""The commands `qwen3-tts voices ..`: list, show, add, blend, remove."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_tts_client import DEFAULT_URL
from qwen3_tts_client.cli_errors import EXIT_INTERRUPTED, exit_code, failed, naming
from qwen3_tts_client.cli_options import Timeout, Url, read_lexicon

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from qwen3_tts_client.client import Client
    from qwen3_tts_client.voices import Voice, VoiceList

# "\b" keeps the lines of a paragraph as they are.
EPILOG = """
Examples:

\b
  # keep a voice: a few seconds of clean speech, and the words said in it
  qwen3-tts voices add anna anna.wav --text "Good morning to you." \\
      --consent "Anna B., by mail"
\b
  # speak with it
  qwen3-tts say "Nice to meet you." --voice anna --model qwen3_tts_base
\b
  # mix stored voices; a request's --voice may be such a blend, too
  qwen3-tts voices blend duo anna:0.7 ben:0.3
\b
  # names only, for a script
  qwen3-tts voices list --json | jq -r '.voices[].name'

The server keeps the voice's features (not the recording), the text and the consent in the folder of its option voice_store.
Ask the speaker for consent first.

\b
Exit codes:
  0    done
  2    the server refuses it, an option is wrong, or FILE cannot be read
  3    no server answers, or its model is not ready
  4    the server is overloaded
  5    the timeout passed
"""

app = typer.Typer(
    name="voices",
    help="Built-in and stored voices of the server. Stored ones need a Base checkpoint.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)

# What speaks with a model that has no voice.
NEEDS = {
    "voice_design": "; say --instruct describes its voice",
    "base": "; it clones: say --reference, or voices add",
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the voice, in any case.")]
Lexicon = Annotated[
    Path | None, typer.Option(metavar="FILE", help='JSON of words that the voice says wrong and their spellings, {"SQL": "sequel"}.')
]


@app.command("list")
def list_voices(url: Url = DEFAULT_URL, timeout: Timeout = None, as_json: AsJson = False) -> None:
    """List every voice: its name, where it comes from, and the models that speak with it."""
    from rich.table import Table

    with _server(url) as client:
        found = client.voices.list(timeout=timeout)
    if as_json:
        _print_json(asdict(found))
        return
    table = Table("name", "source", "models", "kind", "seconds", "added", box=None, header_style="bold", pad_edge=False)
    for voice in found.voices:
        seconds = "" if voice.reference_seconds is None else f"{voice.reference_seconds:.1f}"
        cells = (voice.name, voice.source, " ".join(voice.models), _kind(voice), seconds, (voice.created or "")[:10])
        table.add_row(*map(_text, cells))
    if found.voices or not found.models:
        _print(table)
    _print_models(found)
    for name, reason in found.refused.items():
        typer.echo(_plain(f"refused: {name}: {reason}"), err=True)
    if not found.has_store:
        typer.echo("hint: this server stores no voices; start it with --option voice_store=FOLDER", err=True)


@app.command()
def show(name: Name, url: Url = DEFAULT_URL, timeout: Timeout = None, as_json: AsJson = False) -> None:
    """Show all facts about one voice, consent and text included."""
    with _server(url) as client:
        voice = client.voices.show(name, timeout=timeout)
    _show(voice, as_json)


@app.command(epilog=EPILOG)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters a-z, digits, - _ and dots; 64 at most.")],
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="Recording of the voice: WAV, FLAC, MP3, OGG, .. at any rate.")],
    consent: Annotated[str, typer.Option(metavar="TEXT", help="Person who agreed that this voice is cloned; kept with the voice.")],
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="The words of the recording; needed unless --x-vector-only.")] = None,
    x_vector_only: Annotated[
        bool, typer.Option("--x-vector-only", help="Clone only the timbre: needs no text, is less like the speaker.")
    ] = False,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model it is for. [default: the first Base one]")] = None,
    lexicon: Lexicon = None,
    url: Url = DEFAULT_URL,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Store the voice of a recording under a name."""
    from qwen3_tts_client.recording import Recording

    words = read_lexicon(lexicon)
    with naming(recording):
        clip = Recording.read(recording)
    with _server(url) as client:
        voice = client.voices.add(
            name,
            clip.audio,
            clip.sample_rate,
            consent=consent,
            text=text,
            x_vector_only=x_vector_only or None,
            model=model,
            lexicon=words,
            timeout=timeout,
        )
    _show(voice, as_json)


@app.command(epilog=EPILOG)
def blend(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters a-z, digits, - _ and dots; 64 at most.")],
    voices: Annotated[list[str], typer.Argument(metavar="VOICE[:WEIGHT]..", help="Stored voices: anna:0.7 ben:0.3, or anna ben.")],
    consent: Annotated[str | None, typer.Option(metavar="TEXT", help="Kept with the voice. [default: the consents of VOICE..]")] = None,
    lexicon: Lexicon = None,
    url: Url = DEFAULT_URL,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Store a blend of stored voices under a name.

    Built-in speakers are not stored: give their blend to each request, as in --voice vivian:0.7+ryan:0.3.
    """
    words = read_lexicon(lexicon)
    with _server(url) as client:
        voice = client.voices.blend(name, "+".join(voices), consent=consent, lexicon=words, timeout=timeout)
    _show(voice, as_json)


@app.command()
def remove(name: Name, url: Url = DEFAULT_URL, timeout: Timeout = None) -> None:
    """Delete a stored voice. This cannot be undone."""
    with _server(url) as client:
        client.voices.remove(name, timeout=timeout)
    typer.echo(f"removed {_plain(name.lower())}")


def _print_models(found: VoiceList) -> None:
    """What there is to speak with beside the voices: models that list none, and what they need instead."""
    voiced = {model for voice in found.voices for model in voice.models}
    for model in found.models:
        if model.name not in voiced:
            typer.echo(_plain(f"{model.name}: a {model.kind} model{NEEDS.get(model.kind, '')}"))


@contextmanager
def _server(url: str) -> Iterator[Client]:
    """A client; its errors end the command."""
    from qwen3_tts_client.client import Client
    from qwen3_tts_client.errors import Qwen3TTSClientError

    try:
        with Client(url) as client:
            yield client
    except Qwen3TTSClientError as error:
        raise failed(exit_code(error), error.message, error.hint) from None
    except KeyboardInterrupt:
        raise failed(EXIT_INTERRUPTED, "interrupted") from None


def _show(voice: Voice, as_json: bool) -> None:
    from rich.table import Table

    facts = {name: value for name, value in asdict(voice).items() if value is not None}
    if as_json:
        _print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{word} = {spelling}" for word, spelling in value.items())
        table.add_row(name.replace("_", " "), _text(" ".join(value) if isinstance(value, tuple) else str(value)))
    _print(table)


def _kind(voice: Voice) -> str:
    kind = {None: "", True: "timbre", False: "in context"}[voice.x_vector_only] if voice.blend is None else voice.blend
    return f"{kind}, {voice.lexicon_words} words" if voice.lexicon_words else kind


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _print(table: Table) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(table)


def _plain(text: str) -> str:
    """Text of a server, without characters that could control the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _text(text: str) -> Text:
    from rich.text import Text

    return Text(_plain(text), overflow="fold")
