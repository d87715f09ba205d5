"""`qwen3-tts batch` and files for `say`: what is refused before a server is asked, then a real one."""

from __future__ import annotations

import io
import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console
from typer.testing import CliRunner, Result

from benching.fake_triton import running_fake
from client.test_cli import COMMAND, environment
from engine_lib.server.ports import hold_free_port
from patience import PATIENCE, eventually
from qwen3_tts_client.batch import BatchRun, Job, alone_in, read_jobs
from qwen3_tts_client.cli import app
from qwen3_tts_client.errors import ServerUnavailable
from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_client.report import StreamReport, expected_seconds

FRAME = 1920  # samples


def batch(runner: CliRunner, *arguments: str) -> Result:
    return runner.invoke(app, ["batch", *arguments, "--out", "out"], env={"COLUMNS": "200"})


def write_jobs(*jobs: dict[str, Any]) -> str:
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)), encoding="utf-8")
    return "jobs.jsonl"


def files() -> dict[str, int]:
    """Frames of each file in the folder."""
    return {file.name: soundfile.info(str(file)).frames // FRAME for file in sorted(Path("out").iterdir())}


@pytest.mark.parametrize(
    ("jobs", "problem"),
    [
        ([{"text": "a"}, {"text": "b", "name": "0001"}], "line 2: name: '0001' is that of another job"),
        ([{"text": "a"}, {"txt": "b"}], "line 2: has no text"),
        ([{"text": "a", "pitch": 2}], "line 1: 'pitch' is unknown; allowed: text, name, voice"),
        ([{"text": "a", "name": "../b"}], "line 1: name: '../b' is not allowed"),
        ([{"text": "a", "sampling": 3}], "line 1: sampling"),
        ([{"text": "a", "name": "\ud800"}], "line 1: name: '\\ud800' is not allowed; give the name of a file"),
        ([{"text": "a", "name": "世" * 67}], "of at most 200 bytes"),
    ],
)
def test_a_line_that_is_not_allowed_is_named_before_anything_is_spoken(runner: CliRunner, jobs: list[dict[str, Any]], problem: str) -> None:
    result = batch(runner, write_jobs(*jobs), "--url", "localhost:9")
    assert result.exit_code == 2
    assert problem in result.stderr
    assert not Path("out").exists()


def test_a_line_of_json_ends_where_json_says_and_one_that_is_too_deep_is_refused(runner: CliRunner) -> None:
    Path("deep.jsonl").write_text('{"text": "a\u2028b\x85"}\r\n' + "[" * 100_000, encoding="utf-8")
    assert "line 2: is not valid JSON" in batch(runner, "deep.jsonl").stderr


def test_a_file_that_holds_no_job_and_a_format_that_no_one_writes_are_refused(runner: CliRunner) -> None:
    Path("lines.txt").write_text("\n \n", encoding="utf-8")
    assert "holds no job" in batch(runner, "lines.txt").stderr
    Path("bytes.txt").write_bytes(b"\xff")
    assert "bytes.txt is not UTF-8" in batch(runner, "bytes.txt").stderr
    assert "No such file" in batch(runner, "none.txt").stderr
    Path("lines.txt").write_text("a", encoding="utf-8")
    assert "no known suffix" in batch(runner, "lines.txt", "--suffix", "doc").stderr


@pytest.mark.server
def test_jobs_are_spoken_skipped_and_an_error_of_one_does_not_stop_the_others(runner: CliRunner, url: str) -> None:
    jobs: list[dict[str, Any]] = [
        {"text": "One.", "name": "one", "max_frames": 2},
        {"text": "Two.", "voice": "nobody"},
        {"text": "<speak><pitch>3</pitch></speak>", "name": "three", "text_format": "ssml"},
        {"text": "Four."},
    ]
    arguments = (write_jobs(*jobs), "--url", url, "--voice", "vivian", "--max-frames", "3")
    first = batch(runner, *arguments)
    assert first.exit_code == 1, first.output
    assert files() == {"0004.wav": 3, "one.wav": 2}
    assert "nobody" in first.stdout
    assert "<pitch>" in first.stdout
    before = {file: file.stat().st_mtime_ns for file in Path("out").iterdir()}
    jobs[1]["voice"] = "ryan"
    second = batch(runner, write_jobs(*jobs[:2], jobs[3] | {"name": "0004"}), *arguments[1:])
    assert second.exit_code == 0, second.output
    assert files() == {"0002.wav": 3, "0004.wav": 3, "one.wav": 2}
    assert {file: file.stat().st_mtime_ns for file in before} == before
    counts = second.stdout.splitlines()[-1].split()
    assert counts == ["3", "0", "1", "2", "0", "0", "0.2"]


def test_without_a_server_or_with_a_wrong_address_no_job_begins(runner: CliRunner) -> None:
    Path("lines.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    for url, code, problem in (
        ("localhost:9", 3, "cannot reach a Triton server"),
        ("http://localhost:9", 2, "give HOST:PORT"),
    ):
        result = batch(runner, "lines.txt", "--url", url)
        assert result.exit_code == code
        assert problem in result.stderr
        assert result.stdout.splitlines()[-1].split() == ["2", "0", "0", "0", "0", "2", "0.0"]
        assert files() == {}


def impatient_run(monkeypatch: pytest.MonkeyPatch, folder: Path, longest_wait: float) -> tuple[BatchRun, list[Job]]:
    """A run of four jobs that waits for no longer than so many seconds between two attempts."""
    monkeypatch.setattr("qwen3_tts_client.batch.LONGEST_WAIT", longest_wait)
    folder.joinpath("lines.txt").write_text("One.\n" * 4, encoding="utf-8")
    jobs = read_jobs(folder / "lines.txt", folder, "wav", {})
    return BatchRun(Console(quiet=True), jobs, None), jobs


def test_jobs_wait_for_a_server_that_starts_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, jobs = impatient_run(monkeypatch, tmp_path, 0.1)
    with hold_free_port() as holder, ThreadPoolExecutor(1) as pool:  # no other program gets the port between the two
        port = holder.getsockname()[1]
        with running_fake(frames=100, speed=1, port=port) as url:
            speaking = pool.submit(run.speak, url, "qwen3_tts", 2)
            eventually(lambda: len(list(tmp_path.glob(".*.part.wav"))) == 2, "two jobs are being spoken")
        with running_fake(frames=2, speed=0, port=port):
            speaking.result(PATIENCE)
    assert [job.status for job in jobs] == ["spoken"] * 4
    assert not run.has_failures


def test_a_server_that_does_not_come_back_ends_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, _ = impatient_run(monkeypatch, tmp_path, 0.01)
    with hold_free_port() as holder, ThreadPoolExecutor(1) as pool:
        with running_fake(frames=100, speed=1, port=holder.getsockname()[1]) as url:
            speaking = pool.submit(run.speak, url, "qwen3_tts", 1)
            eventually(lambda: any(tmp_path.glob(".*.part.wav")), "a job is being spoken")
        with pytest.raises(ServerUnavailable, match="cannot reach a Triton server"):
            speaking.result(PATIENCE)
    assert run.has_failures
    assert not list(tmp_path.glob("*.wav"))


def test_two_batches_do_not_write_into_one_folder(runner: CliRunner) -> None:
    Path("lines.txt").write_text("One.\n", encoding="utf-8")
    Path("out").mkdir()
    with alone_in(Path("out")):
        result = batch(runner, "lines.txt", "--url", "localhost:9")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "out: another batch writes into it" in result.stderr
    assert "cannot reach" in batch(runner, "lines.txt", "--url", "localhost:9").stderr
    assert files() == {}


@pytest.mark.server
def test_an_interrupt_leaves_no_half_of_a_file(url: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("One.\nTwo.\nThree.\n", encoding="utf-8")
    command = [*COMMAND, "batch", "lines.txt", "--out", "out", "--voice", "vivian", "--max-frames", "1500", "--at-once", "2"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # because it is ignored if tests run in the background
    ) as process:
        eventually(lambda: len(list(tmp_path.glob("out/.*.part.wav"))) == 2, "two jobs under way")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "interrupted; run the same command again" in errors
    assert output.splitlines()[-1].split() == ["3", "0", "0", "0", "0", "3", "0.0"]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.server
def test_a_file_is_spoken_in_the_format_of_its_name(runner: CliRunner, url: str) -> None:
    Path("note.ssml").write_text("<speak><pitch>a</pitch></speak>", encoding="utf-8")
    Path("talk.json").write_text('[{"text": "a"}, {"voice": "b"}]', encoding="utf-8")
    Path("note.txt").write_text("[pause:x]", encoding="utf-8")
    for arguments, problem in (
        (["note.ssml"], "<pitch>"),
        (["talk.json"], "entry 2"),
        (["note.txt"], "[pause:500ms]"),
        (["--file", "note.txt"], "[pause"),
    ):
        result = runner.invoke(app, ["say", *arguments, "--voice", "vivian", "--url", url])
        assert result.exit_code == 2
        assert problem in result.stderr
    arguments = ["say", "note.txt", "--one-piece", "--voice", "vivian", "--url", url, "--max-frames", "2"]
    assert runner.invoke(app, arguments).exit_code == 0


def test_a_text_and_a_file_are_not_both_taken(runner: CliRunner) -> None:
    for arguments, problem in (
        (["say"], "missing"),
        (["say", "a", "--file", "b"], "give one of them"),
        (["say", "--file", "b"], "b: No such file or directory"),
        (["say", "b.txt"], "b.txt: there is no such file"),
        (["say", "a", "--lexicon", "b"], "b: No such file or directory"),
        (["batch", "b", "--out", "c"], "error: b: No such file or directory"),
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert problem in result.stderr
    Path("list.json").write_text("[]", encoding="utf-8")
    result = runner.invoke(app, ["say", "a", "--lexicon", "list.json"])
    assert result.exit_code == 2
    assert "give a JSON object" in result.stderr


def test_the_length_of_speech_is_guessed_from_its_letters() -> None:
    assert expected_seconds("a" * 150) == pytest.approx(10)
    assert expected_seconds("好" * 50) == pytest.approx(10)


@pytest.mark.parametrize(("chunks", "percent"), [((12_000,), "50%"), ((12_000, 24_000), "99%"), ((12_000, 0), "100%")])
def test_a_long_text_has_a_bar_that_is_full_only_at_its_end(chunks: tuple[int, ...], percent: str) -> None:
    shown = io.StringIO()
    with StreamReport(Console(file=shown, force_terminal=True, width=120), each_chunk=False, expected_seconds=1.0) as report:
        for index, samples in enumerate(chunks):
            report.add(AudioChunk(np.zeros(samples, np.float32), 24_000, index, samples == 0, "" if samples else "stop"))
    assert percent in shown.getvalue()
    assert ("100%" in shown.getvalue()) == (percent == "100%")
