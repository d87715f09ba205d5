"""Shared by all kernels: programmatic dependent launch, prefetching into L2, checks of arguments.

Programmatic dependent launch (Hopper and later) starts a kernel once every program of the kernel before it has called
`start_next`, so that kernels overlap. These rules keep that correct, also in a CUDA graph, where a later kernel may get the
memory of a freed temporary:

- Every program of every kernel here calls `wait_for_previous`, on every path. It returns when the kernel before has ended and
  its writes are visible. That kernel could not end before its own wait returned, and so on: after the wait *all* earlier kernels
  of the stream have ended, also those several launches back, and the memory they read may be overwritten.
- Before the wait a kernel writes nothing. It reads only weights, which were complete when the model was loaded, values written
  before a gate, and the plan of a codec step (packed.py), which was complete before the step's first kernel began.
- Each sampling of a code is a gate: a kernel that calls `start_next` only after its own wait. So a kernel behind the gate starts
  when all kernels before the gate have ended, and can read early the values that the code predictor had cached by then.
- Work launched without the attribute (cuBLAS, torch's own kernels, copies) starts only when the kernel before has ended, and a
  kernel here that follows such work waits for its end too.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@lru_cache
def is_hopper(device: torch.device) -> bool:
    """Whether the instructions of compute capability 9.0 are available."""
    return not INTERPRETED.value and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(device: torch.device) -> dict[str, Any]:
    """Arguments of every launch; HOPPER is also a constexpr of every kernel.

    Raises:
        ValueError: the tensors are not on the thread's current GPU. Triton launches there and would fault on their addresses.
    """
    if device.type == "cuda":
        current = torch.cuda.current_device()
        check(
            device.index == current, f"device: the tensors are on {device}, this thread is on cuda:{current}; torch.cuda.set_device first"
        )
    return {"HOPPER": True, "launch_pdl": True} if is_hopper(device) else {"HOPPER": False}


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition`."""
    if not condition:
        raise ValueError(message)


def check_rows(name: str, tensor: torch.Tensor, *shape: int) -> None:
    """Refuse a tensor of another shape, or with gaps in its last dimension."""
    check(tuple(tensor.shape) == shape, f"{name}: the shape is {tuple(tensor.shape)}; {shape} is expected")
    check(tensor.stride(-1) == 1, f"{name}: the last dimension has stride {tensor.stride(-1)}; it must be 1")


def check_aligned(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that bulk copies cannot read: they take addresses that are multiples of 16."""
    check(tensor.data_ptr() % 16 == 0, f"{name}: the address {tensor.data_ptr():#x} is not a multiple of 16")


@triton.jit
def start_next(HOPPER: tl.constexpr):
    """Let the next kernel of the stream start now."""
    if HOPPER:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(HOPPER: tl.constexpr):
    """Wait until the kernels before this one have ended and their writes are visible."""
    if HOPPER:
        gdc_wait()


@triton.jit
def prefetch_to_l2(address, num_bytes, NUM_WARPS: tl.constexpr):
    """Ask for `num_bytes` (a multiple of 16) from `address` (int64, 16-byte aligned) to be in L2; returns at once. Needs HOPPER.

    Each warp asks for its share in one instruction. All its threads give the same address, because the instruction takes one
    address a warp and would be repeated for every other one.
    """
    share = tl.cdiv(num_bytes, NUM_WARPS * 16) * 16
    start = tl.arange(0, NUM_WARPS * 32) // 32 * share
    tl.inline_asm_elementwise(
        "{ .reg .pred some; setp.gt.s32 some, $2, 0; @some cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [address + start, tl.minimum(num_bytes - start, share)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def matmul(a, b, acc):
    """acc + a @ b in float32, without rounding float32 operands to tf32. (The interpreter has no arithmetic in bfloat16.)"""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def times(a, b, dtype: tl.constexpr):
    """a * b, rounded to `dtype`."""
    return (a.to(tl.float32) * b.to(tl.float32)).to(dtype)


@triton.jit
def times_packed(a, b, dtype: tl.constexpr, HOPPER: tl.constexpr):
    """`times`, two bfloat16 products at a time with HOPPER; both operands must be of `dtype` and of one shape."""
    if HOPPER and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("mul.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2)
    return times(a, b, dtype)


@triton.jit
def plus(a, b, dtype: tl.constexpr):
    """a + b, rounded to `dtype`."""
    return (a.to(tl.float32) + b.to(tl.float32)).to(dtype)
