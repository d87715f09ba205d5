"""Print docs/options.md: every option of EngineConfig with its default, range and meaning.

python scripts/print_options.py > docs/options.md
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from engine_lib.config import ENVIRONMENT_PREFIX, EngineConfig

INTRODUCTION = f"""# Options

Every option of the talker and of the codec. A value comes from the `parameters` of the model's `config.pbtxt`, or from
`scripts/serve.py --option NAME=VALUE`, or from a keyword of `Qwen3TTS.from_pretrained`; the environment variable
`{ENVIRONMENT_PREFIX}<NAME>` overrides config.pbtxt. An unknown name or a value outside its range stops the load with its name, the value
and what is allowed. This page is printed by `scripts/print_options.py`."""

TABLE = """| option | default | allowed | |
|---|---|---|---|"""


def options_page() -> str:
    """The page, as text."""
    lines = [INTRODUCTION]
    for spec in fields(EngineConfig):
        if spec.metadata["group"]:
            lines.append(f"\n## {spec.metadata['group']}\n\n{TABLE}")
        default = ",".join(map(str, spec.default)) if isinstance(spec.default, tuple) else spec.default
        lines.append(
            f"| `{spec.name}` | {f'`{default}`' if default != '' else ''} | {_allowed(dict(spec.metadata))} | {spec.metadata['help']} |"
        )
    return "\n".join(lines) + "\n"


def _allowed(metadata: dict[str, object]) -> str:
    if metadata["choices"] is not None:
        return ", ".join(f"`{choice}`" for choice in metadata["choices"])  # type: ignore[attr-defined]
    minimum, maximum = metadata["minimum"], metadata["maximum"]
    if minimum is None and maximum is None:
        return ""
    return f"{minimum} to {maximum}" if maximum is not None else f"from {minimum}"


if __name__ == "__main__":
    print(options_page(), end="")
