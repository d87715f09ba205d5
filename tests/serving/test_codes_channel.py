"""The codes channel between two ends: claims, messages, and every way in which an end may go or lie."""

from __future__ import annotations

import errno
import queue
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engine_lib.serving import codes_channel
from engine_lib.serving.backend import Tensors
from engine_lib.serving.codes_channel import CodesInlet, CodesOutlet
from engine_lib.serving.secret import ServerSecret
from engine_lib.serving.talker_service import _outlet
from patience import PATIENCE, eventually

SECRET = ServerSecret(b"of this server")


def message(frames: int = 2, header: bytes = b"header") -> Tensors:
    codes = np.random.default_rng().integers(0, 2048, (frames, 16)).astype(np.int16)
    return {"codes": codes, "header": np.frombuffer(header, np.uint8)}


def has_connections(outlet: CodesOutlet, count: int) -> bool:
    return len(outlet._selector.get_map()) == count + 1


class Codec:
    """A codec's end; what it hears, is refused and loses."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[Tensors] = queue.SimpleQueue()
        self.refused: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.inlet = CodesInlet(SECRET, self.heard.put, self.refused.put, self.lost.put)

    def claims(self, outlet: CodesOutlet, key: str) -> None:
        """Claim a stream, and wait until the talker knows."""
        assert self.inlet.claim(outlet.address, key)
        eventually(lambda: key in outlet._claims, "the claim is heard")


@pytest.fixture
def streams() -> set[str]:
    return {"a", "b"}


@pytest.fixture
def outlet(streams: set[str]) -> Iterator[CodesOutlet]:
    outlet = CodesOutlet(SECRET, streams)
    yield outlet
    outlet.close(PATIENCE)
    assert not outlet._thread.is_alive()


@pytest.fixture
def codec() -> Iterator[Codec]:
    codec = Codec()
    yield codec
    codec.inlet.close(PATIENCE)
    assert not any(thread.is_alive() for thread in codec.inlet._threads)


def test_messages_of_a_claimed_stream_arrive_whole_and_in_order(outlet: CodesOutlet, codec: Codec) -> None:
    assert not outlet.send("a", message())
    codec.claims(outlet, "a")
    sent = [message(frames, bytes(frames)) for frames in (1, 0, 64, 7)]
    assert all(outlet.send("a", one) for one in sent)
    assert not outlet.send("b", message())
    for one in sent:
        heard = codec.heard.get(timeout=PATIENCE)
        np.testing.assert_array_equal(heard["codes"], one["codes"])
        assert heard["header"].tobytes() == one["header"].tobytes()


def test_the_claim_of_a_stream_that_has_ended_is_refused(outlet: CodesOutlet, codec: Codec, streams: set[str]) -> None:
    codec.claims(outlet, "a")
    streams.remove("a")
    outlet.release("a")
    assert codec.inlet.claim(outlet.address, "a")
    assert codec.refused.get(timeout=PATIENCE) == "a"
    codec.claims(outlet, "b")
    assert list(outlet._claims) == ["b"]
    assert outlet.send("b", message())
    codec.heard.get(timeout=PATIENCE)
    assert codec.refused.empty()


def test_the_messages_of_a_stream_that_the_codec_forgets_go_through_triton_again(outlet: CodesOutlet, codec: Codec) -> None:
    codec.claims(outlet, "a")
    codec.claims(outlet, "b")
    codec.inlet.release(outlet.address, "a")
    eventually(lambda: not outlet.send("a", message()), "the release is heard")
    assert outlet.send("b", message())
    codec.inlet.release("nowhere", "b")
    codec.claims(outlet, "a")
    assert outlet.send("a", message())


@pytest.mark.parametrize("lie", [b"a", b"x" * 32 + b"a", ServerSecret(b"of another server").sign(b"refused a") + b"a"])
def test_only_this_servers_talker_can_refuse_a_claim(outlet: CodesOutlet, codec: Codec, lie: bytes) -> None:
    codec.claims(outlet, "a")
    outlet._claims["a"].send(b"\xff\xff\xff\xff" + lie)
    assert outlet.send("a", message())
    codec.heard.get(timeout=PATIENCE)
    assert codec.refused.empty()


def test_a_codec_that_goes_leaves_its_streams_to_triton(outlet: CodesOutlet, codec: Codec) -> None:
    codec.claims(outlet, "a")
    other = Codec()
    other.claims(outlet, "b")
    codec.inlet.close(PATIENCE)
    assert codec.lost.get(timeout=PATIENCE) == outlet.address
    eventually(lambda: not outlet.send("a", message()), "the talker sees that the codec has gone")
    assert outlet.send("b", message())
    other.inlet.close(PATIENCE)


def test_a_talker_that_goes_is_lost_behind_its_last_message_and_can_be_claimed_from_no_more(codec: Codec, streams: set[str]) -> None:
    outlet = CodesOutlet(SECRET, streams)
    codec.claims(outlet, "a")
    assert outlet.send("a", message())
    outlet.close(PATIENCE)
    assert codec.lost.get(timeout=PATIENCE) == outlet.address
    assert codec.heard.qsize() == 1
    assert not codec.inlet.claim(outlet.address, "a")


def test_a_slow_codec_makes_nobody_wait(outlet: CodesOutlet) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as slow:
        slow.connect(f"\0{outlet.address}")
        slow.send(SECRET.sign(b"claim a") + b"a")
        eventually(lambda: "a" in outlet._claims, "the claim is heard")
        large = message(64)
        count = 0
        while outlet.send("a", large):
            count += 1
        assert count > 10
        slow.recv(codes_channel.MAX_BYTES)
        eventually(lambda: outlet.send("a", message(1)), "it has room again")


def test_a_message_that_is_too_large_goes_through_triton(outlet: CodesOutlet, codec: Codec) -> None:
    codec.claims(outlet, "a")
    assert not outlet.send("a", message(1, bytes(codes_channel.MAX_BYTES)))
    assert outlet.send("a", message(1))


@pytest.mark.parametrize(
    "lie", [b"a", b"x" * 32 + b"a", ServerSecret(b"of another server").sign(b"claim a") + b"a", SECRET.sign(b"a") + b"a"]
)
def test_only_this_servers_codec_can_claim(outlet: CodesOutlet, lie: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as liar:
        liar.settimeout(PATIENCE)
        liar.connect(f"\0{outlet.address}")
        liar.send(lie)
        assert liar.recv(1) == b""  # it is shown the door
    assert not outlet.send("a", message())


def test_connections_are_limited(outlet: CodesOutlet, codec: Codec) -> None:
    with ExitStack() as stack:
        for accepted in range(1, codes_channel.MAX_CONNECTIONS + 1):
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            one.connect(f"\0{outlet.address}")
            eventually(partial(has_connections, outlet, accepted), "it is accepted")
        refused = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        refused.settimeout(PATIENCE)
        refused.connect(f"\0{outlet.address}")
        assert refused.recv(1) == b""
    eventually(partial(has_connections, outlet, 0), "they are gone")
    codec.claims(outlet, "a")


def test_a_broken_message_ends_nothing(outlet: CodesOutlet, codec: Codec) -> None:
    codec.claims(outlet, "a")
    outlet._claims["a"].send(b"x")
    outlet._claims["a"].send(b"\xff\xff\xff\xff too short for so many codes")
    assert outlet.send("a", message(3))
    assert len(codec.heard.get(timeout=PATIENCE)["codes"]) == 3


def test_a_system_without_such_sockets_has_no_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(codes_channel, "_new_socket", refuse)
    logged: list[str] = []
    backend = SimpleNamespace(secret=SECRET, log=SimpleNamespace(log_warn=logged.append))
    assert _outlet(cast(Any, backend), {}, 8) is None
    assert logged == ["codes_channel: Protocol not supported; all codes go through Triton"]


def test_claimed_streams_share_the_messages_that_go_through_triton(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_channel, "MESSAGES_THROUGH_TRITON", 4.0)
    claimed: queue.SimpleQueue[str] = queue.SimpleQueue()
    outlet = CodesOutlet(SECRET, {"a", "b", "c"}, claimed.put)
    try:
        seconds = []
        for key in ("a", "b", "c"):
            codec.claims(outlet, key)
            assert claimed.get(timeout=PATIENCE) == key
            seconds.append(outlet.seconds_past_triton)
        assert seconds == [0.4, 0.5, 0.75]
    finally:
        outlet.close(PATIENCE)


def test_the_talker_expects_claims_of_a_busy_codec_that_are_not_late_and_hears_of_each(codec: Codec) -> None:
    claimed: queue.SimpleQueue[str] = queue.SimpleQueue()
    outlet = CodesOutlet(SECRET, {"a", "b", "c"}, claimed.put, busy_from=2)
    try:
        outlet.claim_times.add(0.1)
        for key in ("a", "b"):
            assert not outlet.expects_claim("c", 0.0)
            codec.claims(outlet, key)
            assert claimed.get(timeout=PATIENCE) == key
        assert outlet.expects_claim("c", 0.1)
        assert not outlet.expects_claim("c", 0.25)
        outlet.claim_times.add(0.2)
        outlet.claim_times.add(0.05)
        assert outlet.expects_claim("c", 0.25)
        codec.claims(outlet, "c")
        assert claimed.get(timeout=PATIENCE) == "c"
        assert not outlet.expects_claim("c", 0.0)
        outlet.release("a")
        outlet.release("b")
        assert not outlet.expects_claim("a", 0.0)
        assert codec.inlet.claim(outlet.address, "ended")
        assert codec.refused.get(timeout=PATIENCE) == "ended"
        assert claimed.empty()
    finally:
        outlet.close(PATIENCE)
