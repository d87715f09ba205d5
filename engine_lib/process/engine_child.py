"""The child's side of an engine in a process of its own: messages, and how it loads, runs and ends."""

from __future__ import annotations

import select
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

import torch

from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError
from engine_lib.process.engine_messages import LoadEngine, StopEngine
from engine_lib.process.garbage import freeze_loaded
from engine_lib.process.loading import LoadFailed
from engine_lib.process.outbox import Outbox
from engine_lib.process.wire import Message, Wire


class Inbox:
    """What the parent tells this process."""

    def __init__(self, pipe: Connection, wire: Wire[Any]) -> None:
        """`wire`: of the messages to the child."""
        self._pipe, self._wire = pipe, wire

    def has_message(self, seconds: float | None) -> bool:
        """Whether one comes within `seconds`; None waits for it."""
        # Not Connection.poll, which makes a selector each time.
        return bool(select.select([self._pipe], [], [], seconds)[0])

    def next(self) -> Any:
        """The next message; a closed pipe says StopEngine."""
        try:
            return self._wire.unpack(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            return StopEngine()


class PipedEngine(Protocol):
    """An engine with its callers at the other end of a pipe."""

    @property
    def failed(self) -> bool:
        """Whether it has ended without a StopEngine."""
        ...

    def serve(self) -> None:
        """Run until the pipe says stop or closes."""
        ...


EngineT = TypeVar("EngineT", bound=PipedEngine)


def run_engine(
    name: str,
    setup: LoadEngine,
    outbox: Outbox,
    load: Callable[[EngineConfig], EngineT],
    loaded: Callable[[EngineT], Message],
    config_class: type[EngineConfig] = EngineConfig,
) -> None:
    """Load the engine that `setup` describes, and run it.

    Args:
        name: of the engine, for errors.
        load: makes it.
        loaded: the message that says so.
        config_class: of its options; a benchmark has its own.

    Raises:
        EngineDeadError: it has failed.
    """
    outbox.send_log(setup.log_level)
    config = config_class(**setup.config)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    try:
        engine = load(config)
    except Exception as error:
        outbox.send(LoadFailed.of(error))
        raise
    freeze_loaded()
    outbox.send(loaded(engine))
    engine.serve()
    if engine.failed:
        raise EngineDeadError(f"the {name} engine has failed; its log says why")
