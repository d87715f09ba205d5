"""A client that calls the inner models steers nothing: that takes the server's signature."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.utils import InferenceServerException

from engine_lib.delivery import Delivery
from engine_lib.server.process import TritonServer
from engine_lib.serving.backend import SIGNATURE_PARAMETER
from engine_lib.serving.message import CodesMessage
from engine_lib.serving.secret import SECRET_VARIABLE, SIGNATURE_BYTES, ServerSecret
from engine_lib.talker.request import CodesChunk
from patience import eventually
from server.conftest import TALKER_ALONE, new_server
from server.streams import SAMPLES_PER_FRAME, SECRET, Stream, eventually_free, inputs, metric, signature, tensors

Arrays = dict[str, npt.NDArray[Any]]
ENDLESS = {"max_frames": 1900, "chunk_frames": [1]}
ORDERS: Arrays = {
    "cancel": np.array([b"talker/0"], np.object_),
    "silence": np.array([b"0 talker/0"], np.object_),
    "hold": np.array([3.0], np.float32),
    "store_voice": np.array([b'{"name": "eve", "consent": "none"}'], np.object_),
}


def refusal(server: TritonServer, model: str, arrays: Arrays, **arguments: Any) -> str:
    with Stream(server, tensors(arrays), model=model, **arguments) as stream, pytest.raises(InferenceServerException) as error:
        stream.next_message()
    message: str = error.value.message()
    return message


def stream_key(message: Arrays) -> str:
    """What every client that calls the talker can read in a message for the codec."""
    header = message["header"].tobytes()[SIGNATURE_BYTES:]
    found = header[header.index(b"talker/") :][: len("talker/") + 32]
    return found.decode()


@pytest.mark.parametrize("name", ORDERS)
def test_a_control_request_of_a_client_is_refused_and_counted(small_server: TritonServer, name: str) -> None:
    before = metric(small_server, "rejected_control_requests_total", model="talker")
    other = ServerSecret(b"of another server").sign(b"").hex()
    for_another_order = signature("talker", name, np.array([b"something else"], np.object_))
    for_another_model = signature("talker_base", name, ORDERS[name])
    for parameters in (None, {SIGNATURE_PARAMETER: other}, {SIGNATURE_PARAMETER: 7}, for_another_order, for_another_model):
        said = refusal(small_server, "talker", {name: ORDERS[name]}, parameters=parameters)
        assert said == f"INVALID_ARG: {name}: is for the models of this server alone, which sign it; leave it out"
    eventually(lambda: metric(small_server, "rejected_control_requests_total", model="talker") == before + 5, "all five are counted")
    assert metric(small_server, "requests_held") == 0


def test_a_client_that_learns_the_key_of_a_stream_cannot_end_it(small_server: TritonServer) -> None:
    with Stream(small_server, inputs(sampling=ENDLESS), model="talker") as stream:
        key = stream_key(stream.next_message())
        order = np.array([key.encode()], np.object_)
        assert "INVALID_ARG: cancel: " in refusal(small_server, "talker", {"cancel": order})
        for _ in range(20):
            assert len(stream.next_message()["codes"]) == 1
        signed = signature("talker", "cancel", order)
        with Stream(small_server, tensors({"cancel": order}), model="talker", parameters=signed):  # the server's own models can
            while (last := stream.next_message())["codes"].size:
                pass
        assert b"cancelled" in last["header"].tobytes()
    eventually_free(small_server)


def message(secret: str, **changes: Any) -> Arrays:
    fields: dict[str, Any] = {"codes": np.zeros((1, 16), np.int16), "stream_key": "talker/0", "index": 0} | changes
    return CodesMessage(CodesChunk(**fields), Delivery((1,))).pack(ServerSecret(secret.encode()))


def test_messages_of_clients_take_no_slot_of_the_codec(small_server: TritonServer) -> None:
    before = metric(small_server, "rejected_control_requests_total", model="codec_decoder")
    with Stream(small_server, inputs(sampling={"max_frames": 1900, "chunk_frames": [1]})) as bystander:
        for number in range(80):
            said = refusal(small_server, "codec_decoder", message("of another server", stream_key=f"talker/{number}"))
            assert said.startswith("INVALID_ARG: header: is not a message of the talker (")
        bystander.next()
        assert metric(small_server, "codec_open_streams") <= 1
    eventually(lambda: metric(small_server, "rejected_control_requests_total", model="codec_decoder") == before + 80, "all are counted")
    eventually_free(small_server)


def test_a_message_of_the_talker_cannot_be_changed(small_server: TritonServer) -> None:
    with Stream(small_server, inputs(sampling=ENDLESS), model="talker") as stream:
        own = stream.next_message()
    header = own["header"].copy()
    header[header.tobytes().index(b"talker/")] ^= 1
    for changes in ({"codes": own["codes"] ^ 1}, {"codes": np.tile(own["codes"], (60, 1))}, {"header": header}, {"header": header[:50]}):
        assert "no signature of this server" in refusal(small_server, "codec_decoder", own | changes)
    eventually_free(small_server)


def test_no_key_makes_the_codec_call_a_model_that_a_client_names(small_server: TritonServer) -> None:
    """A codec asks the model that a stream's key begins with to cancel it, once its codes cannot be decoded."""
    seen = small_server.log_file.read_text(errors="replace").count("no_such_model")
    for index in (0, 1):
        forged = message("of another server", stream_key="no_such_model/x", index=index, codes=np.full((1, 16), -1, np.int16))
        assert "no signature of this server" in refusal(small_server, "codec_decoder", forged)
    assert small_server.log_file.read_text(errors="replace").count("no_such_model") == seen


def message_of_the_server(**changes: Any) -> Arrays:
    return message(SECRET, **changes)


def test_a_stream_without_a_final_message_is_forgotten(impatient_server: TritonServer) -> None:
    for number in range(3):
        with Stream(impatient_server, tensors(message_of_the_server(stream_key=f"talker/{number}")), model="codec_decoder") as stream:
            assert len(stream.next().audio) == SAMPLES_PER_FRAME
    unopened = (f"talker/{number}" for number in itertools.count(3))

    def is_seen_to_wait() -> bool:
        """Whether the codec was seen to wait for a first message that never comes, before it forgot the stream."""
        later = tensors(message_of_the_server(stream_key=next(unopened), index=5))
        with Stream(impatient_server, later, model="codec_decoder") as stream:
            while not (is_seen := metric(impatient_server, "codec_unfinished_streams") > 0) and not stream.has_received:
                time.sleep(0.05)
        return is_seen

    eventually(is_seen_to_wait, "the codec waits for their final messages")  # again if a busy machine asked too late
    eventually(lambda: metric(impatient_server, "codec_unfinished_streams") == 0, "it has forgotten them")
    eventually_free(impatient_server)


def test_a_stream_that_triton_no_longer_carries_is_stopped(impatient_server: TritonServer) -> None:
    """As one whose client wants its audio in shared memory that is too small: the codec gets the first message, and none behind it."""
    with Stream(impatient_server, inputs(sampling=ENDLESS), model="talker") as stream:
        first = stream.next_message()
        with Stream(impatient_server, tensors(first), model="codec_decoder") as codec:
            assert len(codec.next().audio) == SAMPLES_PER_FRAME
        while (last := stream.next_message())["codes"].size:
            pass
        assert b"cancelled" in last["header"].tobytes()
    eventually_free(impatient_server)


def test_messages_of_the_talker_cannot_be_kept_for_later(impatient_server: TritonServer) -> None:
    for number in range(80):
        chunk = CodesChunk(f"talker/kept{number}", 0, np.zeros((1, 16), np.int16))
        kept = CodesMessage(chunk, Delivery((1,))).pack(ServerSecret(SECRET.encode()), time.monotonic() - 61)
        with Stream(impatient_server, tensors(kept), model="codec_decoder") as stream:
            assert len(stream.next().audio) == 0
    assert metric(impatient_server, "codec_open_streams") == metric(impatient_server, "codec_unfinished_streams") == 0


def test_a_message_of_any_number_of_frames_costs_nothing(impatient_server: TritonServer) -> None:
    steps = metric(impatient_server, "codec_steps_total")
    for codes in (np.zeros((6000, 16), np.int16), np.zeros((1, 100_000), np.int16)):
        said = refusal(impatient_server, "codec_decoder", message_of_the_server(codes=codes))
        assert said.startswith("INVALID_ARG: header: is not a message of the talker (codes: has shape [")
    assert "stream_key: has 301 characters" in refusal(impatient_server, "codec_decoder", message_of_the_server(stream_key="k" * 301))
    assert metric(impatient_server, "codec_steps_total") == steps
    eventually_free(impatient_server)


def secret_files(server: TritonServer) -> list[Path]:
    return list(Path("/dev/shm").glob(f"qwen3_tts_secret_{os.geteuid()}_{server.pid}_*"))


def test_the_models_of_a_plain_server_agree_on_a_secret(endless_voice: Path, tmp_path: Path) -> None:
    server = new_server(endless_voice, tmp_path / "log", environment={SECRET_VARIABLE: None})
    with server:
        assert [file.stat().st_mode & 0o777 for file in secret_files(server)] == [0o600]
        cancelled = metric(server, "finished_requests_total", reason="cancelled")
        with Stream(server, inputs(sampling=ENDLESS)) as stream:
            stream.next()
        eventually(lambda: metric(server, "finished_requests_total", reason="cancelled") == cancelled + 1, "the codec's cancel counts")
        order = ORDERS["hold"]
        assert "INVALID_ARG: hold: " in refusal(server, "talker", {"hold": order}, parameters=signature("talker", "hold", order))
        eventually_free(server)
        files = secret_files(server)
    assert not files[0].exists()


def test_a_secret_that_is_too_short_keeps_the_models_from_loading(endless_voice: Path, tmp_path: Path) -> None:
    server = new_server(endless_voice, tmp_path / "log", environment={SECRET_VARIABLE: SECRET[:8]}, arguments=TALKER_ALONE)
    with pytest.raises(Exception, match=f"{SECRET_VARIABLE}: the secret has 8 bytes; give at least 16"), server:
        pass
