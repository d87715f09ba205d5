"""How far bfloat16 is from float32: equal weights, equal codes fed back, the logits of every sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from talker.speaking import Utterance, make_engine
from talker.teacher_forcing import relative_errors, run_forced

VOICES = ("ryan", "vivian", "aiden", "serena", "eric", "dylan")

# bfloat16 rounds each of a layer's results by up to 2 ** -9 of itself, and the errors add up over the layers. Relative to the spread
# of the logits (teacher_forcing.relative_errors), plain torch on a CPU comes to this with random weights of the 0.6B shapes: codebook 0
# median 0.022, worst 0.024; code predictor 0.029 and 0.043 (32 frames). The bounds leave room for kernels that round elsewhere.
MEDIAN_BOUND = 0.05
WORST_BOUND = 0.10
# Keys and values of all frames so far are in bfloat16 too; they must not make later frames worse.
GROWTH_BOUND = 1.5


def check_bf16_error(path: Path, device: str, *, batch: int, num_frames: int) -> None:
    """Check and print the errors of codebook 0 and of the code predictor's books against the bounds. `path` has bfloat16 weights."""
    prompts = [Utterance("Good morning!", VOICES[i % len(VOICES)]).prompt(path) for i in range(batch)]
    options: dict[str, Any] = {"device": device, "max_num_seqs": batch, "max_model_len": 256, "kv_block_size": 16, "enforce_eager": True}
    exact = run_forced(make_engine(path, dtype="float32", **options), prompts, num_frames)
    codes = exact.all_codes()
    rounded = run_forced(make_engine(path, dtype="bfloat16", **options), prompts, num_frames, codes)
    errors = [relative_errors(rounded.logits_of(book), exact.logits_of(book)) for book in range(exact.num_code_groups)]
    for name, error in (("codebook 0", errors[0]), ("code predictor", np.stack(errors[1:], axis=-1))):
        by_frame = error.reshape(num_frames, -1).mean(1)
        quarter = num_frames // 4
        median, worst, growth = np.median(error), error.max(), by_frame[-quarter:].mean() / by_frame[:quarter].mean()
        figures = f"median {median:.4f}, worst {worst:.4f}, last quarter against first {growth:.2f}"
        print(f"{name}, batch {batch}: relative error of the logits: {figures}")
        assert 0 < median <= MEDIAN_BOUND, f"{name}: median {median:.4f}"
        assert worst <= WORST_BOUND, f"{name}: {worst:.4f} in frame {int(error.reshape(num_frames, -1).max(1).argmax())}"
        assert growth <= GROWTH_BOUND, f"{name}: errors grow by {growth:.2f}"
