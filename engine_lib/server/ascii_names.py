"""Names for folders that Triton's Python backend can use: plain ASCII, without a space.

A stub starts its Python with ASCII for the names of files, and neither LANG nor PYTHONUTF8 changes that (seen on 24.10; reported as
triton-inference-server/server#6086). And the server starts a stub by a line for bash in which no name is quoted. The kernel does not care,
so a symbolic link with another name leads to any folder.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import quote

PLAIN = re.compile(r"[A-Za-z0-9_./+@%=:,-]+")  # bash takes these as they are
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


def ascii_name(folder: str | Path, links: Path) -> str:
    """`folder` if its name is ASCII, else a link to it in the folder `links`, which is made if it is missing."""
    return str(folder) if str(folder).isascii() else _link(Path(folder), links)


def plain_name(folder: str | Path, links: Path) -> str:
    """`folder` if bash takes its name as it is, else a link to it in the folder `links`, which has such a name."""
    return str(folder) if PLAIN.fullmatch(str(folder)) else _link(Path(folder), links)


def temporary_folder() -> str:
    """The folder of temporary files; another usual one if bash does not take its name as it is."""
    chosen = tempfile.gettempdir()
    usable = [folder for folder in (chosen, *TEMPORARY) if PLAIN.fullmatch(folder) and os.access(folder, os.W_OK | os.X_OK)]
    return usable[0] if usable else chosen


def _link(path: Path, links: Path) -> str:
    links.mkdir(parents=True, exist_ok=True)
    link = links / str(len(list(links.iterdir()))) / quote(os.fsencode(path.name))
    link.parent.mkdir()
    link.symlink_to(path.absolute(), target_is_directory=True)
    return str(link)
