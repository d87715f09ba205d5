"""The command line's report on one stream: a live line on a terminal, a line per chunk, and a summary.

If the output is no terminal, the text is plain: no colours, no control characters, one fact to a line however long.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.status import Status

from qwen3_tts_client.protocol import AudioChunk

if TYPE_CHECKING:
    from typing_extensions import Self


class ReportConsole(Console):
    """A console whose reader may go: rich itself would end the program, and send standard output, which may be audio, to nowhere."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class StreamReport:
    """Timings of one stream, counted from the creation of this object, shown as its chunks arrive.

    Args:
        console: output; the live line appears only if it is a terminal.
        each_chunk: print a line for every chunk.
        expected_seconds: of the audio; then the live line is a bar.

    Attributes:
        has_chunks: whether anything has arrived.
    """

    def __init__(self, console: Console, *, each_chunk: bool, expected_seconds: float | None = None) -> None:
        self._console = console
        self._each_chunk = each_chunk
        self._status: Status | Progress | None = None
        if console.is_terminal and expected_seconds is None:
            self._status = console.status("waiting for the first audio")
        elif console.is_terminal:
            self._status = Progress(BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), console=console)
            self._task = self._status.add_task("waiting for the first audio", total=expected_seconds)
        self.has_chunks = False
        self._start = time.perf_counter()
        self._first_audio: float | None = None
        self._elapsed = 0.0
        self._seconds = 0.0
        self._chunks = 0
        self._finish_reason = ""

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def add(self, chunk: AudioChunk) -> None:
        """Count and show a chunk that has just arrived."""
        self._elapsed = time.perf_counter() - self._start
        self.has_chunks = True
        self._finish_reason = chunk.finish_reason
        if chunk.audio.size:
            self._first_audio = self._elapsed if self._first_audio is None else self._first_audio
            self._chunks += 1
            self._seconds += chunk.seconds
            if self._each_chunk:
                place = "" if chunk.line is None else f", line {chunk.line} {chunk.speaker or ''}".rstrip()
                self.line(f"chunk {chunk.index}: {self._elapsed * 1e3:.0f} ms, {chunk.seconds:.2f} s of audio{place}")
        if isinstance(self._status, Progress):
            # The length is a guess from the text, so the bar waits for the end just before it.
            total = self._status.tasks[0].total or 0.0
            seconds = total if chunk.is_final else min(self._seconds, 0.99 * total)
            self._status.update(self._task, completed=seconds, description=self._progress())
        elif self._status is not None:
            self._status.update(self._progress())

    def summary(self) -> str:
        """One line: the audio that has arrived, and how the stream ended."""
        return f"{self._progress()}, {f'finished: {self._finish_reason}' if self._finish_reason else 'not finished'}"

    def _progress(self) -> str:
        if self._first_audio is None:
            return "no audio"
        return (
            f"{self._seconds:.2f} s in {self._chunks} chunks, time to first audio {self._first_audio * 1e3:.0f} ms, "
            f"real-time factor {self._elapsed / self._seconds:.2f}"
        )

    def line(self, text: str) -> None:
        """Print one line without markup, above the live one. If that fails no more is said, and the speech goes on."""
        try:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        except OSError:
            self._console.quiet = True


def expected_seconds(text: str) -> float:
    """How long `text` takes to say, roughly: 15 letters a second, and five of Chinese, Japanese or Korean."""
    wide = sum("\u2e80" <= character <= "\ud7a3" for character in text)
    return max(1.0, (len(text) - wide) / 15 + wide / 5)
