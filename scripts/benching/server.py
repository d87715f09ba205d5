"""Starts and stops the real server of a benchmark."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from engine_lib.server.mps import VISIBLE_DEVICES, MpsDaemon
from engine_lib.server.process import FREE_PORTS, TritonServer

START_SECONDS = 300.0  # until it must be ready


@contextmanager
def running_server(
    folder: Path, options: Mapping[str, str], *, mps: bool, log_file: Path | None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[TritonServer, float]]:
    """A ready server on the checkpoint `folder`, and the seconds of its start. It is stopped at the end; a failure prints its log.

    Args:
        folder: checkpoint.
        options: engine options except `model_path`.
        mps: share the GPU through a private MPS daemon.
        log_file: file for its output; None: a temporary file.
        environment: changes to this process's environment; CUDA_VISIBLE_DEVICES there counts for the daemon, too.
    """
    changes = dict(environment or {})
    with MpsDaemon(changes.get(VISIBLE_DEVICES)) if mps else nullcontext() as daemon:
        server = TritonServer(
            options={"on_runaway": "off", **options, "model_path": str(folder)},  # random weights repeat themselves
            ports=FREE_PORTS,
            log_file=log_file or Path(tempfile.mkstemp(prefix="qwen3-tts-", suffix=".log")[1]),
            environment=changes | (daemon.environment if daemon else {}),
        )
        print(f"loading {folder.name}; the log is {server.log_file}", flush=True)
        started = time.monotonic()
        try:
            server.start()
            server.wait_ready(START_SECONDS)
            yield server, time.monotonic() - started
        except Exception:
            print(f"the server's log, {server.log_file}, ends with\n{server.last_log_lines()}", file=sys.stderr)
            raise
        finally:
            server.stop()
