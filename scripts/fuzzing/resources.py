"""The resources of a server: memory, descriptors, threads, shared memory, slots and blocks."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from engine_lib.serving.server_guard import REGION_PREFIX

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
        memory_mb: their private memory.
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
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
        regions = {argument for process in tree for argument in process.cmdline() if argument.startswith(REGION_PREFIX)}
        shared = sum(Path("/dev/shm", region).stat().st_blocks * 512 for region in regions)
        return cls(
            processes=len(tree),
            descriptors=sum(process.num_fds() for process in tree),
            threads=sum(process.num_threads() for process in tree),
            memory_mb=round(sum(process.memory_full_info().uss for process in tree) / 2**20, 1),
            shared_memory_mb=round(shared / 2**20, 1),
        )

    def growth(self, before: Resources) -> dict[str, float]:
        """The difference to an earlier snapshot, by name."""
        earlier = asdict(before)
        return {name: round(value - earlier[name], 1) for name, value in asdict(self).items()}


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
