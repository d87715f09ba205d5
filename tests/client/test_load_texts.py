"""Requests of a load: random turns, files of texts, perf_analyzer's input data."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.texts import Utterance, random_turns, read_utterances, shuffled
from qwen3_tts_client.protocol import RequestOptions, build_request

PERF = Path(__file__).parents[2] / "client" / "perf"


def load(options: RequestOptions, utterances: tuple[Utterance, ...] | None = None) -> Load:
    return Load("localhost:1", "qwen3_tts", 1, 0, 0, 0, 0, options, utterances)


def test_a_seed_gives_the_same_turns_again() -> None:
    first, again, other = (list(islice(random_turns(np.random.default_rng(seed)), 5)) for seed in (3, 3, 4))
    assert first == again != other


def test_a_text_file_has_a_text_a_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("Good morning.\n\n  Grüß dich!\n", encoding="utf-8")
    assert [utterance.text for utterance in read_utterances(file)] == ["Good morning.", "Grüß dich!"]


@pytest.mark.parametrize("name", ["speech", "instruct", "clone"])
def test_the_inputs_of_perf_analyzer_are_requests_of_ours(name: str) -> None:
    utterances = read_utterances(PERF / f"{name}.json")
    for text, options in utterances:
        request = build_request("qwen3_tts", text, **options)
        sent = {tensor.name: content for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)}
        assert sent["text"][4:].decode() == text
        assert b"max_frames" in sent["sampling_parameters"]
    assert len({len(text) for text, _ in utterances}) == len(utterances)


def test_a_clone_has_its_recording() -> None:
    ((_, options),) = read_utterances(PERF / "clone.json")
    audio = options["reference_audio"]
    assert audio is not None
    assert audio.dtype == np.float32
    assert 1 < audio.size / (options["reference_sample_rate"] or 1) < 2
    assert 0.1 < np.abs(audio).max() <= 1
    # perf_analyzer 2.51.0 refuses a whole number as a sample.
    (entry,) = json.loads((PERF / "clone.json").read_text(encoding="utf-8"))["data"]
    assert {type(sample) for sample in entry["reference_audio"]["content"]} == {float}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", "\n \n", "has no text; give one a line"),
        ("texts.json", "{", "Expecting property name"),
        ("texts.json", "[]", 'has no list "data"'),
        ("texts.json", '{"data": [1]}', '"data" holds something else than objects'),
        ("texts.json", '{"data": [{"voice": ["ada"]}]}', "entry 0 has no text"),
        ("texts.json", '{"data": [{"text": ["a"], "pitch": [1]}]}', "entry 0 has the unknown input 'pitch'"),
        ("texts.json", '{"data": [{"text": ["a"]}, {"text": "b"}]}', "entry 1 cannot be read: 'b' is not a list of one value"),
        ("texts.json", '{"data": [{"text": ["a"], "sampling_parameters": ["[]"]}]}', "sampling_parameters is no JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=name) as caught:
        read_utterances(tmp_path / name)
    assert message in str(caught.value)


def test_a_stream_says_every_text_before_it_says_one_again() -> None:
    texts = tuple(Utterance(text, {}) for text in "abcde")
    said = [utterance.text for utterance in islice(shuffled(texts, np.random.default_rng(0)), 10)]
    assert sorted(said[:5]) == sorted(said[5:]) == list("abcde")
    assert said[:5] != said[5:]


def test_a_file_s_own_options_win_and_those_of_the_command_win_over_random_turns() -> None:
    generator = np.random.default_rng(0)
    common: RequestOptions = {"voice": "ada", "sampling": {"max_frames": 9, "top_k": 3}}
    own = (Utterance("Hello.", {"voice": "ben", "sampling": {"max_frames": 5, "seed": 1}}),)
    _, options = next(load(common, own).turns(generator))
    assert options == {"voice": "ben", "sampling": {"max_frames": 5, "top_k": 3, "seed": 1}}
    _, options = next(load(common).turns(generator))
    sampling = options["sampling"] or {}
    assert (options["voice"], sampling["max_frames"], sampling["top_k"]) == ("ada", 9, 3)
    assert "seed" in sampling
