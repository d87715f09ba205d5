"""What a shell gives the command line: closed and full streams, readers that go, names of any bytes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soundfile
from typer.testing import CliRunner

from benching.fake_triton import running_fake
from client.test_cli import COMMAND, SPEAK, TEXT, environment
from patience import PATIENCE
from qwen3_tts_client.cli import app

BYTE_ORDER_MARK = "\ufeff"
FULL = Path("/dev/full")
LONG_NAME = "a" * 300


def shell(line: str, url: str = "localhost:9", folder: Path | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of a line of bash; $TTS is the command."""
    script = f'set -o pipefail; TTS() {{ "$PYTHON" -c \'{COMMAND[2]}\' "$@"; }}; {line}'
    surroundings = environment(url) | {"PYTHON": COMMAND[0]}
    result = subprocess.run(["bash", "-c", script], capture_output=True, env=surroundings, cwd=folder, timeout=PATIENCE)
    return result.returncode, result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("TTS say Hi. -o - >&-", 2, "standard output is closed"),
        ("TTS say - -o /tmp/never.wav <&-", 2, "standard input is closed"),
        ("TTS --version >/dev/full", 1, "error: [Errno 28] No space left on device"),
        ("TTS say Hi. --url wrong 2>/dev/full", 2, ""),
    ],
)
def test_a_closed_or_full_stream_is_told_and_its_exit_code_stays(line: str, code: int, message: str) -> None:
    found, _, errors = shell(line)
    assert found == code
    assert message in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


@pytest.mark.parametrize("text", [f"{LONG_NAME}, says README.md", f"{LONG_NAME}.txt"])
def test_a_text_that_ends_as_a_file_does_may_be_longer_than_a_name(runner: CliRunner, text: str) -> None:
    result = runner.invoke(app, ["say", text, "--url", "localhost"])
    assert result.exit_code == 2
    assert ("give HOST:PORT" if " " in text else "there is no such file") in result.stderr


def test_a_wrong_file_is_told_by_the_option_that_names_it(runner: CliRunner) -> None:
    result = runner.invoke(app, ["say", "--file", "none"])
    assert "Invalid value for --file: none: No such file" in result.stderr


@pytest.mark.server
def test_a_report_that_no_one_reads_does_not_end_the_speech(url: str, tmp_path: Path) -> None:
    speak = f"TTS say '{TEXT}' --voice vivian --max-frames 20 --chunks"
    for reader in ("| true", ">/dev/full"):
        code, _, errors = shell(f"{speak} -o a.wav {reader}", url, tmp_path)
        assert (code, errors) == (0, "")
        assert soundfile.info(tmp_path / "a.wav").frames == 20 * 1920
        (tmp_path / "a.wav").unlink()
    code, _, _ = shell(f"{speak} -o - 2> >(true) > a.wav", url, tmp_path)
    assert code == 0
    assert (tmp_path / "a.wav").stat().st_size == 44 + 20 * 2 * 1920


@pytest.mark.server
def test_a_file_may_have_a_name_that_is_not_utf_8(url: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("Hello.", encoding="utf-8")
    options = "--voice vivian --max-frames 2"
    code, output, errors = shell(f"TTS say Hi. {options} -o $'\\xff.wav' && TTS batch lines.txt {options} --out $'\\xff'", url, tmp_path)
    assert code == 0, errors
    assert output.startswith("\\udcff.wav: 0.16 s")
    for name in (b"\xff.wav", b"\xff/0001.wav"):
        with open(os.path.join(os.fsencode(tmp_path), name), "rb") as file:
            assert soundfile.info(file).frames == 2 * 1920


@pytest.mark.server
@pytest.mark.parametrize("by", ["cat text |", "< text"], ids=["pipe", "file"])
def test_a_byte_order_mark_is_no_text(url: str, tmp_path: Path, by: str) -> None:
    (tmp_path / "text").write_text(BYTE_ORDER_MARK, encoding="utf-8")
    pipe, redirected = (by, "") if by.endswith("|") else ("", by)
    code, _, errors = shell(f"{pipe} TTS say - --voice vivian -o a.wav {redirected}", url, tmp_path)
    assert (code, errors) == (2, "error: text: is empty; give at least one word\n")


@pytest.mark.parametrize("option", ["--lexicon", "--texts"])
def test_files_of_options_may_begin_with_a_byte_order_mark(runner: CliRunner, option: str) -> None:
    content: dict[str, Any] = {"SQL": "sequel"} if option == "--lexicon" else {"data": [{"text": ["Hi."]}]}
    Path("file.json").write_text(BYTE_ORDER_MARK + json.dumps(content), encoding="utf-8")
    command = SPEAK if option == "--lexicon" else ["bench"]
    result = runner.invoke(app, [*command, option, "file.json", "--url", "localhost"])
    assert "url: 'localhost' is not allowed" in result.stderr


def test_figures_that_cannot_be_written_are_told_with_their_file(runner: CliRunner) -> None:
    Path("full.json").symlink_to(FULL)
    with running_fake(1, 0) as url:
        arguments = ["--streams", "1", "--seconds", "0.1", "--warm-up", "0", "--processes", "1", "-o", "full.json"]
        result = runner.invoke(app, ["bench", "--url", url, *arguments])
    assert (result.exit_code, result.stderr) == (2, "error: full.json: No space left on device\n")
