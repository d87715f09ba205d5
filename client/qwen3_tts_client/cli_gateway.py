"""The commands `qwen3-tts gateway` and `gateway-key`: the HTTP gateway of one or more Triton servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL
from qwen3_tts_client.cli_errors import EXIT_INVALID, failed

MISSING = "install the gateway's packages, in a clone of the repository: pip install '.[gateway]'"
DEFAULT_PORT = 8880
PREFIX = "QWEN3_TTS_GATEWAY_"

# "\b" keeps the lines of a paragraph as they are.
EPILOG = """
Examples:

\b
  # in front of one server on this machine
  qwen3-tts gateway
\b
  # two servers, own names of voices, and keys
  qwen3-tts gateway-key reception >> keys.txt
  qwen3-tts gateway --backend tts-1:8001 --backend tts-2:8001 \\
      --voice-name alloy=vivian --keys-file keys.txt
\b
  # ask it
  curl localhost:8880/v1/audio/speech -o hello.mp3 \\
      -H "Content-Type: application/json" \\
      -d '{"input": "Good morning.", "voice": "alloy"}'

Each option is also read from the environment, QWEN3_TTS_GATEWAY_<OPTION>, such as QWEN3_TTS_GATEWAY_BACKEND="tts-1:8001 tts-2:8001".
SIGTERM ends it: running speech has --drain-seconds to end by itself.

\b
Exit codes:
  0    stopped by a signal
  2    an option is not allowed, or a package is missing
"""


def gateway(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT", envvar=PREFIX + "BACKEND", help=f"gRPC port of a Triton server; repeat it. [default: {DEFAULT_URL}]"
        ),
    ] = None,
    resolve: Annotated[
        bool,
        typer.Option("--resolve/--no-resolve", envvar=PREFIX + "RESOLVE", help="A HOST stands for a server at each of its addresses."),
    ] = False,
    host: Annotated[str, typer.Option(metavar="ADDRESS", envvar=PREFIX + "HOST", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", envvar=PREFIX + "PORT", help="Port to listen on; 0 takes a free one.")
    ] = DEFAULT_PORT,
    wyoming_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            envvar=PREFIX + "WYOMING_PORT",
            help="Port of the Wyoming server, for Home Assistant (usually 10200). [default: none]",
        ),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "METRICS_PORT", help="Port of each server's metrics, to see its load; 0: not asked.")
    ] = 8002,
    model: Annotated[
        str, typer.Option(metavar="NAME", envvar=PREFIX + "MODEL", help="Model that speaks if neither request nor voice decides.")
    ] = DEFAULT_MODEL,
    voice_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VOICE", envvar=PREFIX + "VOICE_NAME", help="Another name of a voice, such as alloy=vivian; repeat it."),
    ] = None,
    max_text_length: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "MAX_TEXT_LENGTH", help="Characters of a request's text.")
    ] = 4096,
    max_script_length: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "MAX_SCRIPT_LENGTH", help="Characters of a text with long_form or a text_format.")
    ] = 100_000,
    max_body_bytes: Annotated[int, typer.Option(metavar="N", envvar=PREFIX + "MAX_BODY_BYTES", help="Bytes of a request.")] = 32 * 2**20,
    max_bodies_bytes: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "MAX_BODIES_BYTES", help="Of all requests that are being read or answered.")
    ] = 256 * 2**20,
    max_batch: Annotated[int, typer.Option(metavar="N", envvar=PREFIX + "MAX_BATCH", help="Utterances of a batch.")] = 32,
    max_streams: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "MAX_STREAMS", help="Utterances at a time, all callers together.")
    ] = 1024,
    max_streams_per_caller: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "MAX_STREAMS_PER_CALLER", help="Of one key, or of one address; 0: no limit.")
    ] = 0,
    requests_per_minute: Annotated[
        int, typer.Option(metavar="N", envvar=PREFIX + "REQUESTS_PER_MINUTE", help="Utterances one caller may begin; 0: no limit.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", envvar=PREFIX + "TIMEOUT", help="From a request to the end of its speech; 0: no limit.")
    ] = 0.0,
    stall_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            envvar=PREFIX + "STALL_SECONDS",
            help="A client that takes nothing, or sends nothing of its body, for so long is left.",
        ),
    ] = 60.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", envvar=PREFIX + "DRAIN_SECONDS", help="For running speech after SIGTERM.")
    ] = 20.0,
    keys_file: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar=PREFIX + "KEYS_FILE", help="API keys that are let in. [default: everyone is]")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar=PREFIX + "CERTIFICATE", help="Serve HTTPS with this certificate (PEM). [default: HTTP]"),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar=PREFIX + "KEY", help="Its key (PEM). [default: in the file of the certificate]")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", envvar=PREFIX + "CORS_ORIGIN", help="Web page that may call it, * for all; repeat it."),
    ] = None,
    encoder_processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            envvar=PREFIX + "ENCODER_PROCESSES",
            help="Processes that encode mp3, opus, aac and flac, at most. [default: one a core, 16 at most]",
        ),
    ] = None,
    studio: Annotated[
        bool, typer.Option("--studio/--no-studio", envvar=PREFIX + "STUDIO", help="Serve the studio, a page to speak with, at /.")
    ] = True,
    voice_changes: Annotated[
        bool,
        typer.Option("--voice-changes/--no-voice-changes", envvar=PREFIX + "VOICE_CHANGES", help="Callers may add and delete voices."),
    ] = True,
) -> None:
    """Serve OpenAI's speech API (POST /v1/audio/speech, ..) in front of Triton servers."""
    try:
        from qwen3_tts_gateway.running import Tls, run
        from qwen3_tts_gateway.settings import DEFAULT_ENCODER_PROCESSES, GatewaySettings, SettingsError
    except ModuleNotFoundError as error:
        raise failed(EXIT_INVALID, f"the package {error.name!r} is missing", MISSING) from None
    try:
        settings = GatewaySettings(
            backends=tuple(backend or [DEFAULT_URL]),
            resolve=resolve,
            metrics_port=metrics_port,
            model=model,
            voice_names=dict(_voice_name(text) for text in voice_name or []),
            max_text_length=max_text_length,
            max_script_length=max_script_length,
            max_body_bytes=max_body_bytes,
            max_bodies_bytes=max_bodies_bytes,
            max_batch=max_batch,
            max_streams=max_streams,
            max_streams_per_caller=max_streams_per_caller,
            requests_per_minute=requests_per_minute,
            timeout=timeout,
            stall_seconds=stall_seconds,
            drain_seconds=drain_seconds,
            keys_file=keys_file,
            cors_origins=tuple(cors_origin or []),
            encoder_processes=DEFAULT_ENCODER_PROCESSES if encoder_processes is None else encoder_processes,
            studio=studio,
            voice_changes=voice_changes,
        )
        if key is not None and certificate is None:
            raise SettingsError("key: it is given without a certificate; give --certificate, too")
        run(settings, host, port, wyoming_port, None if certificate is None else Tls(certificate, key))
    except SettingsError as error:
        raise failed(EXIT_INVALID, str(error)) from None


def gateway_key(name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets it; for logs and limits.")]) -> None:
    """Make an API key: the key itself on standard error, the line for the gateway's keys file on standard output."""
    try:
        from qwen3_tts_gateway.keys import new_key
    except ModuleNotFoundError as error:
        raise failed(EXIT_INVALID, f"the package {error.name!r} is missing", MISSING) from None
    if not name.strip() or len(name.split()) > 1 or len(name) > 64 or "#" in name:
        raise typer.BadParameter(f"{name!r} is not allowed; give 1 to 64 characters without spaces and #", param_hint="NAME")
    key, line = new_key(name)
    typer.echo(key, err=True)
    typer.echo(line)


def _voice_name(text: str) -> tuple[str, str]:
    name, equals, voice = text.partition("=")
    if not equals or not name or not voice:
        raise typer.BadParameter(f"{text!r} is not NAME=VOICE", param_hint="--voice-name")
    return name.lower(), voice.lower()
