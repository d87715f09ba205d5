"""ServerSecret: by it the models of one server know each other's control requests and messages.

Every model of a server can be called by every client that reaches its port, also the inner ones. So what the models send each
other carries a signature that only they can make: keyed BLAKE2b, because HMAC-SHA256 takes six times as long. The secret itself
never leaves their processes: a client that calls the talker directly reads the messages for the codec, and learns nothing from it.

serve.py makes the secret and passes it in the environment. Without that the models of one server agree on one through a private
file. Its name holds the server's pid and the time at which the server started, and each model's process keeps a lock on it: the
last one to end removes it, and a file without a lock is a leftover of processes that were killed.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from engine_lib.errors import ConfigError

SECRET_VARIABLE = "QWEN3_TTS_SERVER_SECRET"
SECRET_FILE_VARIABLE = "QWEN3_TTS_SERVER_SECRET_FILE"
MIN_LENGTH = 16  # characters or bytes that an operator must give
SIGNATURE_BYTES = 32
FOLDER = Path("/dev/shm")  # Triton's Python backend cannot run without it
PREFIX = "qwen3_tts_secret_"


class ServerSecret:
    """Signs what this server's models send each other."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=hashlib.blake2b(key).digest(), digest_size=SIGNATURE_BYTES)

    @classmethod
    def of_this_server(cls, environment: Mapping[str, str] | None = None) -> ServerSecret:
        """The secret that all models of the server have which runs this process.

        Args:
            environment: defaults to os.environ. QWEN3_TTS_SERVER_SECRET holds the secret, QWEN3_TTS_SERVER_SECRET_FILE names a file
                that holds it; without either the server's models share a private file.

        Raises:
            ConfigError: the secret is too short, its file cannot be read, or others may read it.
        """
        environment = os.environ if environment is None else environment
        if secret := environment.get(SECRET_VARIABLE):
            return cls(_checked(secret.encode(), SECRET_VARIABLE))
        if file := environment.get(SECRET_FILE_VARIABLE):
            try:
                return cls(_checked(Path(file).read_bytes().strip(), SECRET_FILE_VARIABLE))
            except OSError as error:
                raise ConfigError(f"{SECRET_FILE_VARIABLE}: {file!r} cannot be read: {error.strerror}") from None
        try:
            shared = SharedSecret(os.getppid())
        except OSError as error:
            problem = f"the server's models cannot share a secret in {FOLDER}: {error.strerror}"
            raise ConfigError(f"{SECRET_VARIABLE}: is not set, and {problem}") from None
        atexit.register(shared.release)
        return cls(shared.key)

    def sign(self, content: bytes) -> bytes:
        """The signature of `content`, SIGNATURE_BYTES long."""
        signature = self._keyed.copy()
        signature.update(content)
        return signature.digest()

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Whether `signature` is that of `content`. The time it takes tells nothing about the right one."""
        return hmac.compare_digest(self.sign(content), signature)


class SharedSecret:
    """A secret in a private file, which the processes of one server hold open.

    Attributes:
        key: 32 random bytes, the same in all of them.
        file: its path.
    """

    def __init__(self, server_pid: int, folder: Path = FOLDER) -> None:
        """Read the file, or make it.

        Raises:
            ConfigError: another user owns it or may read it.
            OSError: it cannot be made or read.
        """
        _remove_leftovers(folder)
        self.file = folder / f"{PREFIX}{os.geteuid()}_{server_pid}_{_start_time(server_pid)}"
        while True:
            _make(self.file)
            try:
                self._descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:  # the last process that had it has just removed it
                continue
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            facts = os.fstat(self._descriptor)
            if facts.st_nlink:
                break
            os.close(self._descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise ConfigError(f"{SECRET_VARIABLE}: is not set, and {self.file} is not this user's alone; remove it")
        self.key = os.read(self._descriptor, 2 * SIGNATURE_BYTES)

    def release(self) -> None:
        """Give up the lock; the last process removes the file."""
        if _is_unused(self._descriptor):
            self.file.unlink(missing_ok=True)
        os.close(self._descriptor)


def _checked(secret: bytes, variable: str) -> bytes:
    if len(secret) < MIN_LENGTH:
        raise ConfigError(f"{variable}: the secret has {len(secret)} bytes; give at least {MIN_LENGTH}, or leave the variable out")
    return secret


def _make(file: Path) -> None:
    """Write a new secret into `file`, whole and at once; one that is there already stays."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{PREFIX}", dir=file.parent)  # with mode 0600
    try:
        os.write(descriptor, secrets.token_bytes(SIGNATURE_BYTES))
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)
        os.unlink(draft)


def _remove_leftovers(folder: Path) -> None:
    """Remove this user's files that no process holds."""
    for file in folder.glob(f"{PREFIX}{os.geteuid()}_*"):
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it has gone meanwhile, or is not ours
            continue
        if _is_unused(descriptor):
            file.unlink(missing_ok=True)
        os.close(descriptor)


def _is_unused(descriptor: int) -> bool:
    """Whether no other process holds a lock on the file; this one then has it to itself until it closes `descriptor`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since the boot: with its pid this names it for ever."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
