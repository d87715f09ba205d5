"""An encoder for each stream: samples in, bytes of the format out, as early as the format can."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from types import MappingProxyType
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt

from qwen3_tts_gateway.audio.formats import FORMATS, checked_bit_rate, checked_format, checked_rate, encoder_rate

Samples: TypeAlias = npt.NDArray[np.float32]
LARGEST_INTEGER = 32767
EVERY_PACKET_AT_ONCE = MappingProxyType({"flush_packets": "1"})
FLAC_BLOCKS_PER_SECOND = 25
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Encoding:
    """How one stream of mono samples is encoded; `checked_encoding` makes it.

    Attributes:
        response_format: a name in FORMATS.
        sample_rate: in Hz, of the samples that its encoder takes.
        bit_rate: in bit/s; None: the format has none.
        is_whole: all bytes leave with `finish`: a file with its length (wav, flac) or its priming (mp3) in its header.
    """

    response_format: str
    sample_rate: int
    bit_rate: int | None
    is_whole: bool

    @property
    def media_type(self) -> str:
        """Of its bytes, for Content-Type."""
        return FORMATS[self.response_format].media_type

    @property
    def is_cheap(self) -> bool:
        """A chunk of seconds takes less than a millisecond."""
        return FORMATS[self.response_format].codec.startswith("pcm_")


def checked_encoding(response_format: str, sample_rate: int, bit_rate: int | None = None, is_whole: bool = False) -> Encoding:
    """How to encode for a request.

    Args:
        response_format: a name in FORMATS.
        sample_rate: of the response in Hz. (Opus: the rate of its encoder, the next legal one; decoders give 48 kHz.) The samples
            must come at the encoder's rate.
        bit_rate: in bit/s; None for the default of the format. Only mp3, opus and aac have one.
        is_whole: see Encoding.

    Raises:
        InvalidRequest: a value is not allowed; the message has its field, and what is allowed.
    """
    checked_format(response_format)
    rate = encoder_rate(response_format, checked_rate(response_format, sample_rate))
    return Encoding(response_format, rate, checked_bit_rate(response_format, rate, bit_rate), is_whole)


def make_encoder(response_format: str, sample_rate: int, bit_rate: int | None = None, is_whole: bool = False) -> Encoder:
    """An encoder in this process; arguments and errors as for `checked_encoding`."""
    return Encoder(checked_encoding(response_format, sample_rate, bit_rate, is_whole))


class Encoder:
    """Encodes one stream; use it from one thread at a time. One that is dropped before `finish` leaves nothing behind.

    Attributes:
        media_type: of its bytes, for Content-Type.
        sample_rate: in Hz, of the samples that it takes.
        priming: samples at `sample_rate` that decoders give before the first one of the stream.
    """

    def __init__(self, encoding: Encoding) -> None:
        chosen, is_whole, sample_rate = FORMATS[encoding.response_format], encoding.is_whole, encoding.sample_rate
        self.media_type = encoding.media_type
        self.sample_rate = sample_rate
        self.priming = 0 if is_whole and chosen.whole_options else chosen.priming
        self._format = chosen
        self._taken = 0
        self._finished = False
        self._sink: _Sink | _File = _File() if is_whole else _Sink()
        self._container: Any = None
        if not chosen.has_frame:
            return
        options = {**({} if is_whole else EVERY_PACKET_AT_ONCE), **chosen.container_options, **(chosen.whole_options if is_whole else {})}
        self._container = av.open(self._sink, "w", format=chosen.container, container_options=options)
        codec_options = dict(chosen.codec_options)
        if chosen.codec == "flac":
            codec_options["frame_size"] = str(sample_rate // FLAC_BLOCKS_PER_SECOND)
        self._stream = self._container.add_stream(chosen.codec, rate=sample_rate, layout="mono", options=codec_options)
        self._codec = self._stream.codec_context
        self._codec.format = chosen.sample_format
        if encoding.bit_rate is not None:
            self._codec.bit_rate = encoding.bit_rate
        self._container.start_encoding()  # writes the header, which leaves with the first samples

    def encode(self, samples: npt.NDArray[np.float32]) -> bytes:
        """Take the next samples; returns the bytes that are ready, which may be none yet.

        Args:
            samples: float32 [n]; what is outside -1..1 is clipped, NaN is 0.

        Raises:
            ValueError: `samples` has another shape, or the stream is finished.
        """
        if self._finished:
            raise ValueError("the encoder has finished its stream; make one for each stream")
        self._mux_samples(_clean(samples))
        return self._sink.take()

    def finish(self) -> bytes:
        """The last bytes of the stream; none if it is finished already."""
        if not self._finished:
            self._finished = True
            if self._container is not None:
                self._mux(None)
                self._container.close()
            if isinstance(self._sink, _File):
                self._sink.is_complete = True
        return self._sink.take()

    def _mux_samples(self, samples: Samples) -> None:
        if samples.size:
            whole = np.rint(samples * LARGEST_INTEGER).astype("<i2") if self._format.sample_format == "s16" else samples
            if self._container is None:
                self._sink.write(whole.tobytes())
                return
            frame = av.AudioFrame.from_ndarray(whole.reshape(1, -1), format=self._format.sample_format, layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = self.sample_rate, Fraction(1, self.sample_rate), self._taken
            with nullcontext() if self._taken or not self._codec.frame_size else _on_one_processor():
                self._mux(frame)
            self._taken += samples.size

    def _mux(self, frame: av.AudioFrame | None) -> None:
        """Encode a frame, or what is left in the codec."""
        if frame is None and not self._taken:
            return  # codecs that never had a frame have no end to give
        for packet in self._codec.encode(frame):
            packet.stream = self._stream
            self._container.mux_one(packet)


def _clean(samples: npt.NDArray[np.floating[Any]]) -> Samples:
    """Float32 [n] in -1..1: what is outside is clipped, NaN becomes 0.

    Raises:
        ValueError: not one row of samples.
    """
    values = np.asarray(samples, np.float32)
    if values.ndim != 1:
        raise ValueError(f"samples: shape {list(values.shape)} is not allowed; give [n]")
    if not values.size or (values.min() >= -1.0 and values.max() <= 1.0):  # as almost always; a NaN is neither
        return values
    return np.clip(np.nan_to_num(values, nan=0.0), -1.0, 1.0)


@contextmanager
def _on_one_processor() -> Iterator[None]:
    """Keep this thread on the processor that it is on.

    With the first samples PyAV makes a filter graph for each stream whose codec takes frames of one size, and FFmpeg up to 16 threads
    for it, one for each processor that it may use. They have nothing to do, but starting and ending them costs milliseconds, with the
    interpreter held.
    """
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LIBC.sched_getcpu()})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class _Sink:
    """The file that a container writes to; it cannot seek, so that no format counts on going back."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        """The bytes since the last call."""
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


class _File(BytesIO):
    """A file in memory in which a container can go back to complete its header."""

    def __init__(self) -> None:
        super().__init__()
        self.is_complete = False

    def take(self) -> bytes:
        """All bytes, once, when the file is complete; none before."""
        taken = self.getvalue() if self.is_complete else b""
        self.is_complete = False
        return taken
