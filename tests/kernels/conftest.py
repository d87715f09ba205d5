"""The kernel tests run compiled on a GPU, else by Triton's interpreter on the CPU.

The interpreter must be chosen before triton is first imported (transformers imports it). So without a GPU these tests run
in a process of their own, which test_interpreter.py starts; here they are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import random

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS_KERNELS = importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())

if not RUNS_KERNELS:
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
