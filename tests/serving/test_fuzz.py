"""Each request is parsed, or refused by name: new inputs in every run."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine_lib.delivery import DELIVERY_NAMES, Delivery
from engine_lib.errors import InvalidRequestError
from engine_lib.sampling import SamplingParams
from engine_lib.serving.backend import Tensors
from engine_lib.serving.message import CodesMessage
from engine_lib.serving.parse import REFERENCE_FIELDS, SAMPLING_NAMES, RequestParser
from engine_lib.serving.secret import ServerSecret
from engine_lib.speech.compiler import TextCompiler
from engine_lib.talker.request import CodesChunk

SECRET = ServerSecret(b"of the tests")
FUZZ = settings(max_examples=150, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
STRINGS = ("text", "voice", "language", "instruct", "sampling_parameters", "reference_text", "session", "session_action")
FIELDS = (*STRINGS, "reference_audio", "reference_sample_rate", "x_vector_only", "text_end")
LONGEST_ERROR = 1000

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=300))  # with lone surrogates
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=70) | st.dictionaries(st.text(max_size=20), inner, max_size=5))
sampling = st.dictionaries(st.sampled_from((*SAMPLING_NAMES, *DELIVERY_NAMES, "non_streaming_mode", "pace")), json_values, max_size=6)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Inputs as Triton passes them: of the types that config.pbtxt names, mostly of its shapes."""
    made: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(FIELDS), unique=True)):
        if name in STRINGS:
            known = sampling.map(json.dumps).map(str.encode) if name == "sampling_parameters" else st.text().map(str.encode)
            values = draw(st.lists(st.one_of(known, st.binary(max_size=300)), min_size=1, max_size=draw(st.sampled_from((1, 1, 1, 2)))))
            made[name] = np.array(values, np.object_)
        else:
            kind = {"reference_audio": np.float32, "reference_sample_rate": np.int32, "x_vector_only": np.bool_, "text_end": np.bool_}[name]
            shape = draw(st.sampled_from(((1,), (1,), (0,), (2,), (50,), (1, 1), ())))
            made[name] = draw(arrays.arrays(kind, shape))
    return made


@FUZZ
@given(
    kind=st.sampled_from(("custom_voice", "base", "voice_design")),
    inputs=tensors(),
    parameters=st.dictionaries(st.one_of(st.sampled_from((*FIELDS, *SAMPLING_NAMES)), st.text(max_size=20)), scalars, max_size=5),
)
def test_a_request_is_parsed_or_refused_by_name(kind: str, inputs: dict[str, np.ndarray], parameters: dict[str, Any]) -> None:
    defaults, delivery = SamplingParams(), Delivery((1, 2))
    texts = TextCompiler(max_text_length=50, max_script_length=50)
    parser = RequestParser(kind=kind, sampling=defaults, delivery=delivery, texts=texts, max_text_length=50, max_reference_seconds=2.0)
    try:
        speech = parser.parse(inputs, json.dumps(parameters) if parameters else "")
    except InvalidRequestError as error:
        refusal = error
    else:
        assert len(speech.text) <= 50
        assert all(1 <= frames <= 64 for frames in speech.delivery.chunk_frames)
        assert np.isfinite([speech.sampling.temperature, speech.sampling.top_p, speech.sampling.repetition_penalty]).all()
        assert speech.reference is None or (kind == "base" and not set(REFERENCE_FIELDS).isdisjoint(inputs))
        return
    assert refusal.field in (*FIELDS, *SAMPLING_NAMES, *DELIVERY_NAMES, "non_streaming_mode", "parameters")
    assert len(str(refusal)) <= LONGEST_ERROR


@FUZZ
@given(
    header=st.binary(max_size=300),
    codes=arrays.arrays(np.int16, arrays.array_shapes(min_dims=1, max_dims=3, max_side=100)),
    own=st.booleans(),
)
def test_any_bytes_are_no_message(header: bytes, codes: np.ndarray, own: bool) -> None:
    signature = SECRET.sign(header + codes.tobytes()) if own else b""
    with pytest.raises(ValueError, match=r"header|codes|index|stream_key"):
        CodesMessage.unpack({"codes": codes, "header": np.frombuffer(signature + header, np.uint8)}, SECRET)


VALID = CodesMessage(CodesChunk("talker/0", 3, np.zeros((2, 16), np.int16)), Delivery((1, 2)))
FIELDS_OF_A_MESSAGE = msgspec.msgpack.decode(VALID.pack(SECRET)["header"].tobytes()[32:])


msgpack_scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=400), st.binary(max_size=50))


@st.composite
def near_messages(draw: st.DrawFn) -> bytes:
    """The MessagePack of a message with some of its fields replaced, at any depth."""

    def changed(value: Any) -> Any:
        if draw(st.integers(0, 9)) == 0:
            return draw(
                st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=400), st.binary(max_size=50))
            )
        if isinstance(value, list):
            return [changed(one) for one in value]
        if isinstance(value, dict):
            return {name: changed(one) for name, one in value.items()}
        return value

    return msgspec.msgpack.encode(changed(FIELDS_OF_A_MESSAGE))


@FUZZ
@given(header=near_messages(), frames=st.integers(0, 70))
def test_a_signed_message_is_within_all_limits_or_refused(header: bytes, frames: int) -> None:
    codes = np.zeros((frames, 16), np.int16)
    tensors: Tensors = {"codes": codes, "header": np.frombuffer(SECRET.sign(header + codes.tobytes()) + header, np.uint8)}
    try:
        chunk = CodesMessage.unpack(tensors, SECRET).chunk
    except ValueError:
        return
    assert 1 <= len(chunk.stream_key) <= 300
    assert 0 <= chunk.index < 2**31
    assert len(chunk.codes) == frames <= 64
    assert len(chunk.error) <= 1000


def test_a_fuzzer_guided_by_coverage_finds_no_message_that_breaks_the_decoder(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    (tmp_path / "corpus").mkdir()
    seed = secrets.randbits(31)
    print(f"seed = {seed}")
    # No limit of memory: the peak that libFuzzer sees begins at that of the process which started it, this one.
    options = [f"-seed={seed}", "-runs=20000", "-max_len=2000", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, str(Path(__file__).with_name("message_fuzzer.py")), str(tmp_path / "corpus"), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
