"""--help of every script: it teaches, and does nothing else."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benching.arguments import HelpFormatter

ROOT = Path(__file__).parents[2]
SHELL = [*sorted((ROOT / "scripts").glob("*.sh")), *sorted((ROOT / "docker").glob("*.sh"))]
PYTHON = [*sorted((ROOT / "scripts").rglob("*.py")), ROOT / "docker" / "healthcheck.py"]

# What no dependency of the project brings. (torch for CUDA brings triton.)
OPTIONAL = ["PIL", "aiohttp", "av", "espeakng_loader", "fastapi", "httptools", "httpx", "hypothesis", "jiwer"]
OPTIONAL += ["librosa", "matplotlib", "multipart", "openai", "opentelemetry", "playwright", "pocketsphinx", "prometheus_client", "psutil"]
OPTIONAL += ["pyloudnorm", "pytest", "pytriton", "qwen_tts", "scipy", "uvicorn", "websockets", "wyoming"]
# Runs scripts in one process, since each takes seconds to import torch; prints how each ended and what it wrote.
WITHOUT = """
import contextlib, io, json, runpy, sys
optional, calls = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(optional))
ended = {}
for script, *arguments in calls:
    sys.argv, sys.path[0], written, code = [script, *arguments], script.rpartition("/")[0], io.StringIO(), 0
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    ended[script.rpartition("/")[2]] = code, written.getvalue()
print(json.dumps(ended))
"""


def run_without_optional_packages(calls: list[list[str]]) -> dict[str, tuple[object, str]]:
    """Exit code and output of each script, by its name; `calls`: a script of scripts/ and its arguments."""
    paths = [[str(ROOT / "scripts" / script), *arguments] for script, *arguments in calls]
    command = [sys.executable, "-c", WITHOUT, json.dumps([OPTIONAL, paths])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {script: (code, written) for script, (code, written) in json.loads(done.stdout).items()}


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


def test_the_help_of_a_python_script_needs_no_optional_package() -> None:
    scripts = [script.name for script in sorted((ROOT / "scripts").glob("*.py")) if script.name != "print_options.py"]  # it has no options
    ended = run_without_optional_packages([[script, "--help"] for script in scripts])
    assert {script: end for script, end in ended.items() if end[0] != 0 or not end[1].startswith("usage: ")} == {}
    assert len(ended) == len(scripts) > 20


def test_a_script_says_what_to_install() -> None:
    needs = {
        "bench_formats.py": ("av", "av", []),
        "bench_gateway.py": ("psutil", "psutil", ["--fake"]),
        "bench_script.py": ("psutil", "psutil", []),
        "fuzz_server.py": ("psutil", "psutil", []),
        "roll.py": ("psutil", "psutil", ["drains", "--count", "1"]),
        "screenshot_studio.py": ("pillow and playwright", "pillow playwright", ["http://localhost:1", "folder"]),
        "soak.py": ("psutil", "psutil", []),
        "soak_gateway.py": ("psutil and websockets and wyoming", "psutil websockets wyoming", []),
        "count_runaways.py": ("matplotlib", "matplotlib", ["checkpoint", "--plot", "runs.png"]),
    }
    ended = run_without_optional_packages([[script, *arguments] for script, (_, _, arguments) in needs.items()])
    for script, (words, packages, arguments) in needs.items():
        code, written = ended[script]
        option = "--plot " if "--plot" in arguments else ""
        assert (code, written.splitlines()[-1]) == (2, f"{script}: error: {option}needs {words}: pip install {packages}")
