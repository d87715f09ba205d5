"""Checkpoints for all tests, their order, which ones are skipped, and the memory of a file."""

from __future__ import annotations

import ctypes
import gc
import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from make_checkpoint import make_checkpoint
from oracle import load_official
from workers import place_of, scheduling

# Without a GPU kernels run by Triton's interpreter, which must be chosen before triton is first imported (transformers imports it).
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tensors here are so small that a second thread does not help, and on a busy machine the two wait for each other.
torch.set_num_threads(1)

# Differs from the tiny default in every way in which the published sizes differ from each other, and in more: numbers of heads that
# are no powers of two, more than two queries per KV head, different widths of q and of the hidden state, a predictor narrower than
# the talker (so small_to_mtp_projection exists) with its own head_dim and layer count.
SHAPES_1B7 = {
    "tts_model_size": "1b7",
    "talker_config.hidden_size": 96,
    "talker_config.intermediate_size": 160,
    "talker_config.num_hidden_layers": 3,
    "talker_config.num_attention_heads": 6,
    "talker_config.num_key_value_heads": 2,
    "talker_config.head_dim": 32,
    "talker_config.text_hidden_size": 80,
    "talker_config.code_predictor_config.hidden_size": 48,
    "talker_config.code_predictor_config.intermediate_size": 112,
    "talker_config.code_predictor_config.num_hidden_layers": 1,
    "talker_config.code_predictor_config.num_attention_heads": 4,
    "talker_config.code_predictor_config.num_key_value_heads": 1,
    "talker_config.code_predictor_config.head_dim": 24,
    "speech_tokenizer.decoder_config.codebook_dim": 48,
    "speech_tokenizer.decoder_config.latent_dim": 40,
    "speech_tokenizer.decoder_config.num_hidden_layers": 3,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, give tests that share servers to one worker."""
    return scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without a search for garbage: imports leave none, and each search goes through all that they have made."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, and skip those marked gpu if CUDA is missing."""
    items.sort(key=lambda item: place_of(item.nodeid))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module", autouse=True)
def memory_goes_with_its_file() -> Iterator[None]:
    """After each file, give back what it held: a worker runs a third of all files, and would need some gigabytes at the end."""
    frozen = gc.get_freeze_count()
    yield
    load_official.cache_clear()
    if gc.get_freeze_count() > frozen:
        gc.unfreeze()  # a service that was tested in this process has frozen all that there was
    gc.collect()
    gc.freeze()  # all that is left, modules above all, so that no later collection spends half a second on it
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps what is free, for each thread that an engine has had


@pytest.fixture
def fresh_seed() -> int:
    """Return a new seed for this run; pytest prints it when the test fails."""
    seed = secrets.randbits(32)
    print(f"fresh_seed = {seed}")
    return seed


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the session's folder for checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def tiny_custom_voice(checkpoints: Path) -> Path:
    """Return a custom_voice checkpoint of the 0.6B type: predictor as wide as the talker, instructions ignored."""
    return make_checkpoint(checkpoints / "custom_voice")


@pytest.fixture(scope="session")
def tiny_custom_voice_1b7(checkpoints: Path) -> Path:
    """Return a custom_voice checkpoint of the 1.7B type with other shapes throughout (SHAPES_1B7)."""
    return make_checkpoint(checkpoints / "custom_voice_1b7", seed=5, overrides=SHAPES_1B7)


@pytest.fixture(scope="session")
def tiny_base(checkpoints: Path) -> Path:
    """Return a base checkpoint, which clones voices."""
    return make_checkpoint(checkpoints / "base", kind="base", seed=2)


@pytest.fixture(scope="session")
def tiny_base_1b7(checkpoints: Path) -> Path:
    """Return a base checkpoint of the 1.7B type with other shapes throughout (SHAPES_1B7)."""
    return make_checkpoint(checkpoints / "base_1b7", kind="base", seed=6, overrides=SHAPES_1B7)


@pytest.fixture(scope="session")
def tiny_voice_design(checkpoints: Path) -> Path:
    """Return a voice_design checkpoint of the 1.7B type, like the published one."""
    return make_checkpoint(checkpoints / "voice_design", kind="voice_design", seed=3, overrides={"tts_model_size": "1b7"})


@pytest.fixture(scope="session")
def tiny_published_ids(checkpoints: Path) -> Path:
    """Return a tiny custom_voice checkpoint with a text vocabulary of the published size and ids.

    Above 100,000 tokens transformers 4.57.3 splits text by another pattern (fix_mistral_regex), as with the real weights.
    """
    return make_checkpoint(checkpoints / "published_ids", overrides={"talker_config.text_vocab_size": 151936})
