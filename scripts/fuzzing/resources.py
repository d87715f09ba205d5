"""The resources of a server: memory, descriptors, threads, shared memory, slots and blocks."""

from __future__ import annotations

import re
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from engine_lib.serving.server_guard import REGION_PREFIX

with suppress(ModuleNotFoundError):
    import psutil

TRITON = "tritonserver"  # a process's name
ENGINE_MODULE = re.compile(r"engine_lib\.(\w+)\.(?:isolation|parallel)\.\w+")  # `python -m` of an engine's process
SETTLE_SECONDS = 90.0  # until everything must be free again
PUBLISH_SECONDS = 1.5  # metrics are published twice a second
FREE = {  # metrics that are zero, or equal to another one, in a server without streams
    "active_streams": None,
    "running_requests": None,
    "waiting_requests": None,
    "waiting_references": None,
    "requests_held": None,
    "codec_open_streams": None,
    "codec_unfinished_streams": None,
    "codec_queued_chunks": None,
    "kv_blocks_free": "kv_blocks_total",
}


@dataclass(frozen=True)
class Resources:
    """A snapshot.

    Attributes:
        processes, descriptors, threads: of tritonserver and its children.
        memory_mb: their private memory, without files.
        shared_memory_mb: of the regions in /dev/shm that the models' processes share with the server.
    """

    processes: int
    descriptors: int
    threads: int
    memory_mb: float
    shared_memory_mb: float

    @classmethod
    def read(cls, pid: int) -> Resources:
        """Those of the server `pid`."""
        read = [_Read.of(process) for process in _tree(pid)]
        alive = [one for one in read if one is not None]
        return cls(
            processes=len(alive),
            descriptors=sum(one.descriptors for one in alive),
            threads=sum(one.threads for one in alive),
            memory_mb=round(sum(one.memory_mb for one in alive), 1),
            shared_memory_mb=round(sum(_size_mb(region) for region in {region for one in alive for region in one.regions}), 1),
        )

    def growth(self, before: Resources) -> dict[str, float]:
        """The difference to an earlier snapshot, by name."""
        earlier = asdict(before)
        return {name: round(value - earlier[name], 1) for name, value in asdict(self).items()}


def memory_by_name(pid: int) -> dict[str, float]:
    """The private memory of the processes of the server `pid`, in MB: of TRITON, each model and engine by its name, and all others."""
    sums: dict[str, float] = {}
    for process in _tree(pid):
        if (read := _Read.of(process)) is not None:
            name = TRITON if process.pid == pid else read.model
            sums[name] = sums.get(name, 0.0) + read.memory_mb
    return {name: round(megabytes, 1) for name, megabytes in sums.items()}


@dataclass(frozen=True)
class _Read:
    """What one process has.

    Attributes:
        model: that it runs, as `codec_decoder`; of the engine or rank of one, which has a process of its own, as `codec engine`; `others`
            of a guard.
        regions: that it shares with the server.
        memory_mb: its private memory, without files.
    """

    model: str
    regions: tuple[str, ...]
    descriptors: int
    threads: int
    memory_mb: float

    @classmethod
    def of(cls, process: psutil.Process) -> _Read | None:
        """None if it has just ended."""
        try:
            arguments = process.cmdline()
            models = [Path(argument).parents[1].name for argument in arguments if argument.endswith("/1/model.py")]
            models += [f"{found[1]} engine" for argument in arguments if (found := ENGINE_MODULE.fullmatch(argument))]
            regions = tuple(argument for argument in arguments if argument.startswith(REGION_PREFIX))
            memory = _private_bytes(process) / 2**20
            return cls((models or ["others"])[0], regions, process.num_fds(), process.num_threads(), memory)
        except psutil.NoSuchProcess:
            return None


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _private_bytes(process: psutil.Process) -> int:
    """What is resident and in no file. (The pages of a library are private too while no other process maps it.)"""
    resident = process.memory_info()
    own: int = resident.rss - resident.shared
    return own


def _size_mb(region: str) -> float:
    with suppress(FileNotFoundError):  # its model has just ended
        return Path("/dev/shm", region).stat().st_blocks * 512 / 2**20
    return 0.0


def read_metrics(address: str) -> dict[str, float]:
    """This project's metrics at `address`, HOST:PORT: name and labels -> value."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        text = response.read().decode()
    return {found[1]: float(found[2]) for found in re.finditer(r"^qwen3_tts_(\w+\{[^}]*\}) (\S+)$", text, re.MULTILINE)}


def still_held(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that say that something is held, with their values; empty in a server without streams."""
    held = {}
    for labelled, value in metrics.items():
        name, brace, labels = labelled.partition("{")
        if name in FREE:
            other = FREE[name]
            expected = metrics[other + brace + labels] if other else 0.0
            if value != expected:
                held[labelled] = value - expected
    return held


def wait_until_free(address: str) -> dict[str, float]:
    """Wait until the server of these metrics holds nothing; returns what it still holds in the end."""
    deadline = time.monotonic() + SETTLE_SECONDS
    time.sleep(PUBLISH_SECONDS)
    while (held := still_held(read_metrics(address))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return held
