"""Counter-based random numbers: Philox 4x32-10.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A number depends on its key and counter alone, here
(seed; codebook, frame), so a request gets the same random numbers alone, in a batch, after a preemption, on CPU and on GPU.
"""

from __future__ import annotations

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random 32-bit words for each counter.

    Args:
        counter, key: int64 tensors of values below 2**32, broadcast against each other.

    Returns:
        int64 tensors of values below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words wraps in int64, but its low and high words are right all the same.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _WORD, (k1 + _KEY_INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def frame_uniforms(seeds: torch.Tensor, frames: torch.Tensor, num_code_groups: int) -> torch.Tensor:
    """The uniform random numbers with which one frame is sampled.

    Args:
        seeds: [batch] int64, not negative.
        frames: [batch], index of the frame within its request.
        num_code_groups: codebooks in a frame.

    Returns:
        [batch, num_code_groups] float32 in [0, 1), multiples of 2**-24.
    """
    codebooks = torch.arange(num_code_groups, device=seeds.device)[None]
    zero = torch.zeros_like(codebooks)
    key = (seeds & _WORD)[:, None], (seeds >> 32)[:, None]
    word = philox((codebooks, frames.to(torch.int64)[:, None], zero, zero), key)[0]
    return (word >> 8).to(torch.float32) * 2.0**-24
