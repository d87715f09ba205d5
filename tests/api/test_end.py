"""After a close or a death, every open call and stream ends with an error."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.loading import load
from engine_lib.api.qwen3_tts import SpeechChunk
from engine_lib.errors import ConfigError, EngineDeadError, Qwen3TTSError
from engine_lib.talker.parallel.rank_zero import RANK_MODULE
from patience import PATIENCE, eventually


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
        eventually(lambda: tts._talker.stats().num_frames > 0, "the talker has begun")
        tts.close()
        for call in calls:
            assert isinstance(call.exception(PATIENCE), Qwen3TTSError)


def test_after_the_context_and_after_a_fork_every_call_says_why_it_cannot_speak(tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch):
    with load(tiny_custom_voice) as tts:
        codes = tts.generate_codes("Good morning!", "ryan", max_new_tokens=4)
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            with pytest.raises(EngineDeadError, match="before the process was forked"):
                tts.stream_custom_voice("Good morning!", "ryan")
    calls: list[Callable[[], object]] = [
        lambda: tts.generate_custom_voice("Good morning!", "ryan"),
        lambda: tts.generate_codes("Good morning!", "ryan"),
        lambda: tts.stream_custom_voice("Good morning!", "ryan"),
        lambda: tts.decode(codes),
    ]
    for call in calls:
        with pytest.raises(EngineDeadError, match="this Qwen3TTS is closed"):
            call()
    tts.close()  # a second close does no harm


def test_a_fork_of_a_process_that_has_loaded_is_told_to_be_spawned(tiny_custom_voice: Path):
    program = (
        "import os, sys; from engine_lib import Qwen3TTS\n"
        "options = dict(device='cpu', max_num_seqs=2, max_model_len=512)\n"
        "tts = Qwen3TTS.from_pretrained(sys.argv[1], num_threads=2, **options)\n"
        "tts.generate_codes('Good morning!', 'ryan', max_new_tokens=3)\n"
        "if os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "try:\n"
        "    Qwen3TTS.from_pretrained(sys.argv[1], **options)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "alone = Qwen3TTS.from_pretrained(sys.argv[1], num_threads=1, **options)\n"
        "print(len(alone.generate_codes('Good morning!', 'ryan', max_new_tokens=3)[0]))\n"
        "alone.close()"
    )
    ended = subprocess.run([sys.executable, "-c", program, tiny_custom_voice], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    refusal, frames = ended.stdout.splitlines()
    assert refusal.startswith("num_threads: the process that this one was forked from has loaded")
    assert frames == "2"


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("talker-engine", "codec-engine", "close-dropped-engines")]


def test_one_that_is_dropped_ends_its_threads_and_is_freed(tiny_custom_voice: Path):
    before = engine_threads()
    tts = load(tiny_custom_voice)
    list(tts.stream_custom_voice("Good morning!", "ryan", speed=1.2, max_new_tokens=4))
    seen: list[weakref.ref[Any]] = [weakref.ref(tts), weakref.ref(tts._talker), weakref.ref(tts._codec)]
    del tts
    eventually(lambda: engine_threads() == before, "the threads of the dropped one have ended")
    gc.collect()
    assert [reference() for reference in seen] == [None, None, None]


def test_a_stream_is_heard_to_its_end_though_its_model_was_dropped(tiny_custom_voice: Path):
    stream = load(tiny_custom_voice).stream_custom_voice("Good morning!", "ryan", seed=1, max_new_tokens=8)
    gc.collect()
    assert list(stream)[-1].finish_reason in ("stop", "length")


def test_a_load_that_fails_leaves_no_process(tiny_base: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="voice_store: "):
        load(tiny_base, tensor_parallel_size=2, voice_store=str(tmp_path / "file"))
    assert [child for child in psutil.Process().children() if RANK_MODULE in child.cmdline()] == []


def test_a_program_that_closes_nothing_ends_with_its_own_exit_code(tiny_custom_voice: Path):
    program = (
        "import sys; from engine_lib import Qwen3TTS\n"
        "tts = Qwen3TTS.from_pretrained(sys.argv[1], device='cpu', max_num_seqs=2, max_model_len=512)\n"
        "next(tts.stream_custom_voice('Good morning!', 'ryan'))\n"
        "sys.exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", program, tiny_custom_voice], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_codec_that_dies_ends_the_stream_and_the_talkers_work_on_it(endless: Path, monkeypatch: pytest.MonkeyPatch):
    with load(endless, max_model_len=4096, num_kv_blocks=600) as tts:
        stream = tts.stream_custom_voice("Good morning!", "ryan")
        chunks: list[SpeechChunk] = [next(stream)]

        def broken(*_: object) -> None:
            raise RuntimeError("lost the device")

        monkeypatch.setattr(tts._codec.runner, "step", broken)
        with pytest.raises(Qwen3TTSError, match="codec"):
            chunks.extend(stream)
        eventually(lambda: tts._talker.stats().running == 0, "the talker ends the stream")
        assert not tts._codec.is_alive
