"""Helpers of the talker's tests: requests as data, streams that keep chunks, engines, official codes."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

import oracle
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.delivery import ChunkPolicy, Delivery
from engine_lib.prompt import Prompt, PromptBuilder
from engine_lib.sampling import SamplingParams
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine
from engine_lib.talker.request import CodesChunk, Request, RequestListener
from engine_lib.talker.scheduler import Schedule
from engine_lib.talker.sequence import Sequence
from engine_lib.talker.text.feed import TextFeed
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from patience import PATIENCE

Codes = npt.NDArray[np.int16]
StreamT = TypeVar("StreamT", bound="Stream")
Actions = Mapping[int, Callable[["Stream"], object]]

ONE_FRAME = Delivery((1,))
GREEDY = SamplingParams(do_sample=False, subtalker_dosample=False)

_request_ids = itertools.count()


@dataclass(frozen=True)
class Utterance:
    """The fields of one request. `voice` is for custom_voice checkpoints only, `voice_prompt` for those of kind base."""

    text: str = "Good morning! How are you today?"
    voice: str | None = "ryan"
    language: str | None = "english"
    instruct: str | None = None
    non_streaming_mode: bool = True
    voice_prompt: VoiceClonePromptItem | None = None

    def prompt(self, path: Path) -> Prompt:
        return prompt_builder(path).build(**vars(self))


GREETING = Utterance("Good morning!")


class Stream(RequestListener):
    """Gathers the chunks of one request; as its listener it runs on the engine thread.

    `at` maps a number of frames to a function, which is called with the stream between two steps when that many have arrived. So
    a test acts on a running engine at the same frame in every run.
    """

    def __init__(self, at: Actions | None = None) -> None:
        self.chunks: list[CodesChunk] = []
        self.request: Request
        self.sequence: Any  # of an engine in this process
        self.failures: list[BaseException] = []
        self._at = dict(at or {})
        self._ended = threading.Event()

    def on_chunk(self, chunk: CodesChunk) -> None:
        self.chunks.append(chunk)
        for num_frames in sorted(self._at):
            if len(self.codes) >= num_frames:
                try:
                    self._at.pop(num_frames)(self)
                except BaseException as failure:
                    self.failures.append(failure)  # of the test, not of the engine
        if chunk.is_final:
            self._ended.set()

    @property
    def codes(self) -> Codes:
        """[frames, num_code_groups] so far."""
        return np.concatenate([chunk.codes for chunk in self.chunks])

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def end(self) -> CodesChunk:
        """Wait for the final chunk; the stream must be well formed: indexes in order, one final chunk, the last."""
        assert self._ended.wait(PATIENCE), f"request {self.request.stream_key} hangs"
        for failure in self.failures:
            raise failure
        assert [chunk.index for chunk in self.chunks] == list(range(len(self.chunks)))
        assert [chunk.is_final for chunk in self.chunks] == [False] * (len(self.chunks) - 1) + [True]
        assert len(self.chunks[-1].codes) == 0
        assert all(chunk.finish_reason == "" and chunk.error == "" for chunk in self.chunks[:-1])
        return self.chunks[-1]


@functools.cache
def checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(path)


@functools.cache
def prompt_builder(path: Path) -> PromptBuilder:
    return PromptBuilder(checkpoint(path), max_text_length=4000)


def make_engine(path: Path, *, exact: bool = False, pipelined: bool = False, **options: Any) -> TalkerEngine:
    """A small engine that is not started.

    Args:
        path: checkpoint folder.
        exact: compute in float64. In float32 a matrix product of one row and of many differ in the last bit, which moves
            about one sample in 20,000 to a neighbouring id; float64 does not, for tests that want the same codes.
        pipelined: read each result one step late, as a GPU does anyway.
        options: of EngineConfig, over the small defaults here.
    """
    defaults: dict[str, Any] = {"device": "cpu", "max_num_seqs": 8, "max_model_len": 128, "kv_block_size": 4}
    config = EngineConfig(**(defaults | options))
    engine = TalkerEngine(checkpoint(path), config, dtype=torch.float64 if exact else None)
    engine._pipelined = engine._pipelined or pipelined
    return engine


@contextmanager
def running_engine(path: Path, *, exact: bool = False, pipelined: bool = False, **options: Any) -> Iterator[TalkerEngine]:
    """A started engine as `make_engine` makes it, shut down at the end."""
    engine = make_engine(path, exact=exact, pipelined=pipelined, **options)
    engine.start()
    try:
        yield engine
    finally:
        engine.shutdown()


@contextmanager
def running_process(path: Path, **options: Any) -> Iterator[RemoteTalkerEngine]:
    """A started engine in a process of its own, which must be gone at the end."""
    defaults: dict[str, Any] = {"device": "cpu", "max_num_seqs": 8, "max_model_len": 128, "kv_block_size": 4, "num_threads": 1}
    config = EngineConfig(**(defaults | options))
    engine = RemoteTalkerEngine(checkpoint(path), config)
    engine.start()
    try:
        yield engine
    finally:
        engine.shutdown()
        assert not Path(f"/proc/{engine.pid}").exists()


def submit(engine: BaseTalkerEngine[Any], request: Request, stream: StreamT) -> StreamT:
    """Submit `request` with `stream` as its listener, which then knows its sequence too."""
    with engine._changed:  # until this is released the sequence stays open
        engine.submit(request, stream)
        stream.request, stream.sequence = request, engine._open[request.stream_key]
    return stream


def unheard(engine: TalkerEngine, name: str, prompt: Prompt, sampling: SamplingParams = GREEDY) -> Sequence:
    """A sequence for the engine's scheduler, without a real listener."""
    request = Request(name, prompt, sampling, ONE_FRAME)
    return Sequence(request, RequestListener(), engine.max_frames(request))


def write_block_tables(engine: TalkerEngine) -> None:
    """Send the block tables of all running sequences to the device."""
    for plan, _ in engine.planner.plans(Schedule(grown=[*engine.scheduler.active])):
        engine.worker.execute(plan)


def start(
    engine: BaseTalkerEngine[Any],
    utterance: Utterance | Prompt,
    sampling: SamplingParams = GREEDY,
    *,
    max_frames: int | None = None,
    chunk_frames: tuple[int, ...] = (1,),
    at: Actions | None = None,
) -> Stream:
    """Submit a request and return its stream."""
    stream = Stream(at)
    prompt = utterance.prompt(engine.checkpoint.path) if isinstance(utterance, Utterance) else utterance
    if max_frames is not None:
        sampling = replace(sampling, max_frames=max_frames)
    delivery = Delivery(chunk_frames, ChunkPolicy(engine.config.chunk_policy))
    return submit(engine, Request(f"request-{next(_request_ids)}", prompt, sampling, delivery), stream)


def open_stream(
    engine: BaseTalkerEngine[Any], utterance: Utterance, sampling: SamplingParams = GREEDY, *, chunk_frames: tuple[int, ...] = (1,)
) -> tuple[Stream, TextFeed]:
    """Submit `utterance` without its text; return its stream, and the way to give it text."""
    fields = {name: getattr(utterance, name) for name in ("voice", "language", "instruct", "voice_prompt")}
    prompt, rows = prompt_builder(engine.checkpoint.path).open(**fields)
    request = Request(f"request-{next(_request_ids)}", prompt, sampling, Delivery(chunk_frames), text_is_open=True)
    stream, feed = submit(engine, request, Stream()), TextFeed(1000)
    feed.connect(engine, request.stream_key, rows)
    return stream, feed


def speak(engine: BaseTalkerEngine[Any], utterance: Utterance | Prompt, sampling: SamplingParams = GREEDY, **options: Any) -> Codes:
    """The codes of one request that must end well, [frames, num_code_groups]."""
    stream = start(engine, utterance, sampling, **options)
    final = stream.end()
    assert final.finish_reason in ("stop", "length"), final
    return stream.codes


def assert_nothing_is_held(engine: BaseTalkerEngine[Any]) -> None:
    """Every slot and every block is free, and no request is open."""
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.free_slots == engine.config.max_num_seqs
    assert stats.free_blocks == stats.total_blocks


@functools.cache
def official(path: Path, utterances: tuple[Utterance, ...], max_frames: int) -> list[Codes]:
    """Greedy codes of the official package for `utterances`, one text layout, given to it as one list."""
    (layout,) = {utterance.non_streaming_mode for utterance in utterances}
    kind = checkpoint(path).config.kind
    fields: dict[str, Any] = {}
    if kind == "base":
        fields["voice_clone_prompt"] = [utterance.voice_prompt for utterance in utterances]
    else:
        fields["instruct"] = [utterance.instruct or "" for utterance in utterances]
    if kind == "custom_voice":
        fields["speaker"] = [utterance.voice for utterance in utterances]
    codes, _wavs = oracle.official_codes(
        oracle.load_official(path),
        "generate_voice_clone" if kind == "base" else f"generate_{kind}",
        text=[utterance.text for utterance in utterances],
        language=[utterance.language or "auto" for utterance in utterances],
        **fields,
        non_streaming_mode=layout,
        do_sample=False,
        subtalker_dosample=False,
        max_new_tokens=max_frames + 1,
        decode=False,
    )
    return [
        frames[_num_reference_frames(utterance) :].numpy().astype(np.int16) for utterance, frames in zip(utterances, codes, strict=True)
    ]


def _num_reference_frames(utterance: Utterance) -> int:
    voice = utterance.voice_prompt
    return 0 if voice is None or voice.ref_code is None else len(voice.ref_code)
