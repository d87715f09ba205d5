"""Other names of voices, such as the 13 of OpenAI, which their clients send whatever the server has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

# For each, the first of these that the server has; else its default voice. ada and ben are of the voice in the box.
OPENAI_VOICES: Mapping[str, tuple[str, ...]] = {
    "alloy": ("serena", "ada"),
    "ash": ("ryan", "ben"),
    "ballad": ("aiden", "ben"),
    "cedar": ("uncle_fu", "ben"),
    "coral": ("vivian", "ada"),
    "echo": ("aiden", "ben"),
    "fable": ("ryan", "ben"),
    "marin": ("serena", "ada"),
    "nova": ("vivian", "ada"),
    "onyx": ("uncle_fu", "ben"),
    "sage": ("serena", "ada"),
    "shimmer": ("vivian", "ada"),
    "verse": ("aiden", "ben"),
}


def voice_of(name: str, there: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The server's voice for the name in a request; None is its default voice.

    Args:
        name: in any case; spaces around it do not count.
        there: the voices that the server has.
        aliases: the operator's own names, in lower case; they go before OpenAI's.

    A name that is neither there nor another name of one comes back as it is, so that the server says what is allowed. In a blend,
    such as `alloy:0.7+nova:0.3`, each name may be another one.
    """
    name = name.strip()
    known, wanted = set(there), name.lower()
    if wanted in aliases:
        return aliases[wanted]
    if wanted in known:
        return wanted
    if wanted in OPENAI_VOICES:
        return next((voice for voice in OPENAI_VOICES[wanted] if voice in known), None)
    if "+" in wanted or ":" in wanted:
        parts = ([piece.strip() for piece in part.partition(":")] for part in name.split("+"))
        return "+".join((voice_of(part, known, aliases) or part) + colon + weight for part, colon, weight in parts)
    return None if wanted in ("", "default") else name


def names_in(voice: str, there: Collection[str]) -> list[str]:
    """The voices that speak: those of a blend, or `voice` itself."""
    if voice in there:
        return [voice]
    return [part.partition(":")[0].strip().lower() for part in voice.split("+")]
