"""Voices through the client and the command line, on the server of three checkpoints."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from engine_lib.server.process import TritonServer
from patience import PATIENCE
from qwen3_tts_client import AsyncClient, Client, InvalidRequest, Recording, RequestTimeout, ServerUnavailable
from qwen3_tts_client.cli import app

RATE = 22_050
WORDS = "What the reference says."
CONSENT = "The reader agreed."
TEXT = "Good morning! How are you today?"
KINDS = {"qwen3_tts": "custom_voice", "qwen3_tts_base": "base", "qwen3_tts_design": "voice_design"}
GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_frames": 6}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A stereo recording."""
    samples = np.random.default_rng(5).normal(0, 0.1, (2 * RATE, 2)).astype(np.float32)
    soundfile.write(tmp_path / "anna.flac", samples, RATE)
    return tmp_path / "anna.flac"


@pytest.fixture
def runner(three: TritonServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """Runs commands in an empty folder against the server."""
    monkeypatch.setenv("QWEN3_TTS_URL", url_of(three))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def url_of(server: TritonServer) -> str:
    return f"localhost:{server.grpc_port}"


def test_the_client_adds_lists_shows_speaks_with_and_removes_a_voice(three: TritonServer, recording: Path) -> None:
    clip = Recording.read(recording)
    assert (clip.audio.shape, clip.sample_rate) == ((2 * RATE,), RATE)
    with Client(url_of(three), "qwen3_tts_base") as client:
        words = {"SQL": "sequel"}
        added = client.voices.add("Anna", clip.audio, clip.sample_rate, consent=CONSENT, text=WORDS, lexicon=words)
        assert (added.lexicon, added.lexicon_words) == (words, 1)
        with pytest.raises(InvalidRequest, match="lexicon: list is not allowed"):
            client.voices.blend("duo", "anna", lexicon=["SQL"])  # type: ignore[arg-type]
        assert (added.name, added.source, added.models, added.consent) == ("anna", "stored", ("qwen3_tts_base",), CONSENT)
        assert client.voices.show("anna") == added
        found = client.voices.list()
        assert {model.name: model.kind for model in found.models} == KINDS
        assert all("english" in model.languages for model in found.models)
        assert not any("dialect" in name for model in found.models for name in model.languages)  # it comes with its speaker
        listed = {voice.name: voice for voice in found.voices}
        assert (listed["anna"].consent, listed["vivian"].source) == (None, "built-in")
        by_name = client.synthesize(TEXT, voice="anna", sampling=GREEDY)
        by_reference = client.synthesize(
            TEXT, reference_audio=clip.audio, reference_sample_rate=clip.sample_rate, reference_text=WORDS, sampling=GREEDY
        )
        np.testing.assert_allclose(by_name.audio, by_reference.audio, atol=1e-5)
        client.voices.remove("anna")
        with pytest.raises(InvalidRequest, match="'anna' is not a stored voice") as error:
            client.voices.show("anna")
        assert error.value.field == "name"


async def test_the_asyncio_client_does_the_same(three: TritonServer, recording: Path) -> None:
    clip = Recording.read(recording)
    async with AsyncClient(url_of(three), "qwen3_tts_base") as client:
        added = await client.voices.add("bea", clip.audio, clip.sample_rate, consent=CONSENT, x_vector_only=True)
        assert (added.x_vector_only, added.reference_text) == (True, None)
        assert await client.voices.show("bea") == added
        assert "bea" in [voice.name for voice in (await client.voices.list()).voices]
        assert (await client.voices.blend("still.bea", "bea", consent="As for bea.")).consent == "As for bea."
        assert (await client.synthesize(TEXT, voice="bea", sampling=GREEDY)).audio.any()
        await client.voices.remove("bea")
        with pytest.raises(InvalidRequest, match="'bea' is not a stored voice"):
            await client.voices.remove("bea")


def test_a_server_that_is_not_there_is_unavailable_for_voices_too() -> None:
    with Client("localhost:9") as client, pytest.raises(ServerUnavailable, match="cannot reach a Triton server"):
        client.voices.list()


def test_the_servers_own_timeout_is_the_clients(three: TritonServer) -> None:
    noise = np.random.default_rng(6).normal(0, 0.1, 5 * RATE)
    with Client(url_of(three), "qwen3_tts_base") as client, pytest.raises(RequestTimeout, match="the timeout passed"):
        list(client.stream(TEXT, timeout=0.5, reference_audio=noise, reference_sample_rate=RATE, x_vector_only=True))


def test_the_commands_tell_a_voices_whole_story(runner: CliRunner, recording: Path) -> None:
    added = runner.invoke(app, ["voices", "add", "Anna", str(recording), "--text", WORDS, "--consent", CONSENT])
    assert added.exit_code == 0, added.stderr
    assert CONSENT in added.stdout
    listed = runner.invoke(app, ["voices", "list"])
    row = next(line for line in listed.stdout.splitlines() if line.startswith("anna"))
    assert row.split()[1:6] == ["stored", "qwen3_tts_base", "in", "context", "2.0"]
    assert max(map(len, listed.stdout.splitlines())) <= 80
    as_json = json.loads(runner.invoke(app, ["voices", "list", "--json"]).stdout)
    assert "anna" in [voice["name"] for voice in as_json["voices"]]
    assert json.loads(runner.invoke(app, ["voices", "show", "ANNA", "--json"]).stdout)["reference_text"] == WORDS

    say = ["say", TEXT, "--model", "qwen3_tts_base", "--greedy", "--max-frames", "6"]
    for output, voice in (("a.wav", ["--voice", "anna"]), ("b.wav", ["--reference", str(recording), "--reference-text", WORDS])):
        spoken = runner.invoke(app, [*say, *voice, "-o", output])
        assert spoken.exit_code == 0, spoken.stderr
    np.testing.assert_allclose(soundfile.read("a.wav")[0], soundfile.read("b.wav")[0], atol=1 / 32768)
    Path("lexicon.json").write_text('{"SQL": "sequel", "TCP": "tea sea pea"}')
    blended = runner.invoke(app, ["voices", "blend", "duo", "anna:2", "--json", "--lexicon", "lexicon.json"])
    assert json.loads(blended.stdout)["lexicon"] == {"SQL": "sequel", "TCP": "tea sea pea"}
    assert "SQL = sequel, TCP = tea sea pea" in runner.invoke(app, ["voices", "show", "duo"]).stdout
    assert "anna:1, 2 words" in " ".join(runner.invoke(app, ["voices", "list"]).stdout.split())
    assert json.loads(blended.stdout)["blend"] == "anna:1"
    assert json.loads(blended.stdout)["consent"] == f"anna: {CONSENT}"
    assert "anna:1" in runner.invoke(app, ["voices", "list"]).stdout
    assert "blend: in the blend, 'bob' is not a stored voice" in runner.invoke(app, ["voices", "blend", "trio", "anna", "bob"]).stderr
    assert runner.invoke(app, ["voices", "remove", "anna"]).stdout == "removed anna\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["voices", "show", "nobody"], "error: name: 'nobody' is not a stored voice"),
        (["voices", "remove", "../x"], "error: name: '../x' is not allowed as the name of a voice"),
        (["voices", "add", "eve", "nothing.wav", "--consent", "yes"], "error: nothing.wav: No such file or directory"),
        (["voices", "add", "eve", "noise.wav", "--consent", "yes"], "error: noise.wav: "),
        (["voices", "add", "eve", "noise.wav", "--consent", "yes", "--lexicon", "noise.wav"], "--lexicon: noise.wav: "),
        (["say", TEXT, "--reference", "nothing.wav"], "nothing.wav: No such file"),
        (["say", TEXT, "--reference", "anna.flac", "--x-vector-only"], "call model qwen3_tts_base"),
        (["say", TEXT, "--model", "qwen3_tts_base"], "error: reference_audio: is missing"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_exits_with_two(runner: CliRunner, recording: Path, arguments: list[str], message: str) -> None:
    Path("noise.wav").write_bytes(b"no audio")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_text_of_the_store_cannot_steer_the_terminal(runner: CliRunner, recording: Path) -> None:
    consent = "\x1b[2Jcleared [bold]not markup[/bold]"
    added = runner.invoke(app, ["voices", "add", "esc", str(recording), "--x-vector-only", "--consent", consent])
    assert "\N{REPLACEMENT CHARACTER}[2Jcleared [bold]not markup[/bold]" in added.stdout
    assert "\x1b" not in added.stdout
    assert runner.invoke(app, ["voices", "remove", "esc"]).exit_code == 0


@pytest.mark.parametrize(
    "command", [["voices"], ["voices", "list"], ["voices", "show"], ["voices", "add"], ["voices", "blend"], ["voices", "remove"]]
)
def test_help_fits_eighty_columns_and_teaches(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    if command[-1] in ("voices", "add"):
        assert "Examples:" in result.stdout
        assert "--consent" in result.stdout


DOCS = (Path(__file__).parents[2] / "docs" / "voices.md").read_text(encoding="utf-8")


def test_the_commands_of_the_docs_run(runner: CliRunner, recording: Path) -> None:
    """With recordings of these names, and with this server's name of the base checkpoint instead of the plain one."""
    for name in ("anna", "ben"):
        soundfile.write(f"{name}.wav", *soundfile.read(recording))
    commands = [shlex.split(line) for line in DOCS.splitlines() if line.startswith("qwen3-tts ")]
    assert len(commands) > 5
    for _, *command in commands:
        if command[0] == "say":
            command += ["--max-frames", "3"] + ([] if "--model" in command else ["--model", "qwen3_tts_base"])
        result = runner.invoke(app, command)
        assert result.exit_code == 0, (command, result.stderr)
    for name in ("anna", "ben", "duo"):
        runner.invoke(app, ["voices", "remove", name])


def test_the_examples_of_the_docs_run(three: TritonServer, runner: CliRunner, recording: Path) -> None:
    soundfile.write("anna.wav", *soundfile.read(recording))
    [example] = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(compile(example.replace('"localhost:8001"', f'"{url_of(three)}", "qwen3_tts_base"'), "voices.md", "exec"), {})
    [body] = re.findall(r"-d '(.*?)'", DOCS)
    request = urllib.request.Request(f"http://localhost:{three.http_port}/v2/models/voices/infer", data=body.encode())
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        answer = json.loads(json.load(response)["outputs"][0]["data"][0])
    assert "vivian" in [voice["name"] for voice in answer["voices"]]


async def test_a_dialogue_of_several_models_is_one_stream(three: TritonServer) -> None:
    design = "qwen3_tts_design"
    entries: list[dict[str, Any]] = [
        {"voice": "ryan", "text": "Good morning."},
        {"model": design, "instruct": "A calm voice.", "text": "Hello."},
        {"model": design, "instruct": "An old man.", "text": "Good evening."},
        {"voice": "vivian", "text": "Good night.", "pause_ms": 100},
    ]
    url, text = f"localhost:{three.grpc_port}", json.dumps(entries)
    options: dict[str, Any] = {"sampling": {"seed": 1, "max_frames": 4}, "text_format": "dialogue", "timeout": PATIENCE}
    with Client(url) as client, Client(url, design) as other:
        chunks = list(client.stream(text, **options))
        alone = []
        for entry in map(dict, entries):
            speaker = other if entry.pop("model", None) else client
            alone.append(speaker.synthesize(json.dumps([entry]), **options).audio)
    whole = np.concatenate([chunk.audio for chunk in chunks])
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1].finish_reason, chunks[-1].metadata["cut_lines"]) == ("length", [1, 2, 3, 4])
    assert chunks[-1].samples_sent == whole.size
    for number, expected in enumerate(alone, 1):
        spoken = np.concatenate([chunk.audio for chunk in chunks if chunk.line == number])
        np.testing.assert_allclose(spoken[-4 * 1920 :], expected[-4 * 1920 :], atol=1e-5)
        assert spoken.size - 4 * 1920 == pytest.approx(
            {1: 0, 4: 2400}.get(number, 4800), abs=120
        )  # the pause, and the seam of a line that was cut
    assert {chunk.line: chunk.speaker for chunk in chunks} == {1: "ryan", 2: None, 3: None, 4: "vivian"}
    async with AsyncClient(url) as async_client:
        assert np.allclose(
            (await async_client.synthesize(text, **options)).audio, np.concatenate([chunk.audio for chunk in chunks]), atol=1e-5
        )
        entries[1]["model"] = "nobody"
        with pytest.raises(ServerUnavailable, match="nobody"):
            await async_client.synthesize(json.dumps(entries), **options)
        entries[1]["model"] = 7
        with pytest.raises(InvalidRequest, match="text: entry 2, model: 7 is not allowed; give a name"):
            async_client.stream(json.dumps(entries), **options)


async def test_lines_of_a_dialogue_are_counted_through_an_entry_with_a_pause(three: TritonServer) -> None:
    entries = [
        {"voice": "ryan", "text": "Good. [pause:100ms] Morning."},
        {"model": "qwen3_tts_design", "instruct": "Calm.", "text": "Hello."},
    ]
    async with AsyncClient(f"localhost:{three.grpc_port}") as client:
        options: dict[str, Any] = {"sampling": {"seed": 1, "max_frames": 2}, "text_format": "dialogue", "timeout": PATIENCE}
        chunks = [chunk async for chunk in client.stream(json.dumps(entries), **options)]
    assert sorted({chunk.line for chunk in chunks if chunk.line}) == [1, 2, 3]
    assert chunks[-1].metadata["cut_lines"] == [1, 2, 3]
