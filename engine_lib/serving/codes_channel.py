"""The codes channel: messages from a busy talker to the codec, past Triton.

Each message through an ensemble is a request of its own to the codec. Triton's stub keeps Python's lock for a round trip to the server
with each of them, and the talker's send is one more. So the codec of a busy server *claims* a stream: it keeps the request of
one message open, and the talker sends the messages that follow on a Unix socket to the codec's process, which answers them as
further responses of that request. A stream's last message always goes through Triton, and one now and then, because only a request
that is new to the ensemble shows that its client has gone. `seconds_past_triton` says how often.

A claim of a stream that has ended is refused, on the same socket: a client may have kept its messages, and sends them again. Whatever
comes of such a stream comes through Triton, so the request need not be held. The codec releases a claim of a stream that it forgets.

The talker knows by the claims that it holds whether the codec will claim a stream, too; then the stream's messages wait for that
(codes_route.py).

The talker listens (`CodesOutlet`) at an address that cannot be guessed, which its messages tell. The codec connects to it (`CodesInlet`)
and names the streams that it claims. Both directions are signed with the server's secret, as what goes through Triton is. A message that
cannot be sent at once goes through Triton, so that the talker never waits for the channel; `place` in it tells the codec the order.
"""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from math import inf

import numpy as np

from engine_lib.errors import place_of
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.backend import Tensors
from engine_lib.serving.secret import SIGNATURE_BYTES, ServerSecret

logger = logging.getLogger(__name__)

# With fewer open streams Triton's way costs no time, and each of its messages tells whether the client is there.
CLAIMED_FROM_STREAMS = {"auto": 8, "always": 1}
# A message through Triton shows whether the client is still there, and streams share these. So the codec's model keeps up with its
# requests at any number of streams. No more is spoken to clients that have gone, because each of more streams is spoken more slowly.
MESSAGES_THROUGH_TRITON, LEAST_SECONDS_PAST_TRITON = 160.0, 0.4  # a second; of each stream
RECENT_CLAIMS, LATE = 16, 2.0  # a claim is late if it takes so many times as long as the slowest of the recent ones
MAX_BYTES = 1 << 16  # of a message; a larger one goes through Triton
MAX_CONNECTIONS = 16  # one for each codec; a reload makes another
_SHAPE = struct.Struct("<HH")
_PEER = struct.Struct("3i")  # pid, uid, gid
_CLAIM, _RELEASE, _REFUSAL = b"claim ", b"release ", b"refused "
_NO_SHAPE = _SHAPE.pack(0xFFFF, 0xFFFF)  # in front of a refusal, because no message has so many codes


class CodesOutlet:
    """The talker's end: knows which streams are claimed, and sends their messages.

    Attributes:
        address: of its socket, in Linux's abstract namespace, so that nothing is left of it.
        claim_times: how long the latest claims took, from the message that was claimed.
    """

    def __init__(
        self, secret: ServerSecret, streams: Container[str], on_claim: Callable[[str], None] = lambda _: None, *, busy_from: float = inf
    ) -> None:
        """Listen.

        Args:
            streams: keys of the open ones; a stream leaves them before it is released.
            on_claim: called with the key of a stream that is claimed from now on.
            busy_from: open streams from which the codec claims each.
        """
        self._secret, self._streams, self._on_claim, self._busy_from = secret, streams, on_claim, busy_from
        self.address = f"qwen3_tts_codes_{secrets.token_hex(16)}"
        self._claims: dict[str, socket.socket] = {}
        self.claim_times = LatencyWindow(RECENT_CLAIMS)
        self._is_closed = False
        self._listener = _new_socket()
        self._listener.bind(_abstract(self.address))
        self._listener.listen(MAX_CONNECTIONS)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="codes-claims", daemon=True)
        self._thread.start()

    def send(self, stream_key: str, message: Tensors) -> bool:
        """Send a message of a claimed stream at once; False if it must go through Triton."""
        codec = self._claims.get(stream_key)
        if codec is None or message["codes"].nbytes + message["header"].nbytes + _SHAPE.size > MAX_BYTES:
            return False
        try:
            codec.send(_packed(message))
        except BlockingIOError:  # the codec's process is slow
            return False
        except OSError:  # it has gone
            self.release(stream_key)
            return False
        return True

    @property
    def seconds_past_triton(self) -> float:
        """How long all messages of a stream may go past Triton before one goes through it."""
        return max(LEAST_SECONDS_PAST_TRITON, len(self._claims) / MESSAGES_THROUGH_TRITON)

    def expects_claim(self, stream_key: str, waited: float) -> bool:
        """Whether the codec, which holds claims of enough others, will claim this stream, too: it has not yet, and is not late.

        Args:
            waited: seconds since a message that may be claimed was sent. A client of the talker alone brings it to no codec.
        """
        is_busy = len(self._claims) >= self._busy_from
        return is_busy and stream_key not in self._claims and waited < LATE * max(self.claim_times.latest(RECENT_CLAIMS), default=0.0)

    def release(self, stream_key: str) -> None:
        """Forget a stream."""
        self._claims.pop(stream_key, None)

    def close(self, timeout: float) -> None:
        """Close all connections and end the thread. The codec then ends the streams that it has claimed."""
        self._is_closed = True
        with suppress(OSError):  # a codec has woken the thread meanwhile, and it has closed this
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes it
        self._thread.join(timeout)

    def _run(self) -> None:
        """Accept codecs and hear their claims, until the listener is closed."""
        with self._selector, self._listener:
            while not self._is_closed:
                for ready, _ in self._selector.select():
                    if isinstance(codec := ready.data, socket.socket):
                        self._hear(codec)
                    else:
                        self._accept()
            for key in list(self._selector.get_map().values()):
                if isinstance(key.data, socket.socket):
                    self._drop(key.data)

    def _accept(self) -> None:
        """Take a codec's connection, if there is one."""
        try:
            codec, _ = self._listener.accept()
        except OSError:  # it has gone, or this end is being closed
            return
        codec.setblocking(False)
        _, user, _ = _PEER.unpack(codec.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if user == os.geteuid() and len(self._selector.get_map()) <= MAX_CONNECTIONS:
            self._selector.register(codec, selectors.EVENT_READ, codec)

    def _hear(self, codec: socket.socket) -> None:
        try:
            told = codec.recv(MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            told = b""
        signature, name = told[:SIGNATURE_BYTES], told[SIGNATURE_BYTES:]
        if self._secret.has_signed(_CLAIM + name, signature):
            self._hear_claim(codec, name)
        elif self._secret.has_signed(_RELEASE + name, signature):
            self.release(name.decode())
        else:
            self._drop(codec)

    def _hear_claim(self, codec: socket.socket, name: bytes) -> None:
        stream_key = name.decode()
        self._claims[stream_key] = codec
        if stream_key not in self._streams:  # looked at only now, because it may end meanwhile
            self.release(stream_key)
            with suppress(OSError):  # it has gone, or is slow: then it forgets the stream in time
                codec.send(_NO_SHAPE + _signed(self._secret, _REFUSAL, name))
        else:
            self._on_claim(stream_key)

    def _drop(self, codec: socket.socket) -> None:
        """End a connection. A sender may be using the socket, so the last one who does closes it."""
        self._selector.unregister(codec)
        for stream_key in [key for key, claimant in list(self._claims.items()) if claimant is codec]:
            self.release(stream_key)
        with suppress(OSError):
            codec.shutdown(socket.SHUT_RDWR)


class CodesInlet:
    """The codec's end: claims streams, and hears the messages that come for them."""

    def __init__(
        self,
        secret: ServerSecret,
        on_message: Callable[[Tensors], None],
        on_refused: Callable[[str], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """
        Args:
            on_message: called with each message, on a thread of its talker's.
            on_refused: called with the key of a stream that had ended when it was claimed, on the same thread.
            on_lost: called with the address of a talker that sends nothing any more, on the same thread, behind its last message.
        """
        self._secret, self._on_message, self._on_refused, self._on_lost = secret, on_message, on_refused, on_lost
        self._talkers: dict[str, socket.socket] = {}
        self._threads: list[threading.Thread] = []

    def claim(self, address: str, stream_key: str) -> bool:
        """Ask the talker at `address` for a stream's further messages; False if it cannot be reached. Not for two threads at a time."""
        try:
            talker = self._talkers.get(address) or self._connect(address)
            talker.send(_signed(self._secret, _CLAIM, stream_key.encode()))
        except OSError:
            return False
        return True

    def release(self, address: str, stream_key: str) -> None:
        """Tell the talker at `address` that a claimed stream's further messages must come through Triton."""
        if (talker := self._talkers.get(address)) is not None:
            with suppress(OSError):  # it has gone
                talker.send(_signed(self._secret, _RELEASE, stream_key.encode()))

    def close(self, timeout: float) -> None:
        """Close all connections and end their threads; `on_lost` is called for each."""
        for talker in list(self._talkers.values()):
            with suppress(OSError):
                talker.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout)

    def _connect(self, address: str) -> socket.socket:
        talker = _new_socket()
        talker.connect(_abstract(address))
        talker.setblocking(True)
        self._talkers[address] = talker
        thread = threading.Thread(target=self._hear, args=(address, talker), name=f"codes-{len(self._threads)}", daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()
        return talker

    def _hear(self, address: str, talker: socket.socket) -> None:
        with talker, suppress(ConnectionError):
            while message := talker.recv(MAX_BYTES):
                try:
                    if message.startswith(_NO_SHAPE):
                        self._hear_refusal(message[_SHAPE.size :])
                    else:
                        self._on_message(_unpacked(message))
                except Exception as error:
                    logger.error("a message of the talker: %s", place_of(error))
        del self._talkers[address]
        self._on_lost(address)

    def _hear_refusal(self, refusal: bytes) -> None:
        signature, name = refusal[:SIGNATURE_BYTES], refusal[SIGNATURE_BYTES:]
        if self._secret.has_signed(_REFUSAL + name, signature):
            self._on_refused(name.decode())


def _signed(secret: ServerSecret, word: bytes, name: bytes) -> bytes:
    """The name of a stream behind the signature of what is said of it."""
    return secret.sign(word + name) + name


def _new_socket() -> socket.socket:
    """It keeps the borders of messages, and does not block."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def _abstract(address: str) -> str:
    return f"\0{address}"


def _packed(message: Tensors) -> bytes:
    codes, header = message["codes"], message["header"]
    return _SHAPE.pack(*codes.shape) + codes.tobytes() + header.tobytes()


def _unpacked(message: bytes) -> Tensors:
    """The tensors in a message. Raises ValueError if it is too short."""
    if len(message) < _SHAPE.size:
        raise ValueError(f"has {len(message)} bytes")
    frames, books = _SHAPE.unpack_from(message)
    codes = np.frombuffer(message, np.int16, frames * books, _SHAPE.size).reshape(frames, books)
    return {"codes": codes, "header": np.frombuffer(message, np.uint8, offset=_SHAPE.size + codes.nbytes)}
