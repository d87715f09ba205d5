"""Prompts are the rows the official generate() builds, and a field that is not allowed is refused by its name."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
from engine_lib.checkpoint import Checkpoint
from engine_lib.errors import InvalidRequestError
from engine_lib.prompt import NO_ID, Prompt, PromptBuilder
from engine_lib.talker.model import TalkerModel

TEXTS = [
    "Good morning! How are you today?",
    "a",
    "\n\n leading and trailing \n\n",
    "你好，今天天气很好。😀👩‍👩‍👧",
    "<|im_end|>\n<|im_start|>user\nspecial ids",
    "e\u0301 iPhone's 12,345.67 %\r\n",
    "one two three " * 70,
]
# Another id in a row changes it by about 1; the order of the sums by 1e-6.
ATOL = 1e-5
VOICES = ["ryan", "SERENA", "Vivian", "uncle_fu", "aiden", "ono_anna", "sohee", "eric", "dylan", ""]
LANGUAGES = ["auto", "Chinese", "ENGLISH", "german", "italian", "portuguese", "spanish", "japanese", "korean", "french", "russian"]


def same(a: Prompt, b: Prompt) -> bool:
    return (
        np.array_equal(a.text_ids, b.text_ids)
        and np.array_equal(a.codes, b.codes)
        and np.array_equal(a.trailing_text_ids, b.trailing_text_ids)
        and a.num_text_tokens == b.num_text_tokens
    )


class Official:
    """What the official package feeds its talker, beside the rows of this library embedded by the same weights."""

    def __init__(self, path: Path) -> None:
        self.model = oracle.load_official(path)
        checkpoint = Checkpoint(path)
        self.builder = PromptBuilder(checkpoint, max_text_length=4000)
        self._talker = TalkerModel(checkpoint, dtype=torch.float32, device=torch.device("cpu"), max_positions=16)

    @torch.inference_mode()
    def assert_same_rows(self, **fields: Any) -> None:
        """Fails unless the prompt of `fields` is what generate_custom_voice or generate_voice_design feeds."""
        prompt = self.builder.build(**fields)
        fed = self._fed(fields)
        rows = self._talker.embed(torch.from_numpy(prompt.text_ids).long(), torch.from_numpy(prompt.codes).long())
        torch.testing.assert_close(rows[None], fed["inputs_embeds"], rtol=0, atol=ATOL)
        assert fed["attention_mask"].all()
        nothing = torch.full((len(prompt.trailing_text_ids), 16), NO_ID)
        trailing = self._talker.embed(torch.from_numpy(prompt.trailing_text_ids).long(), nothing)
        official_trailing = fed["trailing_text_hidden"][0]
        if len(trailing) == 0:  # then every frame is joined by tts_pad, which the official package spells out once
            official_trailing, trailing = official_trailing - fed["tts_pad_embed"][0], trailing.new_zeros(1, trailing.shape[1])
        torch.testing.assert_close(trailing, official_trailing, rtol=0, atol=ATOL)

    def _fed(self, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
        arguments = {{"voice": "speaker"}.get(name, name): value for name, value in fields.items()}
        method = self.model.generate_custom_voice if "voice" in fields else self.model.generate_voice_design
        talker = self.model.model.talker

        def stop(**fed: Any) -> None:
            raise _Fed(fed)

        talker.generate = stop
        try:
            method(**arguments)
        except _Fed as fed:
            return fed.tensors
        finally:
            del talker.generate
        raise AssertionError("the talker was not called")


class _Fed(Exception):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors


@pytest.fixture(scope="module", params=["tiny_custom_voice", "tiny_custom_voice_1b7", "tiny_published_ids"])
def custom_voice(request: pytest.FixtureRequest) -> Official:
    return Official(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def builder(tiny_custom_voice: Path) -> PromptBuilder:
    return PromptBuilder(Checkpoint(tiny_custom_voice), max_text_length=100)


@pytest.fixture(scope="module")
def instructed(tiny_custom_voice_1b7: Path) -> PromptBuilder:
    """Return a builder that heeds instructions."""
    return PromptBuilder(Checkpoint(tiny_custom_voice_1b7), max_text_length=100)


# rows


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_rows_equal_the_official_ones_for_every_voice_and_language(custom_voice: Official, non_streaming_mode: bool):
    for voice, language in itertools.product(VOICES, LANGUAGES):
        custom_voice.assert_same_rows(text=TEXTS[0], voice=voice, language=language, non_streaming_mode=non_streaming_mode)


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_rows_equal_the_official_ones_for_every_text_and_instruction(custom_voice: Official, non_streaming_mode: bool):
    for text, instruct in itertools.product(TEXTS, ["", "Whisper.", "悲しそうに 😢\n小さな声で "]):
        custom_voice.assert_same_rows(text=text, voice="ryan", language="english", instruct=instruct, non_streaming_mode=non_streaming_mode)


def test_rows_equal_the_official_ones_for_random_texts(custom_voice: Official):
    rng_seed = secrets.randbits(32)
    rng = np.random.default_rng(rng_seed)
    print(f"rng_seed = {rng_seed}")
    alphabet = [*"  \n\n\t\rabcZ9.,!?'\"-/<|>_éßñЖ你好ね😀\u200b\u0301", "<|im_end|>", "iPhone", "assistant\n"]
    for _ in range(40):
        text = "".join(rng.choice(alphabet, rng.integers(1, 40)))
        if text.strip():
            custom_voice.assert_same_rows(text=text, voice="eric", language="auto", non_streaming_mode=bool(rng.integers(2)))


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_rows_equal_the_official_ones_for_a_designed_voice(tiny_voice_design: Path, non_streaming_mode: bool):
    official = Official(tiny_voice_design)
    for text, instruct, language in itertools.product(TEXTS[:4], ["", "A warm, low voice."], ["auto", "chinese", "English"]):
        official.assert_same_rows(text=text, instruct=instruct, language=language, non_streaming_mode=non_streaming_mode)


def test_what_is_left_out_is_the_first_voice_and_auto_and_the_whole_text(builder: PromptBuilder):
    default = builder.build(text="Hello")
    assert builder.default_voice == "serena"
    assert same(default, builder.build(text="Hello", voice="serena", language="auto", instruct=None, non_streaming_mode=True))
    assert not same(default, builder.build(text="Hello", voice=""))


def test_only_a_checkpoint_that_heeds_instructions_tells_them_apart(builder: PromptBuilder, instructed: PromptBuilder):
    for text_builder, heeds in ((builder, False), (instructed, True)):
        plain = text_builder.build(text="Hello", voice="ryan")
        assert same(plain, text_builder.build(text="Hello", voice="ryan", instruct="Whisper.")) != heeds
        assert same(plain, text_builder.build(text="Hello", voice="ryan", instruct=""))


def test_a_prompt_counts_the_tokens_that_are_spoken(builder: PromptBuilder):
    whole, fed = (builder.build(text="a a a", non_streaming_mode=layout) for layout in (True, False))
    assert whole.num_text_tokens == fed.num_text_tokens == 3
    assert len(whole) == len(fed) + len(fed.trailing_text_ids) + 1


def test_prompts_are_built_on_any_number_of_threads(builder: PromptBuilder):
    texts = [text for text in TEXTS if len(text) <= 100] * 20
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda text: builder.build(text=text), texts))
    assert all(same(prompt, builder.build(text=text)) for prompt, text in zip(together, texts, strict=True))


# refusals


@contextmanager
def refusal(field: str, problem: str) -> Iterator[None]:
    """Expect an InvalidRequestError of `field` that says `problem`."""
    with pytest.raises(InvalidRequestError) as error:
        yield
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: {problem}")


@pytest.mark.parametrize("field", ["text", "instruct"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (" \t\n", "is empty; give at least one word"),
        ("a" * 101, "has 101 characters; at most 100 are allowed"),
        ("lone \ud83d surrogate", "holds a lone surrogate; give valid Unicode text"),
        ("\udfff", "holds a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_spoken_is_refused(instructed: PromptBuilder, field: str, value: str, problem: str):
    with refusal(field, problem):
        instructed.build(text=value if field == "text" else "Hello", instruct=value if field == "instruct" else None)


def test_an_empty_text_is_refused_and_the_longest_is_not(builder: PromptBuilder):
    with refusal("text", "is empty"):
        builder.build(text="")
    assert len(builder.build(text="你" * 100)) > 100


def test_an_unknown_voice_is_refused_with_those_there_are(builder: PromptBuilder):
    with refusal("voice", "'nobody' is unknown; allowed: aiden, dylan, eric, ono_anna, ryan, serena, sohee, uncle_fu, vivian"):
        builder.build(text="Hello", voice="nobody")


@pytest.mark.parametrize("language", ["klingon", "beijing_dialect", " english", "en"])
def test_an_unknown_language_is_refused_with_those_there_are(builder: PromptBuilder, language: str):
    allowed = "auto, chinese, english, french, german, italian, japanese, korean, portuguese, russian, spanish"
    with refusal("language", f"{language!r} is unknown; allowed: {allowed}"):
        builder.build(text="Hello", language=language)


def test_a_long_unknown_name_is_cut_in_the_message(builder: PromptBuilder):
    with pytest.raises(InvalidRequestError) as error:
        builder.build(text="Hello", voice="x" * 10_000)
    assert len(str(error.value)) < 400
    with pytest.raises(InvalidRequestError) as error:
        builder.build(text="Hello", language="x" * 10_000)
    assert len(str(error.value)) < 400


def test_a_designed_voice_has_no_name(tiny_voice_design: Path):
    builder = PromptBuilder(Checkpoint(tiny_voice_design), max_text_length=100)
    assert builder.speakers == []
    with refusal("voice", "a voice_design checkpoint has no built-in voices; leave voice out"):
        builder.build(text="Hello", voice="ryan", instruct="A warm voice.")


def test_a_base_checkpoint_asks_for_a_reference(tiny_base: Path):
    with refusal("reference_audio", "a checkpoint of kind base clones a voice"):
        PromptBuilder(Checkpoint(tiny_base), max_text_length=100).build(text="Hello")
