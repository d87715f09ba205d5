"""The shipped voice says the right sentence. Other tests have random weights and compare only numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

pytest.importorskip("espeakng_loader", reason="needs espeak-ng: pip install espeakng-loader (scripts/install.sh test brings it)")

from api.loading import GREEDY, load
from server.conftest import CAN_SERVE, new_server

import oracle
from engine_lib.api.qwen3_tts import Qwen3TTS, SpeechStream
from qwen3_tts_client import Client
from voice_in_the_box import VOICE_IN_THE_BOX
from voice_in_the_box.digits import DigitRecogniser, errors
from voice_in_the_box.evaluate import DIGITS_LENGTH, DIGITS_SEED, QUICK_MODES, SENTENCES_SEED, Mode, Say, evaluate, in_process_say
from voice_in_the_box.retrieval import Cepstra, cepstra, distances
from voice_in_the_box.sentences import Sentences
from voice_in_the_box.speech import SAMPLE_RATE, SPEAKERS, Audio, Espeak

ROOT = Path(__file__).resolve().parents[1]
TEXTS = Sentences(SENTENCES_SEED).held_out(8)
Asked = tuple[str, str]  # text and speaker
EVERYTHING: list[Asked] = list(product(TEXTS, SPEAKERS))
ASKED = [(text, list(SPEAKERS)[i % len(SPEAKERS)]) for i, text in enumerate(TEXTS[:6])]
FEW = ASKED[1:5]

OPTIONS: dict[str, dict[str, Any]] = {
    "small pool": {"max_model_len": 160, "kv_block_size": 4, "num_kv_blocks": 44},
    "prefill 8 rows at a time": {"max_num_batched_tokens": 8},
    "adaptive chunks": {"chunk_policy": "adaptive", "adaptive_chunk_streams": 2},
    "bfloat16 talker": {"dtype": "bfloat16"},
    "fp8 talker": {"talker_weights": "fp8"},
}


@pytest.fixture(scope="module")
def tts() -> Iterator[Qwen3TTS]:
    with load(VOICE_IN_THE_BOX) as model:
        yield model


@pytest.fixture(scope="module")
def say() -> Iterator[Say]:
    with in_process_say(VOICE_IN_THE_BOX, {"device": "cpu", "max_num_seqs": "8", "max_model_len": "512"}) as speak:
        yield speak


@pytest.fixture(scope="module")
def references() -> list[Cepstra]:
    """The sound of EVERYTHING by espeak-ng."""
    espeak = Espeak()
    return [cepstra(espeak.speak(text, speaker)) for text, speaker in EVERYTHING]


@pytest.fixture(scope="module")
def offline(tts: Qwen3TTS) -> list[Audio]:
    """The audio of FEW, each alone and in one piece."""
    return [tts.generate_custom_voice(*asked, **numbered(i))[0][0] for i, asked in enumerate(FEW)]


@pytest.fixture(scope="module")
def another_seed(tts: Qwen3TTS, offline: list[Audio]) -> float:
    """The smallest change of one of FEW by another seed; each still sounds like the same sentence."""
    texts, speakers = map(list, zip(*FEW, strict=True))
    others, _ = tts.generate_custom_voice(texts, speakers, "english", seed=100)
    return float(own_distances(others, offline).min())


def own_distances(spoken: Sequence[Audio], originals: Sequence[Audio]) -> np.ndarray:
    """Warped distance of each audio to its original, which must be the nearest."""
    sounds = [cepstra(original) for original in originals]
    table = np.stack([distances(cepstra(audio), sounds) for audio in spoken])
    assert table.argmin(1).tolist() == list(range(len(originals)))
    return np.diag(table)


def heard(audio: Audio, references: Sequence[Cepstra]) -> Asked:
    """The one of EVERYTHING that sounds most like the audio."""
    return EVERYTHING[distances(cepstra(audio), references).argmin()]


def numbered(i: int) -> dict[str, Any]:
    """Arguments of request `i`: its own seed, and a layout that changes every two requests."""
    return {"language": "english", "seed": i, "non_streaming_mode": i % 4 < 2}


def start(tts: Qwen3TTS, asked: Sequence[Asked]) -> list[SpeechStream]:
    return [tts.stream_custom_voice(text, speaker, **numbered(i)) for i, (text, speaker) in enumerate(asked)]


def joined(stream: SpeechStream) -> Audio:
    return np.concatenate([chunk.audio for chunk in stream])


def speak_together(tts: Qwen3TTS, asked: Sequence[Asked]) -> list[Audio]:
    return [joined(stream) for stream in start(tts, asked)]


def speak_alone(tts: Qwen3TTS, asked: Sequence[Asked]) -> list[Audio]:
    """Like `speak_together`, but one after the other."""
    return [joined(tts.stream_custom_voice(text, speaker, **numbered(i))) for i, (text, speaker) in enumerate(asked)]


# The right sentence


@pytest.mark.parametrize("mode", QUICK_MODES, ids=lambda mode: mode.name)
def test_both_speakers_say_sentences_they_have_never_seen_and_end(say: Say, mode: Mode) -> None:
    [score] = evaluate(say, [mode], len(TEXTS), 0)
    assert score.wrong == []
    assert score.ended == 1


def test_another_speed_says_the_same_words(say: Say) -> None:
    [score] = evaluate(say, [QUICK_MODES[0]], 8, 0, speed=1.5)
    assert (score.wrong, score.ended) == ([], 1)


def test_the_voice_that_is_asked_for_says_it(tts: Qwen3TTS, references: list[Cepstra]) -> None:
    asked = list(product([text for text, _ in FEW], SPEAKERS))
    assert [heard(audio, references) for audio in speak_together(tts, asked)] == asked


def test_a_request_may_leave_the_language_out(tts: Qwen3TTS, references: list[Cepstra]) -> None:
    texts, speakers = zip(*FEW, strict=True)
    wavs, _ = tts.generate_custom_voice(list(texts), list(speakers), seed=1)
    assert [heard(wav, references) for wav in wavs] == FEW


def test_a_recogniser_hears_the_digits_it_was_given(tts: Qwen3TTS) -> None:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx (scripts/install.sh test brings it)")
    texts = Sentences(DIGITS_SEED).held_out_digits(8, DIGITS_LENGTH)
    espeak, recogniser = Espeak(), DigitRecogniser()
    speakers = [list(SPEAKERS)[i % len(SPEAKERS)] for i in range(len(texts))]
    ours, _ = tts.generate_custom_voice(texts, speakers, "english", seed=1)

    def error(spoken: Sequence[Audio]) -> float:
        wrong = [errors([int(digit) for digit in text.split()], recogniser.hear(audio)) for text, audio in zip(texts, spoken, strict=True)]
        return sum(wrong) / (DIGITS_LENGTH * len(texts))

    theirs = [espeak.speak(text, speaker) for text, speaker in zip(texts, speakers, strict=True)]
    assert error(ours) <= error(theirs) + 0.3


# Any work of the engine meanwhile


def test_streamed_speech_is_the_offline_speech(tts: Qwen3TTS, offline: list[Audio], another_seed: float) -> None:
    streamed = speak_alone(tts, FEW)
    assert own_distances(streamed, offline).max() < another_seed
    for audio, expected in zip(streamed, offline, strict=True):
        np.testing.assert_allclose(audio, expected, atol=1e-5, rtol=0)


def test_a_bfloat16_codec_changes_less_than_another_seed(offline: list[Audio], another_seed: float) -> None:
    with load(VOICE_IN_THE_BOX, codec_dtype="bfloat16") as tts:
        changes = own_distances(speak_alone(tts, FEW), offline)
    assert 0 < changes.max() < another_seed


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_sentence_survives(references: list[Cepstra], options: dict[str, Any]) -> None:
    with load(VOICE_IN_THE_BOX, **({"max_num_seqs": 8, "codec_slots": 8} | options)) as tts:
        spoken = speak_together(tts, ASKED)
        assert (tts._talker.stats().num_preemptions > 0) == ("num_kv_blocks" in options)
    assert [heard(audio, references) for audio in spoken] == ASKED


def test_those_who_leave_take_no_words_along(tts: Qwen3TTS, references: list[Cepstra]) -> None:
    streams = start(tts, ASKED)
    for stream in streams[::3]:
        next(stream)
        stream.close()
    staying = [i for i in range(len(ASKED)) if i % 3]
    assert [heard(joined(streams[i]), references) for i in staying] == [ASKED[i] for i in staying]


@pytest.mark.server
@pytest.mark.skipif(not CAN_SERVE, reason="needs tritonserver on PATH or the wheel nvidia-pytriton")
def test_a_server_streams_the_sentence_it_was_sent(tmp_path: Path, references: list[Cepstra]) -> None:
    with (
        new_server(VOICE_IN_THE_BOX, tmp_path / "log", max_num_seqs="4", on_runaway="auto") as server,
        Client(f"localhost:{server.grpc_port}") as client,
    ):
        for text, speaker in FEW[:2]:
            chunks = list(client.stream(text, voice=speaker, language="english", sampling={"seed": 1}))
            assert [len(chunk.audio) / SAMPLE_RATE for chunk in chunks[:3]] == [0.08, 0.16, 0.32]
            assert chunks[-1].finish_reason == "stop"
            assert heard(np.concatenate([chunk.audio for chunk in chunks]), references) == (text, speaker)


# The shipped folder


def test_the_shipped_folder_is_small_and_complete() -> None:
    files = [file for file in VOICE_IN_THE_BOX.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {file.suffix for file in files} == {".json", ".txt", ".safetensors", ".md", ""}
    assert (VOICE_IN_THE_BOX / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "Apache-2.0" in (VOICE_IN_THE_BOX / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", [VOICE_IN_THE_BOX, VOICE_IN_THE_BOX / "speech_tokenizer"], ids=["talker", "codec"])
def test_its_weights_take_two_bytes_each(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} <= {"F16", "BF16"}  # noqa: SIM118


def test_the_official_package_says_the_same(tts: Qwen3TTS, references: list[Cepstra]) -> None:
    text, speaker = FEW[2]
    [ours] = tts.generate_codes(text, speaker, "english", **GREEDY)
    [theirs], [audio] = oracle.official_codes(
        VOICE_IN_THE_BOX, text=text, speaker=speaker, language="english", non_streaming_mode=True, **GREEDY
    )
    assert ours.tolist() == theirs.tolist()
    assert heard(audio, references) == (text, speaker)
