"""RemoteProcess: an engine in a child process, seen by its parent: messages, log, end."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Sequence
from multiprocessing.connection import Pipe
from typing import Any, TypeVar

from engine_lib.errors import Qwen3TTSError
from engine_lib.process.child import end_of, start_child
from engine_lib.process.engine_messages import LogRecord
from engine_lib.process.loading import LoadFailed
from engine_lib.process.pipe_sender import PipeSender
from engine_lib.process.wire import Message, Wire

logger = logging.getLogger(__name__)

END_SECONDS = 5.0  # from the end of the pipe until the process is killed

LoadedT = TypeVar("LoadedT")


class RemoteProcess:
    """One child process."""

    def __init__(self, module: str, name: str, to_child: Wire[Any], from_child: Wire[Any], files: Sequence[int] = ()) -> None:
        """Start the process.

        Args:
            module: what it runs.
            name: the process in words, for errors.
            to_child, from_child: the messages each way.
            files: descriptors that it inherits.

        Raises:
            ConfigError: there is no interpreter to run it.
        """
        self._name, self._to_child, self._from_child = name, to_child, from_child
        self._pipe, theirs = Pipe()
        self._sender = PipeSender(self._pipe)
        with theirs:
            self._process = start_child(module, theirs, files)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def load(self, load: Message, loaded: type[LoadedT]) -> LoadedT:
        """Send the first message, and wait for the answer of type `loaded`. If there is none the process has ended.

        Raises:
            CheckpointError, ConfigError, Qwen3TTSError: it could not load.
        """
        try:
            self.send(load)
            while True:
                try:
                    message = self._receive()
                except (EOFError, OSError):
                    raise Qwen3TTSError(f"{self._end()} while it was loading; its output says why") from None
                if isinstance(message, loaded):
                    return message
                if isinstance(message, LoadFailed):
                    raise message.to_error(Qwen3TTSError)
                if isinstance(message, LogRecord):
                    _log(message)
        except BaseException:
            self.close()
            raise

    def send(self, message: Message) -> None:
        """Send without waiting for the process, which may hang. Does nothing if it has gone: `read` notices that."""
        self._sender.send(self._to_child.pack(message))

    def read(self, receive: Callable[[Any], None]) -> str:
        """Call `receive` with each message until the process has closed its pipe; return the reason in words."""
        try:
            while True:
                message = self._receive()
                if isinstance(message, LogRecord):
                    _log(message)
                else:
                    receive(message)
        except (EOFError, OSError):
            return self._end()
        except Exception as error:
            logger.exception("%s said something that is none of its messages", self._name)
            self._process.kill()
            return type(error).__name__

    def close(self, patience: float = 0.0) -> None:
        """Close the pipe, which ends the process. It is killed if it does not end, and at once if it hangs and its pipe is full."""
        if self._sender.is_behind:
            self._process.kill()
        self._sender.close()
        self._pipe.close()
        self._exit_code(patience + END_SECONDS)

    def _receive(self) -> Any:
        return self._from_child.unpack(self._pipe.recv_bytes())

    def _end(self) -> str:
        """Says how the process has ended; its pipe has closed."""
        return f"{self._name} {self.pid} ended with {end_of(self._exit_code(END_SECONDS))}"

    def _exit_code(self, patience: float) -> int:
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _log(record: LogRecord) -> None:
    logging.getLogger(record.logger).log(record.level, "%s", record.message)
