"""Logits of a talker that is fed given codes, so that two runs can be compared frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from bench_engine import launch

from engine_lib.prompt import Prompt
from engine_lib.talker.device import frame, sampler
from engine_lib.talker.device.prefill_layout import MAX_PREFILL_SEQUENCES
from engine_lib.talker.device.sampler import SamplingTensors
from engine_lib.talker.engine import TalkerEngine
from talker.speaking import GREEDY, unheard

Logits = npt.NDArray[np.float32]


@dataclass
class Forcing:
    """Keeps the logits of every sample and replaces it by the teacher's code.

    Attributes:
        num_code_groups: samples of a frame.
        teacher: [frames, batch, num_code_groups] int64; None keeps the samples.
        logits: [batch, vocab] of each sample.
        codes: [batch] int64 of each sample.
    """

    num_code_groups: int
    teacher: torch.Tensor | None = None
    logits: list[torch.Tensor] = field(default_factory=list)
    codes: list[torch.Tensor] = field(default_factory=list)

    def choose(self, logits: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        """The ids [batch] that take the place of the next sample."""
        frame_number, codebook = divmod(len(self.logits), self.num_code_groups)
        chosen = sampled if self.teacher is None else self.teacher[frame_number, : len(sampled), codebook].to(sampled.device)
        self.logits.append(logits.float().clone())
        self.codes.append(chosen.clone())
        return chosen

    def all_codes(self) -> torch.Tensor:
        """[frames, batch, num_code_groups] int64 on the CPU."""
        return torch.stack(self.codes).cpu().unflatten(0, (-1, self.num_code_groups)).transpose(1, 2)

    def logits_of(self, codebook: int) -> Logits:
        """[frames, batch, vocab]; -inf for ids that are not allowed."""
        result: Logits = torch.stack(self.logits[codebook :: self.num_code_groups]).cpu().numpy()
        return result


@contextmanager
def forced(forcing: Forcing, device: torch.device) -> Iterator[None]:
    """Within, every eager sample goes through `forcing`."""
    with pytest.MonkeyPatch.context() as patch:
        sample = sampler.sample

        def forced_sample(logits: torch.Tensor, params: SamplingTensors, uniforms: torch.Tensor) -> torch.Tensor:
            return forcing.choose(logits, sample(logits, params, uniforms))

        patch.setattr(frame, "sample", forced_sample)
        if device.type == "cuda":
            from engine_lib.kernels import sampler_kernel
            from engine_lib.talker.device import fused_frame

            sample_codes = sampler_kernel.sample_codes

            def forced_sample_codes(
                logits: torch.Tensor, codebook: int, slots: torch.Tensor, sampling: Any, state: Any, codes: torch.Tensor, **options: Any
            ) -> None:
                sample_codes(logits, codebook, slots, sampling, state, codes, **options)
                codes[:, codebook] = forcing.choose(logits, codes[:, codebook])
                state.codes[slots, codebook] = codes[:, codebook]
                if (embedding := options.get("embedding")) is not None:
                    embedding.out.copy_(embedding.table[codes[:, codebook]])

            patch.setattr(fused_frame, "sample_codes", forced_sample_codes)
        yield


def run_forced(engine: TalkerEngine, prompts: Sequence[Prompt], num_frames: int, teacher: torch.Tensor | None = None) -> Forcing:
    """Speak `num_frames` frames of `prompts`, which must fit into one step of prefill, in one batch; `engine` is eager and not started."""
    forcing = Forcing(engine.checkpoint.config.talker.num_code_groups, teacher)
    with torch.inference_mode(), forced(forcing, engine.worker.device):
        for i, prompt in enumerate(prompts):
            sampling = GREEDY.updated({"max_frames": num_frames, "repetition_penalty": 1.0})
            engine.scheduler.add(unheard(engine, str(i), prompt, sampling))
        launch(engine)
        begun = sum(sequence.num_launched_frames > 0 for sequence in engine.scheduler.active)
        assert begun == len(prompts), (
            f"only {begun} of {len(prompts)} prompts, {sum(map(len, prompts))} rows, were prefilled in one step; it takes "
            f"{engine.scheduler.max_num_batched_tokens} rows (max_num_batched_tokens, max_model_len) of "
            f"{min(engine.config.max_num_seqs, MAX_PREFILL_SEQUENCES)} prompts (max_num_seqs, MAX_PREFILL_SEQUENCES)"
        )
        for _ in range(num_frames - 1):
            launch(engine)
        for sequence in list(engine.scheduler.active):
            engine.scheduler.release(sequence)
    return forcing


def relative_errors(logits: Logits, expected: Logits) -> npt.NDArray[np.float64]:
    """Norm of the difference over the norm of `expected`, both centred, because a softmax ignores a constant: [...] of [..., vocab]."""
    allowed = np.isfinite(expected)
    assert (np.isfinite(logits) == allowed).all()
    count = allowed.sum(-1, keepdims=True)

    def centred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(allowed, values - values.sum(-1, keepdims=True) / count, 0)

    exact = np.where(allowed, expected, 0).astype(np.float64)
    difference = centred(np.where(allowed, logits, 0) - exact)
    errors: npt.NDArray[np.float64] = np.linalg.norm(difference, axis=-1) / np.linalg.norm(centred(exact), axis=-1)
    return errors
