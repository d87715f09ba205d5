"""Kernel tests run compiled on a GPU, else in the interpreter on a CPU (tests/conftest.py chooses)."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:  # it exists for Linux alone
    collect_ignore_glob = ["test_*_kernel.py"]
elif INTERPRETED:
    from triton.runtime import interpreter

    # It computes whether an operation on integers overflows, which takes three times as long as the operation. The assertion about that
    # is for debug=True alone, which it never sets.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    with_operations: set[Any] = set()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        """A call in a kernel. The interpreter would look through all of triton.language each time; what it puts there once stays."""
        if function.fn not in with_operations:
            interpreter._patch_lang(function.fn)
            with_operations.add(function.fn)
        return function.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call

    def create_dot(a: Any, b: Any, acc: Any, *_: Any) -> Any:
        """A product of floats. numpy sums in an order that depends on the sizes and on the processor; float64 hides that from float32."""
        product = np.matmul(a.data, b.data, dtype=np.float64) + acc.data
        with np.errstate(over="ignore"):  # what lies behind a row's end may be anything
            return interpreter.TensorHandle(product.astype(acc.data.dtype), acc.dtype.scalar)

    builder.create_dot = create_dot


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernels that run compiled are tests of the GPU, so that `-m gpu` has all of them."""
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


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
