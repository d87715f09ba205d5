"""Finds tritonserver: the one on PATH (the NGC container), else that of the wheel nvidia-pytriton.

The wheel keeps its Python stubs, one for each Python version, apart from their backend; a run folder of links puts them
together. In both cases the stubs take their Python environment from the first `python3` on PATH and ignore PYTHONPATH. So the run
folder also holds an environment with the import folders of this interpreter.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engine_lib.errors import Qwen3TTSError
from engine_lib.server.ascii_names import ascii_name


class ServerError(Qwen3TTSError):
    """The server was not found, did not start, or did not load its models; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class ServerInstallation:
    """A tritonserver that can be started.

    Attributes:
        binary: the executable.
        backend_directory: folder of the Python backend; None for the server's own default.
        library_path: folders that the binaries need on LD_LIBRARY_PATH.
    """

    binary: Path
    backend_directory: Path | None = None
    library_path: tuple[Path, ...] = ()

    @classmethod
    def find(cls, run_directory: Path) -> ServerInstallation:
        """Find a server; put links to the wheel's parts into `run_directory`.

        Raises:
            ServerError: no server, or its Python backend has no stub for this Python.
        """
        on_path = shutil.which("tritonserver")
        if on_path:
            return cls(Path(on_path))
        wheel = find_spec("pytriton")  # not imported, because the package needs more than the server does
        if wheel is None or wheel.origin is None:
            raise ServerError("tritonserver is neither on PATH nor in the wheel nvidia-pytriton; pip install 'nvidia-pytriton==0.7.0'")
        package = Path(wheel.origin).parent
        root = package / "tritonserver"
        stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"
        if not stub.is_file():
            have = ", ".join(sorted(path.name for path in (root / "python_backend_stubs").iterdir()))
            raise ServerError(f"nvidia-pytriton has no stub for Python {sys.version_info.major}.{sys.version_info.minor}, only for {have}")
        backend = run_directory / "backends" / "python"
        backend.mkdir(parents=True)
        for file in [*(root / "backends" / "python").iterdir(), stub]:
            if file.is_file():
                (backend / file.name).symlink_to(file)
        return cls(root / "bin" / "tritonserver", backend.parent, (package.parent / "nvidia_pytriton.libs",))

    def environment(self, run_directory: Path, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with PATH and LD_LIBRARY_PATH set so that the stubs run and import from the folders of this process."""
        libraries = [*map(str, self.library_path), *filter(None, [base.get("LD_LIBRARY_PATH")])]
        # The stubs' Python has ASCII for the names of files, whatever LANG says, unless it is told to use UTF-8.
        environment = dict(base) | {
            "PYTHONUTF8": "1",
            "PATH": f"{_python_environment(run_directory)}{os.pathsep}{base.get('PATH', os.defpath)}",
        }
        if libraries:
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return environment


def _python_environment(run_directory: Path) -> Path:
    """Make a virtual environment that adds this process's import folders to its own; return its bin folder."""
    root = run_directory / "python"
    binaries = root / "bin"
    packages = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    binaries.mkdir(parents=True)
    packages.mkdir(parents=True)
    interpreter = Path(sys._base_executable)  # type: ignore[attr-defined]  # the base interpreter, if this is a virtual environment
    (binaries / "python3").symlink_to(interpreter)
    home = Path(ascii_name(interpreter.parents[1], root / "home"), interpreter.parent.name)
    (root / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    folders = [folder for folder in map(os.path.abspath, sys.path) if os.path.isdir(folder) and not _is_standard_library(folder)]
    folders = [ascii_name(folder, root / "folders") for folder in folders]
    (packages / "imports.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in folders))
    return binaries


def _is_standard_library(folder: str) -> bool:
    library = os.path.dirname(os.__file__)
    return folder in (library, os.path.join(library, "lib-dynload"))
