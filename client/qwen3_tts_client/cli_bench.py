"""The command `qwen3-tts bench`: load on a running server, and its figures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL, cli_options
from qwen3_tts_client.cli_errors import EXIT_INTERRUPTED, EXIT_OVERLOADED, EXIT_STREAM_FAILED, exit_code, failed, naming

if TYPE_CHECKING:
    from qwen3_tts_client.load.record import Run
    from qwen3_tts_client.load.streams import Load
    from qwen3_tts_client.load.texts import Utterance

DAY = 86_400  # seconds

# "\b" keeps the lines of a paragraph as they are.
EPILOG = """
Examples:

\b
  # 1, 4 and 16 streams at a time, then 2 and 10 requests a second
  qwen3-tts bench --streams 1,4,16 --rates 2,10 --voice vivian
\b
  # your own texts, figures and picture into files
  qwen3-tts bench --streams 8 --texts texts.txt --seconds 60 \\
      -o bench.json --plot bench.png
\b
  # the requests that perf_analyzer makes
  qwen3-tts bench --streams 4 --texts client/perf/speech.json
\b
  # the most listeners that hear no pause, from 16 on
  qwen3-tts bench --real-time --from 16 --voice vivian
\b
  # beside an earlier run; beside another server, in turns with it
  qwen3-tts bench --streams 8 --compare bench.json
  qwen3-tts bench --streams 8 --compare old-server:8001

In a closed loop each stream makes its next request when it has been answered: it shows what a number of listeners get. In
an open loop requests come at random (Poisson), however long the others take: it shows the waiting when too many come.
Without --texts the requests are like spoken turns, 5.7 s of audio on average. With --real-time each stream of a closed
loop lasts as long as its audio, as a listener hears it; the number of streams doubles until one hears a pause within the
measured time (or waits a second, p95), then it is narrowed to 5 %.

\b
Columns:
  first audio  from sending a request to its first samples, percentiles
  audible      from sending to the first sample above -50 dB, if playback
               begins with the first samples
  gap          between two chunks of a stream
  late chunks  underruns: chunks that came after the audio before them was
               played out; first the streams that had any, then the chunks
  RTF          real-time factor, p50: time taken / seconds of audio
  real time    whether the server carries so many real-time streams
  audio-s/s    seconds of audio that arrive in a second
  errors       requests that were refused, failed or cut (--patience)
  CPU          share of a core of the busiest client process

\b
Exit codes:
  0    every request was answered
  1    requests failed or were cut, or a row has no figures
  2    an option is not allowed, or the server refuses the requests
  3    no server answers, or its model is not ready
  4    the server was overloaded and refused requests; no others failed
  130  interrupted; the points measured before are in the JSON
"""


def bench(
    streams: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Closed loops: streams at a time. [default: 1,4,16 without --rates]")
    ] = None,
    rates: Annotated[str | None, typer.Option(metavar="X,X,...", help="Open loops: requests a second.")] = None,
    # Named, because typer 0.27 takes a metavar that equals the name for the name itself.
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", min=0.1, max=DAY, metavar="SECONDS", help="Measured time of each point. [default: 15, with --real-time 30]"
        ),
    ] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(min=0, max=DAY, metavar="SECONDS", help="The same load before the measured time. [default: 4, with --real-time 8]"),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=DAY,
            metavar="SECONDS",
            help="Time after the measured time until running streams are cut. [default: 10, with --real-time 30]",
        ),
    ] = None,
    real_time: Annotated[
        bool, typer.Option("--real-time", help="Search for the most streams, each paced at playback speed, that no listener hears pause.")
    ] = False,
    first: Annotated[int | None, typer.Option("--from", min=1, metavar="N", help="Streams of its first step. [default: 1]")] = None,
    most: Annotated[int | None, typer.Option("--to", min=1, metavar="N", help="The most streams it tries. [default: 600]")] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="FILE|HOST:PORT", help="Show the ratios to an earlier run (-o), or to another server, measured in turns."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text a line, or perf_analyzer's input data if its name ends with .json.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of texts, lengths, arrivals and sampling.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the figures as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the figures; needs matplotlib.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Client processes that share the load. [default: by the number of cores]")
    ] = None,
    voice: cli_options.Voice = None,
    language: cli_options.Language = None,
    instruct: cli_options.Instruct = None,
    reference: cli_options.Reference = None,
    reference_text: cli_options.ReferenceText = None,
    x_vector_only: cli_options.XVectorOnly = False,
    model: cli_options.Model = DEFAULT_MODEL,
    url: cli_options.Url = DEFAULT_URL,
    timeout: cli_options.Timeout = None,
    priority: cli_options.Priority = None,
    client_name: cli_options.ClientName = None,
    chunk_frames: cli_options.ChunkFrames = None,
    temperature: cli_options.Temperature = None,
    top_k: cli_options.TopK = None,
    top_p: cli_options.TopP = None,
    repetition_penalty: cli_options.RepetitionPenalty = None,
    greedy: cli_options.Greedy = False,
    max_frames: cli_options.MaxFrames = None,
    non_streaming: cli_options.NonStreaming = None,
) -> None:
    """Put load on a server and measure it: first audio, gaps, underruns, throughput, errors."""
    from qwen3_tts_client.load import real_time as search
    from qwen3_tts_client.load.clients import DEFAULT_PROCESSES, running_clients
    from qwen3_tts_client.load.measuring import Measuring, times
    from qwen3_tts_client.load.shown import Shown
    from qwen3_tts_client.load.streams import Load
    from qwen3_tts_client.load.table import LiveTable, wide_console

    points = _points(streams, rates, real_time=real_time, bounds=(first, most))
    _check_files(output, plot)
    options = cli_options.request_options(
        voice=voice,
        language=language,
        instruct=instruct,
        reference=reference,
        reference_text=reference_text,
        x_vector_only=x_vector_only,
        chunk_frames=chunk_frames,
        greedy=greedy,
        sampling={
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "max_frames": max_frames,
            "non_streaming_mode": non_streaming,
        },
        priority=priority,
        client=client_name,
    )
    seconds, warm_up, patience = times(seconds, warm_up, patience, is_real_time=real_time)
    load = Load(
        url=url,
        model=model,
        streams=0,
        rate=0,
        warm_up=warm_up,
        patience=patience,
        seed=seed,
        options=options,
        utterances=_utterances(texts),
        timeout=timeout,
    )
    other = _other(compare, load, seconds)
    _try_one_request(load)
    if isinstance(other, str):
        _try_one_request(replace(load, url=other))
    record = {"command": " ".join(["qwen3-tts", *sys.argv[1:]]), "url": url, "model": model, "seed": seed}
    bounds = (first or search.FIRST, most or search.MOST)
    loads = (search.most_steps(*bounds) * (2 if isinstance(other, str) else 1)) if real_time else len(points)
    console, lines = wide_console(), []
    try:
        with (
            running_clients(processes or DEFAULT_PROCESSES, watched=True) as clients,
            LiveTable(console, loads * (warm_up + seconds) * (4 if isinstance(other, str) and not real_time else 1)) as table,
        ):

            def write() -> None:
                if output is not None:
                    figures = json.dumps({**record, **measuring.more, "results": measuring.results}, indent=1)
                    with naming(output):
                        output.write_text(figures, encoding="utf-8")

            def add(point: dict[str, object]) -> None:
                table.add(point)
                write()

            measuring = Measuring(Shown(clients, table).measure, load, seconds, other=other, add=add)
            for count, rate in points:
                measuring.measure(count, rate, seconds)
            if real_time:
                lines = measuring.find_real_time(*bounds, seconds)
                write()
    except KeyboardInterrupt:
        raise failed(EXIT_INTERRUPTED, "interrupted; the server was told to stop") from None
    for line in [*lines, *notes(measuring.results)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if (comparison := measuring.compared()) is not None:
        console.print(comparison)
    if plot is not None:
        from qwen3_tts_client.load.plot import marks_of
        from qwen3_tts_client.load.plot import plot as draw

        with naming(plot):
            draw(measuring.results, f"{url}, model {model}", plot, marks=marks_of(measuring.theirs))
    raise typer.Exit(0 if real_time else exit_code_of(measuring.results))


def _points(streams: str | None, rates: str | None, *, real_time: bool, bounds: tuple[int | None, int | None]) -> list[tuple[int, float]]:
    """(streams, rate) of each point: closed loops, then open loops; the other number is 0. None for a search."""
    for option, given in (("--streams", streams), ("--rates", rates)):
        if real_time and given is not None:
            raise typer.BadParameter("--real-time finds the number of streams itself; leave this out", param_hint=option)
    for option, bound in zip(("--from", "--to"), bounds, strict=True):
        if bound is not None and not real_time:
            raise typer.BadParameter("is of --real-time; give that, too", param_hint=option)
    if real_time:
        return []
    if streams is None and rates is None:
        streams = "1,4,16"
    closed = [] if streams is None else cli_options.numbers(streams, int, "--streams")
    opened = [] if rates is None else cli_options.numbers(rates, float, "--rates")
    for option, values in (("--streams", closed), ("--rates", opened)):
        if wrong := [value for value in values if not 0 < value < float("inf")]:
            raise typer.BadParameter(f"{wrong[0]} is not allowed; give numbers above 0", param_hint=option)
    return [(count, 0.0) for count in closed] + [(0, rate) for rate in opened]


def _other(compare: str | None, load: Load, seconds: float) -> Run | str | None:
    """What to compare with."""
    from qwen3_tts_client.load.compare import other_run

    try:
        return None if compare is None else other_run(compare, load, seconds)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--compare") from None


def _check_files(output: Path | None, plot: Path | None) -> None:
    """Refuse what could not be written after minutes of measuring."""
    for option, path in (("--output", output), ("--plot", plot)):
        if path is not None:
            cli_options.check_file(option, path)
    if plot is not None:
        if find_spec("matplotlib") is None:
            raise typer.BadParameter("needs matplotlib: pip install matplotlib", param_hint="--plot")
        from matplotlib.figure import Figure

        known = Figure().canvas.get_supported_filetypes()
        if plot.suffix[1:].lower() not in known:
            raise typer.BadParameter(f"{str(plot)!r} has no known suffix; give one of .png, .svg, .pdf", param_hint="--plot")


def _utterances(texts: Path | None) -> tuple[Utterance, ...] | None:
    from qwen3_tts_client.load.texts import read_utterances

    try:
        return None if texts is None else read_utterances(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--texts") from None


def _try_one_request(load: Load) -> None:
    """Make one short request, so that a wrong option or address is told at once. A full server may be measured.

    Raises:
        typer.Exit: the server refuses it, or there is none.
    """
    import numpy as np

    from qwen3_tts_client.client import Client
    from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError, ServerUnavailable

    text, options = next(load.turns(np.random.default_rng(load.seed)))
    options["sampling"] = {**(options.get("sampling") or {}), "max_frames": 1}
    try:
        with Client(load.url, load.model) as client:
            client.synthesize(text, timeout=load.timeout, **options)
    except (InvalidRequest, ServerUnavailable) as error:
        raise failed(exit_code(error), error.message, error.hint) from None
    except Qwen3TTSClientError:
        pass  # it is counted when it happens to a request of the load
    except KeyboardInterrupt:
        raise failed(EXIT_INTERRUPTED, "interrupted") from None


def notes(results: list[dict[str, Any]]) -> list[str]:
    """What to say of points without figures."""
    if all(point["requests"] for point in results):
        return []
    return [
        "a row without figures: no request began in the measured time, because the earlier ones lasted longer; give more --seconds. "
        "If no stream is so long, the server hangs"
    ]


def exit_code_of(results: list[dict[str, Any]]) -> int:
    """The exit code for these points."""
    if any(point["failed"] or point["unfinished"] or not point["requests"] for point in results):
        return EXIT_STREAM_FAILED
    return EXIT_OVERLOADED if any(point["refused"] for point in results) else 0
