"""The command `qwen3-tts bench`: options, then both loops on a real server; no value is tested."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.conftest import RUNNING
from client.test_cli import in_terminal
from patience import PATIENCE
from qwen3_tts_client.cli import app
from qwen3_tts_client.cli_bench import exit_code_of, notes

BENCH = ["bench", "--seconds", "1", "--warm-up", "0", "--patience", str(PATIENCE), "--processes", "1"]
SHORT = ["--chunk-frames", "1,2", "--max-frames", "4"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "load_testing.md"

server_test = pytest.mark.server


def measured(runner: CliRunner, *arguments: str) -> Result:
    """The result of a run; of a longer one if the machine is so slow that a client began none of its requests in a second."""
    for seconds in (1, 4, 16, 64):
        result = runner.invoke(app, [*BENCH, *arguments, "--seconds", str(seconds)])
        if "give more --seconds" not in result.output:
            break
    return result


def explained_by_the_document(*records: dict[str, Any]) -> bool:
    """Whether the document has every key."""
    names = {name for record in records for name in record}
    missing = names - set(re.findall(r"`(\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert missing == set()
    return True


def test_help_fits_eighty_columns_and_explains_columns_and_exit_codes(runner: CliRunner) -> None:
    result = runner.invoke(app, ["bench", "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for expected in ("--streams N,N,...", "--rates", "--texts", "RTF ", "Exit codes:", "130  interrupted"):
        assert expected in result.stdout


def test_a_row_without_figures_is_explained_and_is_no_success() -> None:
    full, empty = ({"requests": count, "failed": 0, "unfinished": 0, "refused": 0} for count in (2, 0))
    assert (notes([full]), exit_code_of([full])) == ([], 0)
    assert "give more --seconds" in notes([full, empty])[0]
    assert exit_code_of([full, empty]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streams", "1,x"], "give whole numbers separated by commas"),
        (["--streams", "0"], "0 is not allowed; give numbers above 0"),
        (["--rates", "inf"], "inf is not allowed; give numbers above 0"),
        (["--texts", "none.txt"], "none.txt: No such file"),
        (["--output", "missing/bench.json"], "does not exist"),
        (["--output", "."], "is a folder"),
        (["--seconds", "inf"], "--seconds"),
        (["--warm-up", "inf"], "--warm-up"),
        (["--patience", "inf"], "--patience"),
        (["--plot", "bench.txt"], "has no known suffix"),
        (["--chunk-frames", "1,two"], "whole numbers separated by commas"),
        (["--url", "http://localhost:8001"], "give HOST:PORT"),
        (["--real-time", "--streams", "4"], "--real-time finds the number of streams itself"),
        (["--to", "4"], "is of --real-time; give that, too"),
        (["--real-time", "--from", "0"], "'--from'"),
        (["--compare", "none.json"], "none.json: No such file"),
    ],
)
def test_a_wrong_option_exits_with_two_before_anything_is_measured(runner: CliRunner, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, [*BENCH, *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(Path().iterdir()) == []


def test_without_a_server_it_exits_with_three(runner: CliRunner) -> None:
    result = runner.invoke(app, [*BENCH, "--url", "localhost:9"])
    assert result.exit_code == 3
    assert result.stderr.startswith("error: cannot reach a Triton server at localhost:9")


@server_test
def test_both_loops_are_measured_and_every_figure_is_explained(runner: CliRunner, url: str) -> None:
    Path("texts.txt").write_text("Good morning.\nHow are you today?\n")
    load = ["--streams", "1,2", "--rates", "4", "--texts", "texts.txt"]
    result = measured(runner, *load, *SHORT, "--voice", "ryan", "--url", url, "-o", "bench.json", "--plot", "bench.png")
    assert result.exit_code == 0, result.output
    written = json.loads(Path("bench.json").read_text())
    points: list[dict[str, Any]] = written["results"]
    assert [(point["streams"], point["rate"]) for point in points] == [(1, 0), (2, 0), (0, 4)]
    for point in points:
        assert point["requests"] == point["done"] > 0
        assert point["errors"] == {}
        assert point["mean_frames"] == 4
        assert 0 < point["first_audio_p50_ms"] <= point["first_audio_p99_ms"]
        assert point["client_cpu"] > 0
    assert explained_by_the_document(written, points[0])
    rows = result.stdout.splitlines()
    assert [row.split()[:2] for row in rows[-3:]] == [["1", "streams"], ["2", "streams"], ["4", "/s"]]
    assert Path("bench.png").read_bytes().startswith(b"\x89PNG")


@server_test
def test_a_run_is_compared_with_another_server_and_with_an_earlier_run(runner: CliRunner, url: str) -> None:
    load = [*BENCH, "--streams", "1", *SHORT, "--voice", "ryan", "--url", url]
    result = runner.invoke(app, [*load, "--compare", url, "-o", "both.json", "--plot", "both.png"])
    assert result.exit_code == 0, result.output
    written = json.loads(Path("both.json").read_text())
    assert [point["server"] for point in (*written["results"], *written["compared"]["results"])] == ["ours", "other"]
    assert explained_by_the_document(written, written["results"][0])
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")
    result = runner.invoke(app, [*load, "--seconds", "2", "--compare", "both.json"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "seconds 1.0, here 2.0" in " ".join(result.stderr.replace("│", " ").split())
    result = runner.invoke(app, [*load, "--compare", "both.json"])
    assert result.exit_code == 0, result.output
    assert re.search(r"1 streams first audio p50, ms +[\d.]+ +[\d.]+ +[\d.]+\n", result.stdout)


@server_test
def test_the_most_real_time_streams_are_searched(runner: CliRunner, url: str) -> None:
    load = ["--real-time", "--from", "2", "--to", "2", "--seconds", "2", "--max-frames", "8", "--voice", "ryan"]
    result = runner.invoke(app, [*BENCH, *load, "--url", url, "-o", "bench.json", "--plot", "bench.png"])
    assert result.exit_code == 0, result.output
    written = json.loads(Path("bench.json").read_text())
    points: list[dict[str, Any]] = written["results"]
    assert [point["streams"] for point in points] in ([2], [2, 1])  # a slow machine carries fewer
    assert all(point["paced"] and point["sustained"] == (point["streams"] <= written["real_time"]["streams"]) for point in points)
    # A stream lasts as long as its audio, so that two of them get two seconds of audio a second at most.
    assert points[0]["audio_seconds_per_second"] <= 2 * 1.5
    assert f"real-time streams: {written['real_time']['streams']} (" in result.stdout
    assert explained_by_the_document(written, points[0], written["real_time"])


@server_test
def test_refusals_are_counted_by_type_and_exit_with_four(runner: CliRunner, url: str) -> None:
    load = ["--streams", str(RUNNING + 4), "--chunk-frames", "8", "--max-frames", "40", "--voice", "ryan"]
    result = measured(runner, *load, "--url", url, "-o", "bench.json")
    assert result.exit_code == 4, result.output
    (point,) = json.loads(Path("bench.json").read_text())["results"]
    assert point["refused"] == point["errors"]["ServerOverloaded"]["count"] > 0
    assert "requests are open" in point["errors"]["ServerOverloaded"]["first"]
    assert f"ServerOverloaded: {point['refused']}, first: " in result.stdout


@server_test
def test_a_timeout_is_an_error_of_its_own_and_exits_with_one(runner: CliRunner, url: str) -> None:
    load = ["--streams", "1", "--max-frames", "1500", "--timeout", "0.2", "--voice", "ryan"]
    result = measured(runner, *load, "--url", url, "-o", "bench.json")
    assert result.exit_code == 1, result.output
    (point,) = json.loads(Path("bench.json").read_text())["results"]
    assert point["failed"] == point["errors"]["RequestTimeout"]["count"] > 0


@server_test
def test_requests_that_the_server_refuses_are_told_before_anything_is_measured(runner: CliRunner, url: str) -> None:
    result = runner.invoke(app, [*BENCH, "--voice", "nobody", "--url", url])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: voice: 'nobody' is unknown")


@server_test
def test_a_terminal_shows_the_table_while_it_fills_and_is_left_as_it_was(url: str, tmp_path: Path) -> None:
    shown = in_terminal([*BENCH, "--streams", "1", *SHORT, "--voice", "ryan", "--url", url], tmp_path)
    assert "measuring" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
    last = [line for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown).splitlines() if line.strip()][-1]
    assert last.split()[:2] == ["1", "streams"]
