"""Print first audio, gaps, underruns and real-time factor from perf_analyzer's profile exports.

    scripts/perf_analyzer.sh --streams "1 4"                      # calls this script
    python scripts/perf_report.py profile.json --plot profile.png
    python scripts/perf_report.py build/perf_analyzer/results/*.json --output report.json

perf_analyzer itself prints the time until the last response. Here first audio is the first of `response_timestamps` minus
`timestamp`; a model that answers once (qwen3_tts_offline) has its first audio with its last. The columns are those of
`qwen3-tts bench`, from the same code.

Seconds of audio come from the samples of each response, which an export of 2.51 has. If an export has none, they follow from
`chunk_frames` of the request (or the server's default ramp, 1, 2, 4, 8): every chunk counts as full, so the audio of the last one
may be too long, and with `chunk_policy` adaptive there are no seconds at all. A line says which was used.

perf_analyzer keeps the requests that ended within its windows, and ends itself at the first request that is refused. A stream
that breaks later is an answer to it; here it counts as failed.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from benching.arguments import HelpFormatter, require_matplotlib
from qwen3_tts_client.load.audible import AudibleStart
from qwen3_tts_client.load.figures import DONE, FAILED, Spoken, audio_figures, mean_streams, stream_figures
from qwen3_tts_client.load.table import notes_on, table_of
from qwen3_tts_client.load.texts import FRAMES_PER_SECOND

NANOSECONDS = 1e-9
DEFAULT_CHUNK_FRAMES = (1, 2, 4, 8)  # of engine_lib/config.py
BYTES_PER_SAMPLE = 2  # of pcm16_base64
MEASURED, PLANNED, UNKNOWN = "samples", "chunk_frames", "unknown"
EXPLAINED = {
    MEASURED: "seconds of audio: counted from the samples in the export",
    PLANNED: "seconds of audio: from chunk_frames, every chunk counted as full, because the export has no samples",
    UNKNOWN: "seconds of audio: unknown, because the export has no samples and chunk_policy is adaptive",
}


class Response(msgspec.Struct):
    """The outputs of one response that are read. Samples stay text, of which only the commas are counted, until they are wanted."""

    audio: msgspec.Raw = msgspec.Raw(b"")
    audio_base64: str = ""
    sample_rate: int = 24_000
    is_final: bool = False
    finish_reason: str = ""
    error: str = ""

    def samples(self) -> int | None:
        """Number of samples; None if the export has none."""
        if self.audio_base64:
            return (len(self.audio_base64) * 3 // 4 - self.audio_base64[-2:].count("=")) // BYTES_PER_SAMPLE
        values = bytes(self.audio)
        # A tensor without elements is exported as one stray number instead of a list.
        return values.count(b",") + 1 if values.startswith(b"[") and values != b"[]" else None

    def waveform(self) -> npt.NDArray[np.float32]:
        """The samples that `samples` counts."""
        if self.audio_base64:
            return np.frombuffer(base64.b64decode(self.audio_base64), "<i2").astype(np.float32) / 32768
        return np.asarray(msgspec.json.decode(self.audio, type=list[float]), np.float32)


class Exchange(msgspec.Struct):
    """A request and its responses; times in nanoseconds."""

    timestamp: int
    response_timestamps: list[int]
    request_inputs: dict[str, Any] = {}
    response_outputs: list[Response] = []


class Experiment(msgspec.Struct):
    """One load: its kind and size, and what happened."""

    experiment: dict[str, Any]
    requests: list[Exchange]
    window_boundaries: list[int]


class Export(msgspec.Struct):
    """A profile export."""

    experiments: list[Experiment]


def main() -> None:
    """Read the exports and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, metavar="PROFILE.json", help="files of perf_analyzer --profile-export-file")
    help = "seconds at the beginning of each load whose requests are left out (default 0); all streams of a closed loop begin at once"
    parser.add_argument("--warm-up", type=float, default=0, metavar="SECONDS", help=help)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures; needs matplotlib")
    arguments = parser.parse_args()
    require_matplotlib(parser, arguments)
    points = []
    for path in arguments.exports:
        try:
            points += [{"export": str(path), **figures(experiment, arguments.warm_up)} for experiment in read_export(path).experiments]
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
    console = Console()
    console.print(table_of(points))
    for note in [
        *dict.fromkeys(EXPLAINED[str(point["audio_from"])] for point in points),
        *(note for point in points for note in notes_on(point)),
    ]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"results": points}, indent=1))
    if arguments.plot:
        from qwen3_tts_client.load.plot import plot

        plot(points, "perf_analyzer", arguments.plot)


def read_export(path: Path) -> Export:
    """Read a file, whose samples may be gigabytes of text.

    Raises:
        OSError, ValueError: it cannot be read, or is no profile export.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # stays open as long as the samples refer to it
    try:
        return msgspec.json.decode(content, type=Export)
    except msgspec.MsgspecError as error:
        raise ValueError(f"is no profile export of perf_analyzer: {error}") from None


def figures(experiment: Experiment, warm_up: float) -> dict[str, object]:
    """Figures of one load, by the names of `qwen3-tts bench`.

    Args:
        experiment: what happened.
        warm_up: seconds from its beginning; requests sent in that time are not measured.

    Raises:
        ValueError: nothing was sent later.
    """
    requests, sources = [], set()
    for exchange in experiment.requests:
        spoken, source = _spoken(exchange)
        requests.append(spoken)
        if spoken.arrivals:
            sources.add(source)
    end = experiment.window_boundaries[-1] * NANOSECONDS
    first = min((spoken.sent for spoken in requests), default=end)
    begin = max(first, experiment.window_boundaries[0] * NANOSECONDS) + warm_up
    measured = [spoken for spoken in requests if warm_up == 0 or spoken.sent >= begin]
    if not measured or begin >= end:
        raise ValueError(f"no request was sent after --warm-up {warm_up:g}; measure longer")
    kind, value = experiment.experiment["mode"], experiment.experiment["value"]
    return {
        "streams": value if kind == "concurrency" else 0,
        "rate": 0.0 if kind == "concurrency" else float(value),
        "audio_from": max(sources, key=list(EXPLAINED).index, default=UNKNOWN),
        "seconds": end - begin,
        **stream_figures(measured),
        **({} if sources <= {MEASURED} else {"inaudible": None}),  # the others have no samples
        **audio_figures(requests, begin, end),
        "mean_streams": mean_streams(requests, begin, end),
    }


def _spoken(exchange: Exchange) -> tuple[Spoken, str]:
    """A request in the form of our client's, in seconds, and the source of its seconds of audio."""
    times = [time * NANOSECONDS for time in exchange.response_timestamps]
    spoken = Spoken(exchange.timestamp * NANOSECONDS, DONE, ended=times[-1] if times else None)
    outputs = exchange.response_outputs
    if outputs and outputs[-1].finish_reason == "error":
        spoken.outcome, spoken.error, spoken.error_type = FAILED, outputs[-1].error, "StreamFailed"
    # The last response of a stream has no samples. Without outputs it is told by its place: an offline answer is the only one.
    has_audio = [not output.is_final for output in outputs] if outputs else [len(times) == 1 or time != times[-1] for time in times]
    spoken.arrivals = [time for time, audible in zip(times, has_audio, strict=True) if audible]
    samples = [(output.samples(), output.sample_rate) for output in outputs if not output.is_final]
    if samples and all(count is not None for count, _ in samples):
        spoken.seconds = [(count or 0) / rate for count, rate in samples]
        spoken.audible_at = _audible_at(output for output in outputs if not output.is_final)
        return spoken, MEASURED
    planned = _planned_seconds(exchange.request_inputs, len(spoken.arrivals))
    spoken.seconds = [0.0] * len(spoken.arrivals) if planned is None else list(planned)
    return spoken, UNKNOWN if planned is None else PLANNED


def _audible_at(outputs: Iterable[Response]) -> float | None:
    """Seconds of audio before the first audible sample; responses behind it are not decoded."""
    audible = AudibleStart()
    for output in outputs:
        audible.hear(output.waveform(), output.sample_rate)
        if audible.seconds is not None:
            break
    return audible.seconds


def _planned_seconds(inputs: dict[str, Any], chunks: int) -> Sequence[float] | None:
    """Seconds of each chunk by the request's own chunk_frames; None if they change with the load."""
    parameters = json.loads(inputs.get("sampling_parameters") or "{}")
    if parameters.get("chunk_policy", "fixed") != "fixed":
        return None
    frames = parameters.get("chunk_frames", DEFAULT_CHUNK_FRAMES)
    return [frames[min(index, len(frames) - 1)] / FRAMES_PER_SECOND for index in range(chunks)]


if __name__ == "__main__":
    main()
