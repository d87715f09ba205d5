"""A stored voice keeps its own lexicon."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import InvalidRequestError
from voices.test_store import add, open_store, rewrite, voice


def test_a_voice_keeps_its_lexicon_and_one_without_has_the_file_of_older_servers(tmp_path: Path, tiny_base: Path) -> None:
    config = CheckpointConfig.read(tiny_base)
    words = {"SQL": "sequel", "größe": "Gröhße"}
    added = add(open_store(tmp_path), voice(config), lexicon=words)
    store = open_store(tmp_path)
    assert (added.lexicon, store.show("anna")) == (words, added)
    assert store.lexicon("ANNA", config).spellings == words
    assert store.add_blend("duo", "anna", lexicon={"a": "b"}).lexicon == {"a": "b"}
    for name, lexicon in (("ben", None), ("bob", {})):
        assert add(store, voice(config), name, lexicon=lexicon).lexicon is None
        assert "lexicon" not in (store.folder / f"{name}.json").read_text()
        assert not store.lexicon(name, config)
    rewrite(store, lexicon={"new": "neu"})
    assert store.lexicon("anna", config).spellings == {"new": "neu"}  # it is read again after a change


def test_no_voice_is_stored_with_a_lexicon_that_is_none_or_too_large(tmp_path: Path, tiny_base: Path) -> None:
    config, store = CheckpointConfig.read(tiny_base), open_store(tmp_path)
    for lexicon, message in (
        (["SQL"], r"^lexicon: is a list; give an object of up to 1000 words"),
        ({str(number): "a" for number in range(1001)}, r"^lexicon: is 1001 words"),
        ({"SQL": ""}, r"^lexicon: the spelling of entry 'SQL' is not allowed"),
        (
            {f"{number:03}": "a" * 200 for number in range(1000)},
            r"^lexicon: .* its texts take \d+ bytes; at most 100000 .* give fewer words",
        ),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            add(store, voice(config), lexicon=lexicon)
    assert store.names() == []
