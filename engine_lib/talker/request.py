"""Request: one caller's choices, and the chunks of codec frames that answer it."""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from engine_lib.admission.turn import DEFAULT_TURN, Turn
from engine_lib.delivery import Delivery
from engine_lib.process.wire import Message
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams

TEXT_IDLE_ERROR = "text: no more of it has come for {:g} s, and its end has not been said; send it sooner, or raise text_idle_seconds"


class FinishReason(str, Enum):
    """Why a stream ended."""

    STOP = "stop"
    LENGTH = "length"
    RUNAWAY = "runaway"
    CANCELLED = "cancelled"
    ERROR = "error"


class CodesChunk(Message, frozen=True):
    """Consecutive frames of one stream.

    Attributes:
        stream_key: the stream that the frames belong to.
        index: 0, 1, 2.. within the stream.
        codes: [frames, num_code_groups] int16. The last chunk of a stream has no frames.
        is_final: True for the last chunk. Every accepted request gets exactly one.
        finish_reason: "" until the final chunk.
        error: the reason in words if finish_reason is "error".
        is_reference: the codes are a clone's reference, sent ahead of chunk 0, or the good frames of a stream that is spoken anew
            behind them: the codec takes them as the stream's past and gives no audio for them.
        num_frames: of the final chunk: frames in all chunks of the stream, those of a cancelled one too; of one that starts over, its
            good frames.
        scores: [frames, heads, text rows] float16, of a stream with timestamps: what WordAligner.add takes.
        metadata: "", or what the client is told beside the audio: a JSON object.
    """

    stream_key: str
    index: int
    codes: npt.NDArray[np.int16]
    is_final: bool = False
    finish_reason: str = ""
    error: str = ""
    is_reference: bool = False
    num_frames: int = 0
    scores: npt.NDArray[np.float16] | None = None
    metadata: str = ""

    @property
    def starts_over(self) -> bool:
        """Whether the stream is spoken anew behind the codes of this chunk."""
        return self.is_reference and self.index > 0


class StreamTimes(Message, frozen=True):
    """When a stream came how far: time.monotonic(), which all processes of a machine share.

    Attributes:
        begun_at: its first step was about to be launched.
        prefilled_at: its prompt had been launched; on a CPU: computed. `begun_at` if all of it was in the prefix cache.
        first_frames_at: the frames of its first chunk had been read.

    These two are 0.0 if the stream ended before.
    """

    stream_key: str
    begun_at: float
    prefilled_at: float
    first_frames_at: float


class Request(Message, frozen=True):
    """A prompt to be spoken. It never changes, and is also the message to an engine in another process.

    Attributes:
        stream_key: unique key of the stream.
        prompt: from PromptBuilder.
        sampling: how codes are sampled.
        delivery: how the stream is delivered.
        deadline: time.monotonic() at which the stream ends with an error, waiting or running; None: never.
        announce_start: whether the listener's `on_start` is called.
        announce_times: whether the listener's `on_times` is called.
        turn: how it waits to start.
        text_is_open: more text of the prompt's rows, and of those behind it, comes as FurtherText.
    """

    stream_key: str
    prompt: Prompt
    sampling: SamplingParams
    delivery: Delivery
    deadline: float | None = None
    announce_start: bool = False
    announce_times: bool = False
    turn: Turn = DEFAULT_TURN
    text_is_open: bool = False


class FurtherText(Message, frozen=True):
    """More text of an open request.

    Attributes:
        stream_key: of the request.
        text_ids: [n] int32, text of the rows behind those that have theirs; n may be 0.
        num_text_tokens: as in Prompt, of all text so far.
        is_last: nothing follows: further rows have tts_pad.
    """

    stream_key: str
    text_ids: npt.NDArray[np.int32]
    num_text_tokens: int
    is_last: bool = False


class RequestListener:
    """Gets the events of one request, on a thread of the engine: it must only pass them on. If it raises, the stream ends as cancelled."""

    def on_start(self) -> None:
        """Called once, when the first step of the request is about to be launched, if the request says `announce_start`."""

    def on_times(self, times: StreamTimes) -> None:
        """Called once if the request says `announce_times`, before its first chunk with frames, or its last one if it has begun."""

    def on_chunk(self, chunk: CodesChunk) -> None:
        """Called for each chunk."""
