"""A running server, as the scripts that load it know it."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from engine_lib.server.orphan import is_running


@dataclass(frozen=True)
class Target:
    """HOST:PORT of its ports, and the pid of tritonserver."""

    grpc: str
    http: str
    metrics: str
    pid: int

    @property
    def has_ended(self) -> bool:
        """Whether tritonserver has ended."""
        return not is_running(Path("/proc", str(self.pid)))


def version_of(target: Target) -> str:
    """That of its tritonserver, as 2.51.0."""
    with urllib.request.urlopen(f"http://{target.http}/v2", timeout=30) as response:
        version: str = json.loads(response.read())["version"]
    return version
