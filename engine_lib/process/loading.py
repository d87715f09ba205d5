"""The load handshake: how a child process says that it could not load, and how its parent raises that."""

from __future__ import annotations

from engine_lib.errors import CheckpointError, ConfigError, Qwen3TTSError
from engine_lib.process.wire import Message


class LoadFailed(Message, frozen=True):
    """The class and the text of the error that kept a child from loading."""

    error: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> LoadFailed:
        """The message about `error`."""
        return cls(type(error).__name__, str(error))

    def to_error(self, default: type[Qwen3TTSError], child: str = "") -> Qwen3TTSError:
        """The error for the parent to raise: of the same class if that is the user's to mend, else `default`. `child` names the process."""
        kind = {kind.__name__: kind for kind in (ConfigError, CheckpointError)}.get(self.error, default)
        return kind(f"{self.message} ({child})" if child else self.message)
