"""A server of three checkpoints: each kind speaks as in process; voices are stored, used and refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.server.process import TritonServer
from patience import PATIENCE, eventually
from server.conftest import serve_several
from server.streams import TEXT, Stream, audio_of, eventually_free, inputs, metric, signature

GREEDY: dict[str, Any] = {"do_sample": False, "subtalker_dosample": False, "max_frames": 12}
RATE = 16_000
WORDS = "What the reference says."
CONSENT = "The reader agreed, in writing."


def recording(seed: int = 0, seconds: float = 1.5) -> npt.NDArray[np.float32]:
    """Loud noise at RATE."""
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    return samples.astype(np.float32)


def tensor(name: str, values: npt.NDArray[Any], datatype: str) -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def reference(
    audio: npt.NDArray[np.float32], *, text: str | None = WORDS, rate: int = RATE, x_vector_only: bool | None = None
) -> list[Any]:
    """The inputs of a reference."""
    tensors = [tensor("reference_audio", audio, "FP32"), tensor("reference_sample_rate", np.array([rate], np.int32), "INT32")]
    if text is not None:
        tensors.append(tensor("reference_text", np.array([text.encode()], np.object_), "BYTES"))
    if x_vector_only is not None:
        tensors.append(tensor("x_vector_only", np.array([x_vector_only]), "BOOL"))
    return tensors


def strings(**values: str) -> list[Any]:
    return [tensor(name, np.array([value.encode()], np.object_), "BYTES") for name, value in values.items()]


def voices(server: TritonServer, tensors: list[Any], **values: str) -> dict[str, Any]:
    """One request to the control model."""
    with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
        answer: dict[str, Any] = json.loads(client.infer("voices", [*strings(**values), *tensors]).as_numpy("result")[0])
    return answer


def add(server: TritonServer, name: str, audio: npt.NDArray[np.float32], **options: Any) -> dict[str, Any]:
    return voices(server, reference(audio, **options), action="add", name=name, consent=CONSENT)


def speak(server: TritonServer, model: str, tensors: list[Any]) -> npt.NDArray[np.float32]:
    with Stream(server, tensors, model=model) as stream:
        chunks = stream.all()
    assert chunks[-1].finish_reason in ("stop", "length")
    return audio_of(chunks)


def refusal(server: TritonServer, model: str, tensors: list[Any], **arguments: Any) -> str:
    with Stream(server, tensors, model=model, **arguments) as stream, pytest.raises(InferenceServerException) as error:
        stream.next()
    message: str = error.value.message()
    return message.removeprefix(f"in ensemble '{model}', ")


@pytest.fixture(scope="module")
def expected(three_models: dict[str, Path]) -> dict[str, npt.NDArray[np.float32]]:
    """The audio of each kind of voice, in process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    audio = {}
    try:
        options: dict[str, Any] = {"device": "cpu", "max_num_seqs": 4, "max_model_len": 2048}
        with Qwen3TTS.from_pretrained(three_models["custom_voice"], **options) as tts:
            audio["custom_voice"] = tts.generate_custom_voice(TEXT, speaker="vivian", **GREEDY)[0][0]
        with Qwen3TTS.from_pretrained(three_models["voice_design"], **options) as tts:
            audio["voice_design"] = tts.generate_voice_design(TEXT, instruct="A calm voice.", **GREEDY)[0][0]
        with Qwen3TTS.from_pretrained(three_models["base"], **options) as tts:
            clip = (recording(), RATE)
            audio["in context"] = tts.generate_voice_clone(TEXT, ref_audio=clip, ref_text=WORDS, **GREEDY)[0][0]
            audio["x-vector"] = tts.generate_voice_clone(TEXT, ref_audio=clip, x_vector_only_mode=True, **GREEDY)[0][0]
    finally:
        torch.set_num_threads(threads)
    return audio


@pytest.mark.parametrize(
    ("way", "model", "tensors"),
    [
        ("custom_voice", "qwen3_tts", inputs(sampling=GREEDY, voice="vivian")),
        ("voice_design", "qwen3_tts_design", inputs(sampling=GREEDY, instruct="A calm voice.")),
        ("in context", "qwen3_tts_base", [*inputs(sampling=GREEDY), *reference(recording())]),
        ("x-vector", "qwen3_tts_base", [*inputs(sampling=GREEDY), *reference(recording(), text=None, x_vector_only=True)]),
    ],
)
def test_every_kind_speaks_as_in_process(
    three: TritonServer, expected: dict[str, npt.NDArray[np.float32]], way: str, model: str, tensors: list[Any]
) -> None:
    np.testing.assert_allclose(speak(three, model, tensors), expected[way], atol=1e-5)
    with triton.InferenceServerClient(f"localhost:{three.grpc_port}") as client:
        whole = client.infer(f"{model}_offline", tensors).as_numpy("audio")
    np.testing.assert_allclose(whole, expected[way], atol=1e-5)


def test_a_stored_voice_speaks_as_its_reference_and_survives_a_restart(
    three: TritonServer,
    three_models: dict[str, Path],
    voice_folder: Path,
    tmp_path: Path,
    expected: dict[str, npt.NDArray[np.float32]],
) -> None:
    """The second server has the base checkpoint under the plain names and shares the folder with the first. Both its talkers drain."""
    added = add(three, "Anna.2", recording())
    assert (added["name"], added["source"], added["models"], added["made_by"]) == ("anna.2", "stored", ["qwen3_tts_base"], "base")
    assert (added["consent"], added["reference_text"], added["reference_seconds"]) == (CONSENT, WORDS, 1.5)
    words = {"gm": "Good morning"}
    timbre = {"action": "add", "name": "timbre", "consent": CONSENT, "lexicon": json.dumps(words)}
    assert voices(three, reference(recording(), text=None, x_vector_only=True), **timbre)["lexicon"] == words
    with serve_several({kind: three_models[kind] for kind in ("base", "custom_voice")}, tmp_path, voice_folder) as restarted:
        for server, model in ((three, "qwen3_tts_base"), (restarted, "qwen3_tts")):
            for voice, way in (("ANNA.2", "in context"), ("timbre", "x-vector")):
                np.testing.assert_allclose(speak(server, model, inputs(sampling=GREEDY, voice=voice)), expected[way], atol=1e-5)
            by_lexicon = speak(server, model, inputs(TEXT.replace("Good morning", "GM"), sampling=GREEDY, voice="timbre"))
            np.testing.assert_allclose(by_lexicon, expected["x-vector"], atol=1e-5)
        found = {voice["name"]: voice for voice in voices(restarted, [], action="list")["voices"]}
        assert (found["timbre"]["lexicon_words"], "lexicon" in found["timbre"], "lexicon_words" in found["anna.2"]) == (1, False, False)
        assert voices(restarted, [], action="show", name="timbre")["lexicon"] == words
        listed = {name: voice["models"] for name, voice in found.items()}
        assert (listed["anna.2"], listed["timbre"], listed["vivian"]) == (["qwen3_tts"], ["qwen3_tts"], ["qwen3_tts_custom"])
        voices(restarted, [], action="remove", name="anna.2")
        assert_one_store(three, restarted)
        with Stream(restarted, inputs(sampling={"max_frames": 1500}, voice="timbre")) as stream:
            stream.next()
            restarted.terminate()
            chunk = stream.last()
        assert (chunk.finish_reason, chunk.error) == ("error", "the server is shutting down")
        assert restarted.wait(PATIENCE) == 0
    assert "'anna.2' is not a stored voice; stored: timbre" in refusal(three, "qwen3_tts_base", inputs(voice="anna.2"))
    voices(three, [], action="remove", name="timbre")
    log = three.log_file.read_text(errors="replace")
    assert WORDS not in log
    assert CONSENT not in log


def assert_one_store(first: TritonServer, second: TritonServer) -> None:
    """A name that is added on both servers at once is taken once; as it is changed or removed on one, so it is on the other."""

    def outcome(server: TritonServer, seed: int) -> str:
        try:
            add(server, "both", recording(seed))
        except InferenceServerException as error:
            return str(error.message())
        return "added"

    def spoken() -> npt.NDArray[np.float32]:
        wanted = inputs(sampling=GREEDY, voice="both")
        audio = speak(first, "qwen3_tts_base", wanted)
        np.testing.assert_allclose(speak(second, "qwen3_tts", wanted), audio, atol=1e-5)
        return audio

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, (first, second), (1, 2)))
    assert sorted(outcomes) == ["INVALID_ARG: name: 'both' is taken; remove that voice first, or choose another name", "added"]
    once = spoken()
    for server, other in ((first, second), (second, first)):
        voices(server, [], action="remove", name="both")
        assert control_refusal(other, [], action="show", name="both").startswith("name: 'both' is not a stored voice")
        model = "qwen3_tts" if other is second else "qwen3_tts_base"
        assert refusal(other, model, inputs(voice="both")).startswith("NOT_FOUND: voice: 'both' is not a stored voice")
        add(other, "both", recording(3))
        assert not np.allclose(spoken(), once, atol=1e-3)
    voices(first, [], action="remove", name="both")


def test_built_in_speakers_are_listed_like_stored_voices(three: TritonServer, voice_folder: Path) -> None:
    add(three, "anna", recording())
    (voice_folder / "broken.json").write_text("{")
    listed = voices(three, [], action="list")
    by_name = {voice["name"]: voice for voice in listed["voices"]}
    assert by_name["vivian"] == {"name": "vivian", "source": "built-in", "models": ["qwen3_tts"]}
    assert by_name["anna"]["source"] == "stored"
    assert "consent" not in by_name["anna"]
    assert listed["refused"] == {"broken": "broken.json is not valid JSON"}
    assert voices(three, [], action="show", name="Vivian") == by_name["vivian"]
    assert voices(three, [], action="show", name="anna")["consent"] == CONSENT
    for name in ("anna", "broken"):
        assert voices(three, [], action="remove", name=name) == {"name": name, "removed": True}


def control_refusal(server: TritonServer, tensors: list[Any], **values: str) -> str:
    with pytest.raises(InferenceServerException) as error:
        voices(server, tensors, **values)
    code, _, message = error.value.message().partition(": ")
    assert error.value.status() == {"INVALID_ARG": "StatusCode.INVALID_ARGUMENT", "NOT_FOUND": "StatusCode.NOT_FOUND"}[code]
    assert (code == "NOT_FOUND") == ("is not a stored voice" in message)
    return str(message)


CLIP = reference(recording())
NAMED = {"action": "add", "name": "eve", "consent": CONSENT}


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ([], {"action": "destroy"}, "action: 'destroy' is unknown; give one of list, show, add, blend, remove"),
        ([], {"action": "show"}, "name: is missing"),
        ([], {"action": "show", "name": "nobody"}, "name: 'nobody' is not a stored voice"),
        ([], {"action": "remove", "name": "vivian"}, "name: 'vivian' is not a stored voice"),
        (CLIP, NAMED | {"name": "../eve"}, "name: '../eve' is not allowed as the name of a voice"),
        (CLIP, NAMED | {"name": "Vivian"}, "name: 'vivian' is a built-in speaker of this server"),
        (CLIP, NAMED | {"consent": " "}, "consent: has no letter or digit"),
        (CLIP, NAMED | {"model": "qwen3_tts"}, "model: 'qwen3_tts' clones no voices; give one of qwen3_tts_base"),
        ([], NAMED, "reference_audio: is missing"),
        ([], NAMED | {"action": "add", "lexicon": "[]"}, "lexicon: is a JSON list; give a JSON object"),
        ([], NAMED | {"action": "add", "lexicon": '{"a": 1}'}, "lexicon: the spelling of entry 'a' is not allowed"),
        ([], NAMED | {"action": "add", "blend": "anna+bob"}, "blend: is given to add a recording; leave it out"),
        ([], NAMED | {"action": "blend"}, "blend: is missing; a blend is NAME:WEIGHT+NAME:WEIGHT.."),
        (CLIP, NAMED | {"action": "blend", "blend": "anna+bob"}, "reference_audio: is given with a blend, which has no recording"),
        ([], NAMED | {"action": "blend", "blend": "vivian+ryan"}, "blend: 'vivian' is a built-in speaker; only stored voices"),
        ([], NAMED | {"action": "blend", "blend": "bob:0.3"}, "blend: in the blend, 'bob' is not a stored voice; stored: none"),
        ([], NAMED | {"action": "blend", "blend": "bob:none"}, "blend: the weight of 'bob' is 'none'; give a number above 0"),
        (CLIP[:2], NAMED, "reference_text: is missing; give the words of reference_audio, or set x_vector_only"),
        (reference(recording(seconds=5.5)), NAMED, "reference_audio: lasts 5.50 s"),
        (reference(recording(seconds=0.5)), NAMED, "reference_audio: lasts 0.50 s"),
        (reference(recording() * np.nan), NAMED, "reference_audio: holds NaN"),
        (reference(recording() * 0), NAMED, "reference_audio: is silent"),
        (reference(recording(), rate=0), NAMED, "reference_sample_rate: is missing or not above 0"),
        (reference(recording(), rate=4000), NAMED, "reference_audio: sample rate 4000 is not allowed"),
    ],
)
def test_a_voice_that_cannot_be_kept_is_refused_by_field(
    three: TritonServer, voice_folder: Path, tensors: list[Any], values: dict[str, str], message: str
) -> None:
    assert control_refusal(three, tensors, **values).startswith(message)
    assert not list(voice_folder.glob("*.json"))


def test_a_malformed_order_to_a_talker_is_refused_as_well(three: TritonServer) -> None:
    for order, message in (
        ("[", "store_voice: is not valid JSON"),
        ("{}", "name: '' is not allowed"),
        ('{"name": "eve"}', "consent: has no letter or digit"),
    ):
        signed = signature("talker_base", "store_voice", np.array([order.encode()], np.object_))
        said = refusal(three, "talker_base", [*strings(store_voice=order), *CLIP], parameters=signed)
        assert said.startswith("INVALID_ARG: ")
        assert message in said


def test_the_wrong_kind_of_checkpoint_says_which_model_to_call(three: TritonServer) -> None:
    add(three, "anna", recording())
    clone = [*inputs(), *reference(recording())]
    for model, tensors, message in (
        ("qwen3_tts", clone, "reference_audio: only a checkpoint of kind base clones a voice, and this one is of kind custom_voice"),
        ("qwen3_tts", clone, "call model qwen3_tts_base, which is of kind base"),
        ("qwen3_tts_design", clone, "call model qwen3_tts_base"),
        ("qwen3_tts", inputs(voice="anna"), "this checkpoint clones no voice; call model qwen3_tts_base"),
        ("qwen3_tts_design", inputs(voice="vivian"), "has no voices by name; leave it out and describe the voice in instruct"),
        ("qwen3_tts_design", inputs(voice="anna"), "call model qwen3_tts (built-in speakers) or qwen3_tts_base (stored voices)"),
        ("qwen3_tts_base", inputs(voice="vivian"), "for a built-in speaker call model qwen3_tts, which is of kind custom_voice"),
        ("qwen3_tts_base", inputs(), "reference_audio: is missing, and a base checkpoint has no voice of its own"),
        ("qwen3_tts_base", [*inputs(voice="anna"), *reference(recording())], "voice: is given with reference_audio; give one of them"),
    ):
        said = refusal(three, model, tensors)
        assert said.startswith("NOT_FOUND: " if "for a built-in" in message else "INVALID_ARG: ")
        assert message in said
    voices(three, [], action="remove", name="anna")


def test_a_bad_request_with_a_reference_is_refused_before_and_after_it_is_encoded(three: TritonServer) -> None:
    for tensors, message in (
        ([*inputs(" "), *reference(recording())], "text: is empty"),
        ([*inputs(language="klingon"), *reference(recording())], "language: 'klingon' is unknown"),
        ([*inputs(), *reference(recording() * 0)], "reference_audio: is silent"),
        ([*inputs(sampling={"max_frames": 10**6}), *reference(recording())], "max_frames: 1000000"),
    ):
        assert message in refusal(three, "qwen3_tts_base", tensors)
    eventually_free(three, "talker_base")


def test_many_clones_at_a_time_each_keep_their_own_voice(three: TritonServer) -> None:
    """Twice as many as can run together; every voice sounds the same alone and among the others."""
    tensors = [[*inputs(sampling=GREEDY | {"max_frames": 5}), *reference(recording(seed), text=f"Words {seed}.")] for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: speak(three, "qwen3_tts_base", one), tensors))
    alone = [speak(three, "qwen3_tts_base", one) for one in tensors]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len({audio.tobytes() for audio in alone}) == 8
    eventually_free(three, "talker_base")


def test_a_cancel_reaches_the_talker_the_stream_comes_from(three: TritonServer) -> None:
    def cancelled(talker: str) -> float:
        return metric(three, "finished_requests_total", reason="cancelled", model=talker)

    before = {talker: cancelled(talker) for talker in ("talker", "talker_base", "talker_design")}
    endless = inputs(sampling={"max_frames": 1500, "chunk_frames": [1]})
    with Stream(three, [*endless, *reference(recording())], model="qwen3_tts_base") as stream:
        stream.next()
    eventually(lambda: cancelled("talker_base") == before["talker_base"] + 1, "the clone is cancelled")
    assert {talker: cancelled(talker) for talker in before} == before | {"talker_base": before["talker_base"] + 1}
    eventually_free(three, "talker_base")


def test_a_timeout_counts_the_encoding_too(three: TritonServer) -> None:
    tensors = [*inputs(), *reference(recording(seed=99, seconds=5.0))]
    with Stream(three, tensors, model="qwen3_tts_base", timeout=1_000) as stream:
        end = stream.all()[-1]
    assert (end.finish_reason, end.index) == ("error", 0)
    assert end.error.startswith("DEADLINE_EXCEEDED: timeout: ")
    eventually_free(three, "talker_base")


def test_a_blend_speaks_and_is_stored(three: TritonServer) -> None:
    times = np.arange(2 * RATE) / RATE
    tone = (0.1 * np.sin(240 * np.pi * times) * (1 + np.sin(6 * np.pi * times))).astype(np.float32)  # unlike noise for the encoder, too
    for name, audio in (("anna", recording()), ("ben", tone)):
        add(three, name, audio, text=None, x_vector_only=True)
    by_request = speak(three, "qwen3_tts_base", inputs(sampling=GREEDY, voice="anna:3 + ben:1"))
    stored = voices(three, [], action="blend", name="duo", blend="Anna:3+ben:1")
    assert (stored["blend"], stored["x_vector_only"], stored["made_by"]) == ("anna:0.75+ben:0.25", True, "base")
    assert (stored["consent"], stored["models"]) == (f"anna: {CONSENT}; ben: {CONSENT}", ["qwen3_tts_base"])
    assert "reference_seconds" not in stored
    for voice in ("anna", "ben"):
        assert not np.array_equal(speak(three, "qwen3_tts_base", inputs(sampling=GREEDY, voice=voice)), by_request)
    voices(three, [], action="remove", name="anna")
    np.testing.assert_allclose(speak(three, "qwen3_tts_base", inputs(sampling=GREEDY, voice="duo")), by_request, atol=1e-5)
    alone, blended = (speak(three, "qwen3_tts", inputs(sampling=GREEDY, voice=voice)) for voice in ("vivian", "VIVIAN:2"))
    np.testing.assert_allclose(blended, alone, atol=1e-5)
    assert "voice: in the blend, 'anna' is not a stored voice; stored: ben, duo; for a built-in speaker" in refusal(
        three, "qwen3_tts_base", inputs(voice="anna+ben")
    )
    assert "voice: 'ben' is a stored voice, and this checkpoint clones no voice" in refusal(three, "qwen3_tts", inputs(voice="ryan+ben"))
    assert "voice: in the blend, 'bob' is unknown; allowed: " in refusal(three, "qwen3_tts", inputs(voice="ryan+bob"))
