"""A start finds the server and says what it lacks: a library, a stub for this Python, numpy 1."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine_lib.server import ascii_names, installation
from engine_lib.server.installation import PYTHON, STUB, ServerError, ServerInstallation

LIBRARY = f"libpython{PYTHON}.so.1.0"
OTHER_LIBRARY = f"libpython{PYTHON}.so.9.9"  # of the same length, and on no machine


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of links to the real one's files, with a stub of its own that asks for OTHER_LIBRARY; returns the stub."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None or shutil.which("tritonserver"):
        pytest.skip("needs the wheel nvidia-pytriton, and no tritonserver on PATH")
    real = Path(spec.origin).parent
    package = tmp_path / "wheel" / "pytriton"
    stub = package / "tritonserver" / "python_backend_stubs" / PYTHON / STUB
    stub.parent.mkdir(parents=True)
    (package.parent / "nvidia_pytriton.libs").symlink_to(real.parent / "nvidia_pytriton.libs")
    for folder in ("bin", "backends"):
        (package / "tritonserver" / folder).symlink_to(real / "tritonserver" / folder)
    content = (real / "tritonserver" / "python_backend_stubs" / PYTHON / STUB).read_bytes()
    stub.write_bytes(content.replace(LIBRARY.encode(), OTHER_LIBRARY.encode()))
    stub.chmod(0o755)
    found = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(installation, "find_spec", lambda name: found)
    return stub


def test_a_missing_libpython_is_named_with_its_package(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError) as refused:
        ServerInstallation.find(tmp_path / "run")
    problem = f"the server's Python stub needs {OTHER_LIBRARY}, which is not on this machine"
    assert str(refused.value) == f"{problem}; install the package libpython{PYTHON} (Debian, Ubuntu)"


def test_a_libpython_that_only_this_interpreter_has_is_used(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "interpreter" / "lib"
    own.mkdir(parents=True)
    (own / OTHER_LIBRARY).write_bytes(b"")
    monkeypatch.setattr(sysconfig, "get_config_var", {"LIBDIR": str(own)}.get)
    found = ServerInstallation.find(tmp_path / "run")
    folder = found.library_path[-1]
    assert [(file.name, file.resolve()) for file in folder.iterdir()] == [(OTHER_LIBRARY, own / OTHER_LIBRARY)]
    assert found.environment(tmp_path / "run", {"LD_LIBRARY_PATH": "/mine"})["LD_LIBRARY_PATH"].endswith(f":{folder}:/mine")


def test_the_wheel_is_refused_under_numpy_2(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "np", SimpleNamespace(__version__="2.4.6"))
    with pytest.raises(ServerError, match=r"get no tensor under numpy 2, and this is numpy 2\.4\.6; pip install 'numpy<2'"):
        ServerInstallation.find(tmp_path / "run")


@pytest.mark.parametrize("stub_python", ["3.99", PYTHON])
def test_the_stub_beside_a_server_on_path_must_be_for_this_python(
    stub_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "tritonserver" / "bin" / "tritonserver"
    stub = tmp_path / "tritonserver" / "backends" / "python" / STUB
    for file, content in ((binary, "#!/bin/sh\n"), (stub, f"ELF\0libpython{stub_python}.so.1.0\0")):
        file.parent.mkdir(parents=True)
        file.write_text(content)
        file.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").symlink_to(binary)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if stub_python == PYTHON:
        assert ServerInstallation.find(tmp_path / "run").default_address == "0.0.0.0"
    else:
        this = f"{sys.version_info.major}.{sys.version_info.minor}"
        problem = f"the Python backend of {tmp_path / 'tritonserver'} is for Python 3.99, and this is {this}; start with python3.99"
        with pytest.raises(ServerError, match=re.escape(problem)):
            ServerInstallation.find(tmp_path / "run")


def test_a_name_that_bash_would_take_apart_becomes_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "my $(models) 'ü"
    odd.mkdir()
    plain = ascii_names.plain_name(odd, tmp_path / "links")
    assert ascii_names.PLAIN.fullmatch(plain)
    assert Path(plain).resolve() == odd
    assert ascii_names.plain_name(tmp_path, tmp_path / "links") == str(tmp_path)
    monkeypatch.setattr(ascii_names, "TEMPORARY", (str(tmp_path),))
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    assert ascii_names.temporary_folder() == str(tmp_path)
