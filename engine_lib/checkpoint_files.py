"""A checkpoint folder and the fields of its JSON files; each error says what to do.

A field that is missing, has another type or lies outside a table is named with its file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_lib.errors import CheckpointError

HUB_ID = re.compile(r"(?:https://(?:huggingface|hf)\.co/)?([\w.-]+/[\w.-]+)")  # or the address of its page
FOLDER = "give a checkpoint folder in the published layout"
LFS_POINTER = b"version https://git-lfs.github.com/"
MODEL_PREFIX, SNAPSHOTS = "models--", "snapshots"  # in the hub's cache: models--ORG--NAME/snapshots/REVISION
CODEC = "speech_tokenizer"
MAX_NAMED = 5
MAX_SIZE = 2**31 - 1  # of a table, a layer, a window; real ones are much smaller
MAX_NUMBER = 1e30  # a float32 holds it, and its square root times another one


def checkpoint_folder(path: str | Path) -> Path:
    """The folder of a checkpoint; `~` is the home folder. In the hub's cache, a model's folder stands for its revision `main`.

    Raises:
        CheckpointError: there is none; the message says how to get one if `path` is a hub id, in the hub's cache or a folder of several.
    """
    if not isinstance(path, (str, Path)):
        raise CheckpointError(f"model_path: is a {type(path).__name__}; give the path of a checkpoint folder, as a string or a Path")
    if not str(path).strip():  # of a variable that was not set
        raise CheckpointError(f"model_path: is empty; {FOLDER}")
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder):
        if not os.access(folder, os.R_OK | os.X_OK):
            problem = f"may not be read by user {os.getuid()}"
            raise CheckpointError(f"model_path: {str(path)!r:.300} {problem}; let that user read all files and folders in it")
        if not os.path.lexists(folder / "config.json"):
            return _snapshot(folder) or _no_checkpoint(folder, path)
        return folder
    advice = FOLDER
    if os.path.isfile(folder):
        advice = f"{FOLDER}, perhaps the one that it is in"
    elif hub_id := HUB_ID.fullmatch(str(path)):
        name = hub_id[1]
        cache = Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")), "hub")
        cached = Path(os.environ.get("HF_HUB_CACHE", cache), f"{MODEL_PREFIX}{name.replace('/', '--')}")
        advice = f"nothing is downloaded here. Run: hf download {name} --local-dir {Path(name).name}"
        if _snapshots(cached):
            advice = f"nothing is downloaded here. Give {_main_snapshot(cached) or _snapshots(cached)[0]}"
    raise CheckpointError(f"model_path: {str(path)!r:.300} is not a folder; {advice}")


def checkpoint_name(folder: Path) -> str:
    """What people call the checkpoint: the name of its folder; ORG/NAME if that is a revision in the hub's cache."""
    model = folder.parent.parent.name
    if folder.parent.name == SNAPSHOTS and model.startswith(MODEL_PREFIX):
        return model.removeprefix(MODEL_PREFIX).replace("--", "/")
    return folder.name


def _snapshots(model: Path) -> list[Path]:
    return [file.parent for file in sorted(model.glob(f"{SNAPSHOTS}/*/config.json"))]


def _main_snapshot(model: Path) -> Path | None:
    """The revision `main` of a model's folder in the hub's cache."""
    try:
        revision = (model / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return next((snapshot for snapshot in _snapshots(model) if snapshot.name == revision), None)


def _snapshot(model: Path) -> Path | None:
    """The revision that a model's folder in the hub's cache stands for; None if it is no such folder, or says too little."""
    snapshots = _snapshots(model)
    return _main_snapshot(model) or (snapshots[0] if len(snapshots) == 1 else None)


def _no_checkpoint(folder: Path, path: str | Path) -> Path:
    """`folder` itself, for the error about its config.json.

    Raises:
        CheckpointError: one that helps more.
    """
    problem = f"model_path: {str(path)!r}"
    if snapshots := _snapshots(folder):
        raise CheckpointError(f"{problem} has several revisions in the hub's cache, and none is main; give one: {_listed(snapshots)}")
    if models := [file for file in sorted(folder.glob(f"{MODEL_PREFIX}*")) if _snapshots(file)]:
        raise CheckpointError(f"{problem} is a cache of the Hugging Face hub; give the folder of a model in it: {_listed(models)}")
    if inside := [file.parent for file in sorted(folder.glob("*/config.json")) if file.parent.name != CODEC]:
        raise CheckpointError(f"{problem} has no config.json; give a checkpoint in it: {_listed(inside)}")
    if gguf := sorted(folder.glob("*.gguf")):
        raise CheckpointError(f"{problem} has {gguf[0].name} and no config.json; GGUF is not read: give the checkpoint it was made from")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{problem} is an adapter (LoRA), not a checkpoint; merge it into its model and give the result")
    return folder


def _listed(folders: list[Path]) -> str:
    more = f" and {len(folders) - MAX_NAMED} more" if len(folders) > MAX_NAMED else ""
    return ", ".join(map(str, folders[:MAX_NAMED])) + more


def why_missing(file: Path) -> str:
    """A message about a file that is not there."""
    if os.path.islink(file):
        return f"{file} is a link to a file that is gone or was never completely downloaded; download the checkpoint again"
    if file.parent.name == CODEC:
        advice = (
            f"copy {CODEC} from the checkpoint that this one was made from, or run: hf download Qwen/Qwen3-TTS-Tokenizer-12Hz --local-dir"
        )
        return f"{file} is missing; {advice} {file.parent}"
    return f"{file} is missing; the folder is not a complete Qwen3-TTS checkpoint"


def is_lfs_pointer(file: Path) -> bool:
    """Whether `file` is what a clone without Git LFS has in place of a large file."""
    try:
        with file.open("rb") as content:
            return content.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def why_unreadable(file: Path, error: object, reason: str = "cannot be read") -> str:
    """A message about a file that cannot be opened or parsed."""
    try:
        file.open("rb").close()
    except OSError as problem:  # libraries have words of their own for it
        return f"{file} cannot be read: {problem.strerror}"
    if is_lfs_pointer(file):
        return f"{file} is a pointer of Git LFS, not the file itself; run git lfs pull in its folder, or download the checkpoint again"
    return f"{file} {reason}: {error}"


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: it is missing, cannot be read, or is no JSON that this engine reads.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(why_missing(file)) from None
    except OSError as error:
        raise CheckpointError(why_unreadable(file, error.strerror)) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(why_unreadable(file, error, "is not valid JSON")) from None


class Fields:
    """One JSON object; a missing or mistyped field is reported with its file."""

    def __init__(self, file: Path, values: dict[str, Any] | None = None, prefix: str = "") -> None:
        self.file, self.prefix = file, prefix
        self.where = f"{file}{f' ({prefix})' if prefix else ''}"
        if values is None:
            values = read_json(file)
            if not isinstance(values, dict):
                raise CheckpointError(f"{file} does not hold a JSON object")
        self.values: dict[str, Any] = values

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The field, which must be a `kind`; float takes whole numbers too."""
        value = self.values.get(name, default)
        allowed: tuple[type, ...] = (int, float) if kind is float else (kind,)
        if value is None or isinstance(value, bool) or not isinstance(value, allowed):
            raise CheckpointError(f"{self.where}: {name} is {value!r:.200}; {kind.__name__} expected")
        return value

    def get_size(self, name: str, default: int | None = None) -> int:
        """The field, a whole number from 1 to MAX_SIZE."""
        value: int = self.get(name, int, default)
        if not 1 <= value <= MAX_SIZE:
            raise CheckpointError(f"{self.where}: {name} is {value!r:.200}; a whole number from 1 to {MAX_SIZE} expected")
        return value

    def get_sizes(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The field, a list of whole numbers from 1 to MAX_SIZE."""
        values = self.get(name, list, None if default is None else list(default))
        if not all(type(value) is int and 1 <= value <= MAX_SIZE for value in values):
            raise CheckpointError(f"{self.where}: {name} is {values!r:.200}; whole numbers from 1 to {MAX_SIZE} expected")
        return tuple(values)

    def get_positive(self, name: str, default: float | None = None) -> float:
        """The field, a number above 0 that is not infinite."""
        value = self.get(name, float, default)
        if not 0 < value < MAX_NUMBER:
            raise CheckpointError(f"{self.where}: {name} is {value!r:.200}; a number above 0 and below {MAX_NUMBER:g} expected")
        return float(value)

    def get_id(self, name: str, rows: int) -> int:
        """The field, which must be the number of a row in a table of `rows`."""
        return self._checked_id(name, self.get(name, int), rows)

    def get_ids(self, name: str, rows: int) -> dict[str, int]:
        """The field, an object of names (returned in lower case) and numbers of rows in a table of `rows`; empty if it is absent."""
        ids: dict[str, int] = {}
        for key, value in self._object(name).items():
            if key.lower() in ids:
                raise CheckpointError(f"{self.where}: {name} has {key!r} twice, in upper and lower case; give each name once")
            ids[key.lower()] = self._checked_id(f"{name}[{key!r}]", value, rows)
        return ids

    def get_names(self, name: str, allowed: Mapping[str, object]) -> dict[str, str | None]:
        """The field, an object of names (returned in lower case) and false or one of `allowed`; empty if it is absent."""
        names: dict[str, str | None] = {}
        for key, value in self._object(name).items():
            chosen = value.lower() if isinstance(value, str) else value
            if chosen and not (isinstance(chosen, str) and chosen in allowed):
                expected = f"false or one of {', '.join(allowed)} expected"
                raise CheckpointError(f"{self.where}: {name}[{key!r}] is {value!r:.200}; {expected}")
            names[key.lower()] = chosen or None
        return names

    def nested(self, name: str) -> Fields:
        """The field, an object."""
        return Fields(self.file, self.get(name, dict), f"{self.prefix}.{name}" if self.prefix else name)

    def must_be(self, name: str, supported: object) -> None:
        """Check a field for which only one value is supported, which is also its default."""
        value = self.values.get(name, supported)
        if value != supported:
            raise CheckpointError(f"{self.where}: {name} is {value!r}; only {supported!r} is supported")

    def _object(self, name: str) -> dict[str, Any]:
        return {} if self.values.get(name) is None else dict(self.get(name, dict))

    def _checked_id(self, name: str, value: Any, rows: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < rows:
            expected = f"an id from 0 to {rows - 1} expected, because its table has {rows} rows"
            raise CheckpointError(f"{self.where}: {name} is {value!r:.200}; {expected}")
        return value
