"""Cloned voices: arguments and audio of the official model class, from the end of the reference on."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from random_voices import random_voice, recording

import oracle
from api.loading import GREEDY, SAMPLES_PER_FRAME, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import InvalidRequestError
from engine_lib.talker.device.worker import TalkerWorker
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.store import VoiceStore
from patience import eventually

Wave = npt.NDArray[np.float32]
TEXTS = ["Good morning! How are you today?", "It's raining, so we'll stay at home."]


@pytest.fixture(scope="module")
def cloner(tiny_base: Path) -> Iterator[Qwen3TTS]:
    """Return a small base model that the tests of this module share."""
    with load(tiny_base) as model:
        yield model


def voice(tts: Qwen3TTS, seed: int, frames: int | None = None) -> VoiceClonePromptItem:
    return random_voice(tts.checkpoint.config, seed, frames)


def num_reference_frames(item: VoiceClonePromptItem) -> int:
    return 0 if item.ref_code is None else len(item.ref_code)


def num_samples_left(num_reference: int, num_frames: int) -> int:
    """Samples of the reference that the official package leaves in front: it cuts by a share, and rounding may cut one too few."""
    num_samples = (num_reference + num_frames) * SAMPLES_PER_FRAME
    return num_reference * SAMPLES_PER_FRAME - int(num_reference / (num_reference + num_frames) * num_samples)


def assert_official(tts: Qwen3TTS, arguments: dict[str, Any], references: list[int]) -> None:
    """Fails unless codes and audio of generate_voice_clone(**arguments) are the official ones, from the end of the reference on."""
    arguments = arguments | GREEDY
    expected_codes, expected_waves = oracle.official_codes(tts.checkpoint.path, "generate_voice_clone", **arguments)
    waves, sample_rate = tts.generate_voice_clone(**arguments)
    assert sample_rate == 24000
    codes = tts.generate_codes(**arguments)
    assert [c.tolist() for c in codes] == [c[n:].tolist() for c, n in zip(expected_codes, references, strict=True)]
    for wave, official, num_reference in zip(waves, expected_waves, references, strict=True):
        assert wave.dtype == np.float32
        left = num_samples_left(num_reference, len(wave) // SAMPLES_PER_FRAME)
        assert len(official) == len(wave) + left
        np.testing.assert_allclose(wave, official[left:], atol=1e-4, rtol=0)


# what is computed

CALLS: dict[str, tuple[list[int | None], dict[str, Any]]] = {
    "an x-vector": ([None], {"text": TEXTS[0], "language": "English"}),
    "in context": ([13], {"text": TEXTS[0]}),
    "in context, the whole text first": ([13], {"text": TEXTS[0], "non_streaming_mode": True}),
    "in context, the official cut one sample short": ([17], {"text": TEXTS[0], "max_new_tokens": 7}),
    "a list of voices": ([None, 13], {"text": TEXTS, "language": ["auto", "Chinese"], "non_streaming_mode": True}),
    "one voice for a list": ([9], {"text": TEXTS, "language": ["English"]}),
}


@pytest.mark.parametrize("call", CALLS)
def test_greedy_speech_is_that_of_the_official_package(call: str, cloner: Qwen3TTS):
    frames, arguments = CALLS[call]
    items = [voice(cloner, seed, n) for seed, n in enumerate(frames)]
    references = [num_reference_frames(item) for item in items]
    num_texts = len(arguments["text"]) if isinstance(arguments["text"], list) else 1
    assert_official(cloner, {"max_new_tokens": 12, "voice_clone_prompt": items} | arguments, references * (num_texts // len(items)))


def test_the_official_cut_is_one_sample_short_at_most():
    left = [num_samples_left(reference, frames) for reference in range(1, 100) for frames in range(1, 100)]
    assert set(left) == {0, 1}
    assert num_samples_left(17, 6) == 1


@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "suffix", "x_vector_only"),
    [
        (1.0, 16_000, 1, "", False),
        (5.3, 24_000, 1, "wav", False),
        (9.9, 44_100, 2, "flac", False),
        (20.0, 48_000, 2, "wav", False),
        (2.0, 44_100, 2, "wav", True),
    ],
)
def test_reference_audio_of_any_rate_gives_the_official_speech(
    seconds: float, rate: int, channels: int, suffix: str, x_vector_only: bool, cloner: Qwen3TTS, tmp_path: Path
):
    audio: Any = (recording(seconds, rate, channels), rate)
    if suffix:
        soundfile.write(tmp_path / f"voice.{suffix}", *audio)
        audio = str(tmp_path / f"voice.{suffix}")
    arguments = {
        "text": TEXTS[0],
        "ref_audio": audio,
        "ref_text": "What is said.",
        "max_new_tokens": 6,
        "x_vector_only_mode": x_vector_only,
    }
    assert_official(cloner, arguments, [0 if x_vector_only else int(np.ceil(seconds * 12.5))])


def test_prompts_of_a_list_of_references_are_the_official_ones(cloner: Qwen3TTS):
    arguments: dict[str, Any] = {
        "ref_audio": [(recording(1.5, 24_000), 24_000), (recording(2.2, 16_000), 16_000), (recording(1.1, 24_000), 24_000)],
        "ref_text": ["What is said.", None, "And this."],
        "x_vector_only_mode": [False, True, False],
    }
    expected = oracle.load_official(cloner.checkpoint.path).create_voice_clone_prompt(**arguments)
    for item, official in zip(cloner.create_voice_clone_prompt(**arguments), expected, strict=True):
        assert isinstance(item, VoiceClonePromptItem)
        torch.testing.assert_close(item.ref_spk_embedding, official.ref_spk_embedding, atol=1e-4, rtol=0)
        assert (item.ref_code is None) == (official.ref_code is None)
        if item.ref_code is not None:
            assert item.ref_code.equal(official.ref_code)
        for name in ("x_vector_only_mode", "icl_mode", "ref_text"):
            assert getattr(item, name) == getattr(official, name)


def test_every_form_of_one_recording_gives_one_voice(cloner: Qwen3TTS, tmp_path: Path):
    file = tmp_path / "voice.wav"
    samples = (recording(1.2, 16_000) * 32767).astype(np.int16)
    soundfile.write(file, samples, 16_000)
    encoded = base64.b64encode(file.read_bytes()).decode()
    forms: list[Any] = [file, str(file), (samples, 16_000), (samples / np.float32(32768), 16_000), f"data:audio/wav;base64,{encoded}"]
    keys = {item.content_key for item in cloner.create_voice_clone_prompt(forms, "What is said.")}
    assert len(keys) == 1


def test_a_prompt_used_again_is_the_voice_it_was_made_of(cloner: Qwen3TTS):
    audio = (recording(1.4, 24_000), 24_000)
    arguments: dict[str, Any] = {"text": TEXTS, "max_new_tokens": 8} | GREEDY
    direct, _ = cloner.generate_voice_clone(ref_audio=audio, ref_text="What is said.", **arguments)
    [item] = prompt = cloner.create_voice_clone_prompt(audio, "What is said.")
    as_dict = {name: [value] * 2 for name, value in vars(item).items() if name != "content_key"}
    beside: dict[str, Any] = {"ref_audio": (recording(2.0, 16_000), 16_000), "ref_text": "Other words."}  # ignored, as officially
    forms: list[tuple[Any, dict[str, Any]]] = [(prompt, {}), (prompt * 2, {}), (item, {}), (as_dict, {}), (prompt, beside)]
    for reused, more in forms:
        waves, _ = cloner.generate_voice_clone(voice_clone_prompt=reused, **more, **arguments)
        for wave, expected in zip(waves, direct, strict=True):
            np.testing.assert_allclose(wave, expected, atol=1e-5, rtol=0)


def test_a_stored_voice_is_spoken_with_by_its_name(tiny_base: Path, tmp_path: Path):
    with load(tiny_base, voice_store=str(tmp_path)) as tts:
        store = VoiceStore.of(tts.config)
        assert store is not None
        items = [voice(tts, 1), voice(tts, 2, 13)]
        for name, item in zip(("anna", "ben"), items, strict=True):
            store.add(name, item, consent="a test", reference_seconds=1.0, reference_sample_rate=24_000, made_by="tests")
        arguments: dict[str, Any] = {"text": TEXTS, "max_new_tokens": 5} | GREEDY
        expected, _ = tts.generate_voice_clone(voice_clone_prompt=items, **arguments)
        named, _ = tts.generate_voice_clone(voice=["Anna", "ben"], **arguments)
        for wave, other in zip(named, expected, strict=True):
            np.testing.assert_allclose(wave, other, atol=1e-5, rtol=0)
        streamed = tts.stream_voice_clone(**(arguments | {"text": TEXTS[1]}), voice="ben")
        np.testing.assert_allclose(np.concatenate([chunk.audio for chunk in streamed]), expected[1], atol=1e-5, rtol=0)
        wrong: list[tuple[Any, str]] = [
            ("nobody", ".*nobody"),
            ("../anna", ".* not allowed"),
            (5, "is a int"),
            (["anna"] * 3, "has 3 entries"),
        ]
        for name, message in wrong:
            with pytest.raises(InvalidRequestError, match=f"^voice: {message}"):
                tts.generate_voice_clone(**arguments, voice=name)


def test_a_stored_voice_says_words_by_its_own_lexicon(tiny_base: Path, tmp_path: Path):
    with load(tiny_base, voice_store=str(tmp_path)) as tts:
        store, item = tts._utterances.references._library.store, voice(tts, 1)
        for name, lexicon in (("anna", {"gm": "Good morning"}), ("ben", None)):
            store.add(name, item, consent="a test", reference_seconds=1.0, reference_sample_rate=24_000, made_by="tests", lexicon=lexicon)
        arguments: dict[str, Any] = {"max_new_tokens": 5} | GREEDY

        def spoken(text: str, name: str, **fields: Any) -> Any:
            return tts.generate_voice_clone(text, voice=name, **arguments, **fields)[0][0]

        expected = spoken(TEXTS[0], "ben")
        short = TEXTS[0].replace("Good morning", "GM")
        for text, name, fields in (
            (short, "anna", {}),
            (short, "ben", {"lexicon": {"gm": "Good morning"}}),
            (short.replace("GM", "XY"), "anna", {"lexicon": {"xy": "Good morning", "gm": "never"}}),
            (f'<speak><voice name="anna">{short}</voice></speak>', "ben", {"text_format": "ssml"}),
            (TEXTS[0], "anna", {"lexicon": {"gm": "never"}}),
        ):
            np.testing.assert_allclose(spoken(text, name, **fields), expected, atol=1e-5, rtol=0)
        pieces = tts.stream_voice_clone(iter([short]), voice="anna", **arguments)  # a text in pieces is spoken as it is
        plain = tts.stream_voice_clone(iter([short]), voice="ben", **arguments)
        one, other = (np.concatenate([chunk.audio for chunk in stream]) for stream in (pieces, plain))
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


# streams and halves


@pytest.mark.parametrize("frames", [None, 70])
def test_a_stream_joined_is_the_whole_decode_from_where_the_reference_ends(frames: int | None, cloner: Qwen3TTS):
    item = voice(cloner, 4, frames)
    arguments: dict[str, Any] = {"text": TEXTS[0], "voice_clone_prompt": item, "seed": 5, "max_new_tokens": 30}
    chunks = list(cloner.stream_voice_clone(**arguments, chunk_frames=[1, 3, 2]))
    streamed = np.concatenate([chunk.audio for chunk in chunks])
    assert len(chunks[0].audio) == SAMPLES_PER_FRAME
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))

    [codes] = cloner.generate_codes(**arguments)
    past = torch.empty(0, 16, dtype=torch.int64) if item.ref_code is None else item.ref_code
    whole = oracle.official_decode(cloner.checkpoint.path, torch.cat([past, torch.from_numpy(codes).long()])).numpy()
    expected = whole[len(past) * SAMPLES_PER_FRAME :]
    [generated], _ = cloner.generate_voice_clone(**arguments)
    [decoded], _ = cloner.decode(codes, voice_clone_prompt=item)
    for wave in (streamed, generated, decoded):
        np.testing.assert_allclose(wave, expected, atol=1e-5, rtol=0)


def test_many_clones_at_once_sound_as_each_does_alone_also_after_cancels_and_reuse_of_slots(tiny_base: Path):
    with load(tiny_base, max_num_seqs=32, codec_slots=32, max_model_len=128) as tts:
        # In float32 a matrix product over one row and over many differ in the last bit, which can change a sample.
        tts._talker.worker = TalkerWorker(tts.checkpoint, tts.config, device=torch.device("cpu"), dtype=torch.float64)
        calls: list[dict[str, Any]] = [
            {"text": "Good morning!", "voice_clone_prompt": voice(tts, seed, 13 if seed % 2 else None), "seed": 1, "max_new_tokens": 5}
            for seed in range(32)
        ]
        alone = [tts.generate_voice_clone(**call)[0][0] for call in calls]
        assert len({wave.tobytes() for wave in alone}) == len(calls)
        for order in (calls, calls[::-1]):
            streams = [tts.stream_voice_clone(**call) for call in order]
            for left in streams[::3]:
                next(left)
                left.close()
            expected = alone if order is calls else alone[::-1]
            for i, (stream, wave) in enumerate(zip(streams, expected, strict=True)):
                if i % 3:
                    np.testing.assert_allclose(np.concatenate([chunk.audio for chunk in stream]), wave, atol=1e-5, rtol=0)
        eventually(lambda: is_idle(tts), "both engines are idle")


# refused

AUDIO = (recording(1.2, 24_000), 24_000)
SILENCE = (np.zeros(48_000, np.float32), 24_000)
REFERENCE: dict[str, Any] = {"ref_audio": AUDIO, "ref_text": "Words."}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "ref_audio: is missing, and so are voice_clone_prompt and voice"),
    ({"ref_audio": AUDIO, "voice": "anna"}, "voice: is given with ref_audio or voice_clone_prompt"),
    ({"voice": "anna"}, "voice: no voices are stored; .* voice_store=FOLDER"),
    ({"ref_audio": AUDIO}, "ref_text: is missing; .* x_vector_only_mode"),
    ({"ref_audio": AUDIO, "ref_text": " "}, "ref_text: is missing"),
    ({"ref_audio": [AUDIO, AUDIO], "ref_text": ["Words."]}, "ref_text: has 1 entries for 2 references"),
    ({"ref_audio": [AUDIO], "ref_text": "Words.", "x_vector_only_mode": [True, False]}, "x_vector_only_mode: has 2 entries for 1 ref"),
    ({"ref_audio": AUDIO[0], "ref_text": "Words."}, r"ref_audio: is an array without .* \(samples, sample rate\)"),
    ({"ref_audio": 5, "ref_text": "Words."}, "ref_audio: is a int; give the path"),
    ({"ref_audio": "missing.wav", "ref_text": "Words."}, "ref_audio: 'missing.wav' is not a file"),
    ({"ref_audio": __file__, "ref_text": "Words."}, "ref_audio: .* cannot be read as audio: .* convert others .* ffmpeg -i"),
    ({"ref_audio": "https://example.org/a.wav", "ref_text": "Words."}, "ref_audio: is a URL; download it"),
    ({"ref_audio": "data:audio/wav;base64,####", "ref_text": "Words."}, "ref_audio: "),
    ({"ref_audio": "A" * 400, "ref_text": "Words."}, "ref_audio: the file in base64 cannot be read as audio"),
    ({"ref_audio": SILENCE, "ref_text": "Words."}, "ref_audio: is silent"),
    ({"ref_audio": (AUDIO[0][:2400], 24_000), "ref_text": "Words."}, "ref_audio: lasts 0.10 s"),
    ({"ref_audio": (np.tile(AUDIO[0], 30), 24_000), "ref_text": "Words."}, "ref_audio: lasts 36.00 s"),
    ({"voice_clone_prompt": ["voice"]}, "voice_clone_prompt: holds a str; give what create_voice_clone_prompt gave"),
    ({"voice_clone_prompt": {"ref_code": [None]}}, "voice_clone_prompt: is a dict without ref_spk_embedding, x_vector_only_mode, icl_mode"),
    ({**REFERENCE, "language": "klingon"}, "language: 'klingon' .* english"),
    ({**REFERENCE, "text": ["a", "b", "c"], "ref_audio": [AUDIO] * 2}, "ref_audio: has 2 entries for 3 texts"),
    ({**REFERENCE, "speakr": "ryan"}, "speakr: unknown"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:45] for _, message in REFUSED])
def test_a_bad_argument_is_named_and_nothing_runs(arguments: dict[str, Any], message: str, cloner: Qwen3TTS):
    calls: list[Callable[..., object]] = [cloner.generate_voice_clone, cloner.generate_codes]
    if isinstance(arguments.get("text", ""), str):
        calls.append(cloner.stream_voice_clone)
    for call in calls:
        with pytest.raises(InvalidRequestError, match=f"^{message}"):
            call(**({"text": "Good morning!"} | arguments))
    assert is_idle(cloner)


def test_a_reference_that_is_refused_ends_the_call_for_all(cloner: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=r"^ref_audio: is silent"):
        cloner.create_voice_clone_prompt([AUDIO, SILENCE, AUDIO], "Words.")
    with pytest.raises(InvalidRequestError, match=r"^ref_audio: 'missing.wav' is not a file"):
        cloner.create_voice_clone_prompt([AUDIO, "missing.wav"], "Words.")


def test_a_prompt_that_does_not_fit_is_refused_by_its_field(cloner: Qwen3TTS):
    items = [voice(cloner, 1), VoiceClonePromptItem(None, torch.zeros(7), True, False)]
    with pytest.raises(InvalidRequestError, match=r"^ref_spk_embedding: is torch.float32 of shape \(7,\)"):
        cloner.generate_voice_clone(TEXTS, voice_clone_prompt=items)
    assert is_idle(cloner)
