"""CodecRunner: the decoder and its arena on one device; decodes cohorts, streams that each bring the same number of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.arena import StateArena
from engine_lib.codec.decoder import CodecDecoder

MAX_PIECE_FRAMES = 64


class CodecRunner:
    """Weights and stream state on one device."""

    def __init__(self, checkpoint: Checkpoint, num_slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights and allocate state for `num_slots` streams, each of them new.

        Raises:
            CheckpointError: a weight is missing or has another shape.
        """
        self.device = device
        weights = checkpoint.speech_tokenizer_weights()
        self.decoder = CodecDecoder(weights, checkpoint.config.codec, dtype=dtype, device=device)
        self.arena = StateArena(self.decoder.streaming_layers(), num_slots, device)

    @staticmethod
    def piece_frames(frames: int) -> int:
        """How many of `frames` frames of one stream to decode in one step, so that none holds up the others for long."""
        return min(frames, MAX_PIECE_FRAMES)

    def reset(self, slot: int) -> None:
        """Make `slot` that of a new stream."""
        self.arena.reset(slot)

    @torch.inference_mode()
    def step(self, slots: Sequence[int], codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Decode the next frames of the streams in `slots`.

        Args:
            slots: all different; `arena.scratch_slot` alone may repeat, for rows that fill up a batch.
            codes: [len(slots), frames, num_quantizers], each in 0..codebook_size - 1; the caller has checked that.

        Returns:
            [len(slots), frames * samples_per_frame] in -1..1; a row whose state has gone wrong holds NaN.
        """
        slots_there = torch.tensor(slots, dtype=torch.int64).to(self.device)
        codes_there = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        return self._decode(slots_there, codes_there).cpu().numpy()

    def _decode(self, slots: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The part of `step` that runs on the device alone: no host reads, shapes by cohort size and frames only."""
        state = self.arena.batch(slots)
        audio = self.decoder(codes, state)
        state.advance(codes.shape[1])
        return audio
