"""FP8 codes (e4m3) as numbers, exactly, in the registers of a kernel: the weights of ops/fp8.py.

A code has the bits s eeee mmm. Put as s 0000eeee mmm0000 into a bfloat16, which has a wider exponent with another bias, they are
the number times 2 ** -120; subnormal codes become subnormal numbers. So a product by 2 ** 120 is all the arithmetic it takes. That
is ten instructions for four codes on every GPU with bfloat16. Triton's own conversion goes through float16, one number at a time, by
a slow unit that would take longer than the memory, and does not compile below compute capability 9.0.

Kernels load four codes as one int32: from loads of single bytes Triton would choose layouts that need exchanges between threads.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine_lib.kernels.launch import INTERPRETED, check, check_aligned, check_rows
from engine_lib.ops.fp8 import Fp8Weight

CODES_A_WORD = tl.constexpr(4)
BIAS_FACTOR = tl.constexpr(2.0**120)


def words_of(weight: Fp8Weight) -> torch.Tensor:
    """[out, in / 4] int32: the codes of `weight`, whose rows must be contiguous and of whole words; shares memory."""
    out_features, in_features = weight.shape
    check_rows("scales", weight.scales, out_features)
    check(in_features % CODES_A_WORD.value == 0, f"weight: {in_features} columns are no multiple of {CODES_A_WORD.value}, as FP8 needs")
    check(weight.codes.is_contiguous(), f"weight: strides {weight.codes.stride()} are not those of a contiguous matrix")
    check_aligned("weight", weight.codes)
    return weight.codes.view(torch.int32)


@triton.jit
def numbers_of(words, dtype: tl.constexpr):
    """[..., 2, 2] of `dtype` from `words` [...] int32: the four codes of a word in memory's order."""
    if dtype == tl.bfloat16 and not INTERPRETED:
        a, b, c, d = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, low_bits, high_bits;
            prmt.b32 low, $4, 0, 0x1404;
            prmt.b32 high, $4, 0, 0x3424;
            shr.u32 low_bits, low, 4;
            shr.u32 high_bits, high, 4;
            and.b32 low_bits, low_bits, 0x07f007f0;
            and.b32 high_bits, high_bits, 0x07f007f0;
            and.b32 low, low, 0x80008000;
            and.b32 high, high, 0x80008000;
            or.b32 low, low, low_bits;
            or.b32 high, high, high_bits;
            mov.b32 {$0, $1}, low;
            mov.b32 {$2, $3}, high;
            }""",
            "=h,=h,=h,=h,r",
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=1,
        )
    else:
        a, b, c, d = _number(words, 0, dtype), _number(words, 1, dtype), _number(words, 2, dtype), _number(words, 3, dtype)
    pairs = tl.join(tl.join(a, b), tl.join(c, d))  # [..., place in a pair, pair]
    numbers = tl.permute(pairs, (0, 1, 3, 2)) if len(words.shape) == 2 else tl.permute(pairs, (0, 1, 2, 3, 4, 5, 7, 6))
    if dtype == tl.bfloat16 and not INTERPRETED:
        # Not pure, so that Triton does not look beyond it for the width of a load: it would choose an operand's layout by that.
        numbers = tl.inline_asm_elementwise(
            "{ .reg .b32 factor, zero; mov.b32 factor, 0x7b807b80; mov.b32 zero, 0x80008000; fma.rn.bf16x2 $0, $1, factor, zero; }",
            "=r,r",
            [numbers],
            dtype=tl.bfloat16,
            is_pure=False,
            pack=2,
        )
    return numbers


@triton.jit
def _number(words, byte: tl.constexpr, dtype: tl.constexpr):
    """Byte `byte` of each word, from the lowest, as a number: the same by float32, in which the bits stand 16 places higher."""
    code = words >> (8 * byte)
    bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
    return (bits.to(tl.float32, bitcast=True) * BIAS_FACTOR).to(dtype)
