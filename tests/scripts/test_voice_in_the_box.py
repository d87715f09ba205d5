"""The recipe of the voice in the box: it computes like the engine and the official package, and runs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from librosa.sequence import dtw
from safetensors.torch import load_file

pytest.importorskip("espeakng_loader", reason="needs espeak-ng: pip install espeakng-loader (scripts/install.sh test brings it)")

import oracle
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.checkpoint import Checkpoint
from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.prompt import PromptBuilder
from engine_lib.server.installation import ServerError, ServerInstallation
from engine_lib.talker.device.model import TalkerModel
from patience import PROGRAM_PATIENCE
from voice_in_the_box import shapes
from voice_in_the_box.codec_model import Quantiser, decode
from voice_in_the_box.corpus import LAYOUTS, Corpus, input_rows
from voice_in_the_box.digits import errors
from voice_in_the_box.evaluate import main
from voice_in_the_box.live_checkpoint import LiveCheckpoint, write_all_but_weights, write_weights
from voice_in_the_box.retrieval import distances
from voice_in_the_box.sentences import Sentences, is_held_out
from voice_in_the_box.speech import SAMPLES_PER_FRAME, SPEAKERS, Espeak
from voice_in_the_box.talker_training import MAX_POSITIONS, Batches, logits

RECIPE = Path(__file__).resolve().parents[2] / "scripts" / "voice_in_the_box"
TEXT = "It is 12:45, Emma."
GREEDY: dict[str, Any] = {"do_sample": False, "subtalker_dosample": False, "max_new_tokens": 25}
SMALL: dict[str, Any] = {"device": "cpu", "max_num_seqs": 1, "codec_slots": 1, "max_model_len": 512}
CPU = torch.device("cpu")

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the recipe with initial weights, scaled up so that every logit matters."""
    folder = tmp_path_factory.mktemp("voice") / "checkpoint"
    configs = shapes.configs()
    write_all_but_weights(folder, configs)
    talker = shapes.initial_weights(shapes.talker_specs(configs), 3, CPU)
    codec = shapes.initial_weights(shapes.codec_specs(configs), 4, CPU)
    for name in talker:
        if "head" in name:
            talker[name] *= 10
    generator = torch.Generator().manual_seed(5)
    for name in codec:
        if "_codebook" in name:
            codec[name] = torch.rand(codec[name].shape, generator=generator) + 0.5
    write_weights(folder, talker, codec)
    return folder


def weights(folder: Path) -> tuple[Tensors, Tensors]:
    """Talker and codec of a checkpoint, as float32."""
    files = folder / "model.safetensors", folder / "speech_tokenizer" / "model.safetensors"
    talker, codec = ({name: tensor.float() for name, tensor in load_file(file).items()} for file in files)
    return talker, codec


def test_the_checkpoint_is_small_enough_to_ship(untrained: Path) -> None:
    assert sum(file.stat().st_size for file in untrained.rglob("*") if file.is_file()) < 12e6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_teacher_forcing_the_engines_greedy_codes_predicts_each_of_them(untrained: Path, layout: bool) -> None:
    with Qwen3TTS.from_pretrained(untrained, **SMALL) as tts:
        [codes] = tts.generate_codes(TEXT, "ben", "english", non_streaming_mode=layout, repetition_penalty=1.0, **GREEDY)
    prompts = PromptBuilder(Checkpoint(untrained), max_text_length=100)
    prompt = prompts.build(text=TEXT, voice="ben", language="english", non_streaming_mode=layout)
    row_text, row_code = input_rows(prompt, len(codes), prompts.config.tts_pad_token_id)
    corpus = Corpus(
        audio=torch.zeros(0, dtype=torch.int16),
        frames=np.array([len(codes)]),
        prompt_rows=np.array([[len(prompt)]]),
        row_text=torch.from_numpy(row_text),
        row_code=torch.from_numpy(row_code),
    )
    talker_config, frames = prompts.config.talker, torch.from_numpy(codes.astype(np.uint8))
    eos, size = talker_config.codec_eos_token_id, prompts.config.codec.codebook_size
    batches = Batches(corpus, frames, eos=eos, codebook_size=size, rows=100, predicted_frames=100, seed=0)
    batch = batches.batch(np.array([0]), corrupt=False)
    live = LiveCheckpoint(untrained, *weights(untrained))
    with torch.no_grad():
        said = logits(TalkerModel(live, dtype=torch.float32, device=CPU, max_positions=MAX_POSITIONS), batch)

    first = said.first[batch.frame_rows]
    first[:, size:] = -torch.inf  # the engine suppresses these, and EOS in the first frames
    assert first.argmax(1).tolist() == codes[:, 0].tolist()
    assert said.others.argmax(2).tolist() == codes[:, 1:].tolist()
    assert batch.targets.flatten()[batch.frame_rows].tolist() == codes[:, 0].tolist()
    assert batch.targets[0, len(prompt) + len(codes) - 1] == eos
    assert (batch.targets != -100).sum() == len(codes) + 1


def test_the_codec_in_training_decodes_as_the_engine_does(untrained: Path) -> None:
    _, codec = weights(untrained)
    config = CheckpointConfig.read(untrained).codec
    latents = torch.randn(1, 9, config.codebook_dim, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        quantised = Quantiser(codec, config)(latents)
        audio = decode(codec, config, quantised.latents)[0].clamp(-1, 1)
    with Qwen3TTS.from_pretrained(untrained, **SMALL) as tts:
        [theirs], _ = tts.decode(quantised.codes[0].numpy().astype(np.int16))
    assert len(theirs) == 9 * SAMPLES_PER_FRAME
    np.testing.assert_allclose(audio.numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_official_package_speaks_the_same_codes(untrained: Path, layout: bool) -> None:
    with Qwen3TTS.from_pretrained(untrained, **SMALL) as tts:
        [ours] = tts.generate_codes(TEXT, "ada", "english", non_streaming_mode=layout, **GREEDY)
    asked: dict[str, Any] = {"text": TEXT, "speaker": "ada", "language": "english", "non_streaming_mode": layout}
    [theirs], _ = oracle.official_codes(untrained, decode=False, **asked, **GREEDY)
    assert ours.tolist() == theirs.tolist()


def test_training_never_sees_what_evaluation_asks_for() -> None:
    asked = [*Sentences(11).held_out(100), *Sentences(12).held_out_digits(50, 5)]
    assert all(map(is_held_out, asked))
    assert asked == [*Sentences(11).held_out(100), *Sentences(12).held_out_digits(50, 5)]
    trained_on = list(itertools.islice(iter(Sentences(1)), 3000))
    assert not any(map(is_held_out, trained_on))
    assert len(set(trained_on)) > 2500


def test_speech_comes_in_whole_frames_and_differs_by_speaker() -> None:
    espeak = Espeak()
    spoken = [espeak.speak("Good morning, Emma.", speaker) for speaker in SPEAKERS]
    assert all(len(audio) % SAMPLES_PER_FRAME == 0 and 0.1 < np.abs(audio).max() <= 1 for audio in spoken)
    assert len(spoken[0]) != len(spoken[1]) or np.abs(spoken[0] - spoken[1]).max() > 0.1


def test_warped_distances_are_those_of_librosa() -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    random = np.random.default_rng(seed)
    query, *references = (random.standard_normal((n, 5)).astype(np.float32) for n in (17, 17, 1, 40, 9))
    warped = [dtw(query.T, r.T, backtrack=False)[-1, -1] / (len(query) + len(r)) for r in references]
    np.testing.assert_allclose(distances(query, references), warped, rtol=1e-5)


def test_digit_errors_count_what_was_replaced_left_out_or_added() -> None:
    assert errors([1, 2, 3], [1, 2, 3]) == 0
    assert errors([1, 2, 3], []) == 3
    assert errors([1, 2, 3], [1, 4, 3]) == 1
    assert errors([1, 2, 3], [2, 3, 3, 0]) == 3


@pytest.mark.parametrize(("option", "allowed"), [("--sentences=0", "1 or more"), ("--digits=-1", "0 or more")])
def test_a_number_that_cannot_be_evaluated_is_refused(
    option: str, allowed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "checkpoint", option])
    with pytest.raises(SystemExit):
        main()
    name, value = option.split("=")
    assert f"{name}: {value} is not allowed; give {allowed}" in capsys.readouterr().err


@pytest.mark.server
def test_the_whole_chain_runs_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx (scripts/install.sh test brings it)")
    try:
        ServerInstallation.find(tmp_path)
    except ServerError as error:
        pytest.skip(str(error))
    run, environment = tmp_path / "run", dict(os.environ, OMP_NUM_THREADS="1")
    trained = [sys.executable, str(RECIPE / "train.py"), str(run), "--smoke", "--device", "cpu", "--processes", "1"]
    subprocess.run(trained, check=True, env=environment, timeout=PROGRAM_PATIENCE)
    assert (run / "curves.png").stat().st_size > 0
    checked = [sys.executable, str(RECIPE / "evaluate.py"), str(run / "checkpoint"), "--report-only"]
    subprocess.run([*checked, "--codec-only", str(run), "--sentences", "2"], check=True, env=environment, timeout=PROGRAM_PATIENCE)
    asked = [*checked, "--quick", "--sentences", "2", "--digits", "1", "--json", str(run / "scores.json")]
    output = subprocess.run(asked, check=True, env=environment, timeout=PROGRAM_PATIENCE, capture_output=True, text=True).stdout
    assert output.count("retrieved") >= 4
