"""Kernel tests run compiled on a GPU, else in the interpreter on a CPU (tests/conftest.py chooses)."""

from __future__ import annotations

import importlib.util
import os
import random

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:  # it exists for Linux alone
    collect_ignore_glob = ["test_*_kernel.py"]


@pytest.fixture
def device() -> torch.device:
    """Return the device that runs kernels here."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def rng() -> random.Random:
    """Seed torch and return a generator for shapes, from a fresh seed that a failing test prints."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    torch.backends.cudnn.allow_tf32 = False  # the twins' float32 convolutions are the truth
    torch.manual_seed(seed)
    return random.Random(seed)
