"""How many values a JSON text may have: all streams of a gateway wait while it is parsed.

32 MiB of empty lists are ten million objects of Python, for seconds; as base64 or as text they are parsed in milliseconds.
"""

from __future__ import annotations

MOST_VALUES = 500_000  # some 0.1 s; a batch of 1,000 requests has 30,000
TOO_MANY = f"the JSON has too many values; allowed: {MOST_VALUES}"


def num_values(text: bytes | bytearray) -> int:
    """At least as many as the values in `text`, by the characters that begin or separate them; those in strings count, too."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")
