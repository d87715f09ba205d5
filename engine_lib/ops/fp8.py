"""FP8 weights: e4m3 codes with one scale an output channel, a power of two.

A code is a float of 4 significant bits, so a finer scale would not make it more precise; a scale only moves the range, which is wide:
codes keep all their bits down to 1/28,672 of the largest. And with a power of two, scaling is exact:

- codes times scales are exact in bfloat16 and float32, so weights that are rounded once can be kept in any of the three forms;
- the scale may go before a product, behind its sum in float32 or behind a norm: the bits are the same.

So the plain path multiplies by rounded weights in the talker's dtype, the kernels by codes, and they agree as they do without FP8.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch
import torch.nn.functional as F

CODES = torch.float8_e4m3fn
LARGEST_EXPONENT, LARGEST_MANTISSA = 9, 0.875  # of the largest code, 448
SMALLEST_SCALE = -117  # exponent; times the smallest code, 2 ** -9, it is the smallest normal float32
FLOAT32_BIAS, FLOAT32_FRACTION_BITS = 127, 23


class WeightFormat(Enum):
    """In which form a transformer holds the weights of its products."""

    CHECKPOINT = auto()  # as they are, in the talker's dtype
    FP8_ROUNDED = auto()  # rounded to FP8, in the talker's dtype: for torch's products
    FP8 = auto()  # Fp8Weight: for our kernels


@dataclass(frozen=True)
class Fp8Weight:
    """A weight [out, in] as codes times scales.

    Attributes:
        codes: [out, in] float8_e4m3fn.
        scales: [out] float32, powers of two.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Fp8Weight:
        """The nearest to `weight` [out, in], finite. Error of an element: 2 ** -4 of itself or 2 ** -10 of its scale, at most."""
        weight = weight.float()
        scales = channel_scales(weight)
        return cls((weight / scales[:, None]).to(CODES), scales)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[out, in] in `dtype`, bfloat16 or wider, exact. `of` its result is the same weight."""
        return self.codes.to(dtype) * self.scales[:, None].to(dtype)

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


# A weight [out, in] of a product.
Weight = torch.Tensor | Fp8Weight


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias by torch. It makes FP8 weights dense for each call, so a model for torch holds FP8_ROUNDED."""
    return F.linear(x, weight.dense(x.dtype) if isinstance(weight, Fp8Weight) else weight, bias)


def channel_scales(weight: torch.Tensor) -> torch.Tensor:
    """[out] float32 for `weight` [out, in] float32: the smallest power of two that brings a channel into the range of codes."""
    mantissas, exponents = torch.frexp(weight.abs().amax(1))
    exponents = exponents - LARGEST_EXPONENT + (mantissas > LARGEST_MANTISSA)
    exponents = torch.where(mantissas == 0, 0, exponents).clamp(min=SMALLEST_SCALE)
    return ((exponents.to(torch.int32) + FLOAT32_BIAS) << FLOAT32_FRACTION_BITS).view(torch.float32)  # a pow() might round
