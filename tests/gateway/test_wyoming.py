"""Wyoming's own client speaks through the gateway, on a real Triton server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from server.streams import eventually_free
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, async_read_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from engine_lib.server.process import TritonServer
from gateway.conftest import TEXT, RunningGateway
from patience import PATIENCE
from qwen3_tts_gateway.wyoming_events import BoundedReader

MORE = "My brother has two dogs."
ADA = SynthesizeVoice(name="ada")


def wyoming_gateway(triton: TritonServer, log_file: Path) -> RunningGateway:
    """A gateway that serves Wyoming, on a port that it chooses itself, and lets speech end however slow the machine is."""
    return RunningGateway([triton], log_file, "--wyoming-port", "0", "--drain-seconds", str(PATIENCE))


def wyoming_port(gateway: RunningGateway) -> int:
    """The port, from the second line that the gateway prints."""
    assert gateway.process.stdout is not None
    line = gateway.process.stdout.readline()
    assert line.startswith("gateway: wyoming "), line
    return int(line.split()[-1])


@pytest.fixture(scope="module")
def shared_port(shared_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The Wyoming port of a gateway for all tests that leave it intact."""
    with wyoming_gateway(shared_triton, tmp_path_factory.mktemp("wyoming") / "log") as running:
        yield wyoming_port(running)


@pytest.fixture
async def client(triton: TritonServer, shared_port: int) -> AsyncIterator[AsyncTcpClient]:
    """A connection."""
    async with AsyncTcpClient("127.0.0.1", shared_port, read_timeout=PATIENCE) as connected:
        yield connected


@dataclass
class Answer:
    """What came back for one request.

    Attributes:
        types: of the events; audio-chunk once for a run of them.
        samples: int16 [n].
        error: the error's text, "" if there was none.
    """

    types: list[str] = field(default_factory=list)
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    error: str = ""


async def answer(client: AsyncTcpClient, last: str = "audio-stop") -> Answer:
    """Read until an event of type `last`, or the end of the connection."""
    found, audio = Answer(), b""
    while (event := await client.read_event()) is not None:
        if not (AudioChunk.is_type(event.type) and found.types[-1:] == [event.type]):
            found.types.append(event.type)
        if AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            assert (start.rate, start.width, start.channels) == (24000, 2, 1)
        elif AudioChunk.is_type(event.type):
            audio += AudioChunk.from_event(event).audio
        elif Error.is_type(event.type):
            found.error = Error.from_event(event).text
        if event.type == last:
            break
    found.samples = np.frombuffer(audio, np.int16)
    return found


async def send(client: AsyncTcpClient, *events: Event) -> None:
    for event in events:
        await client.write_event(event)


async def test_describe_lists_the_voices_of_the_server_and_says_that_text_may_stream(client: AsyncTcpClient) -> None:
    await send(client, Describe().event())
    event = await client.read_event()
    assert event is not None
    (program,) = Info.from_event(event).tts
    assert program.supports_synthesize_streaming
    assert {voice.name: voice.languages for voice in program.voices} == {"ada": ["en"], "ben": ["en"]}


@pytest.mark.parametrize("voice", [None, ADA, SynthesizeVoice(language="en"), SynthesizeVoice(language="en-GB")])
async def test_a_text_is_spoken(client: AsyncTcpClient, voice: SynthesizeVoice | None) -> None:
    await send(client, Synthesize(TEXT, voice, text_format="text").event())
    spoken = await answer(client)
    assert spoken.types == ["audio-start", "audio-chunk", "audio-stop"]
    assert spoken.samples.size > 24000
    assert np.abs(spoken.samples).max() > 1500


async def test_requests_of_one_connection_are_spoken_in_turn(client: AsyncTcpClient) -> None:
    await send(client, Synthesize(TEXT, ADA).event(), Synthesize(MORE, ADA).event(), Ping("are you there").event())
    types = [(await answer(client)).types for _ in range(2)]
    assert [kind for kinds in types for kind in kinds if kind not in ("audio-chunk", "pong")] == ["audio-start", "audio-stop"] * 2


async def test_a_ping_is_answered(client: AsyncTcpClient) -> None:
    await send(client, Ping("are you there").event())
    event = await client.read_event()
    assert event is not None
    assert Pong.from_event(event).text == "are you there"


async def test_a_streamed_text_is_spoken_before_it_ends_and_its_repetition_is_ignored(client: AsyncTcpClient) -> None:
    await send(client, SynthesizeStart(ADA).event(), SynthesizeChunk(f"{TEXT} ").event(), SynthesizeChunk("My brother").event())
    begun = await answer(client, last="audio-chunk")
    assert begun.types == ["audio-start", "audio-chunk"]
    # Home Assistant repeats the text, for servers that do not stream.
    await send(client, SynthesizeChunk(" has two dogs.").event(), Synthesize(f"{TEXT} {MORE}", ADA).event(), SynthesizeStop().event())
    rest = await answer(client, last="synthesize-stopped")
    assert rest.types == ["audio-chunk", "audio-stop", "synthesize-stopped"]
    assert rest.samples.size > 2 * 24000
    await send(client, Ping().event())  # the next answer is to this: nothing was spoken twice
    event = await client.read_event()
    assert event is not None
    assert Pong.is_type(event.type)


async def test_a_streamed_text_without_words_ends_at_once(client: AsyncTcpClient) -> None:
    await send(client, SynthesizeStart().event(), SynthesizeChunk("  ").event(), SynthesizeStop().event())
    assert (await answer(client, last="synthesize-stopped")).types == ["audio-start", "audio-stop", "synthesize-stopped"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Synthesize("<speak>Hello.</speak>", text_format="ssml").event(), "text_format: 'ssml' is not allowed; allowed: text"),
        (SynthesizeStart(text_format="ssml").event(), "text_format: 'ssml' is not allowed; allowed: text"),
        (Synthesize(TEXT, SynthesizeVoice(name="nobody")).event(), "voice: 'nobody' is unknown; allowed: ada, ben"),
        (Synthesize(TEXT, SynthesizeVoice(name="ada", speaker="young")).event(), "speaker: no voice of this server has several speakers"),
        (Synthesize(TEXT, SynthesizeVoice(language="tlh")).event(), "language: 'tlh' is unknown; allowed: auto, english"),
        (Synthesize("").event(), "text: "),
        (Event("synthesize", {"text": 5}), "text: int is not allowed; give a string"),
        (Event("synthesize", {}), "synthesize: its data is not as the protocol says"),
        (Event("synthesize", {"text": TEXT, "voice": "ada"}), "voice: str is not allowed; give an object with a name"),
        (Event("synthesize-start", {"voice": []}), "voice: list is not allowed; give an object with a name"),
        (Event("synthesize", {"text": "", "voice": None}), "text: "),  # null is no voice
    ],
)
async def test_what_is_not_possible_is_refused_by_name(client: AsyncTcpClient, event: Event, message: str) -> None:
    await send(client, event)
    refused = await answer(client)
    assert refused.types == ["error"]
    assert refused.error.startswith(message)


async def test_a_refusal_arrives_while_the_client_still_sends(client: AsyncTcpClient) -> None:
    await send(client, SynthesizeStart(SynthesizeVoice(name="nobody")).event())
    await send(client, *[SynthesizeChunk(TEXT).event() for _ in range(200)], SynthesizeStop().event())
    assert (await answer(client)).types == ["error"]


async def test_a_client_that_leaves_cancels_its_speech(triton: TritonServer, shared_port: int) -> None:
    for _ in range(3):
        async with AsyncTcpClient("127.0.0.1", shared_port, read_timeout=PATIENCE) as client:
            await send(client, *[Synthesize(f"{TEXT} {MORE} " * 10, ADA).event() for _ in range(5)])
            assert (await answer(client, last="audio-chunk")).types == ["audio-start", "audio-chunk"]
    await asyncio.to_thread(eventually_free, triton)


async def test_half_a_character_is_refused(shared_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", shared_port)
    writer.write(b'{"type": "synthesize", "data": {"text": "Good \\ud83d"}}\n')
    assert b"text: it has half a character" in await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()


@pytest.mark.parametrize(
    "data",
    [b"\x00\xff not an event\n", b"[]\n", b"{}\n", b'{"type": "synthesize", "data_length": 1e9}\n', b"[" * 60_000 + b"\n", b"x" * 200_000]
    + [json.dumps({"type": "synthesize", key: 10_000_000_000}).encode() + b"\n" for key in ("data_length", "payload_length")],
    ids=lambda data: data[:20].decode(errors="replace"),
)
async def test_bytes_that_are_no_events_end_the_connection_alone(client: AsyncTcpClient, shared_port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", shared_port)
    writer.write(data)
    with suppress(ConnectionResetError):  # if it has not read all of them
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    writer.close()
    await send(client, Synthesize("Yes.", ADA).event())
    assert (await answer(client)).types == ["audio-start", "audio-chunk", "audio-stop"]


async def test_events_that_nobody_knows_are_passed_over(client: AsyncTcpClient) -> None:
    await send(client, Event("select-program", {"name": "qwen3-tts"}), SynthesizeChunk(TEXT).event(), SynthesizeStop().event())
    await send(client, Synthesize(MORE, ADA).event())
    assert (await answer(client)).types == ["audio-start", "audio-chunk", "audio-stop"]


async def test_more_requests_than_may_wait_are_refused(client: AsyncTcpClient) -> None:
    await send(client, *[Synthesize(f"{TEXT} " * 20, ADA).event() for _ in range(20)])
    assert "more than 16 requests wait on this connection" in (await answer(client, last="error")).error


async def test_what_is_being_said_when_the_gateway_is_ended_is_said_to_its_end(triton: TritonServer, tmp_path: Path) -> None:
    with wyoming_gateway(triton, tmp_path / "log") as running:
        async with AsyncTcpClient("127.0.0.1", wyoming_port(running), read_timeout=PATIENCE) as client:
            await send(client, Synthesize(f"{TEXT} {MORE}", ADA).event())
            assert (await answer(client, last="audio-chunk")).types == ["audio-start", "audio-chunk"]
            running.process.terminate()
            assert (await answer(client)).types[-1] == "audio-stop"
            assert await client.read_event() is None
        await asyncio.to_thread(running.process.wait, PATIENCE)  # a second signal would end it with another code


@pytest.mark.parametrize("sent", [b"", b'{"type"', b'{"type": "ping", "data_length": 5}\nabc'])
async def test_a_client_that_sends_no_event_is_left(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr("qwen3_tts_gateway.wyoming_events.IDLE_SECONDS", 0.01)
    stream, answers = asyncio.StreamReader(), iter([False, False, True])  # it speaks for a while
    stream.feed_data(sent)
    read = async_read_event(BoundedReader(stream, 0.01, lambda: next(answers)))
    assert await asyncio.wait_for(read, PATIENCE) is None
    assert sent.endswith(b"abc") or next(answers, None) is None
