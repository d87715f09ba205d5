"""Requests of a load: random speech-like turns, or those of a file.

A seed gives the random turns: lengths of spoken turns (log-normal, mean 71 frames = 5.7 s of audio, cut to 8 to 250), and texts with
as many words as speech of that length has (3 to 60). A file has a text a line, or is the JSON that perf_analyzer takes as
--input-data, so that both can make the same requests; each stream takes them in an order of its own, which the seed gives.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from qwen3_tts_client.protocol import RequestOptions

FRAMES_PER_SECOND = 12.5
MEAN_FRAMES, SIGMA = 71, 0.6  # of the log-normal lengths, before the cut
SHORTEST, LONGEST = 8, 250  # frames
WORDS_PER_SECOND = 2.7
FEWEST_WORDS, MOST_WORDS = 3, 60
VOCABULARY = (
    "the a of and to in is that we you it for was on are with as they be at this have from or one had by but not what all were when "
    "there can an your which said if do will each about how up out them then she many some so these would other into has more two like "
    "time could people water little only find number over know place years light thing great where through because evening question "
    "morning together station weather remember afternoon tomorrow important between children mountain different"
)


class Utterance(NamedTuple):
    """What one request says, and its options."""

    text: str
    options: RequestOptions


def speech_frames(generator: np.random.Generator) -> int:
    """A random number of frames of a spoken turn."""
    return int(np.clip(generator.lognormal(np.log(MEAN_FRAMES) - SIGMA**2 / 2, SIGMA), SHORTEST, LONGEST))


def random_turns(generator: np.random.Generator) -> Iterator[Utterance]:
    """Turns without end, each with the sampling parameters that fix its length and its seed."""
    while True:
        frames = speech_frames(generator)
        count = int(np.clip(round(frames / FRAMES_PER_SECOND * WORDS_PER_SECOND), FEWEST_WORDS, MOST_WORDS))
        text = " ".join(generator.choice(VOCABULARY.split(), count)).capitalize() + "."
        yield Utterance(text, {"sampling": {"seed": int(generator.integers(2**31)), "max_frames": frames}})


def shuffled(utterances: tuple[Utterance, ...], generator: np.random.Generator) -> Iterator[Utterance]:
    """These without end: all of them in a random order, then all again in another. Each gets a seed unless it has one."""
    while True:
        for index in generator.permutation(len(utterances)):
            text, options = utterances[index]
            seed = {"seed": int(generator.integers(2**31))}
            yield Utterance(text, options | RequestOptions(sampling=seed | dict(options.get("sampling") or {})))


def with_defaults(options: RequestOptions, defaults: RequestOptions) -> RequestOptions:
    """`options`, completed from `defaults`; single sampling parameters too."""
    sampling = dict(defaults.get("sampling") or {}) | dict(options.get("sampling") or {})
    return defaults | options | RequestOptions(sampling=sampling)


def read_utterances(path: Path) -> tuple[Utterance, ...]:
    """The requests of a file: with the suffix .json perf_analyzer's input data, else a text a line (empty lines do not count).

    Raises:
        ValueError: it cannot be read so, or is empty; the message names the file and the place.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            utterances = tuple(_utterance(entry, number) for number, entry in enumerate(_entries(json.loads(content))))
        else:
            utterances = tuple(Utterance(line.strip(), {}) for line in content.splitlines() if line.strip())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; give what perf_analyzer takes, as client/perf/speech.json") from None
    if not utterances:
        raise ValueError(f"{path}: has no text; give one a line")
    return utterances


def _entries(content: Any) -> list[dict[str, Any]]:
    """The entries of perf_analyzer's input data: one list, or lists of entries, one a stream."""
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise ValueError('has no list "data"')
    entries = [entry for part in data for entry in (part if isinstance(part, list) else [part])]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError('"data" holds something else than objects')
    return entries


def _utterance(entry: dict[str, Any], number: int) -> Utterance:
    """One entry: the model's inputs by name, each a list of one value, or of samples."""
    unknown = sorted(set(entry) - set(INPUTS))
    if unknown or "text" not in entry:
        found = f"has the unknown input {unknown[0]!r}" if unknown else "has no text"
        raise ValueError(f"entry {number} {found}; allowed: {', '.join(INPUTS)}, of which text must be there")
    try:
        values: dict[str, Any] = {name: INPUTS[name](_content(tensor)) for name, tensor in entry.items()}
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"entry {number} cannot be read: {error}") from None
    text = values.pop("text")
    if "sampling_parameters" in values:
        values["sampling"] = values.pop("sampling_parameters")
    return Utterance(text, cast(RequestOptions, values))


def _content(tensor: Any) -> Any:
    """The values of a tensor: a list, an object with the list as `content`, or base64 of a float32 tensor."""
    if isinstance(tensor, dict):
        return np.frombuffer(base64.b64decode(tensor["b64"]), "<f4") if "b64" in tensor else tensor["content"]
    return tensor


def _one(kind: type) -> Callable[[Any], Any]:
    def read(values: Any) -> Any:
        if not isinstance(values, list) or len(values) != 1:
            raise ValueError(f"{values!r:.60} is not a list of one value")
        return kind(values[0])

    return read


def _object(values: Any) -> dict[str, Any]:
    parameters = json.loads(_one(str)(values))
    if not isinstance(parameters, dict):
        raise ValueError("sampling_parameters is no JSON object")
    return parameters


INPUTS: dict[str, Callable[[Any], Any]] = {
    "text": _one(str),
    "voice": _one(str),
    "language": _one(str),
    "instruct": _one(str),
    "sampling_parameters": _object,
    "reference_audio": lambda values: np.asarray(values, np.float32),
    "reference_sample_rate": _one(int),
    "reference_text": _one(str),
    "x_vector_only": _one(bool),
}
