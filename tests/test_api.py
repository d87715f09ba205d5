"""Qwen3TTS is a drop-in for the official model class: same arguments, same audio; and it streams, cancels and ends cleanly."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
from engine_lib.api import Qwen3TTS, SpeechChunk
from engine_lib.codec.runner import StepAudio
from engine_lib.errors import EngineDeadError, InvalidRequestError, OverloadedError, Qwen3TTSError
from engine_lib.sampling import SamplingParams
from engine_lib.talker.request import Request
from engine_lib.talker.runner import TalkerRunner
from make_checkpoint import make_checkpoint

GREEDY: dict[str, Any] = {"do_sample": False, "subtalker_dosample": False}
PATIENCE = 60.0  # seconds until something that has not happened counts as hanging
SAMPLES_PER_FRAME = 1920


def load(path: Path, **options: Any) -> Qwen3TTS:
    return Qwen3TTS.from_pretrained(path, device="cpu", **({"max_num_seqs": 4, "codec_slots": 4, "max_model_len": 512} | options))


@pytest.fixture(scope="module")
def tts(tiny_custom_voice: Path) -> Iterator[Qwen3TTS]:
    """Return a small 0.6B-type model that the tests of this module share."""
    with load(tiny_custom_voice) as model:
        yield model


@pytest.fixture(scope="module")
def tts_1b7(tiny_custom_voice_1b7: Path) -> Iterator[Qwen3TTS]:
    """Return a small 1.7B-type model, which takes instructions."""
    with load(tiny_custom_voice_1b7) as model:
        yield model


@pytest.fixture(scope="session")
def endless(checkpoints: Path) -> Path:
    """Return a checkpoint that never ends its speech, so that only limits and callers do."""
    return make_checkpoint(checkpoints / "api_endless", eos_gain=0.0)


def with_generation_config(path: Path, folder: Path, **settings: Any) -> Path:
    """Return a copy of the checkpoint `path` in `folder`, with `settings` in its generation_config.json."""
    for file in path.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((path / "generation_config.json").read_text()) | settings
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def captured_sampling(tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch) -> list[SamplingParams]:
    """Return the list to which the sampling of every request from now on is appended."""
    seen: list[SamplingParams] = []
    submit = tts._talker.submit

    def capturing(request: Request) -> None:
        seen.append(request.sampling)
        submit(request)

    monkeypatch.setattr(tts._talker, "submit", capturing)
    return seen


def is_idle(tts: Qwen3TTS) -> bool:
    """Whether no request holds or waits for anything in either engine."""
    talker, codec, config = tts._talker.stats(), tts._codec.stats(), tts.config
    return (
        (talker.running, talker.waiting, codec.open_streams, codec.queued_chunks) == (0, 0, 0, 0)
        and talker.free_blocks == talker.total_blocks
        and talker.free_slots == config.max_num_seqs
        and codec.free_slots == config.codec_slots
    )


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# what is computed

TWO_TEXTS = ["Good morning! How are you today?", "It's raining, so we'll stay at home."]
CALLS: dict[str, dict[str, Any]] = {
    "one text": {"text": "Good morning!", "speaker": "ryan", "language": "english"},
    "no language": {"text": "Good morning!", "speaker": "Serena"},
    "a dialect speaker": {"text": "你好，今天天气很好。", "speaker": "eric", "language": "Chinese"},
    "no speaker": {"text": "Good morning!", "speaker": "", "language": "german"},
    "text fed while speaking": {"text": TWO_TEXTS[0], "speaker": "vivian", "non_streaming_mode": False},
    "lists": {"text": TWO_TEXTS, "speaker": ["ryan", "eric"], "language": ["english", "auto"], "instruct": ["Whisper.", ""]},
    "single values for a list": {"text": TWO_TEXTS, "speaker": "ryan", "language": "english", "instruct": "Speak slowly."},
    "lists of one for a list": {"text": TWO_TEXTS, "speaker": ["ryan"], "language": ["english"], "instruct": ["Speak slowly."]},
    "a list of one": {"text": ["Good morning!"], "speaker": ["ryan"], "language": "english", "instruct": None},
    "other penalties": {"text": "Good morning!", "speaker": "ryan", "repetition_penalty": 1.4},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", ["tts", "tts_1b7"])
def test_greedy_speech_is_that_of_the_official_package(model: str, call: str, request: pytest.FixtureRequest):
    tts: Qwen3TTS = request.getfixturevalue(model)
    arguments: dict[str, Any] = CALLS[call] | GREEDY | {"max_new_tokens": 16}
    expected_codes, expected_wavs = oracle.official_codes(tts.checkpoint.path, **arguments)
    wavs, sample_rate = tts.generate_custom_voice(**arguments)
    codes = tts.generate_codes(**arguments)
    assert sample_rate == tts.sample_rate == 24000
    assert [c.tolist() for c in codes] == [c.tolist() for c in expected_codes]
    assert [len(w) for w in wavs] == [len(w) for w in expected_wavs]
    for wav, expected in zip(wavs, expected_wavs, strict=True):
        assert wav.dtype == np.float32
        np.testing.assert_allclose(wav, expected, atol=1e-4, rtol=0)


def test_instructions_change_the_speech_of_a_1b7_checkpoint_only(tts: Qwen3TTS, tts_1b7: Qwen3TTS):
    for model, changes in ((tts, False), (tts_1b7, True)):
        arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": 10} | GREEDY
        [plain], [told] = (model.generate_codes(**arguments, instruct=instruct) for instruct in (None, "Whisper."))
        assert (plain.tolist() != told.tolist()) is changes


@pytest.mark.parametrize("fixture", ["tiny_custom_voice", "tiny_voice_design", "tiny_base"])
def test_speakers_and_languages_are_those_of_the_official_package(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    official = oracle.load_official(path)
    with load(path) as tts:
        assert tts.get_supported_speakers() == official.get_supported_speakers()
        assert tts.get_supported_languages() == official.get_supported_languages()


def test_max_new_tokens_gives_one_frame_less(endless: Path):
    with load(endless) as tts:
        for max_new_tokens in (2, 3, 18):
            arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": max_new_tokens} | GREEDY
            [expected], _ = oracle.official_codes(endless, **arguments)
            [codes] = tts.generate_codes(**arguments)
            assert codes.tolist() == expected.tolist()
            assert len(codes) == max_new_tokens - 1


def test_what_the_caller_leaves_out_comes_from_generation_config(tiny_custom_voice: Path, tmp_path: Path):
    path = with_generation_config(tiny_custom_voice, tmp_path, **GREEDY, repetition_penalty=1.6, max_new_tokens=12)
    arguments: dict[str, Any] = {"text": TWO_TEXTS, "speaker": "ryan"}
    expected, _ = oracle.official_codes(path, **arguments)
    with load(path) as tts:
        codes = tts.generate_codes(**arguments)
    assert [c.tolist() for c in codes] == [c.tolist() for c in expected]


def test_the_caller_wins_over_generation_config_and_none_leaves_it(
    tiny_custom_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"temperature": 0.4, "top_k": 7, "top_p": 0.8, "subtalker_top_k": 9, "subtalker_temperature": 0.5, "max_new_tokens": 6}
    with load(with_generation_config(tiny_custom_voice, tmp_path, **settings)) as tts:
        seen = captured_sampling(tts, monkeypatch)
        tts.generate_custom_voice("Good morning!", "ryan", top_k=3, temperature=None, subtalker_top_p=0.9, seed=4)
        tts.generate_codes("Good morning!", "ryan", seed=4, max_new_tokens=4)
    defaults = SamplingParams(temperature=0.4, top_k=7, top_p=0.8, subtalker_top_k=9, subtalker_temperature=0.5)
    assert seen[0] == defaults.updated({"top_k": 3, "subtalker_top_p": 0.9, "seed": 4, "max_frames": 5})
    assert seen[1] == defaults.updated({"seed": 4, "max_frames": 3})


def test_the_published_frame_limit_is_cut_to_the_room_there_is(endless: Path, tmp_path: Path):
    """generation_config.json of the published checkpoints says 8192; the engine may hold fewer rows."""
    with load(with_generation_config(endless, tmp_path, max_new_tokens=8192), max_model_len=64) as tts:
        [codes] = tts.generate_codes("Good morning!", "ryan", seed=1)
        assert 0 < len(codes) < 64
        with pytest.raises(InvalidRequestError, match="max_frames"):
            tts.generate_codes("Good morning!", "ryan", max_new_tokens=8192)


def test_codes_then_decode_is_generate(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning! How are you today?", "speaker": "ryan", "seed": 11}
    codes = tts.generate_codes(**arguments)
    [wav], sample_rate = tts.decode(codes)
    [expected], expected_rate = tts.generate_custom_voice(**arguments)
    assert sample_rate == expected_rate
    assert codes[0].dtype == np.int16
    assert len(wav) == len(codes[0]) * SAMPLES_PER_FRAME
    np.testing.assert_allclose(wav, expected, atol=1e-5, rtol=0)
    [alone], _ = tts.decode(codes[0])
    np.testing.assert_array_equal(alone, wav)


def test_a_seed_gives_the_same_speech_again_and_another_seed_another(tts: Qwen3TTS):
    first, again, other = (tts.generate_codes("Good morning!", "ryan", seed=seed, max_new_tokens=10)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


# streams


def test_a_stream_joined_is_generate_with_the_same_seed(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning! How are you today?", "speaker": "ryan", "language": "english", "seed": 5}
    [expected], _ = tts.generate_custom_voice(**arguments)
    chunks = list(tts.stream_custom_voice(**arguments))
    np.testing.assert_allclose(np.concatenate([chunk.audio for chunk in chunks]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ramp", [None, [3], [1, 5, 2]])
def test_chunks_grow_along_the_ramp_and_the_last_is_empty(endless: Path, ramp: list[int] | None):
    with load(endless, chunk_frames=(2, 4)) as tts:
        chunks = list(tts.stream_custom_voice("Good morning!", "ryan", chunk_frames=ramp, max_new_tokens=21))
    wanted = {None: [2, 4, 4, 4, 4, 2], "3": [3] * 6 + [2], "152": [1, 5] + [2] * 7}["".join(map(str, ramp)) if ramp else None]
    assert [len(chunk.audio) // SAMPLES_PER_FRAME for chunk in chunks] == [*wanted, 0]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * len(wanted) + [True]
    assert [chunk.finish_reason for chunk in chunks] == [""] * len(wanted) + ["length"]


def test_a_stream_that_ends_by_itself_says_stop_and_is_over(tts: Qwen3TTS):
    stream = tts.stream_custom_voice("Good morning!", "ryan", seed=1)
    assert list(stream)[-1].finish_reason == "stop"
    assert list(stream) == []


def break_after_the_first_chunk(tts: Qwen3TTS) -> None:
    for chunk in tts.stream_custom_voice("Good morning!", "ryan"):
        assert len(chunk.audio)
        break


def close_after_the_first_chunk(tts: Qwen3TTS) -> None:
    stream = tts.stream_custom_voice("Good morning!", "ryan")
    next(stream)
    stream.close()
    assert list(stream) == []


def raise_inside_the_loop(tts: Qwen3TTS) -> None:
    def listen() -> None:
        for _ in tts.stream_custom_voice("Good morning!", "ryan"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        listen()


def never_ask_for_a_chunk(tts: Qwen3TTS) -> None:
    tts.stream_custom_voice("Good morning!", "ryan")


@pytest.mark.parametrize("leave", [break_after_the_first_chunk, close_after_the_first_chunk, raise_inside_the_loop, never_ask_for_a_chunk])
def test_leaving_a_stream_frees_the_talker_and_the_codec(leave: Callable[[Qwen3TTS], None], endless: Path):
    with load(endless, max_model_len=4096, num_kv_blocks=300) as tts:
        leave(tts)
        gc.collect()  # the exception of one of them holds its frame
        assert eventually(lambda: is_idle(tts))
        assert tts._talker.stats().num_frames < 1000


# refused


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"speaker": "bob"}, "speaker: 'bob' .* ryan"),
        ({"language": "klingon"}, "language: 'klingon' .* english"),
        ({"text": "  "}, "text"),
        ({"text": []}, "text"),
        ({"text": ["a", "b"], "speaker": ["ryan", "eric", "dylan"]}, "speaker: has 3 entries for 2 texts"),
        ({"text": ["a", "b", "c"], "language": ["english", "german"]}, "language: has 2 entries for 3 texts"),
        ({"text": "a", "language": []}, "language: has 0 entries for 1 texts"),
        ({"text": ["a", "b", "c"], "instruct": ["x", "y"]}, "instruct: has 2 entries for 3 texts"),
        ({"text": "a", "speaker": ["ryan", "eric"]}, "speaker: has 2 entries for 1 texts"),
        ({"num_beams": 4}, "num_beams: unknown .* temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"max_new_tokens": 1}, "max_new_tokens: 1 .* from 2"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: 2.5"),
        ({"max_new_tokens": "20"}, "max_new_tokens: '20'"),
        ({"max_new_tokens": 4096}, "max_frames: 4095 .* at most"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("method", ["generate_custom_voice", "generate_codes"])
def test_a_bad_argument_is_named_and_nothing_runs(method: str, arguments: dict[str, Any], field: str, tts: Qwen3TTS):
    frames = tts._talker.stats().num_frames
    with pytest.raises(InvalidRequestError, match=f"^{field}"):
        getattr(tts, method)(**({"text": "Good morning!", "speaker": "ryan"} | arguments))
    assert is_idle(tts)
    assert tts._talker.stats().num_frames == frames


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"text": ["a", "b"]}, "text"),
        ({"chunk_frames": []}, "chunk_frames"),
        ({"chunk_frames": [0]}, "chunk_frames"),
        ({"chunk_frames": [1, 65]}, "chunk_frames"),
        ({"chunk_frames": [1.5]}, "chunk_frames"),
        ({"speaker": "bob"}, "speaker"),
    ],
    ids=str,
)
def test_a_stream_is_refused_at_the_call(arguments: dict[str, Any], field: str, tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=f"^{field}:"):
        tts.stream_custom_voice(**({"text": "Good morning!", "speaker": "ryan"} | arguments))
    assert is_idle(tts)


@pytest.mark.parametrize("fixture", ["tiny_voice_design", "tiny_base"])
@pytest.mark.parametrize("method", ["generate_custom_voice", "generate_codes", "stream_custom_voice"])
def test_a_checkpoint_of_another_kind_has_no_custom_voices(method: str, fixture: str, request: pytest.FixtureRequest):
    with load(request.getfixturevalue(fixture)) as tts, pytest.raises(InvalidRequestError, match="custom_voice"):
        getattr(tts, method)("Good morning!", "ryan")


@pytest.mark.parametrize(
    "codes", [np.zeros((4, 15), np.int16), np.zeros(16, np.int16), np.full((2, 16), 2048, np.int16), np.full((2, 16), -1, np.int16)]
)
def test_codes_that_are_none_are_not_decoded(codes: np.ndarray, tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match="codes"):
        tts.decode(codes)
    assert eventually(lambda: is_idle(tts))


def test_no_frames_decode_to_no_samples(tts: Qwen3TTS):
    [wav], _ = tts.decode(np.zeros((0, 16), np.int16))
    assert wav.shape == (0,)


# many at once


def test_more_texts_than_the_batch_holds_wait_for_their_turn(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"speaker": "ryan", "language": "english", "max_new_tokens": 7} | GREEDY
    texts = [f"Sentence number {i}, and no other." for i in range(2 * tts.config.max_num_seqs + 1)]
    together, _ = tts.generate_custom_voice(text=texts, **arguments)
    for text, wav in zip(texts, together, strict=True):
        [alone], _ = tts.generate_custom_voice(text=text, **arguments)
        np.testing.assert_allclose(wav, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["generate_custom_voice", "generate_codes"])
def test_a_list_that_does_not_fit_is_refused_and_leaves_nothing_running(method: str, endless: Path):
    with load(endless, max_num_seqs=2, codec_slots=2, max_waiting_requests=2, max_model_len=4096, num_kv_blocks=600) as tts:
        open_stream = tts.stream_custom_voice("Good morning!", "ryan", max_new_tokens=31)
        with pytest.raises(OverloadedError) as refusal:
            getattr(tts, method)(["Good morning!"] * 4, "ryan")
        assert sum(len(chunk.audio) for chunk in open_stream) == 30 * SAMPLES_PER_FRAME
        assert eventually(lambda: is_idle(tts))
        assert tts._talker.stats().num_frames < 1000
        assert len(tts.generate_codes(["Good morning!"] * 4, "ryan", max_new_tokens=3)) == 4
        assert "at most 4 are allowed" in str(refusal.value)


def test_a_text_too_long_for_the_engine_takes_the_others_of_its_list_along(endless: Path):
    with load(endless, max_model_len=128) as tts:
        with pytest.raises(InvalidRequestError):
            tts.generate_codes(["Good morning!", "again and " * 100], "ryan")
        assert eventually(lambda: is_idle(tts))
        assert tts._talker.stats().num_frames < 100


def test_a_text_that_fails_ends_the_others_of_its_list(endless: Path, monkeypatch: pytest.MonkeyPatch):
    with load(endless, max_model_len=4096, num_kv_blocks=600) as tts:
        step = tts._codec.runner.step

        def failing_in_slot_0(slots: Sequence[int], codes: np.ndarray) -> StepAudio:
            audio = step(slots, codes)
            audio.read()[np.array(slots) == 0] = np.nan
            return audio

        monkeypatch.setattr(tts._codec.runner, "step", failing_in_slot_0)
        with pytest.raises(Qwen3TTSError, match="numbers") as failure:
            tts.generate_custom_voice(["Good morning!"] * 3, "ryan")
        assert eventually(lambda: is_idle(tts))
        assert tts._talker.stats().num_frames < 1000
        assert failure.traceback  # until here, and with it everything the call held


def test_threads_that_call_at_once_get_what_each_gets_alone(tiny_custom_voice: Path):
    calls: list[dict[str, Any]] = [
        {"text": f"This is caller number {i}.", "speaker": speaker, "seed": i, "max_new_tokens": 12}
        for i, speaker in enumerate(["ryan", "eric", "vivian", "serena", "dylan", "aiden", "sohee", "ono_anna"])
    ]
    with load(tiny_custom_voice) as tts:
        # In float32 a matrix product over one row and over many differ in the last bit, and a draw on the edge tips over.
        tts._talker.runner = TalkerRunner(tts.checkpoint, tts.config, device=torch.device("cpu"), dtype=torch.float64)
        alone = [tts.generate_custom_voice(**call)[0][0] for call in calls]
        barrier = threading.Barrier(len(calls))

        def speak(i: int) -> np.ndarray:
            barrier.wait(PATIENCE)
            if i % 2:
                return tts.generate_custom_voice(**calls[i])[0][0]
            return np.concatenate([chunk.audio for chunk in tts.stream_custom_voice(**calls[i])])

        with ThreadPoolExecutor(len(calls)) as pool:
            together = list(pool.map(speak, range(len(calls)), timeout=PATIENCE))
        assert eventually(lambda: is_idle(tts))
    for i, (wav, expected) in enumerate(zip(together, alone, strict=True)):
        assert wav.shape == expected.shape, i
        np.testing.assert_allclose(wav, expected, atol=1e-5, rtol=0)


# the end


def test_close_ends_open_streams_with_an_error(endless: Path):
    tts = load(endless, max_model_len=4096, num_kv_blocks=600)
    streams = [tts.stream_custom_voice("Good morning!", "ryan") for _ in range(3)]
    for stream in streams:
        assert len(next(stream).audio)
    tts.close()
    for stream in streams:
        with pytest.raises(Qwen3TTSError):
            list(stream)


def test_close_ends_calls_of_other_threads_with_an_error(endless: Path):
    tts = load(endless, max_model_len=4096, num_kv_blocks=600)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call, ["Good morning!"] * 6, "ryan") for call in (tts.generate_custom_voice, tts.generate_codes)]
        assert eventually(lambda: tts._talker.stats().num_frames > 0)
        tts.close()
        for call in calls:
            assert isinstance(call.exception(PATIENCE), Qwen3TTSError)


def test_after_the_context_every_call_says_that_the_engine_has_stopped(tiny_custom_voice: Path):
    with load(tiny_custom_voice) as tts:
        codes = tts.generate_codes("Good morning!", "ryan", max_new_tokens=4)
    calls: list[Callable[[], object]] = [
        lambda: tts.generate_custom_voice("Good morning!", "ryan"),
        lambda: tts.generate_codes("Good morning!", "ryan"),
        lambda: tts.stream_custom_voice("Good morning!", "ryan"),
        lambda: tts.decode(codes),
    ]
    for call in calls:
        with pytest.raises(EngineDeadError):
            call()
    tts.close()  # once more does no harm


def test_a_codec_that_dies_ends_the_stream_and_the_talkers_work_on_it(endless: Path, monkeypatch: pytest.MonkeyPatch):
    with load(endless, max_model_len=4096, num_kv_blocks=600) as tts:
        stream = tts.stream_custom_voice("Good morning!", "ryan")
        chunks: list[SpeechChunk] = [next(stream)]

        def broken(*_: object) -> None:
            raise RuntimeError("lost the device")

        monkeypatch.setattr(tts._codec.runner, "step", broken)
        with pytest.raises(Qwen3TTSError, match="codec"):
            chunks.extend(stream)
        assert eventually(lambda: tts._talker.stats().running == 0)
        assert not tts._codec.is_alive
