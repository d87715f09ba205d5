"""A running server, as the scripts that load it know it."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """HOST:PORT of its ports, and the pid of tritonserver."""

    grpc: str
    http: str
    metrics: str
    pid: int


def version_of(target: Target) -> str:
    """That of its tritonserver, as 2.51.0."""
    with urllib.request.urlopen(f"http://{target.http}/v2", timeout=30) as response:
        version: str = json.loads(response.read())["version"]
    return version
