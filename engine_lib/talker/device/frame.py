"""Sampling a frame: codebook 0 from the talker's last layer, the others from the code predictor.

The state of the slots moves on with it. This is the plain path, in torch: the CPU's, and the twin of fused_frame.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine_lib.checkpoint_config import TalkerConfig
from engine_lib.talker.device.model import TalkerModel
from engine_lib.talker.device.philox import frame_uniforms
from engine_lib.talker.device.sampler import BAD_CODE, apply_repetition_penalty, sample
from engine_lib.talker.device.state import SlotState

NUM_SUPPRESSED_IDS = 1024  # the top of the codec vocabulary: special ids, never spoken (EOS excepted)
MIN_FRAMES = 2  # EOS is not allowed earlier, as in the official generate()


@dataclass(frozen=True)
class FirstCodebookRules:
    """Ids that are not allowed in codebook 0.

    Attributes:
        suppressed: [vocab] bool, ids that are never sampled.
        eos: id that ends the stream.
        min_frames: frames before which `eos` is not sampled.
    """

    suppressed: torch.Tensor
    eos: int
    min_frames: int

    @classmethod
    def of(cls, config: TalkerConfig, device: torch.device) -> FirstCodebookRules:
        """The rules of the official generate()."""
        suppressed = torch.arange(config.vocab_size, device=device) >= config.vocab_size - NUM_SUPPRESSED_IDS
        suppressed[config.codec_eos_token_id] = False
        return cls(suppressed, config.codec_eos_token_id, MIN_FRAMES)


def sample_frame(model: TalkerModel, state: SlotState, rules: FirstCodebookRules, slots: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sample the frame that follows `x` and move the state of `slots` on.

    Args:
        slots: [batch] int64; the last slot of `state` is scratch and stays at its first row.
        x: [batch, hidden], the talker's last layer before its final norm, for the input row at `state.positions`.

    Returns:
        [batch, num_code_groups] int64; codebook 0 is EOS if the stream ends, BAD_CODE if its row went wrong.
    """
    hidden = model.transformer.norm(x)
    frames, seen, rest = state.frames[slots], state.seen[slots], state.rest[slots]
    uniforms = frame_uniforms(state.seeds[slots], frames, model.config.num_code_groups)

    # codebook 0
    logits = apply_repetition_penalty(model.first_code_logits(hidden), seen, state.repetition_penalty[slots])
    # A failed row must stay visible: a mask that hid its only NaN would let it through.
    failed = logits.isnan().any(-1)
    logits = logits.masked_fill(rules.suppressed, float("-inf"))
    logits[:, rules.eos].masked_fill_(frames < rules.min_frames, float("-inf"))
    code0 = torch.where(failed, BAD_CODE, sample(logits, state.first[slots], uniforms[:, 0]))
    valid_code0 = code0.clamp(min=0)

    # codebooks 1 to 15
    others = model.code_predictor.generate(hidden, valid_code0, lambda book, logits: sample(logits, rest, uniforms[:, book]))
    codes = torch.cat([code0[:, None], others], dim=1)

    state.seen[slots] = seen.scatter(1, valid_code0[:, None], True)
    state.codes[slots] = codes.clamp(min=0)
    state.frames[slots] = frames + 1
    # Padding stays at the first row. Otherwise it would attend to ever more empty rows, and in the end run past the tables.
    scratch = len(state.positions) - 1
    state.positions[slots] = torch.where(slots == scratch, 0, state.positions[slots] + 1)
    return codes
