"""Runs the codec decoder on the device for cohorts: streams that each bring the same number of frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.arena import Arena
from engine_lib.codec.decoder import CodecDecoder

DECODE_PIECE_FRAMES = 64  # bounds the memory of a whole decode; exact whatever its value


class CodecRunner:
    """The decoder's weights and the arena of one device."""

    def __init__(self, checkpoint: Checkpoint, *, num_slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.decoder = CodecDecoder(checkpoint, dtype=dtype, device=device)
        self.arena = Arena(self.decoder, num_slots)

    def reset(self, slots: Sequence[int]) -> None:
        """Begin a new stream in each of `slots`."""
        self.arena.reset(torch.tensor(slots, device=self.device))

    def run(self, slots: Sequence[int], codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Decode the next frames of the streams in `slots` (all different).

        Args:
            codes: [streams, frames, num_quantizers], valid ids.

        Returns:
            [streams, frames * samples_per_frame] in -1..1, or NaN where a stream's state went wrong.
        """
        audio = self.step(torch.tensor(slots, device=self.device), torch.from_numpy(codes).to(self.device))
        return audio.cpu().numpy()

    def step(self, slots: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """`run` on tensors, without a host read: states out of the arena, decode, states back."""
        audio, states = self.decoder.forward(codes, self.arena.gather(slots))
        self.arena.scatter(slots, states)
        return audio

    def decode(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """One whole utterance [frames, num_quantizers], apart from the arena: [frames * samples_per_frame]."""
        states, audio = self.decoder.new_states(1), []
        for piece in torch.from_numpy(codes).to(self.device)[None].split(DECODE_PIECE_FRAMES, dim=1):
            samples, states = self.decoder.forward(piece, states)
            audio.append(samples[0])
        return torch.cat(audio).cpu().numpy()
