"""Shared by the benchmarks: machine, command, timing, random checkpoints and prompts, results as JSON.

torch is imported by the functions that need it. Each process of a load's clients imports this file, and torch takes it two seconds.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engine_lib.checkpoint import Checkpoint
    from engine_lib.prompt import Prompt


def machine() -> str:
    """Name of the GPU, or of the processor."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.multi_processor_count} SMs, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def command() -> str:
    """The command line of this run."""
    return " ".join(["python", *sys.argv])


def random_checkpoint(folder: Path, size: str, kind: str = "custom_voice") -> Path:
    """A checkpoint of random weights of the published `size`; it is written into `folder` unless it exists."""
    from make_checkpoint import make_checkpoint

    path = folder / f"{size}-{kind}"
    return path if (path / "config.json").exists() else make_checkpoint(path, size=size, kind=kind, dtype="bfloat16")


def random_prompt(checkpoint: Checkpoint, rows: int, generator: np.random.Generator) -> Prompt:
    """A prompt of `rows` rows of random text."""
    from engine_lib.prompt import NO_ID, Prompt

    talker = checkpoint.config.talker
    codes = np.full((rows, talker.num_code_groups), NO_ID, np.int32)
    codes[:, 0] = talker.codec_pad_id
    return Prompt(generator.integers(0, 100, rows, dtype=np.int32), codes, np.empty(0, np.int32), rows)


def write_results(path: Path, results: list[dict[str, object]], **more: object) -> None:
    """Write figures with their machine and command, and what else belongs to them."""
    path.write_text(json.dumps({"machine": machine(), "command": command(), **more, "results": results}, indent=1))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(device ms, host ms) of one call that launches on the current stream; waits first until the device is idle."""
    import torch

    wait()
    if not torch.cuda.is_available():
        started = time.perf_counter()
        work()
        elapsed = (time.perf_counter() - started) * 1e3
        return elapsed, elapsed
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    started = time.perf_counter()
    work()
    host = (time.perf_counter() - started) * 1e3
    end.record()
    end.synchronize()
    return begin.elapsed_time(end), host


def wait() -> None:
    """Wait until the device is idle."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
