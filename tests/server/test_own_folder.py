"""Folders of temporary files: left alone by cleaners while they are in use, gone with their owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from engine_lib.server.own_folder import OwnFolder


def test_a_folder_is_locked_as_cleaners_of_temporary_files_ask(tmp_path: Path) -> None:
    """tmpfiles.d(5): a directory with a lock is skipped, and everything below it."""
    with OwnFolder("ours-", str(tmp_path)) as name:
        cleaner = os.open(name, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(cleaner)
    assert list(tmp_path.iterdir()) == []
