"""Runs the kernel tests without a GPU: under Triton's interpreter, in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patience import PROGRAM_PATIENCE

KERNEL_TESTS = sorted(Path(__file__).parent.glob("test_*_kernel.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed; it exists for Linux alone")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel tests run compiled on this machine")
@pytest.mark.parametrize("file", KERNEL_TESTS, ids=lambda file: file.stem)
def test_kernels_equal_their_twins_under_the_interpreter(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PROGRAM_PATIENCE)
    assert run.returncode == 0, run.stdout + run.stderr
