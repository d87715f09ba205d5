"""Blends of voices: their text, their arithmetic, and their speech."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from api.loading import GREEDY, load
from hypothesis import given, settings
from hypothesis import strategies as st
from random_voices import random_voice
from safetensors.torch import load_file, save_file

import oracle
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.checkpoint import Checkpoint
from engine_lib.errors import InvalidRequestError, NotFoundError
from engine_lib.speech.blend import MAX_VOICES, Blend
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.store import VoiceStore

TEXT = "Good morning! How are you today?"
SHORT: dict[str, Any] = GREEDY | {"max_new_tokens": 10}
TABLE = "talker.model.codec_embedding.weight"


@pytest.mark.parametrize(
    ("text", "names", "shares"),
    [
        ("anna:0.7+ben:0.3", ("anna", "ben"), (0.7, 0.3)),
        (" Anna : 7 + BEN : 3 ", ("anna", "ben"), (0.7, 0.3)),
        ("anna+ben+cleo+dan", ("anna", "ben", "cleo", "dan"), (0.25,) * 4),
        ("anna:0.4", ("anna",), (1.0,)),
        ("a:1e308+b:1e308", ("a", "b"), (0.5, 0.5)),
        ("+".join(f"v{i}:2" for i in range(MAX_VOICES)), tuple(f"v{i}" for i in range(MAX_VOICES)), (1 / MAX_VOICES,) * MAX_VOICES),
    ],
)
def test_a_blend_names_voices_and_their_shares(text: str, names: tuple[str, ...], shares: tuple[float, ...]) -> None:
    blend = Blend.parse(text)
    assert blend.names == names
    assert blend.shares == pytest.approx(shares)
    assert Blend.parse(str(blend)).shares == pytest.approx(shares, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna:0.7+ben", "has a weight for some of its voices; give one to each, or to none"),
        ("anna:0+ben:1", "the weight of 'anna' is '0'; give a number above 0"),
        ("anna:-1+ben:1", "the weight of 'anna' is '-1'; give a number above 0"),
        ("anna:nan+ben:1", "the weight of 'anna' is 'nan'"),
        ("anna:inf+ben:1", "the weight of 'anna' is 'inf'"),
        ("anna:+ben:1", "the weight of 'anna' is ''"),
        ("anna:0.5:0.5", "the weight of 'anna' is '0.5:0.5'"),
        ("anna++ben", "'anna++ben' has a part without a name; a blend is NAME:WEIGHT+NAME:WEIGHT.."),
        (":", "has a part without a name"),
        ("Anna+anna", "'anna' is twice in the blend; name each voice once"),
        ("+".join(f"v{i}" for i in range(MAX_VOICES + 1)), "blends 9 voices; at most 8 are allowed"),
        ("a+" * 600, "has 1200 characters; a blend has at most 1024"),
    ],
)
def test_what_is_wrong_with_a_blend_is_said(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        Blend.parse(text)
    assert str(error.value).startswith("voice: ")
    assert message in str(error.value)


@given(st.text(alphabet=st.sampled_from("ab:+. 019e-_\u00e9\u0661"), max_size=30) | st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_blend_or_is_refused(text: str) -> None:
    try:
        blend = Blend.parse(text)
    except InvalidRequestError:
        return
    assert 1 <= len(set(blend.names)) == len(blend.names) == len(blend.shares) <= MAX_VOICES
    assert sum(blend.shares) == pytest.approx(1)
    assert blend.main in blend.names
    assert np.isfinite(blend.mix(vectors(len(blend.names)))).all()


def vectors(count: int) -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    return [(rng.normal(size=64) * (i + 1)).astype(np.float32) for i in range(count)]


def test_a_blend_keeps_the_weighted_length_and_leans_to_the_larger_share() -> None:
    a, b = vectors(2)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    for share in (0.1, 0.5, 0.9):
        mixed = Blend.parse(f"a:{share}+b:{1 - share}").mix([a, b])
        assert mixed.dtype == np.float32
        assert np.linalg.norm(mixed) == pytest.approx(share * lengths[0] + (1 - share) * lengths[1], rel=1e-5)
        direction = share * a + (1 - share) * b
        assert mixed @ direction == pytest.approx(np.linalg.norm(mixed) * np.linalg.norm(direction), rel=1e-5)
    assert Blend.parse("a:2").mix([a]) is a


def test_the_order_of_the_voices_does_not_matter() -> None:
    parts = list(zip("abc", (0.5, 0.3, 0.2), vectors(3), strict=True))
    mixed = [
        Blend.parse("+".join(f"{name}:{share}" for name, share, _ in order)).mix([vector for *_, vector in order])
        for order in permutations(parts)
    ]
    for other in mixed[1:]:
        np.testing.assert_allclose(other, mixed[0], rtol=1e-6, atol=1e-7)


def test_voices_that_cancel_each_other_out_are_refused() -> None:
    [a] = vectors(1)
    with pytest.raises(InvalidRequestError, match="cancel each other out; give other weights"):
        Blend.parse("a+b").mix([a, -a])


# built-in speakers


@pytest.fixture(scope="module")
def tts(tiny_custom_voice_1b7: Path) -> Any:
    with load(tiny_custom_voice_1b7) as model:
        yield model


def codes(tts: Qwen3TTS, speaker: str, **arguments: Any) -> list[list[int]]:
    [made] = tts.generate_codes(TEXT, speaker, **(SHORT | arguments))
    rows: list[list[int]] = made.tolist()
    return rows


def test_a_blend_of_one_speaker_gives_its_codes_token_for_token(tts: Qwen3TTS) -> None:
    for speaker in ("ryan", "eric", "Vivian"):  # eric has a dialect
        assert codes(tts, f"{speaker}:1") == codes(tts, speaker)


def test_a_blend_speaks_as_the_official_package_with_the_mixed_row(tts: Qwen3TTS, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tts.checkpoint.path, tmp_path / "mixed"))
    tensors = load_file(folder / "model.safetensors")
    ids = tts.checkpoint.config.talker.speaker_ids
    rows = [tensors[TABLE][ids[name]].float().numpy() for name in ("vivian", "ryan")]
    tensors[TABLE][3000] = torch.from_numpy(Blend.parse("vivian:0.7+ryan:0.3").mix(rows))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["talker_config"]["spk_id"]["mixed"] = 3000
    config["talker_config"]["spk_is_dialect"]["mixed"] = False
    (folder / "config.json").write_text(json.dumps(config))
    [expected], _ = oracle.official_codes(folder, text=TEXT, speaker="mixed", decode=False, **SHORT)
    assert codes(tts, "vivian:0.7+ryan:0.3") == expected.tolist()
    assert codes(tts, "Ryan:3 + Vivian:7") == expected.tolist()
    assert codes(tts, "vivian") != expected.tolist() != codes(tts, "ryan")
    with load(folder) as other:
        assert codes(other, "mixed") == expected.tolist()


def test_text_in_pieces_is_spoken_by_a_blend(tts: Qwen3TTS) -> None:
    speaker = "vivian:0.7+ryan:0.3"
    whole, _ = tts.generate_custom_voice(TEXT, speaker, non_streaming_mode=False, **SHORT)
    pieces = np.concatenate([chunk.audio for chunk in tts.stream_custom_voice(iter([TEXT[:9], TEXT[9:]]), speaker, **SHORT)])
    np.testing.assert_allclose(pieces, whole[0], atol=1e-5, rtol=0)


def test_the_largest_share_decides_on_the_dialect(tts: Qwen3TTS) -> None:
    """eric speaks a dialect of Chinese, ryan none."""
    prompts = tts._utterances.prompts

    def tags(voice: str, language: str) -> list[int]:
        ids: list[int] = prompts.build(text=TEXT, voice=voice, language=language).codes[:, 0].tolist()
        return ids

    talker = tts.checkpoint.config.talker
    dialect = talker.language_ids[talker.speaker_dialects["eric"] or ""]
    for voice, has_dialect in (("eric:0.6+ryan:0.4", True), ("eric+ryan", True), ("ryan+eric", False), ("eric:0.4+ryan:0.6", False)):
        assert (dialect in tags(voice, "auto")) is has_dialect
        assert dialect not in tags(voice, "english")


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        ("ryan:0.5+bob:0.5", "speaker: in the blend, 'bob' is unknown; allowed: "),
        ("ryan:x", "speaker: the weight of 'ryan' is 'x'"),
        ("ryan+", "speaker: 'ryan+' has a part without a name"),
    ],
)
def test_an_error_names_the_part(tts: Qwen3TTS, speaker: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        tts.generate_codes(TEXT, speaker, **SHORT)
    assert message in str(error.value)
    assert isinstance(error.value, NotFoundError) is ("unknown" in message)


def test_a_speaker_with_the_name_of_a_blend_goes_first(tiny_custom_voice: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_custom_voice, tmp_path / "named"))
    config = json.loads((folder / "config.json").read_text())
    config["talker_config"]["spk_id"]["Vivian+Ryan"] = config["talker_config"]["spk_id"]["eric"]
    (folder / "config.json").write_text(json.dumps(config))
    with load(folder) as tts:
        assert codes(tts, "vivian+ryan", language="english") == codes(tts, "eric", language="english")


# stored voices


def test_stored_voices_blend_by_their_speaker_embeddings(tiny_base: Path, tmp_path: Path) -> None:
    config = Checkpoint(tiny_base).config
    store = VoiceStore(tmp_path / "voices", max_voices=10, max_voice_bytes=10**6)
    facts: dict[str, Any] = {"consent": "Yes.", "reference_seconds": 1.0, "reference_sample_rate": 24000, "made_by": "base"}
    anna, ben = random_voice(config, 1, frames=5), random_voice(config, 2)
    store.add("anna", anna, **facts)
    store.add("ben", ben, **facts)
    with load(tiny_base, voice_store=str(tmp_path / "voices")) as tts:

        def spoken(**voice: Any) -> list[list[int]]:
            [made] = tts.generate_codes(TEXT, language="english", **(SHORT | voice))
            rows: list[list[int]] = made.tolist()
            return rows

        def alone(embedding: torch.Tensor) -> list[list[int]]:
            return spoken(voice_clone_prompt=VoiceClonePromptItem(None, embedding, x_vector_only_mode=True, icl_mode=False))

        assert spoken(voice="ben:1") == spoken(voice="ben")
        assert spoken(voice="anna:1") == alone(anna.ref_spk_embedding) != spoken(voice="anna")  # in context, with its reference
        mixed = Blend.parse("anna:0.7+ben:0.3").mix([anna.ref_spk_embedding.numpy(), ben.ref_spk_embedding.numpy()])
        assert spoken(voice="anna:0.7+ben:0.3") == alone(torch.from_numpy(mixed))
        with pytest.raises(NotFoundError, match=r"^voice: in the blend, 'cleo' is not a stored voice; stored: anna, ben$"):
            spoken(voice="anna+cleo")
        with pytest.raises(InvalidRequestError, match=r"^voice: in the blend, '\.\./x' is not allowed as the name of a voice"):
            spoken(voice="anna+../x")
