"""compare_quality.py on the voice in the box: the same twice, a damaged copy, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from compare_quality import main
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

from comparing.figures import LESS, cosine, figure, sums, word_errors
from comparing.recognising import embedder, recogniser, run
from make_checkpoint import make_checkpoint
from voice_in_the_box import VOICE_IN_THE_BOX

ROOT = Path(__file__).parents[2]
DIGITS = "3 1 4\n2 7 8\n9 0 5\n"
PRINT_NAMES = f"{sys.executable} -c 'import sys; print(*sys.argv[1:], sep=chr(10))'"


def compared(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str, model: Path = VOICE_IN_THE_BOX) -> dict[str, Any]:
    """The JSON of a run with few texts."""
    texts, output = folder / "texts.txt", folder / "figures.json"
    texts.write_text(DIGITS)
    load = ["--device", "cpu", "--texts", str(texts), "--seeds", "1", "--max-frames", "40", "--option", "max_model_len=256"]
    monkeypatch.setattr("sys.argv", ["compare_quality.py", str(model), *load, "--output", str(output), *more])
    main()
    written: dict[str, Any] = json.loads(output.read_text())
    return written


def test_a_damaged_copy_says_more_wrong_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx (scripts/install.sh test brings it)")
    pytest.importorskip("jiwer", reason="needs jiwer: pip install jiwer")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'scripts'}:{ROOT}")
    listen = ["--recogniser", f"{sys.executable} {ROOT / 'tests' / 'scripts' / 'hear_digits.py'} {{files}}"]
    damaged = shutil.copytree(VOICE_IN_THE_BOX, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if tensor.ndim == 2 and "layers" in name:
            weights[name] = tensor + 0.5 * tensor.float().std() * torch.randn(tensor.shape, generator=noise).to(tensor.dtype)
    save_file(weights, damaged / "model.safetensors")
    written = compared(tmp_path, monkeypatch, "--other-model", str(damaged), *listen, "--plot", str(tmp_path / "figures.png"))
    words = written["figures"][0]
    assert words["name"] == "word errors, % of those said"
    assert words["a"] < words["b"]
    assert 0 < words["low"] <= words["difference"] <= words["high"]
    assert words["verdict"] == "B is worse"
    assert [len(written["takes"]), *map(len, (take["a"]["heard"].split() for take in written["takes"][:1]))] == [3, 3]
    assert "B is worse" in capsys.readouterr().out
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_setting_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = f"{sys.executable} -c 'import sys; [print(len(open(f, chr(114)+chr(98)).read()), 7) for f in sys.argv[1:]]' {{files}}"
    written = compared(tmp_path, monkeypatch, "--texts-count", "2", "--seeds", "2", "--embedder", embed, "--audio", str(tmp_path / "audio"))
    assert [each["verdict"] for each in written["figures"]] == ["no difference seen"] * 2 + ["the same"] * 2  # rates of few takes
    assert [each["difference"] for each in written["figures"]] == [0] * 4
    for file in (tmp_path / "audio" / "A").iterdir():
        ours, theirs = (soundfile.read(tmp_path / "audio" / setting / file.name)[0] for setting in "AB")
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0"], "--seeds: 0 is not allowed; give 1 or more"),
        (["--texts", "none.txt"], "none.txt: No such file"),
        (["--seeds", "1", "--embedder", "x {file}"], "--embedder compares takes of two seeds"),
        (["--texts-count", "1", "--b-option", "dtypo=float32"], "dtypo"),
        (["--texts-count", "1", "--voice", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        compared(tmp_path, monkeypatch, *more)
    assert message in capsys.readouterr().err


def test_words_count_without_case_and_punctuation() -> None:
    pytest.importorskip("jiwer", reason="needs jiwer: pip install jiwer")
    wrong, total = word_errors(["Don't go, now!", "One two."], ["don't GO no", ""], characters=False)
    assert (wrong.tolist(), total.tolist()) == ([1, 2], [3, 2])
    wrong, total = word_errors(["今天 天气。"], ["今天天"], characters=True)
    assert (wrong.tolist(), total.tolist()) == ([1], [4])


def test_a_difference_is_seen_only_if_the_texts_agree_on_it() -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(10, 3, (60, 2))
    worse = figure("words", LESS, sums(a, a + generator.normal(1, 0.5, a.shape)))
    assert (worse.verdict, round(worse.difference)) == ("B is worse", 1)
    assert worse.low < worse.difference < worse.high
    assert figure("words", LESS, sums(a, a + generator.normal(0, 1, a.shape))).verdict == "no difference seen"
    assert figure("words", LESS, sums(a, a)).verdict == "the same"


def test_a_rate_of_no_events_says_how_many_there_could_be() -> None:
    none, one = np.zeros((60, 3)), np.zeros((60, 3))
    rate = figure("runaways", LESS, sums(none, none), is_rate=True)
    assert (rate.difference, rate.verdict) == (0, "no difference seen")
    assert (rate.low, rate.high) == pytest.approx((-4.87, 4.87), abs=0.01)  # 3 / 60, nearly
    one[0, 0] = 100
    assert figure("runaways", LESS, sums(none, one), is_rate=True).difference == pytest.approx(100 / 180)


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    found = [figure("words", LESS, sums(a := generator.normal(5, 2, (40, 2)), a + generator.normal(0.3, 1, a.shape))) for _ in range(40)]
    assert sum(each.low <= 0.3 <= each.high for each in found) >= 34


def test_commands_get_one_file_or_all_of_them() -> None:
    files = [Path("a b.wav"), Path("c.wav")]
    assert run(PRINT_NAMES + " {files}", files) == recogniser(PRINT_NAMES + " {file}", "cpu")(files) == ["a b.wav", "c.wav"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/program {file}", "/no/such/program cannot be run: No such file"),
        (f"{sys.executable} -c 'raise SystemExit(\"no model\")' {{file}}", "ended with 1: no model"),
        (f"{sys.executable} -c 'print(1)' {{files}}", "printed 1 lines about 2 files"),
    ],
)
def test_a_command_that_fails_is_named_with_its_error(command: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"python|program") as failed:
        run(command, [Path("a.wav"), Path("b.wav")])
    assert message in str(failed.value)


@pytest.mark.parametrize("kind", ["base", "voice_design"])
def test_every_kind_of_checkpoint_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model, recording = make_checkpoint(tmp_path / kind, kind=kind), tmp_path / "recording.wav"
    soundfile.write(recording, 0.1 * np.random.default_rng(4).normal(size=48_000), 24_000)
    voice = ["--reference", str(recording)] if kind == "base" else ["--instruct", "A low voice."]
    written = compared(tmp_path, monkeypatch, "--texts-count", "1", "--max-frames", "6", *voice, model=model)
    assert [each["difference"] for each in written["figures"]] == pytest.approx([0] * (4 if kind == "base" else 3), abs=1e-5)
    assert "only 1 texts: the intervals are too narrow below 20" in capsys.readouterr().out


def test_a_model_of_transformers_can_be_the_recogniser(tmp_path: Path) -> None:
    sizes = {"vocab_size": 7, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (80, 8), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(sampling_rate=16_000), tokenizer).save_pretrained(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # one model of some thousands hears nothing
        Wav2Vec2ForCTC(Wav2Vec2Config(**sizes, **convolutions, **positions)).save_pretrained(tmp_path)
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, 0.1 * np.random.default_rng(5).normal(size=24_000), 24_000)
    [heard] = recogniser(str(tmp_path), "cpu")([sound])
    assert set(heard) & set("ab</s>")  # random weights hear something


def test_a_base_checkpoint_brings_its_own_speaker_encoder(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    files = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for file in files:
        soundfile.write(file, 0.1 * generator.normal(size=24_000), 24_000)
    embed = embedder(None, make_checkpoint(tmp_path / "base", kind="base"))
    assert embed is not None
    one, two = embed(files)
    assert cosine(one, one) == pytest.approx(1)
    assert cosine(one, two) < 1 - 1e-9
    assert embedder(None, VOICE_IN_THE_BOX) is None
