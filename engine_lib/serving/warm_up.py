"""Warm-up: one stream through each engine before its model is ready.

Libraries load kernels, choose algorithms and take memory at their first call; a graph is uploaded at its first launch. No user's
request pays for that. The stream takes the path of a user's stream, from the prompt through the engine's thread and a sender to a
packed message, and frees everything it held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.codec.request import AudioChunk, CodecRequest
from engine_lib.delivery import Delivery
from engine_lib.errors import Qwen3TTSError
from engine_lib.prompt import Prompt, PromptBuilder
from engine_lib.serving.backend import Tensors
from engine_lib.serving.message import AudioAnswer, CodesMessage
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.secret import ServerSecret
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener
from engine_lib.voices.clone_prompt import VoiceClonePromptItem

STREAM_KEY = "warm-up"
TEXT = "Hello."
DELIVERY = Delivery((1,))
CHUNK_FRAMES = (1, 2, 4, 8)
TALKER_FRAMES = 3  # from the prefill, from a decode step after it, and from one with the batch of the step before
TIMEOUT_SECONDS = 300.0  # enough for a large checkpoint on a slow CPU; a server that hangs must not load for ever


def warm_up_talker(engine: BaseTalkerEngine[Any], prompts: PromptBuilder, sender: OrderedSender, secret: ServerSecret) -> None:
    """Speak a few frames; `secret` signs their messages.

    Raises:
        Qwen3TTSError: the talker cannot.
    """
    answers = _Answers("talker", sender)
    sampling = replace(engine.checkpoint.sampling_defaults(), seed=0, max_frames=TALKER_FRAMES)
    engine.submit(Request(STREAM_KEY, _prompt(prompts), sampling, DELIVERY), _CodesListener(answers, secret))
    answers.wait_for_the_end()


def warm_up_codec(engine: BaseCodecEngine, sender: OrderedSender) -> None:
    """Decode a few chunks, each in a step of its own.

    Raises:
        Qwen3TTSError: the codec cannot.
    """
    answers, sizes = _Answers("codec", sender), iter((*CHUNK_FRAMES, 0))

    def send_next(index: int) -> None:
        frames = next(sizes)
        codes = np.zeros((frames, engine.num_quantizers), np.int16)
        engine.submit(CodecRequest(STREAM_KEY, index, codes, frames == 0, on_audio))

    def on_audio(chunk: AudioChunk) -> None:
        answer = AudioAnswer(
            audio=chunk.audio,
            sample_rate=engine.sample_rate,
            index=chunk.index,
            is_final=chunk.is_final,
            finish_reason=FinishReason.LENGTH.value if chunk.is_final else "",
            error=chunk.error,
            audio_format=DELIVERY.audio_format,
        )
        answers.put(answer.pack, chunk.error, chunk.is_final)
        if not (chunk.is_final or chunk.error):
            send_next(chunk.index + 1)

    send_next(0)
    answers.wait_for_the_end()


class _CodesListener(RequestListener):
    """Has each chunk packed as a message to the codec."""

    def __init__(self, answers: _Answers, secret: ServerSecret) -> None:
        self._answers, self._secret = answers, secret

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        self._answers.put(partial(CodesMessage(chunk, DELIVERY).pack, self._secret), chunk.error, chunk.is_final)


class _Answers:
    """The answers of one stream, which go through a sender."""

    def __init__(self, engine: str, sender: OrderedSender) -> None:
        self._engine, self._sender = engine, sender
        self._received: SimpleQueue[tuple[str, bool]] = SimpleQueue()

    def put(self, pack: Callable[[], Tensors], error: str, is_final: bool) -> None:
        """On the engine's thread: leave the packing of an answer to the sender."""

        def send() -> None:
            pack()
            self._received.put((error, is_final))

        self._sender.put(STREAM_KEY, send)

    def wait_for_the_end(self) -> None:
        """Wait for the last answer; raise the first error."""
        is_final = False
        while not is_final:
            try:
                error, is_final = self._received.get(timeout=TIMEOUT_SECONDS)
            except Empty:
                raise Qwen3TTSError(f"warm-up: the {self._engine} has not answered for {TIMEOUT_SECONDS:.0f} seconds") from None
            if error:
                raise Qwen3TTSError(f"warm-up: {error}")


def _prompt(prompts: PromptBuilder) -> Prompt:
    voice = None
    if prompts.config.kind == "base":
        voice = VoiceClonePromptItem(None, torch.zeros(prompts.config.talker.shape.hidden_size), x_vector_only_mode=True, icl_mode=False)
    return prompts.build(text=TEXT[: prompts.max_text_length], voice_prompt=voice)
