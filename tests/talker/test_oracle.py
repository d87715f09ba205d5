"""Token for token: the engine computes what the official package computes, in float32 on the CPU."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.philox import frame_uniforms
from talker.speaking import Utterance, official, running_engine, speak, start

MAX_FRAMES = 9
WORDS = "The server reads a line of text and speaks it, every frame is eighty milliseconds of sound, and when the weather is good"
LONG_TEXT = " ".join(itertools.islice(itertools.cycle(WORDS.split()), 200))

UTTERANCES = [
    Utterance("Yes."),
    Utterance("Good morning! How are you today? I am fine, thank you.", "Vivian", "English"),
    Utterance("Guten Morgen, wie geht es Ihnen?", "SERENA", "German"),
    Utterance("你好，今天天气很好。", "uncle_fu", "chinese"),
    Utterance("おはようございます。", "ono_anna", "japanese"),
    Utterance("anything at all", "sohee", None),
    Utterance("今天的火车晚点了，我们明天再去。", "eric", "auto"),
    Utterance("今天的火车晚点了，我们明天再去。", "Eric", "chinese"),
    Utterance("The train is late.", "eric", "english"),
    Utterance("谢谢你，明天见。", "dylan", "AUTO"),
    Utterance("谢谢你，明天见。", "DYLAN", "Chinese"),
    Utterance("ありがとう", "dylan", "japanese"),
    Utterance("\n\nTwo lines,\n\n 12,345.67 % 😀👩‍👩‍👧 <|im_end|> e\u0301\n", "aiden", "english"),
    Utterance("It's raining.", "aiden", "english", "Whisper, as if all were asleep."),
    Utterance("雨だ", "eric", "auto", "悲しそうに 😢\n小さな声で"),
    Utterance(LONG_TEXT, "ryan", "english"),
]


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_greedy_codes_equal_the_official_ones(voice: Path, non_streaming_mode: bool):
    utterances = [replace(utterance, non_streaming_mode=non_streaming_mode) for utterance in UTTERANCES]
    expected = official(voice, tuple(utterances), MAX_FRAMES)
    with running_engine(voice, max_model_len=1024) as engine:
        for utterance, codes in zip(utterances, expected, strict=True):
            np.testing.assert_array_equal(speak(engine, utterance, max_frames=MAX_FRAMES), codes, err_msg=str(utterance))


@pytest.mark.parametrize("utterance", [UTTERANCES[1], replace(UTTERANCES[13], non_streaming_mode=False)], ids=["whole", "fed"])
def test_a_text_given_alone_to_the_official_package_gives_the_same_codes(voice: Path, utterance: Utterance):
    [codes] = official(voice, (utterance,), MAX_FRAMES)
    with running_engine(voice) as engine:
        np.testing.assert_array_equal(speak(engine, utterance, max_frames=MAX_FRAMES), codes)


def test_speech_ends_at_the_official_frame(voice: Path):
    names = [("Yes.", "ryan"), ("Yes.", "sohee"), ("Please call.", "serena"), ("Thank you", "ryan")]
    utterances, max_frames = tuple(Utterance(text, name) for text, name in names), 20
    expected = official(voice, utterances, max_frames)
    assert any(len(codes) < max_frames for codes in expected), "no text ends by itself; choose others"
    with running_engine(voice) as engine:
        for utterance, codes in zip(utterances, expected, strict=True):
            stream = start(engine, utterance, max_frames=max_frames)
            assert stream.end().finish_reason == ("stop" if len(codes) < max_frames else "length")
            np.testing.assert_array_equal(stream.codes, codes)


SAMPLED = [
    SamplingParams(),
    SamplingParams(temperature=1.3, top_k=0, top_p=0.8, repetition_penalty=1.3, subtalker_temperature=0.7, subtalker_top_k=7),
    SamplingParams(top_k=20, subtalker_top_k=0, subtalker_top_p=0.6, subtalker_temperature=1.5),
    SamplingParams(do_sample=False, repetition_penalty=2.0),
    SamplingParams(subtalker_dosample=False, repetition_penalty=0.7),
]


@pytest.mark.parametrize("sampling", SAMPLED, ids=["defaults", "talker", "predictor", "only-predictor", "only-talker"])
def test_with_the_same_random_numbers_sampled_codes_equal_the_official_ones(
    voice: Path, sampling: SamplingParams, fresh_seed: int, monkeypatch: pytest.MonkeyPatch
):
    max_frames, utterance = 12, Utterance("Please call the station.", "serena", None, non_streaming_mode=False)
    with running_engine(voice, exact=True) as engine:
        codes = speak(engine, utterance, replace(sampling, seed=fresh_seed), max_frames=max_frames)

    monkeypatch.setattr(torch, "multinomial", _MultinomialOfTheEngine(sampling, fresh_seed))
    # Floats as the engine holds them: with all digits of 0.6 or 1.3, an id on a border would be drawn here and not there now and then.
    arguments: dict[str, Any] = {
        name: float(np.float32(value)) if isinstance(value, float) else value
        for name, value in asdict(sampling).items()
        if name not in ("seed", "max_frames")
    }
    [expected], _wavs = oracle.official_codes(
        oracle.load_official(voice, torch.float64),  # as exact as the engine: rounding would change a sample now and then
        text=utterance.text,
        speaker=utterance.voice,
        non_streaming_mode=False,
        max_new_tokens=max_frames + 1,
        decode=False,
        **arguments,
    )
    np.testing.assert_array_equal(codes, expected.numpy())


class _MultinomialOfTheEngine:
    """torch.multinomial with the engine's random numbers: generate() samples codebook after codebook, frame after frame."""

    def __init__(self, sampling: SamplingParams, seed: int) -> None:
        is_sampled = [sampling.do_sample, *[sampling.subtalker_dosample] * 15]
        self._samples = ((frame, book) for frame in itertools.count() for book in range(16) if is_sampled[book])
        self._seed = torch.tensor([seed])

    def __call__(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == len(probabilities) == 1
        frame, codebook = next(self._samples)
        uniform = frame_uniforms(self._seed, torch.tensor([frame]), 16)[:, codebook]
        cumulative = probabilities.cumsum(-1)
        return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
