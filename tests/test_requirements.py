"""The lock files hold all that pyproject.toml asks for, each with its hashes (scripts/lock.sh)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = {file.stem: file for file in sorted((ROOT / "requirements").glob("*.txt"))}
ENTRY = re.compile(r"([a-z0-9-]+)==([\w.+!]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
SERVING = ("gateway", "trace")
EXTRAS = {"run": ("server", *SERVING), "test": ("server", *SERVING, "test", "dev"), "ngc": SERVING}
COMPLETE = [name for name in LOCKS if name.split("-")[0] in EXTRAS]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(*names: str) -> dict[str, str]:
    """Package -> version of these locks."""
    return {match[1]: match[2] for name in names for match in ENTRY.finditer(LOCKS[name].read_text(encoding="utf-8"))}


def with_torch(name: str) -> dict[str, str]:
    """Package -> version of a lock and of torch's own for the same Python."""
    return pins(f"torch-cuda-{name.rpartition('-')[2]}", name)


def direct(extras: tuple[str, ...]) -> Iterator[Requirement]:
    """Requirements of pyproject.toml with these extras, and those of the extras that they name."""
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            yield from direct(tuple(requirement.extras))
        else:
            yield requirement


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_nothing_but_versions_with_hashes(name: str) -> None:
    assert ENTRY.sub("", LOCKS[name].read_text(encoding="utf-8")) == ""
    assert pins(name)


@pytest.mark.parametrize("name", COMPLETE)
def test_a_lock_has_every_dependency_of_pyproject_in_an_allowed_version(name: str) -> None:
    locked = with_torch(name)
    wrong = [
        f"{requirement} but {locked.get(canonicalize_name(requirement.name))} is locked"
        for requirement in direct(EXTRAS[name.split("-")[0]])
        if not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), "0.dev0"))
    ]
    assert wrong == [], "scripts/lock.sh brings the locks up to date"


@pytest.mark.parametrize("name", [name for name in COMPLETE if name.endswith(HERE)])
def test_a_lock_has_what_its_packages_need(name: str) -> None:
    # pip installs it with --no-deps, so that nothing else is fetched.
    locked, missing, done = with_torch(name), [], set()
    waiting = list(direct(EXTRAS[name.split("-")[0]]))
    while waiting:
        wanted = waiting.pop()
        package = canonicalize_name(wanted.name)
        if package not in locked:
            missing.append(package)
        elif (package, *sorted(wanted.extras)) not in done:
            done.add((package, *sorted(wanted.extras)))
            waiting += [inner for inner in needs(package) if applies(inner, wanted.extras)]
    assert missing == []


def needs(package: str) -> list[Requirement]:
    """What an installed package requires; nothing is known of one that is not installed."""
    try:
        return [Requirement(line) for line in requires(package) or []]
    except PackageNotFoundError:
        return []


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement holds on this machine for a package wanted with `extras`."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *extras])


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_the_locks_of_one_python_agree(version: str) -> None:
    names = [name for name in LOCKS if name.endswith(version)]
    assert len(names) >= 2
    differences = {
        package: versions
        for package in {package for name in names for package in pins(name)}
        if len(versions := {pins(name)[package] for name in names if package in pins(name)}) > 1
    }
    assert differences == {}


def test_install_takes_the_torch_that_is_locked() -> None:
    text = (ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")
    versions = {pins(name)["torch"] for name in LOCKS if name.startswith("torch-cuda")}
    assert versions == set(re.findall(r"\blocked_torch=([\d.]+)", text))
