"""Finds tritonserver: the one on PATH (the NGC container), else that of the wheel nvidia-pytriton.

The wheel keeps its Python stubs, one for each Python version, apart from their backend; a run folder of links puts them
together. In both cases the stubs take their Python environment from the first `python3` on PATH and ignore PYTHONPATH. So the run
folder also holds an environment with the import folders of this interpreter, and its libpython if the system has none for the stub.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from engine_lib.errors import Qwen3TTSError
from engine_lib.server.ascii_names import ascii_name
from engine_lib.server.releases import WHEEL, problem_of

EVERY_ADDRESS, LOOPBACK = "0.0.0.0", "127.0.0.1"
ADDRESS_ADVICE = f"give one of this machine, or {EVERY_ADDRESS} for all; over IPv6 there is the gateway (QWEN3_TTS_GATEWAY_HOST=::)"
STUB = "triton_python_backend_stub"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MISSING_LIBRARY = re.compile(r"error while loading shared libraries: ([^:\s]+): cannot open")
# The stub's interpreter puts the folder in which the server was started before all others: a queue.py there would be the models'.
NO_CURRENT_FOLDER = (
    "import sys; sys.path = type('SafePath', (list,), {'insert': lambda self, at, name: name and list.insert(self, at, name)})(sys.path)\n"
)
STUB_SECONDS = 60.0  # it says what it lacks and ends; only a machine that hangs takes longer


class ServerError(Qwen3TTSError):
    """The server was not found, did not start, or did not load its models; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class ServerInstallation:
    """A tritonserver that can be started.

    Attributes:
        binary: the executable.
        backend_directory: folder of the Python backend; None for the server's own default.
        library_path: folders that the binaries need on LD_LIBRARY_PATH.
        default_address: that it should listen on unless an operator says otherwise: every one of this machine, but loopback alone
            with the wheel's server, because a request to its HTTP front end can end it.
    """

    binary: Path
    backend_directory: Path | None = None
    library_path: tuple[Path, ...] = ()
    default_address: str = EVERY_ADDRESS

    @classmethod
    def find(cls, run_directory: Path) -> ServerInstallation:
        """Find a server; put links to the wheel's parts into `run_directory`.

        Raises:
            ServerError: no server, its Python backend has no stub for this Python, or the stub lacks something.
        """
        on_path = shutil.which("tritonserver")
        if on_path:
            _check_python(Path(on_path).resolve().parents[1] / "backends" / "python" / STUB)
            return cls(Path(on_path))
        wheel = find_spec("pytriton")  # not imported, because the package needs more than the server does
        if wheel is None or wheel.origin is None:
            raise ServerError("tritonserver is neither on PATH nor in the wheel nvidia-pytriton; pip install 'nvidia-pytriton==0.7.0'")
        if (problem := problem_of(WHEEL, np.__version__)) is not None:
            raise ServerError(problem)
        package = Path(wheel.origin).parent
        root = package / "tritonserver"
        stub = root / "python_backend_stubs" / PYTHON / STUB
        if not stub.is_file():
            have = ", ".join(sorted(path.name for path in (root / "python_backend_stubs").iterdir()))
            raise ServerError(f"nvidia-pytriton has no stub for Python {PYTHON}, only for {have}")
        backend = run_directory / "backends" / "python"
        backend.mkdir(parents=True)
        for file in [*(root / "backends" / "python").iterdir(), stub]:
            if file.is_file():
                (backend / file.name).symlink_to(file)
        libraries: tuple[Path, ...] = (package.parent / "nvidia_pytriton.libs",)
        if (missing := _missing_library(stub, libraries)) is not None:
            libraries += (_folder_with(missing, run_directory),)
        return cls(root / "bin" / "tritonserver", backend.parent, libraries, LOOPBACK)

    def environment(self, run_directory: Path, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with PATH and LD_LIBRARY_PATH set so that the stubs run and import from the folders of this process."""
        # The stubs' Python has ASCII for the names of files, whatever LANG says, unless it is told to use UTF-8.
        environment = dict(base) | {
            "PYTHONUTF8": "1",
            "PATH": f"{_python_environment(run_directory)}{os.pathsep}{base.get('PATH', os.defpath)}",
        }
        if libraries := _joined(self.library_path, base):
            environment["LD_LIBRARY_PATH"] = libraries
        return environment


def _check_python(stub: Path) -> None:
    """Refuse a stub for another Python than this one, whose import folders it would get. A stub elsewhere is not checked."""
    linked = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes()) if stub.is_file() else None
    if linked is not None and (other := linked[1].decode()) != PYTHON:
        raise ServerError(f"the Python backend of {stub.parents[2]} is for Python {other}, and this is {PYTHON}; start with python{other}")


def _missing_library(stub: Path, libraries: tuple[Path, ...]) -> str | None:
    """The shared library that the stub does not find, if any."""
    environment = os.environ | {"LD_LIBRARY_PATH": _joined(libraries, os.environ), "LC_ALL": "C"}
    # Without arguments it ends at once.
    output = subprocess.run([stub], env=environment, capture_output=True, text=True, errors="replace", timeout=STUB_SECONDS).stderr
    missing = MISSING_LIBRARY.search(output)
    return missing[1] if missing else None


def _folder_with(library: str, run_directory: Path) -> Path:
    """A folder with the missing library alone, if it belongs to this interpreter: pyenv, conda and uv keep it to themselves.

    Raises:
        ServerError: this interpreter does not have it.
    """
    own = Path(sysconfig.get_config_var("LIBDIR") or "", library)
    if library.startswith("libpython") and own.is_file():
        folder = run_directory / "libraries"
        folder.mkdir()
        (folder / library).symlink_to(own)
        return folder
    package = re.match(r"libpython3\.\d+", library)
    remedy = f"install the package {package[0]} (Debian, Ubuntu)" if package else "install the package that has it"
    raise ServerError(f"the server's Python stub needs {library}, which is not on this machine; {remedy}")


def _joined(libraries: tuple[Path, ...], environment: Mapping[str, str]) -> str:
    return os.pathsep.join([*map(str, libraries), *filter(None, [environment.get("LD_LIBRARY_PATH")])])


def _python_environment(run_directory: Path) -> Path:
    """Make a virtual environment that adds this process's import folders to its own; return its bin folder."""
    root = run_directory / "python"
    binaries = root / "bin"
    packages = root / "lib" / f"python{PYTHON}" / "site-packages"
    binaries.mkdir(parents=True)
    packages.mkdir(parents=True)
    interpreter = Path(sys._base_executable)  # type: ignore[attr-defined]  # the base interpreter, if this is a virtual environment
    (binaries / "python3").symlink_to(interpreter)
    home = Path(ascii_name(interpreter.parents[1], root / "home"), interpreter.parent.name)
    (root / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    folders = [folder for folder in map(os.path.abspath, sys.path) if os.path.isdir(folder) and not _is_standard_library(folder)]
    folders = [ascii_name(folder, root / "folders") for folder in folders]
    (packages / "imports.pth").write_text(NO_CURRENT_FOLDER + "".join(f"import site; site.addsitedir({folder!r})\n" for folder in folders))
    return binaries


def _is_standard_library(folder: str) -> bool:
    library = os.path.dirname(os.__file__)
    return folder in (library, os.path.join(library, "lib-dynload"))
