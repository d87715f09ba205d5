"""ASCII names for folders: Triton's stubs cannot open others.

A stub starts its Python with ASCII for the names of files, and neither LANG nor PYTHONUTF8 changes that (seen on 24.10; reported as
triton-inference-server/server#6086). The kernel does not care, so a symbolic link with an ASCII name leads to any folder.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote


def ascii_name(folder: str | Path, links: Path) -> str:
    """`folder` if its name is ASCII, else a link to it in the folder `links`, which is made if it is missing."""
    path = Path(folder)
    if str(path).isascii():
        return str(folder)
    links.mkdir(parents=True, exist_ok=True)
    link = links / str(len(list(links.iterdir()))) / quote(path.name)
    link.parent.mkdir()
    link.symlink_to(path.absolute(), target_is_directory=True)
    return str(link)
