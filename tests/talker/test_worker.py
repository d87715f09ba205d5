"""The frame step on the device: it reads nothing on the host, and padding may go on for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine_lib.config import EngineConfig
from engine_lib.errors import ConfigError
from engine_lib.layers.flash_attention import check_flash_attention
from engine_lib.talker.device.worker import TalkerWorker
from talker.speaking import checkpoint, make_engine

BATCH = 3


def test_the_frame_step_reads_no_device_value_on_the_host(voice: Path):
    # A meta tensor has a shape and no values, so any read, and any shape that depends on values, raises.
    device = torch.device("meta")
    config = EngineConfig(max_model_len=64)
    with torch.inference_mode():
        worker = TalkerWorker(checkpoint(voice), config, device=device, dtype=torch.float32)
        codes = worker.step(torch.empty(BATCH, dtype=torch.int64, device=device), worker.state.block_tables.shape[1])
    assert (codes.shape, codes.device, codes.dtype) == ((BATCH, 16), device, torch.int64)
    with pytest.raises(RuntimeError):
        codes[0, 0].item()


def test_padding_stays_at_the_first_row_however_long_the_server_runs(tiny_custom_voice: Path):
    worker = make_engine(tiny_custom_voice, max_model_len=16).worker
    slots = torch.tensor([0, worker.scratch_slot, worker.scratch_slot])
    with torch.inference_mode():
        for step in range(20):
            worker.step(slots[1:] if step >= 16 else slots, worker.state.block_tables.shape[1])
    assert worker.state.positions[0] == 16
    assert worker.state.positions[worker.scratch_slot] == 0


def test_flash_attn_refuses_what_it_cannot_read_and_says_what_to_change(tiny_custom_voice: Path):
    with pytest.raises(ConfigError, match="flash-attn needs a CUDA device; use auto or torch"):
        make_engine(tiny_custom_voice, attention_backend="flash-attn")
    fits: dict[str, Any] = {"dtype": torch.bfloat16, "block_size": 256, "head_dim": 128}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"block_size": 16}, "kv_block_size is 16; set kv_block_size to 256"),
        ({"dtype": torch.float32}, "not in torch.float32; set dtype to bfloat16"),
        ({"head_dim": 260}, "this checkpoint's is 260; use auto"),
    ]
    for changed, advice in changes:
        with pytest.raises(ConfigError, match=advice):
            check_flash_attention(**(fits | changed))
