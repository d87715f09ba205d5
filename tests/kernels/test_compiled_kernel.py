"""Every kernel compiles for a GPU, which the interpreter of the other tests here does not show."""

from __future__ import annotations

import os
import subprocess
import sys

from patience import PROGRAM_PATIENCE


def test_every_kernel_compiles_in_all_forms_that_the_engine_launches() -> None:
    """In a process that does not interpret. It prints what cannot be compiled, and statements that no form compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }
    command = [sys.executable, "-m", "kernels.compile_for_gpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROGRAM_PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
