"""The documents name files that exist, and the page of today's figures stays one page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from qwen3_tts_client.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)")
# A path with a folder (talker/engine.py, model_repository/*/1/model.py), but none of a user's own: /models/..., ./voices, https://...
PATH = re.compile(r"(?<![\w./:-])(\w[\w-]*/(?:[\w*.-]+/)*[\w*.-]+\.(?:py|sh|md|png|wav|toml|pbtxt|json))\b")
FOLDER = re.compile(r"`((?:[\w*.-]+/)+)`")
FILE = re.compile(r"`([\w-]+\.(?:py|sh|toml))`")  # without a folder: of the repository wherever it lies
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)  # kernel[grid](...) is no link
# A command of ours and its arguments, up to the end of the line, a pipe or a comment.
COMMAND = re.compile(r"(?<![\w/])((?:scripts|docker)/[\w/]+\.(?:py|sh)|qwen3-tts(?: [a-z-]+)+)((?: (?:\\\n|[^\n`|&;#])*)?)")
OPTION = re.compile(r"(?<=\s)--[a-z][a-z-]+")
PARENTS = (ROOT, ROOT / "engine_lib", ROOT / "client")  # pages about the engine leave its folder out
ROOMS = ("engine_lib", "client", "scripts", "tests", "model_repository", "docker")


def names_a_file(path: str) -> bool:
    """Whether a file or folder of the repository has this path, which may hold `*`, or NAME for any name."""
    return any(next(parent.glob(path.rstrip("/").replace("NAME", "*")), None) is not None for parent in PARENTS)


def is_there(name: str) -> bool:
    """Whether a file of the repository has this name, in whatever folder."""
    return (ROOT / name).exists() or any(next((ROOT / room).rglob(name), None) is not None for room in ROOMS)


def test_paths_of_the_repository_are_told_from_others() -> None:
    text = "`talker/engine.py` of `codec/`, model_repository/*/1/model.py, /models/a.json, ./voices/b.json, https://c.org/d.md, out.wav"
    assert PATH.findall(text) == ["talker/engine.py", "model_repository/*/1/model.py"]
    assert FOLDER.findall(text) == ["codec/"]
    assert LINK.findall("[a](docs/a.md#b), ![c](d.png), [e](https://f.org/g.md), [h](#i)") == ["docs/a.md", "d.png"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = LINK.findall(CODE.sub("", document.read_text(encoding="utf-8")))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_path_of_the_repository_exists(document: Path) -> None:
    text = LINK.sub("]", document.read_text(encoding="utf-8"))  # links are relative to the page
    assert [path for path in sorted({*PATH.findall(text), *FOLDER.findall(text)}) if not names_a_file(path)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_file_named_alone_exists(document: Path) -> None:
    names = sorted(set(FILE.findall(document.read_text(encoding="utf-8"))))
    assert [name for name in names if not is_there(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_test_named_exists(document: Path) -> None:
    named = TEST.findall(document.read_text(encoding="utf-8"))
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []


def options_of(command: str) -> set[str]:
    """The options that a script, or a command of qwen3-tts, takes."""
    if not command.startswith("qwen3-tts"):
        text = (ROOT / command).read_text(encoding="utf-8")
        shared = (ROOT / "scripts" / "benching" / "arguments.py").read_text(encoding="utf-8") if "benching.arguments" in text else ""
        return {"--help", *re.findall(r"--[a-z][a-z-]+", text + shared)}
    known: Any = get_command(app)
    for word in command.split()[1:]:
        known = known.commands[word] if word in getattr(known, "commands", {}) else known
    return {"--help", *(option for parameter in known.params for option in (*parameter.opts, *parameter.secondary_opts))}


@pytest.mark.parametrize("document", [page for page in DOCUMENTS if page.name != "performance_log.md"], ids=lambda document: document.name)
def test_every_option_in_a_command_exists(document: Path) -> None:
    code = "\n".join(CODE.findall(document.read_text(encoding="utf-8")))
    wrong = [
        f"{command} {option}"
        for command, arguments in COMMAND.findall(code)
        if command.startswith("qwen3-tts") or (ROOT / command).exists()
        for option in sorted(set(OPTION.findall(arguments)) - options_of(command))
    ]
    assert wrong == []


def test_no_command_installs_the_package_of_another_project() -> None:
    """qwen3-tts-triton on PyPI is not this one."""
    files = [*DOCUMENTS, *(file for room in ("engine_lib", "client", "scripts") for file in (ROOT / room).rglob("*.py"))]
    wrong = re.compile(r"pip install[^\n]*qwen3-tts-triton")
    assert [str(file.relative_to(ROOT)) for file in files if wrong.search(file.read_text(encoding="utf-8"))] == []


def test_the_page_of_todays_figures_has_a_hundred_lines_at_most() -> None:
    lines = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
