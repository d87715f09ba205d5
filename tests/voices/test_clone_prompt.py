"""A voice prompt that does not fit the checkpoint is refused by field; content keys tell voices apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_voices import random_voice

from engine_lib.checkpoint import Checkpoint
from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.voices.clone_prompt import VoiceClonePromptItem


@pytest.fixture(scope="module")
def config(tiny_base: Path) -> CheckpointConfig:
    return Checkpoint(tiny_base).config


def voice(config: CheckpointConfig, **fields: Any) -> VoiceClonePromptItem:
    """A voice of random content, to be cloned in context, with `fields` in place of its own."""
    return replace(random_voice(config, 7, 13, "what is said"), **fields)


def test_a_checked_voice_is_int64_and_float32_on_the_cpu(config: CheckpointConfig):
    given = voice(config)
    assert given.ref_code is not None
    low = replace(given, ref_code=given.ref_code.to(torch.int16), ref_spk_embedding=given.ref_spk_embedding.to(torch.bfloat16))
    checked = low.checked(config)
    assert checked.ref_code is not None
    assert checked.ref_code.dtype == torch.int64
    assert checked.ref_code.equal(given.ref_code)
    assert checked.ref_spk_embedding.dtype == torch.float32
    assert checked.ref_spk_embedding.equal(low.ref_spk_embedding.float())
    assert (checked.x_vector_only_mode, checked.icl_mode, checked.ref_text) == (False, True, "what is said")


def test_an_x_vector_alone_needs_neither_text_nor_codes(config: CheckpointConfig):
    for text in (None, "", "not used"):
        checked = voice(config, ref_code=None, x_vector_only_mode=True, icl_mode=False, ref_text=text).checked(config)
        assert checked.ref_code is None
        assert checked.ref_text == text


CODES = torch.zeros(3, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x_vector_only_mode": True}, "icl_mode: and x_vector_only_mode are both True"),
        ({"icl_mode": False}, "icl_mode: and x_vector_only_mode are both False"),
        ({"icl_mode": 1}, "icl_mode: is a int; give True or False"),
        ({"ref_spk_embedding": [0.0]}, "ref_spk_embedding: is a list; give a torch.Tensor"),
        ({"ref_spk_embedding": torch.zeros(3)}, r"ref_spk_embedding: is torch.float32 of shape \(3,\); .* shape \(64,\)"),
        ({"ref_spk_embedding": torch.zeros(1, 64)}, r"ref_spk_embedding: .* shape \(1, 64\)"),
        ({"ref_spk_embedding": torch.zeros(64, dtype=torch.int64)}, "ref_spk_embedding: is torch.int64"),
        ({"ref_spk_embedding": torch.full((64,), torch.nan)}, "ref_spk_embedding: .* not a finite number"),
        ({"ref_spk_embedding": torch.full((64,), torch.inf)}, "ref_spk_embedding: .* not a finite number"),
        ({"ref_spk_embedding": torch.full((64,), 1e300, dtype=torch.float64)}, "ref_spk_embedding: .* not a finite number"),
        ({"ref_text": None}, "ref_text: is empty"),
        ({"ref_text": " \n"}, "ref_text: is empty"),
        ({"ref_text": b"words"}, "ref_text: is a bytes"),
        ({"ref_code": None}, r"ref_code: is a NoneType; .* \[frames, 16\]"),
        ({"ref_code": CODES[:0]}, r"ref_code: is torch.int64 of shape \(0, 16\)"),
        ({"ref_code": CODES[:, :15]}, r"ref_code: .* shape \(3, 15\); integers of shape \(frames, 16\)"),
        ({"ref_code": CODES[0]}, r"ref_code: .* shape \(16,\)"),
        ({"ref_code": CODES.float()}, "ref_code: is torch.float32"),
        ({"ref_code": CODES - 1}, "ref_code: holds values -1 to -1; only 0 to"),
        ({"ref_code": CODES + 1_000_000}, "ref_code: holds values 1000000 to 1000000"),
        ({"ref_code": CODES, "x_vector_only_mode": True, "icl_mode": False}, "ref_code: is given with x_vector_only_mode"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_voice_that_does_not_fit_is_refused_by_its_field(config: CheckpointConfig, fields: dict[str, Any], message: str):
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        voice(config, **fields).checked(config)


def test_the_content_key_is_that_of_the_content(config: CheckpointConfig):
    given = voice(config)
    assert given.ref_code is not None
    codes, embedding = given.ref_code.clone(), given.ref_spk_embedding.clone()
    codes[5, 3] ^= 1
    embedding[9] += 1e-6
    others = [
        replace(given, ref_code=codes),
        replace(given, ref_code=given.ref_code.view(26, 8)),
        replace(given, ref_code=None),
        replace(given, ref_spk_embedding=embedding),
        replace(given, ref_text=None),
        replace(given, ref_text=""),
        replace(given, ref_text="what is sai"),
        replace(given, ref_code=None, x_vector_only_mode=True, icl_mode=False),
    ]
    keys = {item.content_key for item in [given, *others]}
    assert len(keys) == 1 + len(others)
    assert all(len(key) == 64 for key in keys)
    assert given.content_key == replace(given, ref_code=given.ref_code.to(torch.int16)).content_key == voice(config).content_key
