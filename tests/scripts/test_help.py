"""--help of every script: it teaches, and does nothing else."""

from __future__ import annotations

import argparse
import ast
import subprocess
from pathlib import Path

import pytest

from benching.arguments import HelpFormatter

ROOT = Path(__file__).parents[2]
SHELL = [*sorted((ROOT / "scripts").glob("*.sh")), *sorted((ROOT / "docker").glob("*.sh"))]
PYTHON = [*sorted((ROOT / "scripts").rglob("*.py")), ROOT / "docker" / "healthcheck.py"]


@pytest.mark.parametrize("script", [script for script in SHELL if script.name != "usage.sh"], ids=lambda script: script.name)
def test_a_shell_script_prints_the_comment_at_its_head(script: Path, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "VENV": str(tmp_path / "venv"), "HOME": str(tmp_path)}
    for option in ("--help", "-h"):
        done = subprocess.run(["bash", script, option], env=environment, capture_output=True, text=True, cwd=tmp_path)
        head = script.read_text(encoding="utf-8").splitlines()[1]
        assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, head.removeprefix("# "), "")
    assert list(tmp_path.iterdir()) == []


def test_every_argument_of_a_python_script_is_explained() -> None:
    silent = []
    for script in PYTHON:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="add_argument"), args=[name, *_], keywords=keywords):
                    if "help" not in {keyword.arg for keyword in keywords}:
                        silent.append(f"{script.relative_to(ROOT)}: {ast.unparse(name)}")
    assert silent == []


def test_the_help_of_an_option_ends_with_its_default() -> None:
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    for name, default in (("--list", [1, 2]), ("--text", "50 %"), ("--none", None), ("--flag", False)):
        parser.add_argument(name, default=default, help="words")
    parser.add_argument("--own", default=3, help="words (default: three)")
    shown = " ".join(parser.format_help().split())
    assert "words (default: 1 2)" in shown
    assert "words (default: 50 %)" in shown
    assert "words (default: three)" in shown
    assert shown.count("default") == 3
