"""BatchRun: jobs of one file, several at a time, each into an audio file that is complete or absent."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from qwen3_tts_client.audio_file import AudioFile
from qwen3_tts_client.client import Client
from qwen3_tts_client.errors import Qwen3TTSClientError, ServerOverloaded, ServerUnavailable, StreamFailed, nearest
from qwen3_tts_client.protocol import RequestOptions

# Keys of a job that stand in `sampling` of RequestOptions.
SAMPLING = ("seed", "temperature", "top_k", "top_p", "repetition_penalty", "do_sample", "max_frames")
# Options that JSON cannot hold, or that a job has no use of.
NO_KEYS = {"reference_audio", "reference_sample_rate", "request_id", "chunk_frames", "audio_format"}
KEYS = ("text", "name", *(name for name in RequestOptions.__annotations__ if name not in NO_KEYS), *SAMPLING)
ATTEMPTS, LONGEST_WAIT = 30, 60.0  # if the server is overloaded, or starts again: for eight minutes; seconds
STREAM_ATTEMPTS = 3  # if the stream breaks, as all do when a server ends
MAX_NAME_BYTES = 200  # file systems allow 255, with what is added to it
SHOWN = 20  # failed jobs in the table


@dataclass
class Job:
    """One text.

    Attributes:
        path: of its audio file.
        status: "" until it is "spoken", "cut" (at its limit of frames), "skipped" or "failed".
        seconds: of audio.
    """

    name: str
    text: str
    path: Path
    options: RequestOptions = field(default_factory=RequestOptions)
    status: str = ""
    seconds: float = 0.0
    problem: str = ""


def read_jobs(file: Path, folder: Path, suffix: str, options: RequestOptions) -> list[Job]:
    """The jobs of a file: a text a line, or a JSON object a line if its name ends with .jsonl; blank lines are none.

    Args:
        folder, suffix: of the audio files.
        options: of every job that does not say otherwise.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not allowed.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from None
    lines = text.removesuffix("\n").split("\n")  # JSON may hold other ends of lines
    width = max(4, len(str(len(lines))))
    jobs: dict[str, Job] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        values: dict[str, Any] = _values(line, number) if file.suffix.lower() == ".jsonl" else {"text": line.strip()}
        text, name = values.pop("text"), values.pop("name", f"{number:0{width}}")
        if name in jobs:
            raise ValueError(f"line {number}: name: {name!r} is that of another job; give each its own")
        own: dict[str, Any] = values.pop("sampling", None) or {}
        own |= {key: values.pop(key) for key in SAMPLING if key in values}
        sampling = {**(options.get("sampling") or {}), **own}
        chosen = cast(RequestOptions, {**options, **values, "sampling": sampling})
        jobs[name] = Job(name, text, folder / f"{name}.{suffix.removeprefix('.')}", chosen)
    if not jobs:
        raise ValueError(f"{file}: holds no job; give a text a line")
    AudioFile(Path(f"x.{suffix.removeprefix('.')}"))  # raises ValueError if there is no such format
    return list(jobs.values())


def _values(line: str, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'line {number}: is not valid JSON ({error}); give an object, as {{"text": "Hello."}}') from None
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        raise ValueError(f'line {number}: has no text; give an object, as {{"text": "Hello."}}')
    unknown = [key for key in values if key not in KEYS]
    if unknown:
        raise ValueError(f"line {number}: {unknown[0]!r} is unknown; allowed: {', '.join(KEYS)}{nearest(unknown[0], KEYS)}")
    name = values.get("name", "x")
    is_text = isinstance(name, str) and name.strip() and not name.startswith(".") and not set(name) & set("/\\\0\n")
    if not is_text or not 0 < _num_bytes(name) <= MAX_NAME_BYTES:
        allowed = f"give the name of a file, without folder and suffix, of at most {MAX_NAME_BYTES} bytes"
        raise ValueError(f"line {number}: name: {name!r:.50} is not allowed; {allowed}")
    if not isinstance(values.get("sampling") or {}, dict):
        raise ValueError(f"line {number}: sampling: is not allowed; give an object of names and values")
    return values


def _num_bytes(name: str) -> int:
    """Of the name of a file; 0 if no file can have it."""
    try:
        return len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return 0


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other batches out of the folder; on Windows, or where a file system locks no folder, it does nothing.

    Raises:
        ValueError: another one writes into it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another batch writes into it; wait until it has ended, or give another --out") from None
        except OSError:
            pass
        yield
    finally:
        os.close(held)  # as the end of the process does


def _attempts(error: Exception) -> int:
    """How often a job is tried that ends with this error."""
    if isinstance(error, ServerOverloaded):
        return ATTEMPTS
    return STREAM_ATTEMPTS if isinstance(error, StreamFailed) else 1


class BatchRun:
    """Speaks jobs and remembers what came of each."""

    def __init__(self, console: Console, jobs: list[Job], timeout: float | None) -> None:
        """
        Args:
            console: shows a bar, if it is a terminal.
            timeout: seconds for each job.
        """
        self._console, self._jobs, self._timeout = console, jobs, timeout
        self._stopped = threading.Event()
        self._is_reached = False  # whether a server has answered
        self._gone: ServerUnavailable | None = None  # why the run has ended early

    @property
    def has_failures(self) -> bool:
        """Whether a job has no file."""
        return any(job.status in ("", "failed") for job in self._jobs)

    def speak(self, url: str, model: str, at_once: int) -> None:
        """Speak every job without a file, `at_once` at a time. An interruption cancels those under way.

        Raises:
            Qwen3TTSClientError: `url` or `model` is not allowed; or no server answers at the start, or none comes back after an end.
        """
        for job in self._jobs:
            job.status = "skipped" if job.path.exists() else ""
        waiting = [job for job in self._jobs if not job.status]
        bar = Progress(console=self._console, disable=not self._console.is_terminal)
        with Client(url, model) as client, bar, ThreadPoolExecutor(at_once) as pool:
            task = bar.add_task("speaking", total=len(self._jobs), completed=len(self._jobs) - len(waiting))
            running: list[Future[None]] = [pool.submit(self._attempt, client, job) for job in waiting]
            try:
                for future in as_completed(running):
                    future.result()
                    bar.advance(task)
            except BaseException:
                self._stopped.set()
                for future in running:
                    future.cancel()
                client.close()  # streams under way end with an error
                raise
        if self._gone is not None:
            raise self._gone

    def _attempt(self, client: Client, job: Job) -> None:
        """Speak one job; an error is its own, unless there is no server."""
        for attempt in range(ATTEMPTS):
            if self._stopped.is_set():
                return
            try:
                self._speak(client, job)
                self._is_reached = True
                return
            except ServerUnavailable as error:
                if not self._is_reached or attempt == ATTEMPTS - 1:  # then no other job will find it
                    self._gone = error
                    self._stopped.set()
                    return
                wait = 1.0 + attempt
            except (Qwen3TTSClientError, OSError) as error:
                if self._stopped.is_set():
                    return
                self._is_reached |= isinstance(error, Qwen3TTSClientError)
                job.status, job.problem = "failed", str(error)
                if attempt >= _attempts(error) - 1:
                    return
                wait = getattr(error, "retry_after", None) or 1.0 + attempt
            self._stopped.wait(min(wait, LONGEST_WAIT))

    def _speak(self, client: Client, job: Job) -> None:
        """Write its file under another name, and give it its own when it is complete."""
        part = job.path.with_name(f".{job.path.stem}.part{job.path.suffix}")
        finish_reason, seconds = "", 0.0
        try:
            with AudioFile(part) as file, closing(client.stream(job.text, timeout=self._timeout, **job.options)) as stream:
                for chunk in stream:
                    if self._stopped.is_set():
                        return
                    file.write(chunk.audio, chunk.sample_rate)
                    seconds += chunk.seconds
                    finish_reason = chunk.finish_reason
            if finish_reason in ("stop", "length"):
                os.replace(part, job.path)
                job.status, job.seconds, job.problem = "spoken" if finish_reason == "stop" else "cut", seconds, ""
            else:
                job.status, job.problem = "failed", f"the stream ended with {finish_reason or 'no reason'}"
        finally:
            part.unlink(missing_ok=True)

    def print_table(self) -> None:
        """What came of the jobs: how many, and why some failed."""
        failures = [job for job in self._jobs if job.status == "failed"]
        if failures:
            table = Table("job", "why it failed", box=None, pad_edge=False)
            for job in failures[:SHOWN]:
                table.add_row(Text(job.name), Text(job.problem))
            if len(failures) > SHOWN:
                table.add_row("..", f"and {len(failures) - SHOWN} more")
            self._console.print(table, highlight=False)
        table = Table("jobs", "spoken", "cut at max_frames", "skipped", "failed", "not begun", "seconds of audio", box=None, pad_edge=False)
        counts = [sum(job.status == status for job in self._jobs) for status in ("spoken", "cut", "skipped", "failed", "")]
        table.add_row(*map(str, [len(self._jobs), *counts]), f"{sum(job.seconds for job in self._jobs):.1f}")
        self._console.print(table, highlight=False)
