"""The device, dtype and stream of an engine, and its share of a GPU."""

from __future__ import annotations

import itertools
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from engine_lib.errors import ConfigError

MPS_SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
PROBED_ROWS = (24, 64, 256)
PROBED_SIZES = ((1024, 4096), (512, 2048))  # outputs, inputs


def resolve_device(name: str, option: str = "device") -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: `name`, the value of `option`, is not a device of this machine.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{option}: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{option}: {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{option}: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on GPU and float32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def check_products(device: torch.device, dtype: torch.dtype) -> None:
    """Check that torch's matrix products on `device` are complete.

    If MPS limits a process to certain numbers of multiprocessors (seen with 52, 79, 92 and 99 of an H100's 132, CUDA 13.0), cuBLAS
    leaves parts of its results unwritten, without an error.

    Raises:
        ConfigError: they are incomplete in this process.
    """
    for rows, outputs, inputs in itertools.product(PROBED_ROWS, *PROBED_SIZES):
        x, weight = torch.zeros(rows, inputs, dtype=dtype, device=device), torch.zeros(outputs, inputs, dtype=dtype, device=device)
        product = torch.full((rows, outputs), torch.nan, dtype=dtype, device=device)
        if torch.mm(x, weight.T, out=product).isnan().any():
            raise ConfigError(
                f"device: on {device} matrix products of torch come out incomplete, as with some shares of a GPU; "
                f"give this process all of it (MPS: {MPS_SHARE})"
            )


def limit_gpu_share(percent: int) -> None:
    """Limit this process to `percent` of its GPU's multiprocessors if it is a client of MPS. Call it before CUDA's first use.

    A share that is already set in the environment stays.
    """
    os.environ.setdefault(MPS_SHARE, str(percent))


def own_stream(device: torch.device, priority: int) -> torch.cuda.Stream | None:
    """A stream for one engine, ordered after all work launched so far; None on the CPU.

    If kernels wait for room, those of a higher priority (a lower number) start first. A graph must be captured and replayed on
    streams of one priority, because it depends on how torch instantiates the graph which of the two counts.
    """
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device, priority=priority)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Launch on `stream`; None: the CPU."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` current in this thread, because streams, events, graphs and Triton kernels go to the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
