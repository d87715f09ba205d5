"""Rotary position embedding (Su et al. 2021) in the half-split form of the official package.

The talker's three M-RoPE rows carry equal positions for this model, so plain RoPE is exact for it (tests/talker/test_rope.py).
"""

from __future__ import annotations

import torch


def inverse_frequencies(head_dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """theta ** (-2i / head_dim) for i in 0..head_dim/2: [head_dim / 2], float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(device=device, dtype=torch.float32) / head_dim
    return 1.0 / (theta**exponents)


def rope_cos_sin(positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles at `positions`.

    Args:
        positions: [...], any integer dtype.
        frequencies: [head_dim / 2] from `inverse_frequencies`.
        dtype: of the result; the angles are computed in float32.

    Returns:
        cos, sin: [..., head_dim / 2].
    """
    angles = positions.to(torch.float32)[..., None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (x[i], x[i + head_dim / 2]).

    Args:
        x: [..., heads, head_dim].
        cos, sin: [..., head_dim / 2], broadcast over the heads.

    Returns:
        Same shape and dtype as `x`.
    """
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
