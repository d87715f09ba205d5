"""A key for the voice of a request, by which facts about it are remembered, such as its loudness."""

from __future__ import annotations

import hashlib

from engine_lib.voices.clone_prompt import VoiceClonePromptItem


def voice_key(speaker: str | None, instruct: str | None = None, voice: VoiceClonePromptItem | None = None) -> str:
    """The key of a voice of one checkpoint.

    Args:
        speaker: a built-in one, or None.
        instruct: describes the voice if there is neither a speaker nor a cloned voice.
        voice: a cloned one, or None.
    """
    if voice is not None:
        return f"cloned/{voice.content_key}"
    if speaker:
        return f"built-in/{speaker.lower()}"
    return f"described/{hashlib.sha256((instruct or '').encode('utf-8', 'surrogatepass')).hexdigest()}"
