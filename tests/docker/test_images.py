"""The Dockerfiles pass hadolint, copy files that exist, and install from the locks alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ["docker/Dockerfile", "docker/Dockerfile.wheel"]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def text_of(image: str) -> str:
    """A Dockerfile with its continued lines joined and its arguments filled in."""
    text = (ROOT / image).read_text(encoding="utf-8").replace("\\\n", " ")
    for name, value in re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE):
        text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
    return text


def copied(image: str) -> list[str]:
    """Sources of all COPY instructions from the build's context."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", text_of(image), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (scripts/install.sh test brings it)")
@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_no_fault(image: str) -> None:
    assert HADOLINT is not None
    ended = subprocess.run([HADOLINT, "--config", "docker/hadolint.yaml", image], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_all_that_is_copied_exists_and_is_not_ignored(image: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    taken = [line[1:] for line in ignore if line.startswith("!")]
    assert copied(image)
    for source in copied(image):
        assert (ROOT / source).exists(), source
        inside = [pattern for pattern in taken if Path(source).match(pattern) or pattern.startswith(source) or source.startswith(pattern)]
        assert inside, f"{source} is ignored"
    packages = {str(file.parent.relative_to(ROOT)) for file in (ROOT / "client").glob("*/__init__.py")}
    assert packages == {pattern for pattern in taken if pattern.startswith("client/")}


@pytest.mark.parametrize("image", IMAGES)
def test_packages_come_with_hashes_but_for_torch_on_the_cpu(image: str) -> None:
    installs = [install for line in re.findall(r"pip install (.+)", text_of(image)) for install in line.split("pip install")]
    assert len(installs) >= 3
    for install in installs:
        assert "--no-deps" in install
        assert "--require-hashes" in install or "--editable ." in install or '"torch==2.13.0+cpu"' in install


@pytest.mark.parametrize("image", IMAGES)
def test_the_server_runs_as_a_user_behind_tini_and_asks_for_its_health(image: str) -> None:
    last = text_of(image).rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE)[-1] == "1000:1000"
    opened = ', "--address", "0.0.0.0"' if image.endswith(".wheel") else ""  # the wheel's server would listen on loopback alone
    assert f'ENTRYPOINT ["tini", "--", "/opt/venv/bin/python3", "scripts/serve.py"{opened}]' in last
    assert 'CMD ["/opt/venv/bin/python3", "docker/healthcheck.py"]' in last
    assert "safetensors" not in last
