"""Helpers that the tests of the in-process API share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.sampling import SamplingParams
from engine_lib.talker.request import Request, RequestListener

GREEDY: dict[str, Any] = {"do_sample": False, "subtalker_dosample": False}
SAMPLES_PER_FRAME = 1920


def load(path: Path, **options: Any) -> Qwen3TTS:
    return Qwen3TTS.from_pretrained(path, device="cpu", **({"max_num_seqs": 4, "codec_slots": 4, "max_model_len": 512} | options))


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

    def capturing(request: Request, listener: RequestListener) -> None:
        seen.append(request.sampling)
        submit(request, listener)

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
