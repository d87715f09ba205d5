"""The talker's multimodal RoPE is plain RoPE: its three rows of positions are equal."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import oracle
from engine_lib.ops.rope import apply_rope, inverse_frequencies, rope_cos_sin
from talker.speaking import Utterance

SECTIONS = {128: [24, 20, 20], 64: [12, 10, 10], 32: [6, 5, 5]}


@pytest.fixture(scope="module")
def official() -> Any:
    """The module of the official talker."""
    oracle.import_official()
    return importlib.import_module("qwen_tts.core.models.modeling_qwen3_tts")


@pytest.mark.parametrize("head_dim", SECTIONS)
def test_plain_rope_equals_the_interleaved_multimodal_one(official: Any, head_dim: int, fresh_seed: int):
    generator = torch.Generator().manual_seed(fresh_seed)
    rows, heads, kv_heads, theta = 50, 6, 2, 1e6
    q = torch.randn(rows, heads, head_dim, generator=generator)
    k = torch.randn(rows, kv_heads, head_dim, generator=generator)
    positions = torch.randint(32768, (rows,), generator=generator)
    frequencies = inverse_frequencies(head_dim, theta, torch.device("cpu"))

    angles = positions.float()[:, None] * (1.0 / theta ** (torch.arange(0, head_dim, 2) / head_dim))
    angles = torch.cat((angles, angles), dim=-1)[None, None].expand(3, 1, rows, head_dim)  # three rows of positions, batch 1
    expected_q, expected_k = official.apply_multimodal_rotary_pos_emb(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], angles.cos(), angles.sin(), SECTIONS[head_dim], True
    )
    cos, sin = rope_cos_sin(positions, frequencies, torch.float32)
    torch.testing.assert_close(apply_rope(q, cos, sin), expected_q[0].transpose(0, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_rope(k, cos, sin), expected_k[0].transpose(0, 1), rtol=0, atol=1e-6)


def test_the_official_talker_gives_all_three_rows_the_same_positions(voice: Path):
    model = oracle.load_official(voice)
    positions: list[torch.Tensor] = []
    hook = model.model.talker.model.rotary_emb.register_forward_pre_hook(lambda _module, inputs: positions.append(inputs[1]))
    utterance = Utterance(instruct="Whisper.")
    try:
        asked: dict[str, Any] = {"text": utterance.text, "speaker": utterance.voice, "instruct": utterance.instruct}
        oracle.official_codes(model, decode=False, non_streaming_mode=False, max_new_tokens=6, **asked)
    finally:
        hook.remove()
    rows = torch.cat(positions, dim=-1)
    assert rows.shape[:2] == (3, 1)
    assert len(positions) > 2
    assert torch.equal(rows[:, 0], torch.arange(rows.shape[-1], dtype=rows.dtype).expand(3, -1))
