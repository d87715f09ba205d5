"""A running server, as the scripts that load it know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """HOST:PORT of its ports, and the pid of tritonserver."""

    grpc: str
    http: str
    metrics: str
    pid: int
