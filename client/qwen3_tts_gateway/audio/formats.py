"""The formats of a response: media type, legal rates and bit rates, codec and container of each.

What decoders give back, for n samples at the encoder's rate:

| format | decoded length |
|---|---|
| pcm, wav, mulaw, alaw, flac | n |
| opus | n, at 48 kHz: the header has the samples to skip, the last page the sample where the audio ends |
| mp3 | 1105 samples of priming (of the encoder and of every decoder), n, and less than a frame of silence |
| aac | 1024 samples of priming, n, and less than a frame (1024) of silence |

ADTS has no field for priming. The frame before an MP3 file that declares it (Xing, LAME) must say how many frames or bytes follow,
which a stream cannot know: without one of them FFmpeg plays that frame as silence, which gains nothing. A file that is made as a
whole (`is_whole`) has it, and decodes to n samples; the headers of wav and flac then have their length, too.

The first bytes of audio leave after 40 ms of speech (flac, opus), three frames of mp3 (72 ms at 24 kHz), two frames of aac (85 ms
at 24 kHz), at once in the others. An utterance without samples is a header in wav, flac and opus, and no bytes in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qwen3_tts_client.errors import InvalidRequest

ANY_RATE = range(8000, 48001)
TELEPHONE_RATE = (8000,)
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
AAC_RATES = MP3_RATES
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # of its encoder
DEFAULT_BIT_RATE = 64_000
MP3_BIT_RATES = (32_000, 40_000, 48_000, 56_000, 64_000, 80_000, 96_000, 112_000, 128_000, 160_000, 192_000, 224_000, 256_000, 320_000)
MP3_HIGHEST = ((12000, 64_000), (24000, 160_000), (48000, 320_000))  # up to this sample rate, this bit rate; 144 kbit/s does not exist
AAC_BITS_PER_SAMPLE = 6


@dataclass(frozen=True)
class Format:
    """How one format is made.

    Attributes:
        media_type: for Content-Type.
        container, codec, sample_format: FFmpeg's names.
        rates: sample rates in Hz that a request may ask for.
        default_rate: the one to use if it asks for none.
        priming: samples of silence that decoders give before the first sample, because a stream of the format cannot declare them.
        codec_options, container_options: FFmpeg's.
        whole_options: container options of a file that is written as a whole, if its header can then declare the priming.
    """

    media_type: str
    container: str
    codec: str
    sample_format: str = "s16"
    rates: Sequence[int] = ANY_RATE
    default_rate: int = 24000
    priming: int = 0
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    whole_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_frame(self) -> bool:
        """Whether anything stands around the samples, or another code for them; pcm is the integers themselves."""
        return self.container != "s16le"


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        # Quality 7 of LAME's 0 to 9: speech at 64 kbit/s has bits to spare, and it costs 30 % less time than the default.
        "mp3": Format(
            "audio/mpeg",
            "mp3",
            "libmp3lame",
            "fltp",
            MP3_RATES,
            priming=1105,
            codec_options={"compression_level": "7"},
            container_options={"write_xing": "0", "id3v2_version": "0"},
            whole_options={"write_xing": "1"},
        ),
        # A page for each packet of 20 ms: 11 kbit/s of page headers buy the earliest audio.
        "opus": Format(
            "audio/ogg",
            "ogg",
            "libopus",
            "flt",
            codec_options={"compression_level": "5"},
            container_options={"page_duration": "20000"},
        ),
        "aac": Format("audio/aac", "adts", "aac", "fltp", AAC_RATES, priming=1024),
        "flac": Format("audio/flac", "flac", "flac", container_options={"metadata_header_padding": "0"}),
        # Bit-exact: without the chunk that names the writer, the header has the 44 bytes that simple clients skip.
        "wav": Format("audio/wav", "wav", "pcm_s16le", container_options={"fflags": "bitexact"}),
        "pcm": Format("audio/pcm", "s16le", "pcm_s16le"),
        "mulaw": Format("audio/PCMU", "mulaw", "pcm_mulaw", rates=TELEPHONE_RATE, default_rate=8000),
        "alaw": Format("audio/PCMA", "alaw", "pcm_alaw", rates=TELEPHONE_RATE, default_rate=8000),
    }
)


def checked_format(response_format: str) -> Format:
    """The format of this name.

    Raises:
        InvalidRequest: there is none; field `response_format`.
    """
    found = FORMATS.get(response_format)
    if found is None:
        raise _not_allowed("response_format", repr(response_format), ", ".join(FORMATS))
    return found


def checked_rate(response_format: str, sample_rate: int) -> int:
    """`sample_rate` in Hz if the format can have it.

    Raises:
        InvalidRequest: it cannot; field `sample_rate`.
    """
    rates = FORMATS[response_format].rates
    if sample_rate not in rates:
        raise _not_allowed("sample_rate", f"{sample_rate} for {response_format}", _in_words(rates))
    return int(sample_rate)


def checked_bit_rate(response_format: str, sample_rate: int, bit_rate: int | None) -> int | None:
    """The bit rate in bit/s to encode with; None if the format has none to choose.

    Raises:
        InvalidRequest: this one is not possible at this sample rate; field `bit_rate`.
    """
    allowed = bit_rates(response_format, sample_rate)
    if not allowed:
        if bit_rate is not None:
            raise _not_allowed("bit_rate", f"{bit_rate} for {response_format}", "none, its size follows from the samples")
        return None
    if bit_rate is None:
        return min(DEFAULT_BIT_RATE, allowed[-1])
    if bit_rate not in allowed:
        raise _not_allowed("bit_rate", f"{bit_rate} for {response_format} at {sample_rate} Hz", _in_words(allowed))
    return int(bit_rate)


def bit_rates(response_format: str, sample_rate: int) -> Sequence[int]:
    """The bit rates in bit/s that a request may choose; empty if the format has no such choice."""
    if response_format == "mp3":
        highest = next(bits for rate, bits in MP3_HIGHEST if sample_rate <= rate)
        return tuple(bits for bits in MP3_BIT_RATES if bits <= highest)
    if response_format == "aac":
        return range(16_000, min(320_000, AAC_BITS_PER_SAMPLE * sample_rate) + 1)
    if response_format == "opus":
        return range(6_000, 256_001)
    return ()


def encoder_rate(response_format: str, sample_rate: int) -> int:
    """The rate that the codec works at: every decoder of Opus gives 48 kHz, its encoder has five rates."""
    return 48000 if response_format == "opus" and sample_rate not in OPUS_RATES else sample_rate


def _in_words(values: Sequence[int]) -> str:
    return f"{values[0]} to {values[-1]}" if isinstance(values, range) else ", ".join(map(str, values))


def _not_allowed(name: str, value: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {value} is not allowed; allowed: {allowed}", field=name)
