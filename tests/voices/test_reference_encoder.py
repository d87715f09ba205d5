"""Reference codes equal the official ones under transformers 4.57.3 and 5, in any batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine_lib.checkpoint import Checkpoint, Weights
from engine_lib.errors import CheckpointError
from engine_lib.voices.reference_audio import SAMPLE_RATE
from engine_lib.voices.reference_encoder import ReferenceEncoder
from make_checkpoint import make_checkpoint
from oracle import load_official
from patience import PATIENCE
from voices.near_ties import assert_same_codes
from voices.recordings import fresh_seed, recordings

CPU = torch.device("cpu")
FRAME = 1920

# Where scripts/install.sh puts transformers 5 and the releases of its own libraries that it needs.
TRANSFORMERS_5 = Path(os.environ.get("TRANSFORMERS_5", Path(sys.prefix) / "transformers5"))
ENCODE = """
import sys, numpy, torch, transformers
from engine_lib.checkpoint import Checkpoint
from engine_lib.voices.reference_encoder import ReferenceEncoder

assert transformers.__version__.startswith("5."), transformers.__version__
checkpoint = Checkpoint(sys.argv[1])
encoder = ReferenceEncoder(checkpoint.speech_tokenizer_weights(), checkpoint.config.reference_encoder, device=torch.device("cpu"))
audio = numpy.load(sys.argv[2])
torch.set_num_threads(1)
with torch.inference_mode():
    together = encoder([torch.from_numpy(audio[name]) for name in audio.files])
    alone = [encoder([torch.from_numpy(audio[name])])[0] for name in audio.files]
numpy.savez(sys.argv[3], *[codes.numpy() for codes in alone + together])
"""


def load(folder: Path, weights: Weights | None = None) -> ReferenceEncoder:
    checkpoint = Checkpoint(folder)
    assert checkpoint.config.reference_encoder is not None
    return ReferenceEncoder(weights or checkpoint.speech_tokenizer_weights(), checkpoint.config.reference_encoder, device=CPU)


def encode(encoder: ReferenceEncoder, audio: list[npt.NDArray[np.float32]]) -> list[torch.Tensor]:
    return encoder([torch.from_numpy(clip) for clip in audio])


def official(folder: Path, clip: npt.NDArray[np.float32]) -> torch.Tensor:
    """The official codes for `clip` alone; in a list of recordings the official package pads them, which changes their ends."""
    codes: torch.Tensor = load_official(folder).model.speech_tokenizer.encode(clip, sr=SAMPLE_RATE).audio_codes[0]
    return codes


@pytest.fixture(scope="module")
def other_shapes(checkpoints: Path) -> Path:
    """Return a checkpoint whose reference encoder differs from the tiny one in every size; grouped heads, other ratios."""
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "codebook_dim": 24,
        "vector_quantization_hidden_dimension": 24,
        "num_filters": 6,
        "kernel_size": 5,
        "last_kernel_size": 5,
        "upsampling_ratios": [6, 5, 4, 8],
        "upsample_groups": 48,
        "rope_theta": 500.0,
    }
    overrides = {f"speech_tokenizer.encoder_config.{name}": size for name, size in sizes.items()}
    return make_checkpoint(checkpoints / "other_reference_encoder", kind="base", seed=12, overrides=overrides)


@torch.inference_mode()
@pytest.mark.parametrize("shapes", ["tiny_base", "other_shapes"])
def test_codes_equal_the_official_ones_alone_and_together(request: pytest.FixtureRequest, shapes: str):
    folder = request.getfixturevalue(shapes)
    seed = fresh_seed()
    rng = np.random.default_rng(seed)
    # the last frame full, one sample short, one sample long; with an even and an odd number of frames before the rate is halved
    ends = [(20 * FRAME + extra) / SAMPLE_RATE for extra in (-1, 0, 1, FRAME // 2 - 1, FRAME // 2, FRAME // 2 + 1)]
    short = recordings(seed, 1.0, *ends, *rng.uniform(1, 5, 4))
    long = recordings(seed, 10.0, 30.0)  # beyond the 10 s of the window that transformers 4.57 ignores
    encoder = load(folder)
    for clip, codes in zip(short + long, encode(encoder, short) + encode(encoder, long), strict=True):
        expected = official(folder, clip)
        assert len(expected) == -(-len(clip) // FRAME)
        assert expected.unique().numel() > 50, "the comparison would say nothing"
        [alone] = encode(encoder, [clip])
        assert alone.equal(expected), f"{len(clip)} samples alone"
        assert_same_codes(encoder, torch.from_numpy(clip), codes, expected)


@torch.inference_mode()
def test_batch_mates_change_the_latents_by_rounding_only(other_shapes: Path):
    seed = fresh_seed()
    encoder = load(other_shapes)
    clips = [torch.from_numpy(clip) for clip in recordings(seed, 1.0, *np.random.default_rng(seed).uniform(1, 6, 6))]
    together, frames = encoder.latents(clips)
    for clip, row, length in zip(clips, together, frames, strict=True):
        [alone], [expected_length] = encoder.latents([clip])
        assert length == expected_length
        torch.testing.assert_close(row[:, :length], alone, rtol=0, atol=1e-5 * alone.square().mean().sqrt().item())


@pytest.mark.skipif(not TRANSFORMERS_5.is_dir(), reason=f"no {TRANSFORMERS_5}; scripts/install.sh test makes it")
def test_codes_are_the_same_under_transformers_5(other_shapes: Path, tmp_path: Path):
    audio = recordings(fresh_seed(), 2.34567, 10.04, 30.0)
    np.savez(tmp_path / "audio.npz", *audio)
    path = os.pathsep.join([str(TRANSFORMERS_5), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", ENCODE, str(other_shapes), str(tmp_path / "audio.npz"), str(tmp_path / "codes.npz")]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 0, run.stderr
    codes = np.load(tmp_path / "codes.npz")
    encoder = load(other_shapes)
    with torch.inference_mode():
        for clip, name in zip(audio + audio, codes.files, strict=True):
            assert_same_codes(encoder, torch.from_numpy(clip), torch.from_numpy(codes[name]), official(other_shapes, clip))


def test_only_the_weights_in_use_are_read(tiny_base: Path):
    class Recorded(Weights):
        def take(self, name: str, shape: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            taken.add(name)
            return super().take(name, shape, dtype=dtype, device=device)

    taken: set[str] = set()
    weights = Recorded(tiny_base / "speech_tokenizer")
    load(tiny_base, weights)
    books = {name.rpartition(".layers.")[2].partition(".")[0] for name in taken if ".acoustic_" in name and ".layers." in name}
    assert books == {str(i) for i in range(15)}
    assert taken < {name for name in weights.names() if name.startswith("encoder.")}


def test_a_reference_encoder_that_does_not_fit_is_refused_by_field(checkpoints: Path):
    for section, field, value, message in (
        ("encoder_config", "audio_channels", 2, "audio_channels is 2; only 1"),
        ("encoder_config", "pad_mode", "replicate", "pad_mode is 'replicate'"),
        ("encoder_config", "sampling_rate", 16000, "sampling_rate is 16000"),
        ("encoder_config", "upsampling_ratios", [8, 6, 5], "encode_downsample_rate is 1920; only 480"),
        (None, "encoder_valid_num_quantizers", 8, "encoder_valid_num_quantizers is 8; only 16"),
    ):
        folder = make_checkpoint(checkpoints / f"bad_{field}", kind="base")
        config = folder / "speech_tokenizer" / "config.json"
        values = json.loads(config.read_text())
        (values if section is None else values[section])[field] = value
        config.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(folder)
