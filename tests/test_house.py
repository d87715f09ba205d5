"""The rooms of the house: files, names and sizes that keep the code easy to find one's way in."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "engine_lib"
GROUND = {
    "errors",
    "config",
    "checkpoint",
    "checkpoint_config",
    "checkpoint_files",
    "prompt",
    "streamed_text",
    "text_tokenizer",
    "sampling",
    "delivery",
    "devices",
}
MOST_LINES, MOST_ARGUMENTS, LONGEST_OPENING = 400, 8, 100


def python_files() -> list[Path]:
    folders = ("engine_lib", "client", "docker", "model_repository", "scripts", "tests")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def classes_of(folder: Path) -> Iterator[tuple[Path, ast.ClassDef]]:
    for file in sorted(folder.rglob("*.py")):
        for node in tree_of(file).body:
            if isinstance(node, ast.ClassDef):
                yield file, node


def test_nothing_lies_loose_in_the_engine_but_its_ground() -> None:
    assert {file.stem for file in ENGINE.glob("*.py")} == GROUND | {"__init__"}


def test_no_two_public_classes_of_the_engine_have_one_name() -> None:
    homes = defaultdict(list)
    for file, node in classes_of(ENGINE):
        if not node.name.startswith("_"):
            homes[node.name].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_no_constructor_takes_more_arguments_than_a_reader_keeps_in_mind() -> None:
    too_many = []
    for file, node in classes_of(ENGINE):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                arguments = method.args.posonlyargs + method.args.args + method.args.kwonlyargs
                if len(arguments) - 1 > MOST_ARGUMENTS and "kernels" not in file.parts:
                    too_many.append(f"{file.relative_to(ROOT)}: {node.name} takes {len(arguments) - 1}")
    assert too_many == []


def test_every_module_opens_with_a_line_that_is_read_at_a_glance() -> None:
    openings = {str(file.relative_to(ROOT)): (ast.get_docstring(tree_of(file)) or "").partition("\n")[0] for file in python_files()}
    assert {name: opening for name, opening in openings.items() if len(opening) > LONGEST_OPENING} == {}


def test_no_file_is_too_long_to_read() -> None:
    sizes = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}


def test_the_talker_without_its_subfolders_stays_a_small_engine() -> None:
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (ENGINE / "talker").glob("*.py")) <= 1700


def test_a_clock_that_is_set_changes_no_decision() -> None:
    """Only spans and the date of a stored voice show the time of day; all that waits or expires counts monotonic seconds."""
    files = [*ENGINE.rglob("*.py"), *(ROOT / "client").rglob("*.py"), *(ROOT / "model_repository").rglob("*.py")]
    wall_clock = re.compile(r"time\.time\(|time_ns\(|datetime\.now\(|utcnow\(|date\.today\(")
    found = {str(file.relative_to(ROOT)) for file in files if wall_clock.search(file.read_text(encoding="utf-8"))}
    assert found == {"engine_lib/serving/tracing.py", "engine_lib/voices/store.py"}


def test_packages_have_the_version_of_the_project_and_show_their_types() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in (ENGINE, ROOT / "client" / "qwen3_tts_client"):
        version = re.search(r'^__version__ = "(.+?)"', (package / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
        assert version is not None
        assert f'\nversion = "{version[1]}"\n' in project
        assert (package / "py.typed").is_file()  # or type checkers see nothing of an installed package


def test_contributing_says_where_every_test_that_needs_a_gpu_is() -> None:
    page, mark = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "pytest.mark." + "gpu"
    homes = tuple(re.findall(r"tests/[\w/.]+", page.partition("- **On a GPU**")[2].partition("\n- ")[0]))
    files = [str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py") if mark in file.read_text(encoding="utf-8")]
    assert files
    assert [file for file in files if not file.startswith(homes)] == []
