"""The relative error that a kernel may have against its twin in float32 on upcast inputs."""

from __future__ import annotations

import os

import torch

# To make a bfloat16 of a float32, the interpreter truncates and a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2 if os.environ.get("TRITON_INTERPRET") == "1" else 1e-2}


def relative_error(out: torch.Tensor, truth: torch.Tensor, least: float = 1e-30) -> float:
    """||out - truth|| / ||truth|| of the whole result, or / `least` if that is more; NaN gives NaN, which passes no comparison."""
    out, truth = out.double(), truth.double()
    return float((out - truth).norm() / truth.norm().clamp(min=least))


def assert_near(out: torch.Tensor, truth: torch.Tensor) -> None:
    """Fail if `out` is further from `truth` than its dtype explains."""
    # What is summed is of the order of one, and so is the error's measure: the sum of a result of one value may be near zero by chance.
    error = relative_error(out, truth, least=1.0)
    assert error <= TOLERANCE[out.dtype], f"relative error {error:.3g} in {out.dtype}"
