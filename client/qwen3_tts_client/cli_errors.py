"""Errors of the command line: exit codes, and one line with a hint on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from qwen3_tts_client.errors import Qwen3TTSClientError

EXIT_STREAM_FAILED = 1
EXIT_INVALID = 2  # also typer's own code for a bad option
EXIT_UNAVAILABLE = 3
EXIT_OVERLOADED = 4
EXIT_TIMEOUT = 5
EXIT_INTERRUPTED = 130


def exit_code(error: Qwen3TTSClientError) -> int:
    """Exit code of the command for `error`."""
    from qwen3_tts_client import errors

    codes = {
        errors.InvalidRequest: EXIT_INVALID,
        errors.ServerUnavailable: EXIT_UNAVAILABLE,
        errors.ServerOverloaded: EXIT_OVERLOADED,
        errors.RequestTimeout: EXIT_TIMEOUT,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), EXIT_STREAM_FAILED)


def words_of(error: Exception) -> str:
    """What `error` says; of a file its name and what is wrong with it, without the number of the error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def failed(code: int, message: str, hint: str = "") -> typer.Exit:
    """Print an error line and a hint on standard error; return the exception that ends the command with `code`."""
    with suppress(OSError):  # no one reads it; the exit code still says it
        typer.echo(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), err=True)
    return typer.Exit(code)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in the body ends the command, and names the file."""
    try:
        yield
    except OSError as error:
        raise failed(EXIT_INVALID, f"{path}: {error.strerror or error}") from None
