"""scripts/compare_logits.py: the logits it compares are those that the engine sampled from."""

from __future__ import annotations

import sys

import pytest
import torch
from api.loading import GREEDY, load
from compare_logits import inputs_of, logits_of, main, worker_of
from talker.speaking import checkpoint

from engine_lib.prompt import PromptBuilder
from voice_in_the_box import VOICE_IN_THE_BOX

TEXT = "There is a small penguin in the window."


@pytest.mark.parametrize("layout", [True, False], ids=["whole text", "text a frame"])
def test_greedy_codes_are_the_most_likely_ones(layout: bool) -> None:
    with load(VOICE_IN_THE_BOX) as tts:
        [frames] = tts.generate_codes(TEXT, "ada", "english", non_streaming_mode=layout, **(GREEDY | {"repetition_penalty": 1.0}))
    prompt = PromptBuilder(checkpoint(VOICE_IN_THE_BOX), 4000).build(text=TEXT, voice="ada", language="english", non_streaming_mode=layout)
    model = worker_of(checkpoint(VOICE_IN_THE_BOX), {}).model
    with torch.inference_mode():
        logits = logits_of(model, *inputs_of(prompt, frames, model.tts_pad_token_id), len(frames))
    likeliest = torch.stack([book[:, : model.config.codec_eos_token_id - 2].argmax(-1) for book in logits], dim=1)
    assert (likeliest == torch.from_numpy(frames)).double().mean() > 0.999


def test_an_option_without_effect_changes_nothing_and_fp8_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def last_line(option: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["compare_logits.py", str(VOICE_IN_THE_BOX), "--option", option, "--sentences", "1"])
        assert main() == 0
        return capsys.readouterr().out.splitlines()[-1].split()

    assert last_line("max_num_seqs=2") == ["all", "0.00000", "0.00000", "100.00%"]
    assert 0 < float(last_line("talker_weights=fp8")[1]) < 0.1
