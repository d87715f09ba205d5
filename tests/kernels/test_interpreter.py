"""Runs the kernel tests without a GPU: under Triton's interpreter, in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed; it exists for Linux alone")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel tests run compiled on this machine")
def test_kernels_equal_their_twins_under_the_interpreter() -> None:
    tests = sorted(str(path) for path in HERE.glob("test_*_kernel.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False, timeout=250)
    assert run.returncode == 0, run.stdout + run.stderr
