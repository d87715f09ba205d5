"""The text tokenizer of a checkpoint folder, with the ids of qwen-tts 0.1.1.

A published folder has vocab.json, merges.txt and tokenizer_config.json. It is read without transformers, which takes two seconds to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version
from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from engine_lib.checkpoint_files import is_lfs_pointer, why_missing, why_unreadable
from engine_lib.errors import CheckpointError

QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# A word ends before a capital that follows a small letter; contractions are not split off; slashes stay with line ends.
CASE_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the byte-level BPE tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    _check_files(folder)
    try:
        tokenizer = _published(folder, _added_tokens(folder)) or _of_another_layout(folder)
        if _splits_by_case(tokenizer.get_vocab_size(with_added_tokens=False), json.loads((folder / "config.json").read_text("utf-8"))):
            tokenizer.pre_tokenizer[0] = Split(Regex(CASE_SPLIT), "isolated")
    except Exception as error:
        raise CheckpointError(f"{folder}: the tokenizer does not load: {error}") from error
    return tokenizer


def _check_files(folder: Path) -> None:
    needed = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else ("vocab.json", "merges.txt")
    for file in (folder / name for name in needed):
        if not file.is_file():
            raise CheckpointError(why_missing(file))
        if is_lfs_pointer(file):
            raise CheckpointError(why_unreadable(file, ""))


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """The tokens beside the vocabulary by their ids, in order; none if the folder has not the layout of published ones."""
    file = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").is_file() or not file.is_file():
        return {}
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")).get("added_tokens_decoder") or {}
    tokens = {int(number): AddedToken(row["content"], **{flag: row[flag] for flag in FLAGS if flag in row}) for number, row in rows.items()}
    return dict(sorted(tokens.items()))


def _published(folder: Path, added: Mapping[int, AddedToken]) -> Tokenizer | None:
    """The tokenizer of the published layout; None if the folder has another one, or numbers its added tokens otherwise."""
    if not added:
        return None
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = Sequence([Split(Regex(QWEN2_SPLIT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added.values()))
    return tokenizer if all(tokenizer.token_to_id(token.content) == number for number, token in added.items()) else None


def _of_another_layout(folder: Path) -> Tokenizer:
    from transformers import Qwen2TokenizerFast

    found = Qwen2TokenizerFast.from_pretrained(str(folder), local_files_only=True, fix_mistral_regex=True)
    return found.backend_tokenizer


def _splits_by_case(vocab_size: int, config: Mapping[str, Any]) -> bool:
    """Whether transformers 4.57.3 replaces the pattern of Qwen2 by CASE_SPLIT; it does for published checkpoints, transformers 5 never."""
    written_by = config.get("transformers_version")
    return vocab_size > 100_000 and (written_by is None or Version("4.57.2") < Version(written_by) < Version("5.0.0"))
