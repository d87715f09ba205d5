"""Command-line arguments that several benchmarks share."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

PACKAGES = {"PIL": "pillow"}  # of modules that have another name


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prints the description as it is, and behind each help its default, unless that is nothing or the help names it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        help, default = action.help or "", action.default
        if "default" in help or not action.option_strings or default in (None, False, argparse.SUPPRESS, [], ()):
            return help
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{help} (default: {shown.replace('%', '%%')})"


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoints, the folder of random checkpoints."""
    help = "folder in which random checkpoints are written and found again"
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help=help)


def add_engine_options(parser: argparse.ArgumentParser, name: str = "--option", whose: str = "") -> None:
    """Add `name` NAME=VALUE, which may be repeated; it parses to (name, value) pairs. `whose` options they are, for the help."""
    help = f"an engine option{whose and ' '}{whose}, as in serve.py; may be repeated"
    parser.add_argument(name, type=_engine_option, action="append", default=[], metavar="NAME=VALUE", help=help)


def add_own_server(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add what a benchmark that starts its own server needs: its checkpoint of this kind, device, options, log and the output."""
    parser.add_argument("--model", type=Path, help=f"serve this {kind} checkpoint folder instead")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", help="of the server: auto, cpu or cuda:N")
    add_engine_options(parser)
    parser.add_argument("--mps", action="store_true", help="share the GPU through a private MPS daemon")
    parser.add_argument("--log-file", type=Path, help="file for the server's output (default: a temporary file)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")


def add_repeated_streams(parser: argparse.ArgumentParser) -> None:
    """Add what a benchmark of one stream after the other needs: its length, how often, and the output."""
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a stream")
    parser.add_argument("--repeats", type=int, default=3, help="streams of each row; the best counts")
    parser.add_argument("--output", type=Path, help="also write the figures there, as JSON")


def _engine_option(text: str) -> tuple[str, str]:
    """(name, value) of NAME=VALUE, for argparse."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give NAME=VALUE")
    return name, value


def require_packages(parser: argparse.ArgumentParser, *modules: str, option: str = "", advice: str = "") -> None:
    """End with an error if one of `modules` is not installed.

    The project does not depend on them. So a script imports them under `suppress(ModuleNotFoundError)`, that --help works without, and
    calls this before it uses one.

    Args:
        option: the one that needs them; "": the script does.
    """
    packages = " ".join(PACKAGES.get(name, name) for name in modules if importlib.util.find_spec(name) is None)
    if packages:
        parser.error(f"{option}{option and ' '}needs {packages.replace(' ', ' and ')}: pip install {packages}{advice}")


def require_matplotlib(parser: argparse.ArgumentParser, arguments: argparse.Namespace, advice: str = "") -> None:
    """End with an error if --plot is given and matplotlib is not installed."""
    if arguments.plot:
        require_packages(parser, "matplotlib", option="--plot", advice=advice)
