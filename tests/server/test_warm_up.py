"""A model that cannot serve its own warm-up does not become ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_lib.server.installation import ServerError
from server.conftest import TALKER_ALONE, new_server
from server.ends import repository_with

TALKER_BREAKS = """
from engine_lib.talker.device.worker import TalkerWorker
def broken_decode(*args):
    raise RuntimeError("injected")
TalkerWorker._decode = broken_decode
"""


def test_a_talker_that_cannot_decode_does_not_load(endless_voice: Path, tmp_path: Path) -> None:
    server = new_server(
        endless_voice, tmp_path / "log", repository=repository_with(tmp_path, "talker", TALKER_BREAKS), arguments=TALKER_ALONE
    )
    with pytest.raises(ServerError, match="talker: Qwen3TTSError: warm-up: the talker engine failed: RuntimeError"), server:
        pass
