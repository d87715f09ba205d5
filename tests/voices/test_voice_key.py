"""A voice has one key, whatever text it speaks; other voices have others."""

from __future__ import annotations

import torch

from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.voice_key import voice_key


def cloned(value: float) -> VoiceClonePromptItem:
    return VoiceClonePromptItem(None, torch.full((4,), value), x_vector_only_mode=True, icl_mode=False)


def test_a_key_is_that_of_the_voice_alone() -> None:
    assert voice_key("Ryan") == voice_key("ryan", "softly")
    assert voice_key(None, voice=cloned(1.0)) == voice_key(None, "softly", cloned(1.0))
    assert voice_key(None, "a deep voice") == voice_key("", "a deep voice")


def test_other_voices_have_other_keys() -> None:
    keys = [
        voice_key("ryan"),
        voice_key("serena"),
        voice_key(None, voice=cloned(1.0)),
        voice_key(None, voice=cloned(2.0)),
        voice_key(None, "a deep voice"),
        voice_key(None, "a high voice"),
        voice_key(None),
    ]
    assert len(set(keys)) == len(keys)
