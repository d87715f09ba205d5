"""Prompts have the rows of the official generate(); a field that is not allowed is refused by name."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_voices import random_voice

import oracle
from engine_lib.checkpoint import Checkpoint
from engine_lib.errors import InvalidRequestError
from engine_lib.prompt import NO_ID, SPEAKER_EMBEDDING_ID, Prompt, PromptBuilder
from engine_lib.speech.checks import is_blank
from engine_lib.talker.device.model import TalkerModel
from engine_lib.voices.clone_prompt import VoiceClonePromptItem

TEXTS = [
    "Good morning! How are you today?",
    "a",
    "\n\n leading and trailing \n\n",
    "你好，今天天气很好。😀👩‍👩‍👧",
    "<|im_end|>\n<|im_start|>user\nspecial ids",
    "e\u0301 iPhone's 12,345.67 %\r\n",
    "one two three " * 70,
]
# Another id in a row changes it by about 1, another order of the sums by 1e-6.
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
    """The official inputs of the talker, and the rows of this library embedded by the same weights."""

    def __init__(self, path: Path) -> None:
        self.model = oracle.load_official(path)
        checkpoint = Checkpoint(path)
        self.builder = PromptBuilder(checkpoint, max_text_length=4000)
        self._talker = TalkerModel(checkpoint, dtype=torch.float32, device=torch.device("cpu"), max_positions=16, num_speaker_rows=2)

    @torch.inference_mode()
    def assert_same_rows(self, **fields: Any) -> None:
        """Fails unless the prompt of `fields` has the inputs of the official method for this kind of checkpoint."""
        prompt = self.builder.build(**fields)
        fed = self._fed(fields)
        rows = self._talker.embed(torch.from_numpy(prompt.text_ids).long(), self._codes_with_speaker_in_slot_1(prompt))
        torch.testing.assert_close(rows[None], fed["inputs_embeds"], rtol=0, atol=ATOL)
        assert fed["attention_mask"].all()
        nothing = torch.full((len(prompt.trailing_text_ids), 16), NO_ID)
        trailing = self._talker.embed(torch.from_numpy(prompt.trailing_text_ids).long(), nothing)
        official_trailing = fed["trailing_text_hidden"][0]
        if len(trailing) == 0:  # then tts_pad joins every frame; the official package gives it once
            official_trailing, trailing = official_trailing - fed["tts_pad_embed"][0], trailing.new_zeros(1, trailing.shape[1])
        torch.testing.assert_close(trailing, official_trailing, rtol=0, atol=ATOL)

    def _codes_with_speaker_in_slot_1(self, prompt: Prompt) -> torch.Tensor:
        codes = torch.from_numpy(prompt.codes).long()
        if prompt.speaker_embedding is not None:
            self._talker.speaker_rows[1] = torch.from_numpy(prompt.speaker_embedding)
        return torch.where(codes == SPEAKER_EMBEDDING_ID, self._talker.config.vocab_size + 1, codes)

    def _fed(self, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
        arguments = {{"voice": "speaker"}.get(name, name): value for name, value in fields.items()}
        if "voice_prompt" in arguments:
            arguments["voice_clone_prompt"] = [arguments.pop("voice_prompt")]
        methods = {"custom_voice": "custom_voice", "voice_design": "voice_design", "base": "voice_clone"}
        method = getattr(self.model, f"generate_{methods[self.builder.config.kind]}")
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


def fresh_rng() -> np.random.Generator:
    """Return a new generator for each run; pytest prints its seed if the test fails."""
    rng_seed = secrets.randbits(32)
    print(f"rng_seed = {rng_seed}")
    return np.random.default_rng(rng_seed)


def random_texts(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Yield texts that are not empty, of characters that may upset a tokenizer."""
    alphabet = [*"  \n\n\t\rabcZ9.,!?'\"-/<|>_éßñЖ你好ね😀\u200b\u0301", "<|im_end|>", "iPhone", "assistant\n"]
    for _ in range(count):
        text = "".join(rng.choice(alphabet, rng.integers(1, 40)))
        yield "a" if is_blank(text) else text


@pytest.fixture(scope="module", params=["tiny_custom_voice", "tiny_custom_voice_1b7", "tiny_published_ids"])
def custom_voice(request: pytest.FixtureRequest) -> Official:
    return Official(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def builder(tiny_custom_voice: Path) -> PromptBuilder:
    return PromptBuilder(Checkpoint(tiny_custom_voice), max_text_length=100)


@pytest.fixture(scope="module")
def instructed(tiny_custom_voice_1b7: Path) -> PromptBuilder:
    """Return a builder of a checkpoint that follows instructions."""
    return PromptBuilder(Checkpoint(tiny_custom_voice_1b7), max_text_length=100)


# Rows


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_rows_equal_the_official_ones_for_every_voice_and_language(custom_voice: Official, non_streaming_mode: bool):
    for voice, language in itertools.product(VOICES, LANGUAGES):
        custom_voice.assert_same_rows(text=TEXTS[0], voice=voice, language=language, non_streaming_mode=non_streaming_mode)


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_rows_equal_the_official_ones_for_every_text_and_instruction(custom_voice: Official, non_streaming_mode: bool):
    for text, instruct in itertools.product(TEXTS, ["", "Whisper.", "悲しそうに 😢\n小さな声で "]):
        custom_voice.assert_same_rows(text=text, voice="ryan", language="english", instruct=instruct, non_streaming_mode=non_streaming_mode)


def test_rows_equal_the_official_ones_for_random_texts(custom_voice: Official):
    rng = fresh_rng()
    for text in random_texts(rng, 40):
        custom_voice.assert_same_rows(text=text, voice="eric", language="auto", non_streaming_mode=bool(rng.integers(2)))


@pytest.mark.parametrize("non_streaming_mode", [True, False])
def test_rows_equal_the_official_ones_for_a_designed_voice(tiny_voice_design: Path, non_streaming_mode: bool):
    official = Official(tiny_voice_design)
    for text, instruct, language in itertools.product(TEXTS[:4], ["", "A warm, low voice."], ["auto", "chinese", "English"]):
        official.assert_same_rows(text=text, instruct=instruct, language=language, non_streaming_mode=non_streaming_mode)


@pytest.fixture(scope="module", params=["tiny_base", "tiny_base_1b7"])
def base(request: pytest.FixtureRequest) -> Official:
    return Official(request.getfixturevalue(request.param))


@pytest.mark.parametrize("non_streaming_mode", [True, False])
@pytest.mark.parametrize("frames", [None, 1, 13, 63, 250])
def test_rows_equal_the_official_ones_for_a_cloned_voice(base: Official, frames: int | None, non_streaming_mode: bool):
    voice = random_voice(base.builder.config, 1, frames, TEXTS[4])
    for text, language in itertools.product(TEXTS, ["auto", "chinese", "English"]):
        base.assert_same_rows(text=text, language=language, non_streaming_mode=non_streaming_mode, voice_prompt=voice)
    prompt = base.builder.build(text=TEXTS[0], voice_prompt=voice)
    assert prompt.speaker_embedding is not None
    np.testing.assert_array_equal(prompt.speaker_embedding, voice.ref_spk_embedding)
    assert (prompt.reference_codes is None) == (voice.ref_code is None)
    if prompt.reference_codes is not None and voice.ref_code is not None:
        np.testing.assert_array_equal(prompt.reference_codes, voice.ref_code)


def test_rows_equal_the_official_ones_for_random_references(base: Official):
    rng = fresh_rng()
    for text, said in zip(random_texts(rng, 30), random_texts(rng, 30), strict=True):
        voice = random_voice(base.builder.config, int(rng.integers(2**32)), int(rng.integers(1, 80)), said)
        base.assert_same_rows(text=text, language="auto", non_streaming_mode=bool(rng.integers(2)), voice_prompt=voice)


@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_a_reference_as_long_as_the_text_leaves_no_row_too_many(base: Official, difference: int):
    """Fed text lies over the frames of the reference; the longer of the two decides what is left."""
    text, spoken = "one two three", "what is said"
    num_text_rows = (
        sum(base.builder.build(text=t, voice_prompt=random_voice(base.builder.config, 1)).num_text_tokens for t in (text, spoken)) + 1
    )
    voice = random_voice(base.builder.config, 1, num_text_rows - 1 + difference, spoken)
    base.assert_same_rows(text=text, language="auto", non_streaming_mode=False, voice_prompt=voice)


def test_a_cloned_voice_is_fed_its_text_unless_told_otherwise_as_in_the_official_package(base: Official):
    voice = random_voice(base.builder.config, 1, 5)
    default, fed, whole = (base.builder.build(text=TEXTS[0], voice_prompt=voice, non_streaming_mode=mode) for mode in (None, False, True))
    assert same(default, fed)
    assert not same(default, whole)
    base.assert_same_rows(text=TEXTS[0], voice_prompt=voice)


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


# Text that comes in pieces


def assert_pieces_make_the_same_rows(builder: PromptBuilder, text: str, rng: np.random.Generator, **fields: Any) -> None:
    """Fails unless text in random pieces fills the rows of the prompt that feeds one row of the whole text with each frame."""
    whole = builder.build(text=text, non_streaming_mode=False, **fields)
    opened, rows = builder.open(**fields)
    cuts = sorted(rng.integers(0, len(text) + 1, size=int(rng.integers(0, 10))).tolist())
    ids = [i for start, stop in itertools.pairwise([0, *cuts, len(text)]) for i in rows.append(text[start:stop])]
    ids += rows.append("", is_last=True)
    expected = [*whole.text_ids, *whole.trailing_text_ids]
    padding = [builder.config.tts_pad_token_id] * (len(expected) - len(ids))
    assert ids + padding == expected
    assert rows.num_rows == len(ids)
    assert same(
        replace(opened, text_ids=whole.text_ids, trailing_text_ids=whole.trailing_text_ids, num_text_tokens=rows.num_text_tokens), whole
    )
    for ours, expected_of_voice in ((opened.speaker_embedding, whole.speaker_embedding), (opened.reference_codes, whole.reference_codes)):
        np.testing.assert_equal(ours, expected_of_voice)
    assert (len(opened), len(opened.text_ids), len(opened.trailing_text_ids)) == (len(whole), 0, 0)


def test_a_text_in_pieces_gives_the_rows_of_the_whole_text(custom_voice: Official, base: Official):
    rng = fresh_rng()
    for text in [*TEXTS, *random_texts(rng, 20)]:
        voice, language = rng.choice(VOICES), rng.choice(LANGUAGES)
        assert_pieces_make_the_same_rows(custom_voice.builder, text, rng, voice=voice, language=language, instruct="Whisper.")
        for frames in (None, 1, 40):
            clone = random_voice(base.builder.config, 1) if frames is None else random_voice(base.builder.config, 1, frames)
            assert_pieces_make_the_same_rows(base.builder, text, rng, voice_prompt=clone, language=language)


def test_a_piece_that_is_refused_is_not_part_of_the_text(builder: PromptBuilder):
    _, rows = builder.open()
    rows.append("a" * 90)
    for piece, problem in (("b" * 11, "has 101 characters; at most 100"), ("\udfff", "holds a lone surrogate"), (b"", "is a bytes")):
        with refusal("text", problem):
            rows.append(piece)  # type: ignore[arg-type]
    rows.append("", is_last=True)
    assert rows.num_text_tokens == builder.build(text="a" * 90).num_text_tokens
    _, blank = builder.open()
    blank.append(" \n")
    with refusal("text", "is empty"):
        blank.append("\u200d", is_last=True)


# Refusals


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
        ("\0\u200d\ufe0f\u00ad\ufeff", "is empty; give at least one word"),
        ("a" * 101, "has 101 characters; at most 100 are allowed"),
        ("lone \ud83d surrogate", "holds a lone surrogate; give valid Unicode text"),
        ("\udfff", "holds a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_spoken_is_refused(instructed: PromptBuilder, field: str, value: str, problem: str):
    with refusal(field, problem):
        instructed.build(text=value if field == "text" else "Hello", instruct=value if field == "instruct" else None)


@pytest.mark.parametrize("field", ["text", "instruct"])
def test_what_is_no_text_is_refused(instructed: PromptBuilder, field: str):
    fields: dict[str, Any] = {"text": "Hello", field: 5}
    with refusal(field, "is a int; give a string"):
        instructed.build(**fields)


def test_an_empty_text_is_refused_and_the_longest_is_not(builder: PromptBuilder):
    with refusal("text", "is empty"):
        builder.build(text="")
    assert len(builder.build(text="你" * 100)) > 100


def test_an_unknown_voice_is_refused_with_those_there_are(builder: PromptBuilder):
    allowed = "aiden, dylan, eric, ono_anna, ryan, serena, sohee, uncle_fu, vivian"
    with refusal("voice", f"'nobody' is unknown; allowed: {allowed}"):
        builder.build(text="Hello", voice="nobody")
    with refusal("voice", f"'Vivien' is unknown; allowed: {allowed}; did you mean vivian?"):
        builder.build(text="Hello", voice="Vivien")


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


@pytest.fixture(scope="module")
def cloner(tiny_base: Path) -> PromptBuilder:
    return PromptBuilder(Checkpoint(tiny_base), max_text_length=100)


def test_a_base_checkpoint_asks_for_a_reference(cloner: PromptBuilder):
    with refusal("reference_audio", "is missing; a base checkpoint speaks with a voice it clones"):
        cloner.build(text="Hello")


def test_a_base_checkpoint_takes_neither_a_built_in_voice_nor_an_instruction(cloner: PromptBuilder):
    voice = random_voice(cloner.config, 1, 3)
    with refusal("voice", "a base checkpoint has no built-in voices"):
        cloner.build(text="Hello", voice="ryan", voice_prompt=voice)
    with refusal("instruct", "a base checkpoint takes no instruction"):
        cloner.build(text="Hello", instruct="Whisper.", voice_prompt=voice)
    assert same(cloner.build(text="Hello", instruct="", voice_prompt=voice), cloner.build(text="Hello", voice_prompt=voice))


@pytest.mark.parametrize("kind", ["tiny_custom_voice", "tiny_voice_design"])
def test_only_a_base_checkpoint_clones(kind: str, cloner: PromptBuilder, request: pytest.FixtureRequest):
    builder = PromptBuilder(Checkpoint(request.getfixturevalue(kind)), max_text_length=100)
    with refusal("voice_prompt", f"a {builder.config.kind} checkpoint clones no voice; use one of kind base"):
        builder.build(text="Hello", voice_prompt=random_voice(cloner.config, 1))


@pytest.mark.parametrize(("text", "problem"), [("a" * 101, "has 101 characters; at most 100"), ("\udfff", "holds a lone surrogate")])
def test_a_reference_text_is_checked_where_it_is_used(cloner: PromptBuilder, text: str, problem: str):
    with refusal("ref_text", problem):
        cloner.build(text="Hello", voice_prompt=random_voice(cloner.config, 1, 3, text))
    cloner.build(text="Hello", voice_prompt=random_voice(cloner.config, 1, None, text))


def test_a_voice_of_another_checkpoint_is_refused(cloner: PromptBuilder):
    voice = VoiceClonePromptItem(None, torch.zeros(7), True, False)
    with refusal("ref_spk_embedding", "is torch.float32 of shape (7,)"):
        cloner.build(text="Hello", voice_prompt=voice)
