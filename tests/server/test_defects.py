"""A defect in the code that answers for the codec ends one stream, and harms no other."""

from __future__ import annotations

from pathlib import Path

from patience import eventually
from server.conftest import new_server
from server.ends import repository_with
from server.streams import Stream, eventually_free, inputs, metric

DEFECTS = """
from engine_lib.serving.codec_service import CodecService

def failing(method, volume):
    def answer(self, stream, message, *rest):
        if message.delivery.audio.volume_db == volume and message.chunk.index >= 2:
            raise ZeroDivisionError("a defect")
        return method(self, stream, message, *rest)
    return answer

CodecService._heard = failing(CodecService._heard, 7)
CodecService._heard_at_the_end = failing(CodecService._heard_at_the_end, 8)
"""


def test_a_defect_ends_its_stream_alone(endless_voice: Path, tmp_path: Path) -> None:
    repository = repository_with(tmp_path, "codec_decoder", DEFECTS)
    with new_server(endless_voice, tmp_path / "log", repository=repository, codes_channel="always") as server:
        sampling = {"max_frames": 120, "chunk_frames": [1], "on_runaway": "off"}
        with Stream(server, inputs(sampling=sampling)) as healthy:
            healthy.next()
            for volume in (7, 8):
                short = sampling | {"max_frames": 30 if volume == 8 else 1500, "volume_db": volume}
                with Stream(server, inputs(sampling=short)) as broken:
                    last = broken.last()
                assert (last.is_final, last.finish_reason) == (True, "error")
                assert last.error == "the codec's model failed: ZeroDivisionError"
            assert healthy.all(first=1)[-1].finish_reason == "length"
        eventually_free(server)
        eventually(lambda: metric(server, "codec_failures_total") == 1, "the stream that was stopped is counted")
        server.stop()
        assert server.models_have_ended
    assert "ZeroDivisionError" in server.log_file.read_text()
