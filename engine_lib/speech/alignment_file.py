"""alignment.json: which heads of a talker follow the text, and how their attention becomes times.

scripts/calibrate_alignment.py finds them and writes the file beside the weights. Without it a checkpoint gives no timestamps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine_lib.errors import CheckpointError

ALIGNMENT_FILE = "alignment.json"
MAX_HEADS = 8
MAX_TEXT_ROWS = 1024  # tokens of one text, and the row that ends it; the device has room for so many
MAX_SECONDS = 2.0  # of `offset` and `lead`


@dataclass(frozen=True)
class Alignment:
    """The content of the file.

    Attributes:
        heads: (layer, head) of each, 1 to 8.
        offset: seconds from the attention to the sound, as in Timing.
        lead: seconds of silence before the first word, as in Timing.
        within_100_ms: share of word starts within 100 ms on held-out sentences, for people to read.
    """

    heads: tuple[tuple[int, int], ...]
    offset: float
    lead: float
    within_100_ms: float | None = None

    @classmethod
    def read(cls, folder: Path, *, layers: int, heads: int) -> Alignment | None:
        """The file in `folder`, for a talker of `layers` layers with `heads` heads each; None if there is none.

        Raises:
            CheckpointError: it is not such a file, or not for this talker.
        """
        file = folder / ALIGNMENT_FILE
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: {error}; make it again with scripts/calibrate_alignment.py") from None
        problem = _problem(content, layers, heads)
        if problem:
            raise CheckpointError(f"{file}: {problem}; make it again with scripts/calibrate_alignment.py")
        pairs = tuple((layer, head) for layer, head in content["heads"])
        return cls(pairs, float(content["offset"]), float(content["lead"]), content.get("within_100_ms"))

    def write(self, folder: Path) -> Path:
        """Write the file into `folder`; returns its path."""
        file = folder / ALIGNMENT_FILE
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return file


def _problem(content: Any, layers: int, heads: int) -> str:
    """What is wrong with the content of a file; "" if nothing is."""
    if not isinstance(content, dict):
        return "is not a JSON object"
    pairs = content.get("heads")
    if not isinstance(pairs, list) or not 1 <= len(pairs) <= MAX_HEADS:
        return f"heads: {pairs!r:.100} is not allowed; give a list of 1 to {MAX_HEADS} pairs [layer, head]"
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int for number in pair):
            return f"heads: {pair!r:.100} is not a pair [layer, head]"
        if not (0 <= pair[0] < layers and 0 <= pair[1] < heads):
            return f"heads: {pair} is not there; this talker has layers 0 to {layers - 1} with heads 0 to {heads - 1}"
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        return "heads: one is named twice"
    for name, lowest in (("offset", -MAX_SECONDS), ("lead", 0.0)):
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= MAX_SECONDS:
            return f"{name}: {value!r:.100} is not allowed; give seconds from {lowest:g} to {MAX_SECONDS:g}"
    return ""
