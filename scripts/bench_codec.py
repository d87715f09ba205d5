"""Measure the codec on one GPU: ms per step by streams and frames, and the error of bfloat16.

    python scripts/bench_codec.py --eager --output bench_codec.json

Weights are random (written once into --checkpoints), because speed does not depend on them; --model takes a real checkpoint.
Steps run as CUDA graphs; --eager also times the same kernels launched one by one. Every time is shown with its floor, the larger
of two: arithmetic at --bf16-flops or --fp32-flops (one H200: 790 TFLOP/s of matrix products measured, 60 TFLOP/s of float32), and
the bytes of the weights and of the streams' state at --bandwidth. With the published sizes one frame is 4.95 GFLOP over 0.21 GB of
bfloat16 weights. So a step of fewer than about 8 frames takes at least 0.05 ms to read the weights, and 8 frames of 32 streams
need 1.6 ms of arithmetic.

The streams of the table bring equally many frames each. Then one step has 256 frames of 60 unequal streams.

ms: device time of one step among steps launched back to back. alone ms: from a call on an idle device until the audio is on the
host. host us: host time to launch one step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from benching.arguments import HelpFormatter, add_checkpoints
from benching.measuring import command, machine, random_checkpoint, timed, wait, write_results
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.plan import Plan
from engine_lib.codec.runner import CodecRunner, Codes
from engine_lib.codec.step_limits import FRAMES_OF_A_STREAM
from engine_lib.devices import resolve_device

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
STEPS = 8  # in a row
PIECE = 8  # frames of the long stream in one step, as the talker sends them
STRETCH = 300  # frames; an error that grows along a stream grows from one stretch to the next


@dataclass(frozen=True)
class Row:
    """Figures of one step."""

    dtype: str
    mode: str
    streams: int
    frames: int
    ms: float
    alone_ms: float
    audio_seconds_per_second: float
    floor_ms: float
    ratio: float
    host_us: float


@dataclass(frozen=True)
class UnequalRow:
    """Figures of a step of streams with different numbers of frames."""

    dtype: str
    mode: str
    streams: int
    frames: int
    ms: float
    audio_seconds_per_second: float


def main() -> None:
    """Run the benchmark and print its tables."""
    arguments = _arguments()
    print("command:", command())
    folder = arguments.model or random_checkpoint(arguments.checkpoints, arguments.size)
    checkpoint = Checkpoint(folder)
    results: list[dict[str, object]] = []
    streams: dict[str, npt.NDArray[np.float32]] = {}
    for name in arguments.dtypes:
        slots = max(*arguments.streams, arguments.unequal[0])
        runner = CodecRunner(checkpoint, slots, dtype=DTYPES[name], device=resolve_device(arguments.device))
        started = time.perf_counter()
        most = max(max(arguments.streams) * max(arguments.frames), arguments.unequal[1])
        runner.capture(-(-most // FRAMES_OF_A_STREAM))
        wait()
        seconds = time.perf_counter() - started
        memory = torch.cuda.memory_reserved() / 1e9 if runner.graphs else 0.0
        print(f"\n{machine()}; {folder.name}, {name}; graphs captured in {seconds:.1f} s; {memory:.2f} GB reserved")
        results.append({"dtype": name, "capture_s": seconds, "reserved_gb": memory})
        streams[name] = _long_stream(runner, checkpoint, arguments.long)
        for mode in ["graph"] * (runner.graphs is not None) + ["eager"] * (arguments.eager or runner.graphs is None):
            if mode == "eager":
                runner.graphs = None
            results += [asdict(row) for row in _measure(runner, checkpoint, name, mode, arguments)]
            results.append(asdict(_measure_unequal(runner, checkpoint, name, mode, arguments)))
        results.append(_agreement(runner, checkpoint, name))
        if arguments.profile and runner.device.type == "cuda":
            runner.graphs = None
            for shape in sorted({(1, min(arguments.frames)), (max(arguments.streams), max(arguments.frames))}):
                _profile(runner, checkpoint, *shape)
        del runner
    if len(streams) == len(DTYPES):
        results.append(_bf16_error(streams, STRETCH * checkpoint.config.codec.samples_per_frame, arguments.long))
    if arguments.output:
        write_results(arguments.output, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--size", default="0.6b", choices=["tiny", "0.6b"], help="random checkpoint to measure; all published codecs have one shape"
    )
    parser.add_argument("--model", type=Path, help="measure this checkpoint folder instead")
    add_checkpoints(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES), help="of the codec")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="streams of a step")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 4, 8], help="frames of 80 ms that each brings")
    parser.add_argument("--unequal", type=int, nargs=2, default=[60, 256], metavar=("STREAMS", "FRAMES"), help="a step of unequal streams")
    parser.add_argument("--long", type=int, default=1500, help="frames of the stream that measures the error of bfloat16")
    parser.add_argument("--eager", action="store_true", help="also time the same step launched kernel by kernel")
    parser.add_argument("--profile", action="store_true", help="also print the device time of each kernel")
    parser.add_argument("--bf16-flops", type=float, default=790e12, help="bfloat16 operations a second (default: one H200, measured)")
    parser.add_argument(
        "--fp32-flops", type=float, default=60e12, help="float32 operations a second (default: one H200, by its data sheet)"
    )
    parser.add_argument("--bandwidth", type=float, default=4.2e12, help="bytes a second the memory moves (default: one H200, measured)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def _bf16_error(streams: dict[str, npt.NDArray[np.float32]], stretch: int, frames: int) -> dict[str, object]:
    """The error of bfloat16 over streams of `frames` frames, and over each `stretch` samples of them; also prints it."""
    exact, rounded = streams["float32"], streams["bfloat16"]
    error = _signal_to_noise(exact, rounded)
    stretches = [_signal_to_noise(exact[i : i + stretch], rounded[i : i + stretch]) for i in range(0, len(exact), stretch)]
    print(
        f"\nbfloat16 against float32, signal to noise over {frames} frames: {error:.1f} dB; "
        f"{STRETCH} frames at a time: {', '.join(f'{one:.1f}' for one in stretches)}"
    )
    return {"bf16_snr_db": error, "bf16_snr_db_of_stretches": stretches, "frames": frames}


def _measure(runner: CodecRunner, checkpoint: Checkpoint, dtype: str, mode: str, arguments: argparse.Namespace) -> list[Row]:
    """Time every size of step, and print its line."""
    codec = checkpoint.config.codec
    frame_seconds = codec.samples_per_frame / codec.sample_rate
    rate = arguments.bf16_flops if dtype == "bfloat16" else arguments.fp32_flops
    meta = CodecRunner(checkpoint, max(arguments.streams), dtype=DTYPES[dtype], device=torch.device("meta"))
    print(f"{mode:>6} {'streams':>8} {'frames':>7} {'ms':>8} {'alone ms':>9} {'audio-s/s':>10} {'floor ms':>9} {'ratio':>6} {'host us':>8}")
    rows = []
    for frames in arguments.frames:
        for streams in arguments.streams:
            if runner.graphs is not None and streams * frames > runner.limits.full:
                continue
            milliseconds, alone, host = _time(runner, _codes(checkpoint, streams, frames))
            floor = max(_flops(meta, streams, frames) / rate, _num_bytes(runner, streams) / arguments.bandwidth) * 1e3
            audio_rate = streams * frames * frame_seconds / milliseconds * 1e3
            rows.append(Row(dtype, mode, streams, frames, milliseconds, alone, audio_rate, floor, milliseconds / floor, host))
            print(
                f"{'':>6} {streams:>8} {frames:>7} {milliseconds:>8.3f} {alone:>9.3f} {audio_rate:>10.0f} {floor:>9.3f} "
                f"{milliseconds / floor:>6.1f} {host:>8.0f}",
                flush=True,
            )
    return rows


def _measure_unequal(runner: CodecRunner, checkpoint: Checkpoint, dtype: str, mode: str, arguments: argparse.Namespace) -> UnequalRow:
    """Time a step of unequal streams, and print its line."""
    codec = checkpoint.config.codec
    streams, frames = arguments.unequal
    sizes = np.bincount(np.random.default_rng(0).integers(0, streams, frames - streams), minlength=streams) + 1
    milliseconds, _, _ = _time(runner, [_codes(checkpoint, 1, int(size))[0] for size in sizes])
    rate = frames * codec.samples_per_frame / codec.sample_rate / milliseconds * 1e3
    print(f"{mode:>6} {frames} frames of {streams} unequal streams: {milliseconds:.3f} ms, {rate:.0f} audio-s/s")
    return UnequalRow(dtype, mode, streams, frames, milliseconds, rate)


def _agreement(runner: CodecRunner, checkpoint: Checkpoint, dtype: str) -> dict[str, object]:
    """Whether a frame's audio has the same bits in steps of all sizes, and the largest difference if not."""
    [own], audio = _codes(checkpoint, 1, 1), {}
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size <= min(runner.limits.full, runner.arena.scratch_slot)]
    for streams in sizes:
        runner.reset(0)
        audio[streams] = runner.step(range(streams), [own, *_codes(checkpoint, streams, 1)[1:]]).read()[0].copy()
    differences = {streams: float(np.abs(audio[streams] - audio[1]).max()) for streams in sizes}
    print(f"{dtype}, a frame among others, largest difference to the frame alone by streams: {differences}")
    return {"dtype": dtype, "difference_to_alone_by_streams": {str(streams): value for streams, value in differences.items()}}


def _codes(checkpoint: Checkpoint, streams: int, frames: int) -> list[Codes]:
    codec = checkpoint.config.codec
    return list(np.random.default_rng(frames).integers(0, codec.codebook_size, (streams, frames, codec.num_quantizers)))


def _time(runner: CodecRunner, pieces: list[Codes]) -> tuple[float, float, float]:
    """Medians: milliseconds of a step in a row and of a single one, and microseconds of host time to launch one."""
    slots = list(range(len(pieces)))

    def row() -> None:
        held = [runner.step(slots, pieces) for _ in range(STEPS)]
        del held

    alone = []
    with runner.on_stream():
        row()
        times = [timed(row) for _ in range(3)]
        for _ in range(5):
            wait()
            started = time.perf_counter()
            runner.step(slots, pieces).wait()
            alone.append((time.perf_counter() - started) * 1e3)
    device, host = (statistics.median(pair[i] for pair in times) / STEPS for i in (0, 1))
    return device, statistics.median(alone), host * 1e3


def _flops(meta: CodecRunner, streams: int, frames: int) -> int:
    """Operations of the matrix products and convolutions of one step; a multiplication and its addition count as two."""
    shape = (streams + 1, streams * frames)
    inputs = torch.empty(Plan.size(shape, meta.num_quantizers), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        meta.decode_plan(inputs, shape)
    return counter.get_total_flops()


def _num_bytes(runner: CodecRunner, streams: int) -> int:
    """Bytes a step must read: the past of its streams and every weight once, without the codebooks: it reads few of their rows."""
    weights = sum(weight.numel() * weight.element_size() for weight in runner.decoder.buffers())
    codebooks = runner.decoder.codebooks.table
    return weights - codebooks.numel() * codebooks.element_size() + streams * runner.arena.bytes_per_slot


def _long_stream(runner: CodecRunner, checkpoint: Checkpoint, frames: int) -> npt.NDArray[np.float32]:
    """Audio of one stream."""
    [codes] = _codes(checkpoint, 1, frames)
    runner.reset(0)
    return np.concatenate([runner.step([0], [codes[start : start + PIECE]]).read()[0] for start in range(0, frames, PIECE)])


def _signal_to_noise(exact: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Signal-to-noise ratio in dB."""
    return float(10 * np.log10(np.square(exact).mean(dtype=np.float64) / np.square(exact - other).mean(dtype=np.float64)))


def _profile(runner: CodecRunner, checkpoint: Checkpoint, streams: int, frames: int) -> None:
    """Print the device time by operator, with the shapes of its inputs, and by kernel."""
    pieces = _codes(checkpoint, streams, frames)
    slots = list(range(streams))
    runner.step(slots, pieces).wait()
    with torch.profiler.profile(record_shapes=True) as profiler:
        runner.step(slots, pieces).wait()
        wait()
    events = profiler.key_averages(group_by_input_shape=True)
    for title, device in (("operators", "CPU"), ("kernels", "CUDA")):
        costly = [event for event in events if event.device_type.name == device and event.self_device_time_total > 0]
        costly.sort(key=lambda event: -event.self_device_time_total)
        total, count = sum(event.self_device_time_total for event in costly), sum(event.count for event in costly)
        print(f"\n{streams} streams, {frames} frames, one step: {total:.0f} us in {count} calls, by {title}")
        for event in costly[:25]:
            shapes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes or [] if shape)
            print(f"{event.self_device_time_total:>8.0f} us {event.count:>4} x  {event.key[:70]:70}  {shapes[:70]}")


if __name__ == "__main__":
    main()
