"""Keys that name the content of KV blocks, so that prompts that begin alike share keys and values.

A row's keys and values depend on its own input and on all rows before it, so the key of a block is a digest over its rows and
the key of the block before. SHA-256, because a collision would let one user speak with another's voice.
"""

from __future__ import annotations

import hashlib

from engine_lib.prompt import SPEAKER_EMBEDDING_ID
from engine_lib.talker.sequence import Sequence


class BlockKeys:
    """Computes the keys of a sequence's blocks, each once."""

    def __init__(self, block_size: int, pad_text_id: int) -> None:
        """`block_size` is in rows; `pad_text_id` is the text of frames after a sequence's own text."""
        self._block_size, self._pad_text_id = block_size, pad_text_id

    def of(self, sequence: Sequence, num_rows: int) -> list[bytes]:
        """The keys of the blocks that the first `num_rows` rows of `sequence` fill."""
        keys, size = sequence.block_keys, self._block_size
        num_blocks = num_rows // size
        for block in range(len(keys), num_blocks):
            text_ids, codes = sequence.rows(block * size, (block + 1) * size, self._pad_text_id)
            digest = hashlib.sha256(keys[-1] if keys else b"")
            digest.update(text_ids.tobytes())
            digest.update(codes.tobytes())
            if sequence.prompt.speaker_embedding is not None and (codes[:, 0] == SPEAKER_EMBEDDING_ID).any():
                digest.update(sequence.prompt.speaker_embedding.tobytes())
            keys.append(digest.digest())
        return keys[:num_blocks]
