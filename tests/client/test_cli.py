"""The command line: options without a server, then speech from a real one."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import qwen3_tts_client
from benching.fake_triton import running_fake
from patience import PATIENCE, TIMEOUTS
from qwen3_tts_client import Client, cli
from qwen3_tts_client.cli import app
from qwen3_tts_client.voices import ServedModel, VoiceList, Voices

QUANTISATION = 1 / 32768
TEXT = "Good morning! How are you today?"
SPEAK = ["say", TEXT, "--voice", "vivian", "--seed", "3", "--chunk-frames", "1,2"]
SUMMARY = re.compile(r"(.+): (\d+\.\d\d) s in (\d+) chunks, time to first audio \d+ ms, real-time factor \d+\.\d\d, (.+)")
COMMAND = [sys.executable, "-c", "from qwen3_tts_client.cli import main; main()"]

server_test = pytest.mark.server


@pytest.mark.parametrize("arguments", [["--help"], ["say", "--help"], ["batch", "--help"]])
def test_help_fits_eighty_columns(runner: CliRunner, arguments: list[str]) -> None:
    result = runner.invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_gives_examples_exit_codes_and_every_option_in_full(runner: CliRunner) -> None:
    text = runner.invoke(app, ["say", "--help"]).stdout
    for expected in ("Examples:", "aplay", "Exit codes:", "130  interrupted", "--repetition-penalty", "--streaming-text", "-o, --output"):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "speech.txt"], "has no known suffix"),
        (["-o", "missing/speech.wav"], "does not exist"),
        (["-o", "a" * 300 + ".wav", "--url", "localhost"], "give HOST:PORT"),
        (["--timestamps", "missing/a.srt"], "does not exist"),
        (["--chunk-frames", "1,two"], "whole numbers separated by commas"),
        (["--seed", "x"], "--seed"),
        (["--timeout", "0"], "--timeout"),
        (["--loud"], "--loud"),
        (["--url", "http://localhost:8001"], "give HOST:PORT"),
        (["--url", "localhost"], "give HOST:PORT"),
    ],
)
def test_a_wrong_option_exits_with_two_before_a_server_is_asked(runner: CliRunner, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, [*SPEAK, *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(Path().iterdir()) == []


def test_the_version_is_that_of_the_package(runner: CliRunner) -> None:
    assert runner.invoke(app, ["--version"]).stdout == f"qwen3-tts {qwen3_tts_client.__version__}\n"


def test_ctrl_c_before_a_command_has_begun_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130


def test_without_a_server_one_line_and_a_hint_say_what_to_do(runner: CliRunner) -> None:
    result = runner.invoke(app, [*SPEAK, "--url", "localhost:9"])
    assert result.exit_code == 3
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: cannot reach a Triton server at localhost:9")
    assert hint.startswith("hint: start a server")


def test_the_command_line_loads_neither_the_engine_nor_what_is_slow() -> None:
    program = (
        "import sys, qwen3_tts_client.cli as cli; slow = {'grpc', 'numpy', 'rich', 'soundfile'} & sys.modules.keys();"
        "import qwen3_tts_client.client, qwen3_tts_client.audio_file, qwen3_tts_client.report;"
        "print(slow, {'engine_lib', 'torch', 'transformers', 'triton'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment())
    assert result.stdout.split() == ["set()", "set()"]


@server_test
def test_the_file_holds_the_stream_in_sixteen_bits(runner: CliRunner, url: str) -> None:
    result = runner.invoke(app, [*SPEAK, "--url", url, "--max-frames", "8", "--on-runaway", "retry", "--chunks"])
    assert result.exit_code == 0, result.stderr
    with Client(url) as client:
        expected = client.synthesize(TEXT, voice="vivian", sampling={"seed": 3, "max_frames": 8}, chunk_frames=[1, 2])
    audio, sample_rate = soundfile.read("speech.wav", dtype="float32")
    assert sample_rate == expected.sample_rate
    assert soundfile.info("speech.wav").subtype == "PCM_16"
    np.testing.assert_allclose(audio, expected.audio, atol=QUANTISATION)
    *chunks, summary = result.stdout.splitlines()
    assert [re.sub(r"\d+ ms", "N ms", line) for line in chunks] == [
        "chunk 0: N ms, 0.08 s of audio",
        *(f"chunk {index}: N ms, 0.16 s of audio" for index in (1, 2, 3)),
        "chunk 4: N ms, 0.08 s of audio",
    ]
    found = SUMMARY.fullmatch(summary)
    assert found
    assert found.groups() == ("speech.wav", "0.64", "5", "finished: length")
    assert result.stderr == ""


@server_test
def test_speed_rate_level_and_format_are_those_of_the_file(runner: CliRunner, url: str) -> None:
    shape = ["--speed", "2", "--sample-rate", "8000", "--volume", "-3", "--trim-silence", "--loudness", "-20", "--fade-ms", "5"]
    result = runner.invoke(app, [*SPEAK, "--url", url, "--max-frames", "8", *shape, "--format", "mulaw"])
    assert result.exit_code == 0, result.stderr
    info = soundfile.info("speech.wav")
    assert (info.samplerate, info.subtype) == (8000, "ULAW")
    assert info.frames == pytest.approx(8 * 1920 / 2 / 3, abs=400)  # less what is trimmed
    for option, value in (("--speed", "9"), ("--loudness", "loud"), ("--format", "mp3")):
        refused = runner.invoke(app, [*SPEAK, "--url", url, option, value])
        assert refused.exit_code == 2
        assert "is not allowed" in refused.stderr


@server_test
def test_standard_input_is_spoken_to_standard_output(url: str) -> None:
    arguments = ["say", "-", *SPEAK[2:], "--max-frames", "4", "-o", "-"]
    result = subprocess.run([*COMMAND, *arguments], input=f"{TEXT}\n".encode(), capture_output=True, env=environment(url), timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    piped, _ = soundfile.read(io.BytesIO(result.stdout), dtype="float32")
    with Client(url) as client:
        expected = client.synthesize(TEXT, voice="vivian", sampling={"seed": 3, "max_frames": 4, "non_streaming_mode": False})
    np.testing.assert_allclose(piped, expected.audio, atol=QUANTISATION)
    assert SUMMARY.fullmatch(result.stderr.decode().strip())


@server_test
@pytest.mark.parametrize("by", ["argument", "pipe"])
def test_a_text_that_is_too_long_gets_a_hint_at_long_form(by: str, url: str) -> None:
    text = "Good morning. " * 300
    arguments, piped = (["-"], text) if by == "pipe" else ([text], "")
    said = subprocess.run(
        [*COMMAND, "say", *arguments, "--url", url], input=piped, capture_output=True, text=True, env=environment(), timeout=PATIENCE
    )
    assert said.returncode == 2
    assert said.stderr.endswith("at most 4000 are allowed; set long_form, which cuts a longer text at sentences\nhint: give --long-form\n")


@server_test
def test_what_a_program_writes_is_spoken_while_it_writes(url: str) -> None:
    arguments = [*COMMAND, "say", "-", "--voice", "vivian", "--greedy", "--max-frames", "20", "-o", "-"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(url)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Good morning, ")
        process.stdin.flush()
        heard = process.stdout.read(2000)  # more than a header
        process.stdin.write("你".encode()[:1])
        process.stdin.flush()
        process.stdin.write("你".encode()[1:] + b"\n\n")
        process.stdin.close()
        heard += process.stdout.read()
        assert process.wait(PATIENCE) == 0
    with Client(url) as client:
        greedy = {"do_sample": False, "subtalker_dosample": False, "max_frames": 20, "non_streaming_mode": False}
        expected = client.synthesize("Good morning, 你", voice="vivian", sampling=greedy)
    np.testing.assert_allclose(soundfile.read(io.BytesIO(heard), dtype="float32")[0], expected.audio, atol=QUANTISATION)


@server_test
@pytest.mark.parametrize("flags", [[], ["--non-streaming"]], ids=["file", "whole"])
def test_a_file_and_a_text_that_is_wanted_whole_are_read_first(url: str, tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "text").write_text(f"{TEXT}\n")
    arguments = [*COMMAND, "say", "-", *SPEAK[2:], "--max-frames", "4", "-o", str(tmp_path / "a.wav"), *flags]
    with (tmp_path / "text").open("rb") as file:
        source: dict[str, Any] = {"input": file.read()} if flags else {"stdin": file}
        subprocess.run(arguments, **source, env=environment(url), timeout=PATIENCE, check=True)
    with Client(url) as client:
        expected = client.synthesize(TEXT, voice="vivian", sampling={"seed": 3, "max_frames": 4}, chunk_frames=[1, 2])
    np.testing.assert_allclose(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], expected.audio, atol=QUANTISATION)


@server_test
def test_greedy_speech_needs_no_seed(runner: CliRunner, url: str) -> None:
    for name in ("one.wav", "two.flac"):
        result = runner.invoke(app, ["say", TEXT, "--voice", "vivian", "--greedy", "--url", url, "--max-frames", "6", "-o", name])
        assert result.exit_code == 0, result.stderr
    np.testing.assert_allclose(soundfile.read("one.wav")[0], soundfile.read("two.flac")[0], atol=QUANTISATION)


@server_test
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--voice", "vivian"], "error: text: is empty"),
        (["word " * 3000, "--voice", "vivian"], "error: text: has 15000 characters"),
        ([TEXT, "--voice", "nobody"], "error: voice: 'nobody' is unknown; allowed: aiden"),
    ],
)
def test_a_request_the_server_refuses_exits_with_two_and_writes_nothing(
    runner: CliRunner, url: str, arguments: list[str], message: str
) -> None:
    result = runner.invoke(app, ["say", *arguments, "--url", url])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stdout == ""
    assert list(Path().iterdir()) == []


def test_a_words_file_that_cannot_be_written_is_named(runner: CliRunner) -> None:
    Path("words.json").symlink_to("/dev/full")
    with running_fake(1, 0) as url:
        result = runner.invoke(app, ["say", TEXT, "--url", url, "--timestamps", "words.json"])
    assert result.exit_code == 2
    assert result.stderr == "error: words.json: No space left on device\n"
    assert soundfile.info("speech.wav").duration == 0.08


@server_test
def test_after_a_timeout_the_file_holds_what_came(runner: CliRunner, url: str) -> None:
    for seconds in TIMEOUTS:
        result = runner.invoke(app, [*SPEAK, "--url", url, "--max-frames", "1500", "--timeout", str(seconds)])
        if result.stdout:
            break
    assert result.exit_code == 5
    error, hint = result.stderr.splitlines()
    assert "the timeout passed after" in error
    assert hint.startswith("hint: ")
    found = SUMMARY.fullmatch(result.stdout.strip())
    assert found
    assert found[4] == "not finished"
    assert f"{soundfile.info('speech.wav').duration:.2f}" == found[2]


@server_test
def test_a_terminal_shows_progress_and_the_terminal_is_left_as_it_was(url: str, tmp_path: Path) -> None:
    shown = in_terminal([*SPEAK, "--url", url, "--max-frames", "8", "--chunks"], tmp_path)
    assert "waiting for the first audio" in shown
    assert re.search(r"chunk 4: \d+ ms", shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
    assert "finished: length" in shown.splitlines()[-1]


@server_test
def test_a_wav_is_never_written_to_a_terminal(url: str, tmp_path: Path) -> None:
    assert "standard output is a terminal" in in_terminal([*SPEAK, "--url", url, "-o", "-"], tmp_path, code=2)


@server_test
def test_an_interrupt_cancels_the_stream_and_exits_with_130(url: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, *SPEAK, "--max-frames", "1500", "--chunks"],
        cwd=tmp_path,
        env=environment(url) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # because it is ignored if tests run in the background
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "not finished" in output
    assert soundfile.info(tmp_path / "speech.wav").frames > 0


@server_test
def test_a_player_that_goes_away_ends_the_command(url: str) -> None:
    arguments = [*SPEAK, "--max-frames", "1500", "-o", "-"]
    with subprocess.Popen([*COMMAND, *arguments], env=environment(url), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(44)
        process.stdout.close()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.decode().startswith("error: the reader of standard output has gone")


def environment(url: str = "localhost:8001") -> dict[str, str]:
    """The environment of a separate command; the package need not be installed."""
    return os.environ | {"QWEN3_TTS_URL": url, "PYTHONPATH": str(Path(__file__).parents[2] / "client")}


def in_terminal(arguments: list[str], folder: Path, code: int = 0) -> str:
    """The output of a command on a terminal of its own; the command must exit with `code`."""
    leader, follower = pty.openpty()
    with closing(os.fdopen(leader, "rb", buffering=0)) as screen:
        terminal = environment() | {"TERM": "xterm", "COLUMNS": "80"}
        with subprocess.Popen(
            [*COMMAND, *arguments], cwd=folder, env=terminal, stdin=follower, stdout=follower, stderr=follower
        ) as process:
            os.close(follower)
            shown = b""
            try:
                while data := screen.read(4096):
                    shown += data
            except OSError:
                pass  # Linux raises this after the last writer has closed the terminal
        assert process.returncode == code, shown
    return shown.decode()


def test_models_without_a_voice_are_listed_with_what_they_need(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tuple(ServedModel(f"qwen3_tts{suffix}", kind, ()) for suffix, kind in (("", "voice_design"), ("_base", "base")))
    monkeypatch.setattr(Voices, "list", lambda *_, **__: VoiceList((), {}, True, models))
    listed = runner.invoke(app, ["voices", "list"])
    assert listed.stdout.splitlines() == [
        "qwen3_tts: a voice_design model; say --instruct describes its voice",
        "qwen3_tts_base: a base model; it clones: say --reference, or voices add",
    ]
