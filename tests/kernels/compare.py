"""The relative error that a kernel may have against its twin in float32 on upcast inputs."""

from __future__ import annotations

import os

import torch

# To make a bfloat16 of a float32, the interpreter truncates and a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2 if os.environ.get("TRITON_INTERPRET") == "1" else 1e-2}


FEW_VALUES = 4  # so few may all be near zero by chance; what was summed is of the order of one, and their error is measured by that


def relative_error(out: torch.Tensor, truth: torch.Tensor) -> float:
    """||out - truth|| / ||truth|| of the whole result; NaN gives NaN, which passes no comparison."""
    out, truth = out.double(), truth.double()
    return float((out - truth).norm() / truth.norm().clamp(min=1.0 if truth.numel() <= FEW_VALUES else 1e-30))


def assert_near(out: torch.Tensor, truth: torch.Tensor) -> None:
    """Fail if `out` is further from `truth` than its dtype explains."""
    error = relative_error(out, truth)
    assert error <= TOLERANCE[out.dtype], f"relative error {error:.3g} in {out.dtype}"
