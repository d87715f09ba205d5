"""A fake nvidia-cuda-mps-control for machines without a GPU: it only starts and stops, without MPS."""

from __future__ import annotations

import os
from pathlib import Path

SCRIPT = """#!/bin/sh
case "$1" in
-d)
    if [ -n "$FAKE_MPS_FAILS" ]; then echo "cannot find a GPU"; exit 1; fi
    echo "$CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY" >>"${0%/*}/started"
    sh "$0" -f </dev/null >/dev/null 2>&1 &
    while [ ! -s "$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid" ]; do sleep 0.01; done ;;
-f)
    echo $$ >"$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
    while [ ! -e "$CUDA_MPS_PIPE_DIRECTORY/quit" ]; do sleep 0.05; done ;;
*)
    read -r command
    if [ "$command" = quit ] && [ -z "$FAKE_MPS_DEAF" ]; then touch "$CUDA_MPS_PIPE_DIRECTORY/quit"; fi ;;
esac
"""


def install(folder: Path) -> str:
    """Put the fake into `folder`; return a PATH that begins with it."""
    script = folder / "nvidia-cuda-mps-control"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def started(folder: Path) -> list[list[Path]]:
    """Pipe and log directories of each daemon that was started."""
    return [[Path(part) for part in line.split()] for line in (folder / "started").read_text().splitlines()]
