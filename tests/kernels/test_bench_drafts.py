"""scripts/bench_drafts.py: the passes that it times are those of a frame with drafts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_drafts import DraftedPasses

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.talker.device.worker import TalkerWorker


@pytest.mark.gpu  # half a minute in the interpreter
def test_each_pass_runs_its_rows_at_its_place(monkeypatch: pytest.MonkeyPatch, tiny_custom_voice: Path, device: torch.device):
    config = EngineConfig(model_path=str(tiny_custom_voice), device=device.type, enforce_eager=True, max_num_seqs=1)
    worker = TalkerWorker(Checkpoint(tiny_custom_voice), config, device=device, dtype=torch.float32)
    predictor = worker.model.code_predictor
    for layer in predictor.transformer.layers:
        for name, weight in vars(layer).items():
            setattr(layer, name, weight.clone())  # on the CPU a weight lies in the mapped file, perhaps not aligned as kernels need
    drafted, places = DraftedPasses(predictor, worker.state, torch.tensor([worker.scratch_slot], device=device), drafts=1), []
    run = DraftedPasses._pass

    def noted(self: DraftedPasses, x: torch.Tensor, position: int) -> torch.Tensor:
        places.append((len(x), position))
        return run(self, x, position)

    monkeypatch.setattr(DraftedPasses, "_pass", noted)
    with torch.inference_mode():
        x = drafted.run(2)
    assert places == [(2, 0), (2, 2)]
    assert x.shape == (2, predictor.transformer.shape.hidden_size)
    assert bool(x.isfinite().all())
